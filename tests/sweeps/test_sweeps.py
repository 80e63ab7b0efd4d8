"""Sweeps: the trials that they stand for, what they make once, and what is refused."""

import copy
import csv
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, write_params

from retrace.commands import sweep
from retrace.execution import engine
from retrace.pipeline.artifacts import read_json, write_arrays, write_json
from retrace.pipeline.command import Refusal
from retrace.pipeline.params import Params, load
from retrace.problems.architectures import TAKES
from retrace.sweeps import results, running
from retrace.sweeps.running import Plan, Task
from retrace.sweeps.trials import Figure, Range, check_sweeps, sweep_of

KNOWN = "runs.imputation-known.settings"
FIGURE = {"metric": "mse", "x": f"{KNOWN}.steps", "lines": f"{KNOWN}.start"}
ABLATE: dict[str, Any] = {
    "runs": ["imputation-known"],
    "search": "grid",
    "vary": [{f"{KNOWN}.steps": [2, 4], f"{KNOWN}.start": ["mean", "noise"]}],
    "figure": FIGURE,
}
NETWORK = "networks.margin.training"
TRAIN: dict[str, Any] = {
    "runs": ["training_data-sparse_span"],
    "search": "grid",
    "vary": [{f"{NETWORK}.per_class": [2, 4, 5000], f"{NETWORK}.seed": [0, 1]}],
    "figure": {"metric": "identified_share"},
}


def with_sweep(**changes: Any) -> Params:
    content = copy.deepcopy(TINY) | {"sweeps": {"small": {**ABLATE, **changes}}}
    return Params.model_validate(content)


def values_of(params: Params) -> list[tuple[Any, ...]]:
    return [tuple(trial.values.values()) for trial in sweep_of(params, "small").trials]


def test_a_grid_is_every_combination_and_none_twice() -> None:
    assert values_of(with_sweep()) == [(2, "mean"), (2, "noise"), (4, "mean"), (4, "noise")]
    spaces = [ABLATE["vary"][0], {f"{KNOWN}.steps": [4, 8], f"{KNOWN}.start": ["noise"]}]
    assert values_of(with_sweep(vary=spaces))[4:] == [(8, "noise")]
    # What a space does not name is as in params.yaml.
    assert values_of(with_sweep(vary=[*spaces, {f"{KNOWN}.steps": [9]}]))[-1] == (9, "noise")


def test_a_trial_is_whole_but_small() -> None:
    params = sweep_of(with_sweep(fixed={"masks.images": 3}), "small").trials[0].params
    # The ratio to ridge takes ridge's run, the agreement the classifier.
    assert set(params.runs) == {"imputation-known", "imputation-ridge"}
    assert set(params.networks) == {"ffnn", "gaussian", "classifier"}
    assert set(params.problems) == {"imputation"}
    assert params.masks.images == 3 and not params.sweeps
    assert params.runs["imputation-known"].settings["steps"] == 2
    assert TINY["runs"]["imputation-known"]["settings"]["steps"] == 5  # not changed in place


def test_ranges_end_where_they_say() -> None:
    rates = Range(low=0.001, high=10.0, scale="log", points=5)
    assert [rates.at(i / 4) for i in range(5)] == pytest.approx([0.001, 0.01, 0.1, 1.0, 10.0])
    whole = Range(low=1, high=100, scale="linear")
    assert [whole.at(x) for x in (0, 0.5, 1)] == [1, 50, 100]
    assert all(isinstance(whole.at(x), int) for x in (0.0, 0.3))
    space = {f"{KNOWN}.learning_rate": rates.model_dump(), f"{KNOWN}.start": ["mean"]}
    found = values_of(with_sweep(vary=[space], figure={"metric": "mse"}))
    assert [value for value, _ in found] == pytest.approx([0.001, 0.01, 0.1, 1.0, 10.0])


