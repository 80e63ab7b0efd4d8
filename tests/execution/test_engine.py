"""Shards and engines: the same bytes whoever works, and one line where something is wrong."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, environment
from torch import Tensor

from retrace.data.masks import missing_pixels
from retrace.execution import engine, shards
from retrace.methods.imputation import backpropagation
from retrace.networks import dense, vae
from retrace.pipeline.artifacts import reconstruction_path, save_checkpoint, write_arrays
from retrace.pipeline.command import Refusal
from retrace.pipeline.params import Mask, RandomPixels, Rectangle
from stages import reconstruct

pytestmark = pytest.mark.numerical

MASKS: list[Mask] = [
    Rectangle(kind="rectangle", rows=[14, 27], columns=[0, 27]),
    RandomPixels(kind="random", share=0.5),
    Rectangle(kind="rectangle", rows=[7, 20], columns=[7, 20]),
]
IMAGES = 13  # of each mask: 39 observations, in shards of 10 that begin and end within masks
KNOWN: dict[str, Any] = {
    "objective": "known",
    "start": "mean",
    "answer": "output",
    "steps": 12,
    "learning_rate": 0.1,
    "restarts": 1,
    "seed": 0,
}
RUNS = {
    "imputation-known": ("imputation", "backpropagation", "dense", KNOWN),
    "imputation-noise": (
        "imputation",
        "backpropagation",
        "dense",
        {**KNOWN, "start": "noise", "restarts": 2, "seed": 3},
    ),
    "decoder_inversion-gauss_newton": (
        "decoder_inversion",
        "gauss_newton",
        "vae",
        {
            "penalty": 0.0,
            "starts": 4,
            "bank": 50,
            "screening": 2,
            "rounds": 4,
            "iterations": 12,
            "tolerance": 1e-6,
            "seed": 0,
        },
    ),
}


@pytest.fixture
def workspace(images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two networks as they are drawn, and what is observed of some digits."""
    monkeypatch.chdir(tmp_path)
    for name in ("RETRACE_ENGINE", "RETRACE_WORKERS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    torch.manual_seed(0)
    networks = {
        "dense": (dense, {"widths": [24], "gain": 1.0, "dropout": 0.0}),
        "vae": (
            vae,
            {"code_size": 3, "widths": [16, 8], "weighting": "elbo", "divergence_weight": 1.0},
        ),
    }
    built = {}
    for name, (module, arguments) in networks.items():
        built[name] = module.Network(**arguments).eval()
        save_checkpoint(
            built[name], name=name, architecture=name, arguments=arguments, dataset="digits"
        )
    some = images[:IMAGES]
    hidden = [missing_pixels(mask, count=IMAGES, seed=i) for i, mask in enumerate(MASKS)]
    masked = np.stack([np.where(missing, np.nan, some.numpy()) for missing in hidden])
    dataset = {"dataset": np.array("digits"), "each": np.array(True)}
    write_arrays(Path("data/observed/imputation.npz"), {"observed": masked, **dataset})
    with torch.no_grad():
        outputs = built["vae"].decode(torch.randn(IMAGES, 3)).double()
    pair = np.stack([outputs.numpy(), some.double().numpy()])
    write_arrays(Path("data/observed/decoder_inversion.npz"), {"observed": pair, **dataset})
    params = {
        "data": {"name": "digits", "mirror": None, "validation": 0.2, "seed": 0},
        "device": "cpu",
        "networks": {},
        "masks": {
            "images": IMAGES,
            "seed": 0,
            "patterns": {"random": {"kind": "random", "share": 0.5}},
        },
        "runs": {
            run: {"problem": problem, "method": method, "network": network, "settings": settings}
            for run, (problem, method, network, settings) in RUNS.items()
        },
        "problems": {},
        "scoring": {"resamples": 100, "seed": 0},
    }
    Path("params.yaml").write_text(json.dumps(params), encoding="utf-8")
    return tmp_path


def arrays_of(run: str) -> dict[str, Any]:
    with np.load(reconstruction_path(run.partition("-")[0], run)) as file:
        return {key: file[key] for key in file.files}


def test_one_two_and_three_workers_give_the_same_bytes(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SIZE", 10)
    monkeypatch.setattr(shards, "STARTING", 0.0)
    files: dict[str, list[bytes]] = {run: [] for run in RUNS}
    sent: list[int] = []
    original = engine.run

    def counted(function: Any, tasks: Any) -> Any:
        sent.append(len(tasks))
        return original(function, tasks)

    monkeypatch.setattr(engine, "run", counted)
    # Workers take seconds to start: three for one of the runs are enough.
    for run, numbers in zip(RUNS, ((1,), (1, 2, 3), (1, 2)), strict=True):
        for workers in numbers:
            monkeypatch.setenv("RETRACE_WORKERS", str(workers))
            reconstruct.main(run)
            made = reconstruction_path(run.partition("-")[0], run)
            files[run].append(made.read_bytes())
            timing = json.loads(made.with_suffix(".json").read_text())
            assert 10**7 < timing["peak_memory"] < 10**11
    assert sent == [3, 3, 2]  # shards that workers solved
    assert all(len(set(contents)) == 1 for contents in files.values())
    assert not list(workspace.rglob("*.part"))


def test_shards_give_what_the_whole_gives(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimates, losses and snapshots; also of rounds that some shards have no need of."""
    monkeypatch.setenv("RETRACE_WORKERS", "1")
    monkeypatch.setattr(shards, "seed_of", lambda seed, shard: seed)  # one bank of codes for all
    for run in ("imputation-known", "decoder_inversion-gauss_newton"):
        monkeypatch.setattr(shards, "SIZE", 1000)
        reconstruct.main(run)
        whole = arrays_of(run)
        monkeypatch.setattr(shards, "SIZE", 5)
        reconstruct.main(run)
        parts = arrays_of(run)
        assert whole.keys() == parts.keys()
        assert whole["snapshots"].shape[1:3] == (len(whole["estimate"]), shards.WATCHED)
        for key, value in whole.items():
            assert value.shape == parts[key].shape and value.dtype == parts[key].dtype, key
            if value.dtype.kind == "f":
                np.testing.assert_allclose(parts[key], value, rtol=1e-3, atol=1e-4, err_msg=key)
            else:
                np.testing.assert_array_equal(parts[key], value, err_msg=key)


def test_one_shard_is_what_its_method_alone_gives(workspace: Path, images: Tensor) -> None:
    """The run's own seed, the mean loss of each mask, and the first images of each at each step."""
    reconstruct.main("imputation-noise")
    got = arrays_of("imputation-noise")
    with np.load("data/observed/imputation.npz") as file:
        observed = torch.from_numpy(file["observed"])
    torch.manual_seed(0)
    network = dense.Network(widths=[24], gain=1.0, dropout=0.0).eval().requires_grad_(False)
    seen: list[tuple[int, Tensor, Tensor]] = []
    settings = RUNS["imputation-noise"][3]
    expected = backpropagation.reconstruct(
        network,
        observed.flatten(0, 1),
        **settings,
        callback=lambda step, loss, x: seen.append((step, loss.clone(), x.clone())),
    )
    np.testing.assert_array_equal(got["estimate"], expected.unflatten(0, (3, IMAGES)).numpy())
    losses = [loss.unflatten(0, (3, -1)).mean(dim=1) for _, loss, _ in seen]
    np.testing.assert_allclose(got["loss"], torch.stack(losses).numpy(), rtol=1e-6)
    assert got["snapshot_steps"].tolist() == [0, 1, 3, 10, 12]
    for step, snapshot in zip(got["snapshot_steps"], got["snapshots"], strict=True):
        shown = seen[step][2].unflatten(0, (3, -1))[:, : shards.WATCHED]
        np.testing.assert_array_equal(snapshot, shown.numpy())


def test_each_shard_draws_by_a_seed_of_its_own() -> None:
    seeds = [shards.seed_of(0, i) for i in range(100)] + [shards.seed_of(1, i) for i in range(100)]
    assert len(set(seeds)) == 200 and all(0 <= seed < 2**32 for seed in seeds)
    assert seeds[0] == 0 and seeds[100] == 1
    # Written down: another NumPy must not change what a run gives.
    written = {(0, 1): 3964924996, (0, 2): 3141116543, (7, 1): 369571992}
    assert {given: shards.seed_of(*given) for given in written} == written


@pytest.mark.parametrize(("groups", "images"), [(1, 1), (3, 13), (4, 10), (2, 25), (11, 3)])
def test_the_plan_covers_everything_once(
    groups: int, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SIZE", 10)
    covered: list[int] = []
    for rows, parts in shards.plan(groups=groups, images=images):
        assert 0 < rows.stop - rows.start <= 10
        assert parts[0][0] == 0 and parts[-1][1] == rows.stop - rows.start
        for first, end in parts:
            of = {i // images for i in range(rows.start + first, rows.start + end)}
            assert len(of) == 1  # no part reaches over two groups
            covered += range(rows.start + first, rows.start + end)
    assert covered == list(range(groups * images))


def test_answers_of_any_shape_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a method that gives several completions of each image, and some numbers."""

    def several(network: Any, observed: Tensor, *, seed: int, callback: Any) -> dict[str, Tensor]:
        count = len(observed)
        samples = observed.unsqueeze(1) + torch.arange(4.0).reshape(1, 4, 1, 1)
        return {
            "estimate": samples.mean(dim=1),
            "samples": samples,
            "good": observed[:, 0, 0] > 5,
            "seed": torch.full((count,), seed),
        }

    monkeypatch.setattr(backpropagation, "reconstruct", several)
    monkeypatch.setattr(shards, "SIZE", 4)
    monkeypatch.setenv("RETRACE_WORKERS", "1")
    arguments = {"widths": [3], "gain": 1.0, "dropout": 0.0}
    observed = np.arange(10, dtype=np.float32).reshape(2, 5, 1, 1) * np.ones((28, 28), np.float32)
    merged = shards.run(
        dense.Network(widths=[3], gain=1.0, dropout=0.0),
        observed,
        method="imputation.backpropagation",
        header={"architecture": "dense", "arguments": arguments},
        settings={"seed": 7},
        steps=0,
        label="x",
        device="cpu",
        precision="float32",
    )
    flat = observed.reshape(10, 28, 28)
    np.testing.assert_array_equal(merged.answers["estimate"], flat + 1.5)
    assert merged.answers["samples"].shape == (10, 4, 28, 28)
    np.testing.assert_array_equal(merged.answers["samples"][:, 3], flat + 3)
    assert merged.answers["good"].tolist() == [False] * 6 + [True] * 4
    expected = [shards.seed_of(7, i // 4) for i in range(10)]
    assert merged.answers["seed"].tolist() == expected
    assert merged.watched == {}


def test_the_local_engine_gives_every_result_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRACE_WORKERS", "2")
    assert sorted(engine.run(math.factorial, [3, 1, 5, 4])) == [(0, 6), (1, 1), (2, 120), (3, 24)]


def test_an_error_of_a_worker_is_raised_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRACE_WORKERS", "1")
    with pytest.raises(ValueError, match="negative"):
        list(engine.run(math.factorial, [1, -1, 2]))
    with pytest.raises(Refusal, match="a worker process died"):
        list(engine.run(os._exit, [1]))


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", ""])
def test_a_bad_number_of_workers_is_one_line(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRACE_WORKERS", value)
    with pytest.raises(Refusal, match=r"RETRACE_WORKERS = .* at least 1, is expected"):
        engine.workers()


def test_other_bad_values_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRACE_ENGINE", "slurm")
    with pytest.raises(Refusal, match="RETRACE_ENGINE = 'slurm': allowed are local, ray"):
        engine.run(math.factorial, [1])
    for value in ("some", "-1", "1.5", "nan"):
        monkeypatch.setenv("RETRACE_GPUS", value)
        with pytest.raises(Refusal, match="RETRACE_GPUS = "):
            engine.gpus()
    monkeypatch.setenv("RETRACE_GPUS", "0.25")
    assert engine.gpus() == 0.25


def test_ray_where_it_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRACE_ENGINE", "ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Refusal, match=r"not installed; `pip install .\[cluster\]` does it"):
        list(engine.run(math.factorial, [1]))


SLEEPER = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from retrace.execution import engine
from retrace.pipeline.command import run

def sleep(number):
    Path(f"worker-{os.getpid()}").touch()
    time.sleep(600)

def main():
    "Sleep."
    list(engine.run(sleep, [1, 2]))

if __name__ == "__main__":
    run(main)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads /proc")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_no_worker_outlives_its_parent(name: str, tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    process = subprocess.Popen(
        [sys.executable, "sleeper.py"],
        cwd=tmp_path,
        env={**environment(), "RETRACE_WORKERS": "2", "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(workers := [int(p.name[7:]) for p in tmp_path.glob("worker-*")]) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    assert all(map(alive, workers))
    process.send_signal(getattr(signal, name))
    _, said = process.communicate()
    while any(map(alive, workers)):  # they see its end within moments; a hang fails the run
        time.sleep(0.05)
    if name == "SIGINT":
        assert process.returncode == 130
        assert said == "retrace: interrupted; nothing half-written was kept. Run it again\n"


def test_candidates_that_get_more_are_watched_as_far_as_they_are_there_throughout() -> None:
    """An attack's first round may find fewer candidates than are shown."""
    recorder = shards.Recorder(parts=[(0, None)], steps=2)
    for step, count in enumerate((3, 5, 12)):
        recorder(step, torch.full((count,), float(step)), torch.full((count, 2, 2), float(step)))
    watched = shards.merged_watched([recorder.watched()], [[1]], groups=1)
    assert watched["snapshots"].shape == (3, 1, 3, 2, 2)
    assert watched["snapshots"][:, 0, 0, 0, 0].tolist() == [0, 1, 2]
    assert watched["loss"].tolist() == [[0], [1], [2]]


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "None")],
)
def test_threads_wait_briefly_unless_the_user_says_otherwise(
    given: dict[str, str], expected: str
) -> None:
    hidden = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {k: v for k, v in os.environ.items() if k not in hidden} | given
    script = "import os, retrace; print(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected
