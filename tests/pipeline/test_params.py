"""params.yaml: what is accepted, and the one line for what is not."""

import copy
import math
import os
from pathlib import Path
from typing import Any

import pytest
import small
from conftest import TINY
from dvc.utils.serialize import YAMLError, dumps_yaml, load_yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from retrace.checks import check_all
from retrace.commands.demo import FOLDER, params_of, prepare
from retrace.pipeline.command import Refusal
from retrace.pipeline.params import Params, load, read_yaml
from retrace.problems import architectures
from retrace.sweeps.trials import _whole

ROOT = Path(__file__).parents[2]
PARAMS = read_yaml(ROOT / "params.yaml")


def changed(path: str, value: Any) -> Any:
    """params.yaml with one key set; the value `...` deletes it."""
    params = copy.deepcopy(PARAMS)
    *parents, last = path.split("/")
    section = params
    for key in parents:
        section = section.setdefault(key, {})
    if value is ...:
        del section[last]
    else:
        section[last] = value
    return params


def check(params: dict[str, Any], folder: Path) -> None:
    file = folder / "params.yaml"
    file.write_text(dumps_yaml(params), encoding="utf-8")
    check_all(load(file))


def test_what_is_committed_is_valid_and_so_is_the_demo(tmp_path: Path) -> None:
    check(PARAMS, tmp_path)
    check(params_of(PARAMS, read_yaml(ROOT / "demo.yaml")), tmp_path)


@pytest.mark.parametrize(
    ("demo", "said"),
    [
        ("", r"\.yaml holds None; the sections keep and change are needed"),
        ("kept: {networks: [ffnn]}", ".yaml: kept: unknown key"),
        ("keep: 3", ".yaml: keep = 3: input should be a valid dictionary"),
        ("keep: {networks: 3}", ".yaml: keep.networks = 3: input should be a valid list"),
        ("keep: {nothing: [x]}", ".yaml: keep.nothing = 'nothing': input should be 'networks', '"),
        ("keep: {networks: [gone]}", ".yaml: keep.networks: params.yaml has no gone any more"),
        ("change: [1]", r".yaml: change = \[1\]: input should be a valid dictionary"),
        ("change: {runs: 3}", ".yaml: in what it makes of params.yaml, runs = 3: input should be"),
        (
            "change: {networks: {ffnn: {training: {epoks: 3}}}}",
            ".yaml: in what it makes of params.yaml, networks.ffnn.training.epoks: unknown key",
        ),
        (
            "{keep: {networks: [deep]}, change: {networks: {ffnn: {}}}}",
            ".yaml: change.networks.ffnn: keep.networks lacks it",
        ),
        ("keep: {runs: []}", ".yaml: in what it makes of params.yaml, problems.autoencoding"),
    ],
)
def test_a_wrong_demo_is_refused_by_its_own_name(
    demo: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(dumps_yaml(PARAMS), encoding="utf-8")
    (tmp_path / "demo.yaml").write_text(demo, encoding="utf-8")
    with pytest.raises(Refusal, match=rf"^demo{said}"):
        prepare(FOLDER)
    assert not FOLDER.exists()


def test_the_demo_is_made_from_the_folder_of_the_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refusal, match=r"missing; run from the folder that holds dvc\.yaml"):
        prepare(FOLDER)
    assert not FOLDER.exists()


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
        (
            "masks/patterns/lines",
            {"kind": "rows", "first": 99, "step": 2},
            "masks.patterns.lines.first = 99: input should be less than 28",
        ),
        (
            "masks/patterns/random",
            {"kind": "random", "share": 1.2},
            "masks.patterns.random.share = 1.2: input should be less than or equal to",
        ),
        (
            "masks/patterns/rows",
            {"kind": "rectangle", "rows": [10, 28], "columns": [0, 27]},
            "masks.patterns.rows.rows.1 = 28: input should be less than 28",
        ),
        ("networks/random", {"architecture": 5}, "networks.random.architecture = 5: input should"),
        ("masks/patterns/band", {"kind": "spiral"}, "masks.patterns.band = {'kind': 'spiral'}"),
        ("scoring/resamples", 99, "scoring.resamples = 99: input should be greater than or equal"),
        (
            "networks/ffnn/training/learning_rate",
            math.nan,
            "networks.ffnn.training.learning_rate = nan: input should be",
        ),
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
        (
            "runs/imputation-ridge/network",
            "classifier",
            "runs.imputation-ridge.network = 'classifier': architecture classifier; method ridge "
            "takes gaussian, prior",
        ),
        ("runs/imputation-combined/network", "vae", "vae; method combined takes prior"),
        ("runs/autoencoding-deep/network", "classifier", "method one_pass takes convolutional"),
        ("runs/imputation-masked/network", "deep", "dense; method masked takes masked"),
        ("runs/decoder_inversion-layerwise/network", "deep", "method layerwise takes vae"),
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