def test_random_trials_are_within_their_ranges_and_more_leave_the_first_ones() -> None:
    space = {
        f"{KNOWN}.learning_rate": {"low": 0.001, "high": 1.0, "scale": "log"},
        f"{KNOWN}.steps": {"low": 1, "high": 8, "scale": "linear"},
        f"{KNOWN}.start": ["mean", "noise"],
    }
    settings = {"search": "random", "vary": [space], "figure": {"metric": "mse"}}
    few = values_of(with_sweep(**settings, trials=10, seed=1))
    more = values_of(with_sweep(**settings, trials=300, seed=1))
    assert more[:10] == few != values_of(with_sweep(**settings, trials=10, seed=2))
    rates = np.array([rate for rate, _, _ in more])
    assert 0.001 <= rates.min() < 0.002 and 0.5 < rates.max() <= 1.0
    assert np.median(np.log10(rates)) == pytest.approx(-1.5, abs=0.25)
    assert {steps for _, steps, _ in more} == set(range(1, 9))
    assert {start for _, _, start in more} == {"mean", "noise"}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"vary": [{f"{KNOWN}.stepz": [1]}]}, r"vary\.0\.runs\..*\.stepz: unknown key"),
        ({"vary": [{"nothing": [1]}]}, r"vary\.0\.nothing: unknown key"),
        ({"vary": [{f"{KNOWN}.steps": []}]}, r"steps = \[\]: a list of at least one value"),
        ({"vary": [{f"{KNOWN}.steps": 5}]}, r"steps = 5: a list of at least one value"),
        (
            {"vary": [{f"{KNOWN}.steps": {"low": 1, "high": 3, "scale": "cubic"}}]},
            r"steps\.scale = 'cubic': input should be 'linear' or 'log'",
        ),
        ({"vary": []}, "at least 1 item"),
        ({"vary": [{}]}, "at least 1 item"),
        ({"vary": [{f"{KNOWN}.steps": [0]}]}, r"trial 0: runs\..*steps = 0: .*greater than"),
        ({"vary": [{f"{KNOWN}.start": ["grey"]}]}, r"trial 0: runs\..*start = 'grey'"),
        ({"vary": [{"masks.images": [0]}]}, r"masks\.images = 0: .*greater than"),
        ({"vary": [{"data.name": ["mnist"]}]}, "changes seed and validation only"),
        ({"fixed": {"data": {**TINY["data"], "seed": 9}}}, "changes seed and validation only"),
        ({"vary": [{"networks.linear.training.points": [3]}]}, "changes nothing that the runs"),
        ({"fixed": {f"{KNOWN}.steps": 3}}, "is in vary too"),
        ({"fixed": {"scoring.riddle": 3}}, r"fixed\.scoring\.riddle: unknown key"),
        ({"runs": ["imputation-none"]}, "'imputation-none' is unknown; allowed are auto"),
        ({"runs": []}, "at least 1 item"),
        ({"search": "clever"}, "'grid' or 'random'"),
        ({"search": "random"}, r"trials = None: a number is expected"),
        ({"trials": 3}, r"trials = 3: a number is expected where search is random"),
        ({"figure": {"metric": "mse", "x": "masks.seed"}}, r"figure\.x = 'masks\.seed': allowed"),
        ({"figure": {"x": f"{KNOWN}.steps"}}, r"figure\.metric: this key is missing"),
        ({"pruning": True}, r"small\.pruning: unknown key"),
        (
            {"vary": [{f"{KNOWN}.steps": {"low": 3, "high": 3, "scale": "log"}}]},
            "low must lie below high",
        ),
        (
            {"vary": [{f"{KNOWN}.steps": {"low": 1, "high": 3, "scale": "linear"}}]},
            "a grid needs points",
        ),
        (
            {
                "vary": [
                    {f"{KNOWN}.seed": {"low": 0, "high": 9, "scale": "linear", "points": 10**5}}
                ]
            },
            "at most 10000",
        ),
    ],
)
def test_what_is_wrong_is_refused_before_anything_runs(changes: dict[str, Any], line: str) -> None:
    settings = dict(changes)
    if "vary" in changes:
        settings.setdefault("figure", {"metric": "mse"})
    with pytest.raises(Refusal, match=line) as refusal:
        check_sweeps(with_sweep(**settings))
    assert str(refusal.value).startswith("params.yaml: sweeps.small")
    assert "\n" not in str(refusal.value)


