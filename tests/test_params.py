"""params.yaml: what is accepted, and the one line for what is not."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.serialize import load_yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.check import check_all
from stages.command import Refusal
from stages.demo import merged
from stages.params import _Loader, load

ROOT = Path(__file__).parent.parent
PARAMS = yaml.load((ROOT / "params.yaml").read_text(), _Loader)  # noqa: S506


def changed(path: str, value: Any) -> Any:
    """params.yaml with one key set; the value `...` deletes it."""
    params = copy.deepcopy(PARAMS)
    *parents, last = path.split("/")
    section = params
    for key in parents:
        section = section[key]
    if value is ...:
        del section[last]
    else:
        section[last] = value
    return params


def check(params: dict[str, Any], folder: Path) -> None:
    file = folder / "params.yaml"
    file.write_text(yaml.safe_dump(params, sort_keys=False))
    check_all(load(file))


def test_what_is_committed_is_valid_and_so_is_the_demo(tmp_path: Path) -> None:
    check(PARAMS, tmp_path)
    check(merged(PARAMS, yaml.safe_load((ROOT / "demo.yaml").read_text())), tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("data/nmae", "mnist", "data.nmae: unknown key"),
        ("data/name", "cifar", "data.name = 'cifar': input should be 'mnist', 'fashion-mnist'"),
        ("data/name", ..., "data.name: this key is missing"),
        ("data/validation", 1.5, "data.validation = 1.5: input should be less than 1"),
        ("data/seed", "0", "data.seed = '0': input should be a valid integer"),
        (
            "masks/patterns/band",
            {"kind": "rectangle", "rows": [10, 28], "columns": [0, 27]},
            "masks.patterns.band.rows.1 = 28: input should be less than 28",
        ),
        (
            "masks/patterns/band",
            {"kind": "rectangle", "rows": [17, 10], "columns": [0, 27]},
            "the first, 17, lies behind the last, 10",
        ),
        (
            "masks/patterns/band",
            {"kind": "rectangle", "rows": [0, 27], "columns": [0, 27]},
            "the mask covers the whole image",
        ),
        (
            "masks/patterns/random_50",
            {"kind": "random", "share": 1.2},
            "masks.patterns.random_50.share = 1.2: input should be less than or equal to",
        ),
        ("masks/patterns/band", {"kind": "spiral"}, "masks.patterns.band"),
        ("masks/images", 0, "masks.images = 0: input should be greater than or equal to 1"),
        (
            "networks/ffnn/training/epoks",
            20,
            "networks.ffnn.training.epoks: unknown key",
        ),
        ("networks/ffnn/training/epochs", -1, "networks.ffnn.training.epochs = -1: input should"),
        ("networks/ffnn/arguments/dropout", 1.0, "networks.ffnn.arguments.dropout = 1.0"),
        (
            "networks/ffnn/architecture",
            "transformer",
            "networks.ffnn.architecture = 'transformer': allowed are classifier, convolutional",
        ),
        ("runs/imputation-known/settings/steps", -5, "runs.imputation-known.settings.steps = -5"),
        ("runs/imputation-known/settings/step", 5, "settings.step: unknown key"),
        (
            "runs/imputation-known/method",
            "magic",
            "allowed are backpropagation, backpropagation_prior, biharmonic",
        ),
        ("runs/imputation-known/network", "gan", "runs.imputation-known.network = 'gan': allowed"),
        ("runs/imputation-known/problem", "alchemy", "problem = 'alchemy': allowed are autoenc"),
    ],
)
def test_refusals_name_key_value_and_what_is_allowed(
    path: str, value: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(Refusal) as refusal:
        check(changed(path, value), tmp_path)
    text = str(refusal.value)
    assert message in text
    assert "\n" not in text


def test_a_file_that_is_not_there_or_not_yaml(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="is missing"):
        load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("data: [1, 2\n")
    with pytest.raises(Refusal, match="is not YAML"):
        load(tmp_path / "params.yaml")


def test_numbers_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "numbers.yaml"
    file.write_text("a: 1e-3\nb: 1.5e3\nc: -2E5\nd: 0.5\ne: 3\nf: 1e\ng: no\n")
    ours = yaml.load(file.read_text(), _Loader)  # noqa: S506
    theirs = {**load_yaml(str(file)), "g": False}  # YAML 1.2 has no "no"; we have no such key
    assert ours == theirs
    committed = ROOT / "params.yaml"
    assert yaml.load(committed.read_text(), _Loader) == load_yaml(str(committed))  # noqa: S506


def one_of_each() -> dict[str, Any]:
    """params.yaml with one network of each architecture and one run of each method."""
    by_kind = {entry["architecture"]: name for name, entry in PARAMS["networks"].items()}
    networks = {name: PARAMS["networks"][name] for name in by_kind.values()}
    runs = {(r["problem"], r["method"]): name for name, r in PARAMS["runs"].items()}
    kept = {name: copy.deepcopy(PARAMS["runs"][name]) for name in runs.values()}
    for run in kept.values():
        run["network"] = by_kind[PARAMS["networks"][run["network"]]["architecture"]]
    return {**PARAMS, "networks": networks, "runs": kept}


FEWER = one_of_each()


def paths(content: Any, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every key, sections included."""
    if not isinstance(content, dict):
        return []
    return [
        path
        for key, value in content.items()
        for path in ((*above, key), *paths(value, (*above, key)))
    ]


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**12), 10**12),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(-3, 3), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


MUTATIONS = 200 if os.environ.get("RETRACE_FAULTS") == "full" else 50


@given(
    path=st.sampled_from(paths(FEWER)),
    how=st.sampled_from(["replace", "delete", "rename", "add"]),
    value=JUNK,
    name=st.text(min_size=1, max_size=8),
)
@settings(max_examples=MUTATIONS, deadline=None, derandomize=True)
def test_a_mutated_file_is_valid_or_refused_with_its_key(
    path: tuple[str, ...], how: str, value: Any, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No traceback, one line, and the key; what is accepted is taken as it stands."""
    params = copy.deepcopy(FEWER)
    *parents, last = path
    section: Any = params
    for key in parents:
        section = section[key]
    if how == "replace":
        section[last] = value
    elif how == "add":
        section[name] = value
    else:
        old = section.pop(last)
        if how == "rename":
            section[name] = old
    folder = tmp_path_factory.mktemp("mutated")
    try:
        check(params, folder)
    except Refusal as refusal:
        text = str(refusal)
        assert "\n" not in text and len(text) < 600
        # The key, the section that lacks it, or where something else refers to it by its name.
        assert any(repr(key)[1:-1] in text or key in text for key in (last, *parents[-1:], name))
    else:
        assert load(folder / "params.yaml").model_dump(exclude_unset=True) == params


@given(data=st.data())
@settings(max_examples=MUTATIONS, deadline=None, derandomize=True)
def test_a_file_with_a_slip_of_the_keyboard_is_read_or_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = yaml.safe_dump({**FEWER, "runs": {}}, sort_keys=False)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(start + 5, len(text))))
    file = tmp_path_factory.mktemp("slip") / "params.yaml"
    file.write_text(text[:start] + data.draw(st.text(max_size=5)) + text[end:], encoding="utf-8")
    try:
        load(file)
    except Refusal as refusal:
        assert "\n" not in str(refusal)