def test_architectures_are_named_for_methods_that_there_are() -> None:
    folder = ROOT / "retrace"
    assert all((folder / f"networks/{name}.py").is_file() for name in architectures.KNOWN)
    for problem, methods in architectures.TAKES.items():
        assert all((folder / f"methods/{problem}/{name}.py").is_file() for name in methods)
    assert architectures.objection("imputation", "ridge", "ones_own") is None
    assert architectures.objection("imputation", "ones_own", "classifier") is None


def test_a_file_that_is_not_there_or_not_yaml(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="is missing"):
        load(tmp_path / "params.yaml")
    for text, said in (
        ("data: [1, 2\n", "is not YAML"),
        ("", r"params\.yaml holds None; sections such as data are needed"),
        ("- 1\n", r"params\.yaml holds \[1\]"),
        ("x: " + 60_000 * "[", "is nested in more than 1000 levels"),
        ("x:\n" + 60_000 * "- " + "1", "is nested in more than 1000 levels"),
    ):
        (tmp_path / "params.yaml").write_text(text)
        with pytest.raises(Refusal, match=said):
            load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").unlink()
    os.mkfifo(tmp_path / "params.yaml")
    with pytest.raises(Refusal, match=r"params\.yaml is no file"):
        load(tmp_path / "params.yaml")


def exact(content: Any) -> Any:
    """A content that compares as unequal where a type differs, and NaN as equal."""
    if isinstance(content, dict):
        return {str(exact(key)): exact(value) for key, value in content.items()}
    if isinstance(content, list):
        return [exact(value) for value in content]
    return type(content).__name__, repr(content)


NUMBERS = [
    *(
        "010",
        "0o10",
        "0x1F",
        "0b11",
        "1_000",
        "1__0",
        "1:30",
        "190:20:30.15",
        "089",
        "0777",
        "-012",
    ),
    *("1e3", "1e-3", "1.5E3", "12e03", ".5", "5.", "+1", "-0", "1e", "0o", "0x_", "_", "1.2.3"),
    *("1_000.5", ".inf", "-.INF", ".nan", "infinity", "NaN", "yes", "NO", "on", "Off", "y", "true"),
    *("~", "null", "2001-01-01", "2001-99-99", "2001-01-01T10:00:00", "=", "<<", "-", "'1'", '"1"'),
    *('!!int "3"', "!!str 1", "!!float ''", "!!set {a}", "9" * 5000),
]


@pytest.mark.parametrize("scalar", NUMBERS)
def test_a_scalar_is_what_it_is_to_dvc_or_refused(scalar: str, tmp_path: Path) -> None:
    compare_with_dvc(f"a: {scalar}\n", tmp_path / "params.yaml")


def compare_with_dvc(text: str, file: Path) -> None:
    file.write_bytes(text.encode())
    try:
        ours = read_yaml(file)
    except Refusal as refusal:
        assert "\n" not in str(refusal)
        with pytest.raises((YAMLError, ValueError, LookupError, UnicodeError)):
            load_yaml(str(file))
    else:
        assert exact(ours or {}) == exact(load_yaml(str(file)))


SCALARS = st.one_of(
    st.from_regex(r"[-+]?[0-9_.:]{1,8}([eE][-+]?[0-9]{0,3})?", fullmatch=True),
    st.from_regex(r"[-+]?0[box]?[0-9a-fA-F_]{0,6}", fullmatch=True),
    st.from_regex(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ][0-9:.]{1,8}Z?)?", fullmatch=True),
    st.sampled_from(["yes", "No", "ON", "off", "y", "N", "true", "FALSE", "~", "null", "<<", "="]),
)