def test_the_sweeps_of_params_yaml_are_whole() -> None:
    params = load(ROOT / "params.yaml")
    check_sweeps(params)
    counts = {name: len(sweep_of(params, name).trials) for name in params.sweeps}
    assert counts["kkt_search"] == 100
    assert counts["reconstructability_small"] <= 20
    with pytest.raises(Refusal, match=r"sweeps\.none: unknown; allowed are reconstructability"):
        sweep_of(params, "none")


class Here:
    """An engine that works in this process, and counts what it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: Counter[str] = Counter()
        self.stop_after: int | None = None
        monkeypatch.setattr(engine, "run", self.run)

    def run(
        self, function: Callable[[Task], Any], tasks: Sequence[Task]
    ) -> Iterator[tuple[int, Any]]:
        for i in reversed(range(len(tasks))):  # as workers do, in any order
            if self.stop_after is not None and self.made["trials"] == self.stop_after:
                raise KeyboardInterrupt
            self.made["trials" if tasks[i].path else "networks"] += 1
            yield i, function(tasks[i])


@pytest.fixture
def workspace(
    digit_splits: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Splits, and no network yet."""
    monkeypatch.chdir(tmp_path)
    # What a trial sets in its worker's environment is taken back here.
    monkeypatch.setenv("RETRACE_ENGINE", "local")
    monkeypatch.setenv("RETRACE_WORKERS", "1")
    for part, arrays in digit_splits.items():
        write_arrays(Path(f"data/{part}.npz"), {**arrays, "dataset": np.array("digits")})
    sums = {"train": "1", "test": "2"}
    description = {"name": "digits", "sha256": sums, "sizes": {"train": 1}, "source": {}}
    write_json(Path("data/dataset.json"), description)
    monkeypatch.setattr(sweep, "publish", lambda *args, **more: None)
    return tmp_path


