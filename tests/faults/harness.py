"""What the tests of faults share: a tiny pipeline, what it leaves, and where to read of its runs.

`make test` tries a few faults of each kind, `make faults` all of them; each fault is one test.
"""

import copy
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, commit, environment, write_params

FULL = os.environ.get("RETRACE_FAULTS") == "full"
FEW = pytest.mark.skipif(not FULL, reason="one of many: `make faults` tries all of them")
# As few as there are writers; the classifier judges completed images.
NETWORKS = ("gaussian", "classifier", "margin")
RUNS = ("imputation-mean", "training_data-sparse_span")


def tiny() -> dict[str, Any]:
    """Parameters of a pipeline with every kind of stage and two runs."""
    params = copy.deepcopy(TINY)
    params["data"].setdefault("path", None)
    params["networks"] = {name: params["networks"][name] for name in NETWORKS}
    params["runs"] = {name: params["runs"][name] for name in RUNS}
    problems = {entry["problem"] for entry in params["runs"].values()}
    params["problems"] = {name: params["problems"][name] for name in sorted(problems)}
    return params


def fresh(make_workspace: Callable[[Path], Path], folder: Path) -> Path:
    """A committed workspace with tiny parameters in which nothing has run."""
    make_workspace(folder)
    write_params(folder, tiny())
    commit(folder, "Shrink")
    return folder


def finish(folder: Path, running: "Zygote") -> float:
    """Run the whole pipeline; give the seconds that it took."""
    began = time.monotonic()
    code, output = running.run("dvc", "repro", cwd=folder)
    assert code == 0, output[-3000:]
    return time.monotonic() - began


def started(*command: str, cwd: Path, **extra: str) -> "subprocess.Popen[str]":
    """A command in the background, in a process group of its own."""
    return subprocess.Popen(
        command,
        cwd=cwd,
        env={**environment(), **extra},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill(group: int) -> None:
    """SIGKILL to a whole process group, and wait until none of it is left."""
    os.killpg(group, signal.SIGKILL)
    while any(member(process, group) for process in Path("/proc").glob("[0-9]*")):
        time.sleep(0.01)


def member(process: Path, group: int) -> bool:
    """Whether a process belongs to a group and still runs (a zombie does not)."""
    try:
        state, _, its_group = process.joinpath("stat").read_text().rpartition(")")[2].split()[:3]
    except OSError:  # gone in the meantime
        return False
    return int(its_group) == group and state != "Z"


class Zygote:
    """`dvc` without the seconds of imports; see zygote.py."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("zygote.py"))],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.read() == "ready"

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def run(self, *words: str, cwd: Path, kill_after: float | None = None) -> tuple[int, str]:
        """Run `dvc` or a stage in a folder; kill it and what it started after some seconds.

        Returns
        -------
        code : int
            -9 where it was killed before it ended.
        output : str
        """
        log = cwd.parent / f"{cwd.name}.log"
        line = {"command": words, "cwd": str(cwd), "log": str(log)}
        assert self.process.stdin is not None
        print(json.dumps(line), file=self.process.stdin, flush=True)
        group = int(self.read())
        if kill_after is not None:
            time.sleep(kill_after)
            with suppress(ProcessLookupError):  # it was quicker
                kill(group)
        return int(self.read()), log.read_text(encoding="utf-8")

    def track(self, *, cwd: Path) -> tuple[int, str]:
        return self.run("python", "-m", "stages.track", cwd=cwd)


@contextmanager
def zygote() -> Iterator[Zygote]:
    running = Zygote()
    try:
        yield running
    finally:
        assert running.process.stdin is not None and running.process.stdout is not None
        running.process.stdin.close()
        running.process.wait()
        running.process.stdout.close()


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a workspace but Git's, DVC's and MLflow's own, and its bytes."""
    own = (
        ".git",
        ".dvc",
        "mlruns",
        "mlflow.db",
        "mlflow.db-wal",
        "mlflow.db-shm",
        "mlflow.db-journal",
    )
    found = (path.relative_to(folder) for path in sorted(folder.rglob("*")))
    kept = (path for path in found if path.parts[0] not in own and "__pycache__" not in path.parts)
    return {str(path): (folder / path).read_bytes() for path in kept if (folder / path).is_file()}


def published(folder: Path) -> list[tuple[str, str, str, str]]:
    """Experiment, name, status and fingerprint of every run in a store that is not deleted."""
    query = (
        "SELECT e.name, r.name, r.status, t.value FROM runs r"
        " JOIN experiments e USING (experiment_id)"
        " JOIN tags t ON t.run_uuid = r.run_uuid AND t.key = 'retrace.fingerprint'"
        " WHERE r.lifecycle_stage = 'active' ORDER BY 1, 2, 3, 4"
    )
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows: list[tuple[str, str, str, str]] = database.execute(query).fetchall()
        (total,) = database.execute(
            "SELECT count(*) FROM runs WHERE lifecycle_stage = 'active'"
        ).fetchone()
    assert total == len(rows)  # none without a fingerprint
    return rows
