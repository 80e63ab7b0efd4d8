"""The truth never reaches a method: while one runs, here or in a worker, no file of the workspace
can be opened but those that dvc.yaml names for the run."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import yaml
from conftest import ROOT, TINY, execute, write_params
from numpy.typing import NDArray

from retrace.pipeline.artifacts import RAW, split_path, truth_path, write_arrays

RECONSTRUCT = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["reconstruct"]["do"]
# Every Python imports it at its start, an engine's workers too, and none can take a hook off again.
GUARD = """
import os, re, sys

FOLDER = os.environ["GUARD_FOLDER"]
OPENING = ("open", "os.link", "os.rename", "os.symlink")

def guard(event, arguments):
    if event not in OPENING or not isinstance(arguments[0], (str, bytes, os.PathLike)):
        return
    name = os.fsdecode(arguments[0])
    if os.path.isfile(name):
        for file in {os.path.abspath(name), os.path.realpath(name)}:  # DVC may have linked it
            check(os.path.relpath(file, FOLDER))

def check(path):
    if path.startswith((os.pardir, "retrace" + os.sep, "stages" + os.sep)):
        return
    # A file that is written whole has another name until it is.
    path = re.sub(r"(^|/)\\.([^/]*)\\.[^./]+\\.part$", r"\\1\\2", path)
    if path not in os.environ["GUARD_ALLOWED"].split(os.pathsep):
        with open(os.environ["GUARD_LOG"], "a") as log:
            print(path, file=log)
        raise PermissionError(f"not for a method: {path}")

sys.addaudithook(guard)
"""
# Runs each by what it may open, the method's shards as small as `small` has them.
DRIVER = """
import json, os, sys
from pathlib import Path
from stages import reconstruct
from retrace.execution import shards

shards.SIZE, shards.STARTING = 6, -1.0
log = Path(os.environ["GUARD_LOG"])
found = {}
for name, allowed in json.loads(sys.argv[1]).items():
    log.write_text("")
    os.environ["GUARD_ALLOWED"] = os.pathsep.join(allowed)
    error = ""
    try:
        reconstruct.main(name)
    except Exception as caught:
        error = str(caught)
    found[name] = (error, sorted(set(log.read_text().split())))
print(json.dumps(found))
"""
# A method that opens a file of the workspace, in a worker or in the process of the stage.
PEEKING = """
import multiprocessing
import numpy as np

def reconstruct(network, observed, *, paths: list[str], worker: bool, callback):
    for path in paths if worker == bool(multiprocessing.parent_process()) else []:
        try:
            np.load(path).close()
        except PermissionError:  # none of these gets farther
            continue
    return observed.nan_to_num(0.0)
"""
TRUTH = [
    *(str(split_path(split)) for split in ("train", "validation", "test")),
    *(str(truth_path(problem)) for problem in ("imputation", "decoder_inversion")),
    str(RAW / "images"),
    # To one problem what another observes is the truth.
    *(f"data/observed/{problem}.npz" for problem in ("autoencoding", "decoder_inversion")),
]


def may_open(run: str, entry: dict[str, Any]) -> list[str]:
    """What dvc.yaml says of a run, and what an interrupted run keeps."""
    text = "\n".join([*RECONSTRUCT["deps"], *RECONSTRUCT["outs"]])
    values = {"key": run, "item.problem": entry["problem"], "item.network": entry["network"]}
    for key, value in values.items():
        text = text.replace(f"${{{key}}}", value)
    return ["params.yaml", f"data/interrupted/{run}.npz", *text.split()]


Found = dict[str, list[Any]]


def guarded(folder: Path, runs: dict[str, Any], guard: Path, *, workers: int) -> Found:
    """Reconstruct runs in a folder: of each, what stopped it and what it must not have opened."""
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(GUARD, encoding="utf-8")
    result = execute(
        *(sys.executable, "-c", DRIVER),
        json.dumps({run: may_open(run, entry) for run, entry in runs.items()}),
        cwd=folder,
        PYTHONPATH=str(guard),
        GUARD_FOLDER=str(folder.resolve()),
        GUARD_ALLOWED="",
        GUARD_LOG=str(guard / "log"),
        RETRACE_WORKERS=str(workers),
    )
    found: Found = json.loads(result.stdout.splitlines()[-1])
    return found


@pytest.fixture
def folder(
    small_networks: Path, digit_splits: dict[str, dict[str, NDArray[Any]]], tmp_path: Path
) -> Path:
    """Networks, observations and the truth, and code of its own to add a method to."""
    copy = shutil.copytree(small_networks, tmp_path / "folder")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("retrace", "stages"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    dataset = np.array("digits")
    for path in TRUTH:
        if not (copy / path).exists():
            write_arrays(copy / path, {**digit_splits["test"], "dataset": dataset})
    return copy


def test_no_stage_of_reconstruction_depends_on_more_than_its_observations() -> None:
    data = [dep for dep in RECONSTRUCT["deps"] if dep.startswith(("data/", "models/"))]
    assert data == ["data/observed/${item.problem}.npz", "models/${item.network}.safetensors"]


@pytest.mark.xdist_group("device")
def test_no_method_opens_the_truth(folder: Path, tmp_path: Path) -> None:
    runs = small.named_runs()
    methods = {(entry["problem"], entry["method"]) for entry in runs.values()}
    files = (ROOT / "retrace/methods").glob("*/[!_]*.py")
    assert methods == {(file.parent.name, file.stem) for file in files}
    found = guarded(folder, runs, tmp_path / "guard", workers=1)
    assert found == {run: ["", []] for run in runs}


@pytest.mark.xdist_group("device")
@pytest.mark.parametrize("worker", [False, True])
def test_a_method_that_opens_the_truth_is_found_out(
    worker: bool, folder: Path, tmp_path: Path
) -> None:
    (folder / "retrace/methods/imputation/peeking.py").write_text(PEEKING, encoding="utf-8")
    entry = {"problem": "imputation", "method": "peeking", "network": "gaussian"}
    own = "data/observed/imputation.npz"
    runs = {
        f"imputation-{name}": {**entry, "settings": {"paths": paths, "worker": worker}}
        for name, paths in (("peeking", [own, *TRUTH]), ("honest", [own]))
    }
    params = yaml.safe_load((folder / "params.yaml").read_text())
    write_params(folder, {**params, "runs": runs})
    found = guarded(folder, runs, tmp_path / "guard", workers=1 + worker)
    assert found == {"imputation-peeking": ["", sorted(TRUTH)], "imputation-honest": ["", []]}


@pytest.mark.xdist_group("pipeline")
def test_no_run_of_the_pipeline_opens_the_truth(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "folder", symlinks=True)
    found = guarded(folder, TINY["runs"], tmp_path / "guard", workers=2)
    assert found == {run: ["", []] for run in TINY["runs"]}