def table(name: str) -> list[dict[str, str]]:
    with Path(f"metrics/sweeps/{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def same(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in rows]


def test_trials_are_made_once_share_networks_and_go_on_after_an_interrupt(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_params(workspace, {**TINY, "sweeps": {"small": ABLATE}})
    here = Here(monkeypatch)
    here.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        sweep.main("small")
    assert here.made == {"networks": 3, "trials": 2}
    assert not Path("metrics/sweeps/small.csv").exists()
    here.stop_after = None
    sweep.main("small")
    assert here.made == {"networks": 3, "trials": 4}
    rows = table("small")
    assert [row[f"{KNOWN}.start"] for row in rows] == ["mean", "noise", "mean", "noise"]
    assert len({row["trial"] for row in rows}) == 4 and not any(row["refused"] for row in rows)
    assert Path("metrics/sweeps/small.png").read_bytes().startswith(b"\x89PNG")
    first = Path("metrics/sweeps/small.csv").read_bytes()
    sweep.main("small")
    assert here.made["trials"] == 4
    assert Path("metrics/sweeps/small.csv").read_bytes() == first
    # One more value: only what is new is made. The interrupted trials gave what whole ones give.
    more = copy.deepcopy(ABLATE)
    more["vary"][0][f"{KNOWN}.steps"] = [2, 4, 5]
    write_params(workspace, {**TINY, "sweeps": {"small": more}})
    sweep.main("small")
    assert here.made == {"networks": 3, "trials": 6}
    assert table("small")[:4] == rows
    shutil.rmtree("data/sweeps")
    sweep.main("small")
    assert same(table("small"))[:4] == same(rows)
    assert not list(Path("data").rglob("*.part")) and not Path("data/observed").exists()


def flat(content: Any, path: str = "") -> dict[str, Any]:
    """What nested dictionaries and lists hold, by its path."""
    if not isinstance(content, dict | list):
        return {path: content}
    items = content.items() if isinstance(content, dict) else enumerate(content)
    return {k: v for key, inner in items for k, v in flat(inner, f"{path}/{key}").items()}


def test_a_trial_scores_as_the_stages_do(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores of a trial with params.yaml's own values are those in the pipeline's metrics."""
    from stages import masks, observe, reconstruct, score, train

    runs = {
        *("autoencoding-ffnn", "imputation-known", "training_data-sparse_span"),
        *("decoder_inversion-gauss_newton", "network_inversion-linear"),
        *("training_data-vertices", "membership-stationarity", "membership-loss"),
    }
    unchanged = {
        "runs": sorted(runs),
        "search": "grid",
        "vary": [{"scoring.seed": [0]}],
        "figure": {"metric": "imputation-known/mse"},
    }
    content = {**TINY, "runs": {name: TINY["runs"][name] for name in [*runs, "imputation-ridge"]}}
    write_params(workspace, {**content, "sweeps": {"small": unchanged}})
    Here(monkeypatch)
    sweep.main("small")
    (row,) = table("small")
    found = read_json(Path(f"data/sweeps/trials/{row['trial']}.json"))["runs"]
    assert found.keys() == {*runs, "imputation-ridge"} and "imputation-ridge/mse" not in row
    for network in ("gaussian", "classifier", "ffnn", "margin", "mlp", "linear", "vae"):
        train.main(network)
    masks.main()
    for problem in content["problems"]:
        observe.main(problem)
    for name in content["runs"]:
        reconstruct.main(name)
    timed = ("training_seconds", "seconds_per_1000")
    for problem in content["problems"]:
        score.main(problem)
        for name in content["runs"]:
            if content["runs"][name]["problem"] == problem:
                expected = read_json(Path(f"metrics/{problem}/{name}.json"))
                scores = found[name]["scores"]
                assert scores.keys() <= expected.keys()
                kept = {key: value for key, value in scores.items() if key not in timed}
                # Where an array lies in memory may change the last digit of a product.
                wanted = {key: expected[key] for key in kept}
                assert flat(kept) == pytest.approx(flat(wanted), rel=1e-9, abs=1e-12)
    masked = read_json(Path("metrics/imputation/imputation-known.json"))["masks"].values()
    for key in ("mse", "mse_over_ridge"):
        mean = np.mean([mask[key] for mask in masked])
        assert float(row[f"imputation-known/{key}"]) == pytest.approx(mean, rel=1e-5)


def test_what_params_yaml_leaves_to_a_default_may_vary() -> None:
    key = "problems.training_data.settings.public"
    assert "settings" not in TINY["problems"]["training_data"]
    spaces = [{f"{NETWORK}.seed": [1]}, {key: [5]}]
    sweeps = {"small": {**TRAIN, "vary": spaces}}
    params = Params.model_validate({**TINY, "sweeps": sweeps})
    assert values_of(params) == [(1, 2000), (0, 5)]


def test_a_refused_trial_is_a_row_and_the_others_go_on(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are no 5,000 digits of each class to train on."""
    write_params(workspace, {**TINY, "sweeps": {"small": TRAIN}})
    here = Here(monkeypatch)
    sweep.main("small")
    assert here.made == {"networks": 6, "trials": 6}
    rows = table("small")
    assert [bool(row["refused"]) for row in rows] == [False] * 4 + [True] * 2
    assert re.search("per_class", rows[4]["refused"]) and rows[4]["identified"] == ""
    assert [row["n"] for row in rows[:4]] == ["4", "4", "8", "8"]
    share = float(rows[0]["identified"]) / float(rows[0]["n"])
    assert float(rows[0]["identified_share"]) == pytest.approx(share)
    sweep.main("small")
    assert here.made["trials"] == 6


def test_what_a_scorer_cannot_take_is_refused_too(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A classifier says of no image that it was trained on it; nor is it asked before, of a method
    that is one's own."""
    monkeypatch.delitem(TAKES["training_data"], "public_images")
    name, key = "training_data-public", "runs.training_data-public.network"
    run = {"problem": "training_data", "method": "public_images", "settings": {"show": "images"}}
    content = {**TINY, "runs": {**TINY["runs"], name: {**run, "network": "margin"}}}
    varied = {**TRAIN, "runs": [name], "vary": [{key: ["margin", "classifier"]}]}
    write_params(workspace, {**content, "sweeps": {"small": varied}})
    here = Here(monkeypatch)
    sweep.main("small")
    assert here.made == {"networks": 2, "trials": 2}
    first, second = (row["refused"] for row in table("small"))
    assert not first and "no training images can be attacked there" in second


@pytest.mark.parametrize("of", ["train_network", "reconstruct"])
def test_what_is_no_fault_of_the_values_ends_the_sweep_and_is_tried_again(
    of: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*given: Any, **more: Any) -> None:
        raise Refusal("device = 'cuda': there is none here")

    write_params(workspace, {**TINY, "sweeps": {"small": ABLATE}})
    Here(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(running, of, refusing)
        with pytest.raises(Refusal, match="there is none here"):
            sweep.main("small")
    sweep.main("small")
    assert [row["refused"] for row in table("small")] == [""] * 4


def test_networks_of_the_pipeline_are_used_while_dvc_lock_says_that_they_fit(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    import yaml

    from stages import train

    content = {**TINY, "sweeps": {"small": ABLATE}}
    write_params(workspace, content)
    for network in ("gaussian", "classifier", "ffnn"):
        train.main(network)

    def lock(device: str = "cpu", **changed: str) -> None:
        def entry(path: str) -> dict[str, str]:
            md5 = hashlib.md5(Path(path).read_bytes(), usedforsecurity=False).hexdigest()
            return {"path": path, "md5": changed.get(path, md5)}

        stages = {
            f"train@{name}": {
                "params": {
                    "params.yaml": {f"networks.{name}": TINY["networks"][name], "device": device}
                },
                "deps": [entry("data/train.npz"), {"path": "retrace/pipeline", "md5": "0.dir"}],
                "outs": [entry(f"models/{name}.safetensors"), entry(f"models/{name}.json")],
            }
            for name in ("gaussian", "classifier", "ffnn")
        }
        Path("dvc.lock").write_text(yaml.safe_dump({"stages": stages}))

    lock()
    here = Here(monkeypatch)
    sweep.main("small")
    assert here.made == {"trials": 4}
    rows = table("small")
    # Of other data: all are trained anew, and the trials give what they gave.
    lock(**{"data/train.npz": "0"})
    shutil.rmtree("data/sweeps")
    sweep.main("small")
    assert here.made == {"networks": 3, "trials": 8}
    assert same(table("small")) == same(rows)
    # Nor are those of entries that today's code does not take.
    for old in ({"architecture": "transformer"}, {"architecture": "margin", "shape": 5}):
        stated = {"params.yaml": {"networks.ffnn": old, "device": "cpu"}}
        stages = {"train@ffnn": {"params": stated, "deps": [], "outs": []}}
        Path("dvc.lock").write_text(yaml.safe_dump({"stages": stages}))
        assert Plan(load()).in_step("ffnn", "cpu") is None
    # Nor are those of another device taken.
    lock(device="auto")
    plan = Plan(load())
    file = plan.add(sweep_of(load(), "small").trials[0])
    assert len(plan.networks) == 3
    write_params(workspace, {**content, "device": "auto"})
    plan = Plan(load())
    assert plan.add(sweep_of(load(), "small").trials[0]) != file
    assert not plan.networks
    write_params(workspace, content)
    # A trial that changes the network itself does not take the pipeline's.
    lock()
    path = "networks.ffnn.training.seed"
    varied = {**ABLATE, "vary": [{path: [0, 1]}], "figure": {"metric": "mse", "x": path}}
    write_params(workspace, {**TINY, "sweeps": {"small": varied}})
    sweep.main("small")
    assert here.made == {"networks": 4, "trials": 10}


def test_two_sweeps_at_once_and_missing_data_are_one_line(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import FileLock

    write_params(workspace, {**TINY, "sweeps": {"small": ABLATE}})
    running.FOLDER.mkdir(parents=True)
    with (
        FileLock(running.FOLDER / "lock"),
        pytest.raises(Refusal, match="another sweep is running here"),
    ):
        sweep.main("small")
    Path("data/train.npz").unlink()
    with pytest.raises(Refusal, match=r"data/train.npz is missing"):
        sweep.main("small")


def test_a_changed_split_is_made_for_the_trial(
    workspace: Path, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from retrace.data.download import DIGITS, digits

    write_arrays(Path("data/raw") / DIGITS, digits())
    varied = {
        **TRAIN,
        "vary": [{"data.seed": [0, 1], f"{NETWORK}.per_class": [2]}],
    }
    write_params(workspace, {**TINY, "sweeps": {"small": varied}})
    here = Here(monkeypatch)
    sweep.main("small")
    assert here.made == {"networks": 2, "trials": 2}
    own, other = (row["trial"] for row in table("small"))
    observed = []
    for name, trial in zip((own, other), sweep_of(load(), "small").trials, strict=True):
        task = Plan(load())
        task.add(trial)
        (planned,) = task.trials.values()
        assert Path(planned.path).stem == name
        with running.working(planned) as (_, split):
            observed.append(split("train")[0])
    assert observed[0].shape == observed[1].shape and not torch.equal(*observed)
    assert torch.equal(observed[0], images)


@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_a_sweep_is_one_run_with_a_child_for_each_trial_and_published_once(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    from retrace.tracking import runs as track
    from retrace.tracking import store

    monkeypatch.setattr(store, "SERVER", f"sqlite:///{workspace}/mlflow.db")
    file = workspace / "small.csv"
    file.write_text("trial\n")
    trials = [
        {
            "trial": name,
            "values": {"a.b": i},
            "metrics": {"mse": i / 2},
            "started": 1000.0 + i,
            "seconds": 2.0,
            "refused": refused,
        }
        for i, (name, refused) in enumerate([("one", None), ("two", None), ("three", "no")])
    ]
    from mlflow import MlflowClient  # not before track, which sets what it reads when imported

    client = MlflowClient(f"sqlite:///{workspace}/mlflow.db")

    def runs() -> list[Any]:
        found = client.get_experiment_by_name("sweeps")
        return list(client.search_runs([found.experiment_id])) if found else []

    log, calls = track.log, []

    def cut_off(*args: Any, **more: Any) -> None:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        log(*args, **more)

    monkeypatch.setattr(track, "log", cut_off)
    with pytest.raises(KeyboardInterrupt):
        track.publish_sweep("small", trials, files=[file])
    monkeypatch.setattr(track, "log", log)
    for _ in range(2):
        track.publish_sweep("small", trials, files=[file])
        found = {run.info.run_name: run for run in runs()}
        assert set(found) == {"small", "one", "two", "three"} and len(runs()) == 4
    parent = found["small"]
    assert parent.info.status == "FINISHED" and parent.data.params == {"trials": "3"}
    children = [run for name, run in found.items() if name != "small"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert found["two"].data.params == {"a.b": "1"} and found["two"].data.metrics == {"mse": 0.5}
    assert found["two"].info.status == "FINISHED" and found["three"].info.status == "FAILED"
    assert [f.path for f in client.list_artifacts(parent.info.run_id)] == ["small.csv"]
    track.publish_sweep("small", trials[:2], files=[file])  # another sweep, other children
    assert len(runs()) == 7
    assert parent.data.tags["sweep"] == "small"


def test_a_figure_shows_every_value_and_refuses_a_metric_that_no_trial_has(tmp_path: Path) -> None:
    rows: list[results.Row] = [
        {"a.width": width, "a.kind": kind, "mse": (i + 1) ** 3}
        for i, (width, kind) in enumerate([(1, "x"), (100, "x"), (100, "y"), (10, "y")])
    ]
    rows.append({"a.width": 5, "a.kind": "y", "refused": "too small"})
    keys, file = ["a.width", "a.kind"], tmp_path / "figure.png"
    for figure in (
        Figure(metric="mse"),
        Figure(metric="mse", x="a.width", lines="a.kind"),
        Figure(metric="mse", x="a.kind", columns="a.width"),
    ):
        results.draw(file, rows, keys, figure, title="small")
        assert file.read_bytes().startswith(b"\x89PNG")
        file.unlink()
    with pytest.raises(Refusal, match="no trial has the metric 'psnr'"):
        results.draw(file, rows, keys, Figure(metric="psnr"), title="small")
    assert not file.exists()


def test_a_figure_of_several_keys_shows_each_with_the_trials_that_vary_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib import pyplot

    seed, start, steps = (f"{KNOWN}.{key}" for key in ("seed", "start", "steps"))
    section: dict[str, Any] = {
        "vary": [
            {seed: [0, 2, 400]},
            {start: ["mean", "noise"]},
            {start: ["zero"], seed: [2], steps: [7]},  # about its first key
        ],
        "figure": {"metric": {"a": "A", "b": "B"}, "x": {seed: "seed of it", start: "start"}},
    }
    params = with_sweep(**section)
    params.runs["imputation-known"].settings["seed"] = 2
    params.runs["imputation-known"].settings["start"] = "mean"
    found = sweep_of(params, "small")
    # What both spaces contain is one trial, and in both panels.
    assert [sorted(space[0].rpartition(".")[2] for space in t.spaces) for t in found.trials] == [
        ["seed"],
        ["seed", "start"],
        ["seed"],
        ["start"],
        ["start"],
    ]
    rows: list[results.Row] = [
        {**trial.values, "a": 0.1 * i, "b": 1 - 0.1 * i} for i, trial in enumerate(found.trials)
    ]
    figures: list[Any] = []
    monkeypatch.setattr(pyplot, "close", figures.append)
    keys, spaces = list(found.trials[0].values), [trial.spaces for trial in found.trials]
    results.draw(tmp_path / "x.png", rows, keys, found.figure, title="small", spaces=spaces)
    first, second = [axes for axes in figures[0].axes if axes.axison]
    assert (first.get_xlabel(), second.get_xlabel()) == ("seed of it", "start")
    # 0, 2 and 400 have neither a line of numbers nor a logarithm: one after the other.
    assert [label.get_text() for label in first.get_xticklabels()] == ["0", "2", "400"]
    points = [line.get_ydata().tolist() for line in first.lines if line.get_marker() == "o"]
    assert points == [pytest.approx([0, 0.1, 0.2]), pytest.approx([1, 0.9, 0.8])]
    points = [line.get_ydata().tolist() for line in second.lines if line.get_marker() == "o"]
    assert points == [pytest.approx([0.1, 0.3, 0.4]), pytest.approx([0.9, 0.7, 0.6])]
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["A", "B"]
    assert first.get_ylim() == pytest.approx((-0.04, 1.04))


@pytest.mark.parametrize(
    ("figure", "line"),
    [
        ({"metric": {"a": "A", "b": "B"}, "lines": f"{KNOWN}.steps"}, "exclude each other"),
        ({"metric": "a", "columns": f"{KNOWN}.steps"}, "columns and rows need one key as x"),
        ({"metric": "a", "x": {f"{KNOWN}.rate": "rate"}}, "figure.x = .*rate.*: allowed are"),
        ({"metric": {}}, "figure.metric = {}: a metric, or several with captions"),
    ],
)
def test_a_figure_that_cannot_be_drawn_is_refused(figure: dict[str, Any], line: str) -> None:
    with pytest.raises(Refusal, match=line):
        sweep_of(with_sweep(figure=figure), "small")


def test_of_several_runs_a_metric_names_one() -> None:
    runs = ["imputation-known", "imputation-ridge"]
    for metric in ("mse", "imputation-mean/mse"):
        message = rf"figure\.metric = '{metric}': of several runs, RUN/METRIC is expected"
        with pytest.raises(Refusal, match=message):
            sweep_of(with_sweep(runs=runs, figure={"metric": metric}), "small")
    sweep_of(with_sweep(runs=runs, figure={"metric": "imputation-ridge/mse"}), "small")