@given(entries=st.lists(st.tuples(SCALARS, SCALARS), min_size=1, max_size=3), bom=st.booleans())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_file_of_scalars_is_what_it_is_to_dvc_or_refused(
    entries: list[tuple[str, str]], bom: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = "".join(f"{key}: [{value}]\n" for key, value in entries)
    file = tmp_path_factory.getbasetemp() / "scalars.yaml"
    compare_with_dvc("\ufeff" * bom + text, file)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("  seed: 1:30", "data.seed = '1:30': input should be a valid integer"),
        ("  seed: yes", "data.seed = 'yes': input should be a valid integer"),
        ("  seed: 2001-01-01", "data.seed = datetime.date(2001, 1, 1): input should be"),
        ("  seed: .inf", "data.seed = inf: input should be a valid integer"),
        ("  seed: 2001-99-99", "is not YAML: month must be in 1..12"),
        ("  seed: 1\n  seed: 2", 'line 7: found duplicate key "seed"'),
        ("  seed:\t1\n\tx: 1", "is not YAML: line"),
        ("<<<<<<< HEAD\n  seed: 1\n=======\n  seed: 2\n>>>>>>> other", "line 6: <<<<<<< HEAD"),
    ],
)
def test_what_yaml_1_2_takes_for_no_number_is_refused_with_its_key(
    line: str, message: str, tmp_path: Path
) -> None:
    text = dumps_yaml(PARAMS)
    assert text.count("\n  seed: 0\n") == 3
    file = tmp_path / "params.yaml"
    file.write_text(text.replace("  seed: 0", line, 1), encoding="utf-8")
    with pytest.raises(Refusal) as refusal:
        load(file)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_leading_zero_is_no_octal(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(dumps_yaml(PARAMS).replace("  seed: 0", "  seed: 010", 1), encoding="utf-8")
    assert load(file).data.seed == load_yaml(str(file))["data"]["seed"] == 10


def test_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes(b"data: {name: caf\xe9}\n")
    with pytest.raises(Refusal, match=r"is not UTF-8: .* at byte 16"):
        load(tmp_path / "params.yaml")


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


def without(content: Any, path: tuple[str, ...]) -> Any:
    """A copy of nested sections without one key."""
    first, *rest = path
    if rest:
        return {**content, first: without(content[first], tuple(rest))}
    return {key: value for key, value in content.items() if key != first}


def whole(content: dict[str, Any]) -> Any:
    """The values that the stages are given, defaults included; None where they would refuse."""
    try:
        return _whole(Params.model_validate(content)).model_dump(mode="json")
    except (Refusal, ValidationError):
        return None


SMALL = {**TINY, "networks": small.NETWORKS, "runs": small.named_runs()}


@pytest.mark.parametrize("content", [PARAMS, TINY, SMALL], ids=["params.yaml", "tiny", "small"])
def test_no_setting_repeats_its_default(content: dict[str, Any]) -> None:
    base = {**content, "sweeps": {}}
    expected = whole(base)
    sections = ("networks", "problems", "runs")
    settings = [p for p in paths(base) if p[0] in sections and (p[3:] or p[-1] == "precision")]
    assert expected and settings
    assert not [path for path in settings if whole(without(base, path)) == expected]


def test_the_demo_changes_all_that_it_names() -> None:
    demo = read_yaml(ROOT / "demo.yaml")
    expected = whole(params_of(PARAMS, demo))
    changes = paths({"change": demo["change"]})[1:]
    assert expected
    assert not [p for p in changes if whole(params_of(PARAMS, without(demo, p))) == expected]


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
        section = section.setdefault(key, {})
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
        # The key, the section that lacks it, or where something else refers to it by its name; of
        # a run its problem may be named, and of all networks one.
        keys = (last, *parents[-1:], name, last.split("-")[0].removesuffix("s"))
        assert any(repr(key)[1:-1] in text or key in text for key in keys)
    else:
        assert load(folder / "params.yaml").model_dump(exclude_unset=True) == params


@given(data=st.data())
@settings(max_examples=MUTATIONS, deadline=None, derandomize=True)
def test_a_file_with_a_slip_of_the_keyboard_is_read_or_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = dumps_yaml({**FEWER, "runs": {}})
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(start + 5, len(text))))
    file = tmp_path_factory.mktemp("slip") / "params.yaml"
    file.write_text(text[:start] + data.draw(st.text(max_size=5)) + text[end:], encoding="utf-8")
    try:
        load(file)
    except Refusal as refusal:
        assert "\n" not in str(refusal)
