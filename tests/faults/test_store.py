"""Many writers, killed writers and a dying server: the MLflow store has each run of dvc.lock,
once."""

import random
import shutil
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import yaml
from conftest import commit, execute, write_params
from harness import FEW, FULL, Zygote, kill, published, started, tiny

pytestmark = pytest.mark.xdist_group("faults")
TRACK = (sys.executable, "-m", "stages.track")
WRITERS, SECONDS = 4, 60


def without_store(finished: Path, folder: Path) -> Path:
    """A finished pipeline of which nothing is published."""
    shutil.copytree(finished, folder, symlinks=True)
    (folder / "mlflow.db").unlink()
    shutil.rmtree(folder / "mlruns")
    return folder


@pytest.mark.parametrize("seed", range(20 if FULL else 1))
def test_a_killed_publisher(
    seed: int, zygote: Zygote, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    """At random moments of a first publication, half of them while the database is made."""
    folder = without_store(undisturbed[0], tmp_path / "workspace")
    moment = random.Random(seed).uniform(0, 3 if seed % 2 else 10)  # noqa: S311
    code, output = zygote.run("python", *TRACK[1:], cwd=folder, kill_after=moment)
    assert code in (-9, 0), output
    code, output = zygote.track(cwd=folder)
    assert code == 0, output
    assert published(folder) == published(undisturbed[0])
    assert not list(folder.glob("*.part*"))


def test_a_deleted_store_whose_log_stayed(
    zygote: Zygote, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    """SQLite replays a log that lies beside a database of that name, whichever it belonged to."""
    folder = shutil.copytree(undisturbed[0], tmp_path / "workspace", symlinks=True)
    log = folder / "mlflow.db-wal"
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE foreign_to_mlflow (x)")
        database.commit()
        content = log.read_bytes()
    (folder / "mlflow.db").unlink()
    shutil.rmtree(folder / "mlruns")
    log.write_bytes(content)
    code, output = zygote.track(cwd=folder)
    assert code == 0, output
    assert published(folder) == published(undisturbed[0])


@pytest.mark.parametrize("pair", [pytest.param(i, marks=FEW) for i in range(20)])
def test_two_first_publishers(pair: int, undisturbed: tuple[Path, float], tmp_path: Path) -> None:
    """One pair is tried by test_pipeline.py, in every `make test`."""
    folder = without_store(undisturbed[0], tmp_path / "workspace")
    processes = [started(*TRACK, cwd=folder) for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert published(folder) == published(undisturbed[0])


@FEW
def test_four_writers_for_a_minute(undisturbed: tuple[Path, float], tmp_path: Path) -> None:
    """Each in a workspace of its own, as `dvc exp run --temp` has them, with runs of its own, again
    and again, into one store."""
    place = without_store(undisturbed[0], tmp_path / "root")
    deadline = time.monotonic() + SECONDS
    done: list[str] = []

    def write(writer: int) -> None:
        folder = shutil.copytree(place, tmp_path / f"writer{writer}", symlinks=True)
        text = (folder / "dvc.lock").read_text(encoding="utf-8")
        turn = 0
        while time.monotonic() < deadline or not turn:
            lock = yaml.safe_load(text)
            lock["stages"]["download"]["cmd"] += f"  # {writer}.{turn}"  # the ancestor of all
            (folder / "dvc.lock").write_text(yaml.safe_dump(lock), encoding="utf-8")
            for _ in range(2):  # the second adds nothing
                result = execute(*TRACK, cwd=folder, check=False, DVC_ROOT=str(place))
                done.append(result.stdout if not result.returncode else result.stderr)
            turn += 1

    threads = [threading.Thread(target=write, args=(i,)) for i in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    each = len(published(undisturbed[0]))
    counts = {True: f"{each} runs published, 0 were", False: f"0 runs published, {each} were"}
    firsts = sum(counts[True] in text for text in done)
    assert firsts * 2 == len(done) and sum(counts[False] in text for text in done) == firsts
    runs = published(place)
    print(f"{WRITERS} writers, {len(runs)} runs in {SECONDS} s or more")
    assert len(runs) == len(set(runs)) == firsts * each
    assert {status for _, _, status, _ in runs} == {"FINISHED"}


@contextmanager
def server(folder: Path, port: int) -> Iterator[None]:
    """An MLflow server, killed at the end."""
    process = started(
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
        *("--artifacts-destination", str(folder / "mlartifacts")),
        cwd=folder,
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
        MLFLOW_DISABLE_TELEMETRY="true",
    )
    try:
        while process.poll() is None:
            with closing(socket.socket()) as connection:
                if connection.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield
    finally:
        kill(process.pid)
        process.communicate()


# Waits in its third run, with two finished, until somebody removes a file.
PAUSING = """
import pathlib, time
from retrace.tracking import runs as track
from retrace.pipeline.command import run

log, begun, paused = track.log, [], pathlib.Path("paused")

def pausing(*given, **more):
    begun.append(given)
    if len(begun) == 3:
        paused.touch()
        while paused.exists():
            time.sleep(0.05)
    log(*given, **more)

track.log = pausing
run(track.main)
"""


@FEW
def test_a_server_that_dies_in_the_middle_and_comes_back(
    undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    folder = without_store(undisturbed[0], tmp_path / "workspace")
    place = tmp_path / "server"
    place.mkdir()
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    with server(place, port):
        process = started(sys.executable, "-c", PAUSING, cwd=folder, MLFLOW_TRACKING_URI=uri)
        while process.poll() is None and not (folder / "paused").exists():
            time.sleep(0.05)
        assert (
            process.poll() is None and [row[2] for row in published(place)].count("FINISHED") == 2
        )
    (folder / "paused").unlink()
    output = process.communicate()[0]
    assert process.returncode == 2, output
    assert output.count("retrace: ") == 1 and uri in output and "Traceback" not in output
    with server(place, port):
        again = execute(*TRACK, cwd=folder, MLFLOW_TRACKING_URI=uri).stdout
    assert "0 were there" not in again  # those that were whole are not published anew
    expected = [row[:3] for row in published(undisturbed[0])]
    assert [row[:3] for row in published(place)] == expected


def changed(folder: Path, *, rounds: int) -> None:
    params = tiny()
    params["runs"]["training_data-sparse_span"]["settings"]["rounds"] = rounds
    write_params(folder, params)


@FEW
def test_two_repros_at_once(undisturbed: tuple[Path, float], tmp_path: Path) -> None:
    """`--wait-for-lock` waits for the lock of the repository, not for a stage that the other runs:
    the second may stop with DVC's own line, which harms nothing."""
    folder = shutil.copytree(undisturbed[0], tmp_path / "workspace", symlinks=True)
    changed(folder, rounds=2)
    processes = [started("dvc", "--wait-for-lock", "repro", cwd=folder) for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    codes = [process.returncode for process in processes]
    assert 0 in codes, outputs
    for code, output in zip(codes, outputs, strict=True):
        assert code == 0 or "is busy, it is being blocked by" in output, output
    assert execute("dvc", "repro", cwd=folder).stdout.count("Running stage") == 0
    runs = published(folder)
    assert len(runs) == len(published(undisturbed[0])) + 1 and len(set(runs)) == len(runs)


@FEW
@pytest.mark.parametrize("jobs", [1, 2])
def test_three_queued_experiments_land_in_one_store(
    jobs: int, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    folder = shutil.copytree(undisturbed[0], tmp_path / "workspace", symlinks=True)
    commit(folder)
    setting = "runs.training_data-sparse_span.settings.rounds"
    for rounds in (2, 3, 4):
        execute("dvc", "exp", "run", "--queue", "-S", f"{setting}={rounds}", cwd=folder)
    execute("dvc", "exp", "run", "--run-all", "--jobs", str(jobs), cwd=folder)
    shown = execute("dvc", "queue", "status", cwd=folder).stdout
    assert shown.count("Success") == 3, shown
    runs = published(folder)
    before = published(undisturbed[0])
    assert len(runs) == len(before) + 3 and len(set(runs)) == len(runs)
    assert set(before) <= set(runs)
