"""A full disk while a stage writes: one line, an exit code, the old results as they were; and with
space again, the same stage succeeds."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from harness import FEW, Zygote, files, published

pytestmark = pytest.mark.xdist_group("faults")
LINE = "retrace: the disk is full; nothing half-written was kept. Free some space and run it again"


@contextmanager
def small_disk(folder: Path, *, kib: int) -> Iterator[None]:
    """A file system of its own for a folder, with what lies in it."""
    if os.geteuid():
        pytest.skip("only root may mount a small file system")
    kept = shutil.move(folder, folder.with_name(f"{folder.name}.kept"))
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "none", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        shutil.copytree(kept, folder, symlinks=True, dirs_exist_ok=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, *, leave: int) -> Path:
    """Fill the file system of a folder but for some bytes; give the file that does."""
    ballast = folder / "ballast"
    free = shutil.disk_usage(folder).free
    with suppress(OSError), ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(free - leave, 1))
    return ballast


def used(folder: Path) -> int:
    found = (path for path in folder.rglob("*") if path.is_file())
    return sum(-(-path.stat().st_size // 4096) * 4 + 4 for path in found)


STAGES = [
    ("data", "check"),
    ("data", "download"),
    ("data", "split"),
    ("data", "masks"),
    ("data/observed", "observe imputation"),
    ("models", "train classifier"),
    ("models", "train margin"),
    ("data/reconstructions", "reconstruct imputation-mean"),
    ("data/reconstructions", "reconstruct training_data-sparse_span"),
    ("metrics", "score imputation"),
    ("metrics", "report"),
]


@pytest.mark.parametrize(
    "leave", [0, pytest.param(8192, marks=FEW), pytest.param(65536, marks=FEW)]
)
@pytest.mark.parametrize(("place", "stage"), STAGES, ids=[stage for _, stage in STAGES])
def test_of_stages(
    place: str,
    stage: str,
    leave: int,
    zygote: Zygote,
    undisturbed: tuple[Path, float],
    tmp_path: Path,
) -> None:
    """With some space left the disk is full in the middle of a file, or behind it."""
    folder = shutil.copytree(undisturbed[0], tmp_path / "workspace", symlinks=True)
    before = files(folder)
    command = ("python", "-m", *f"stages.{stage}".split())
    kib = 2 * used(folder / place) + 512  # the old file and the new one
    with small_disk(folder / place, kib=kib):
        ballast = fill(folder / place, leave=leave)
        code, output = zygote.run(*command, cwd=folder)
        ballast.unlink()
        # What an interrupted attack has found so far is kept, elsewhere.
        beside = (f"{place}.kept", "data/interrupted")
        after = {name: c for name, c in files(folder).items() if not name.startswith(beside)}
        assert set(after) == set(before)
        if leave:
            assert code == 0 or (code, output.strip().splitlines()[-1]) == (2, LINE), output
        else:
            assert (code, output.strip()) == (2, LINE)
        assert [name for name, content in before.items() if after[name] != content] == []
        code, output = zygote.run(*command, cwd=folder)
        assert code == 0, output
        assert not list((folder / "data").glob("interrupted/*"))


@pytest.mark.parametrize(
    "leave", [300_000, *(pytest.param(n * 10**6, marks=FEW) for n in (0, 1, 2, 3, 4, 5, 6))]
)
def test_of_the_store(
    leave: int, zygote: Zygote, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    """From the first byte of the database to the last picture of the last run."""
    folder = shutil.copytree(undisturbed[0], tmp_path / "workspace", symlinks=True)
    expected = published(folder)
    (folder / "mlflow.db").unlink()
    shutil.rmtree(folder / "mlruns")
    before = files(folder)
    with small_disk(folder, kib=used(folder) + 20_000):
        ballast = fill(folder, leave=leave)
        code, output = zygote.track(cwd=folder)
        ballast.unlink()
        assert code == 2, output
        lines = output.strip().splitlines()
        assert [line for line in lines if line.startswith("retrace: ")] == lines[-1:]
        assert "Traceback" not in output
        assert re.search("disk is full|No space left", lines[-1])
        assert files(folder) == before
        code, output = zygote.track(cwd=folder)
        assert code == 0, output
        assert published(folder) == expected


def test_of_a_store_that_holds_runs(
    zygote: Zygote, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    """The runs that are there stay; what could not be added comes with the next."""
    folder = shutil.copytree(undisturbed[0], tmp_path / "workspace", symlinks=True)
    expected = published(folder)
    forget(folder, "imputation")
    left = published(folder)
    assert len(left) == len(expected) - 1
    with small_disk(folder, kib=used(folder) + 20_000):
        ballast = fill(folder, leave=0)
        code, output = zygote.track(cwd=folder)
        ballast.unlink()
        assert code == 2 and output.count("retrace: ") == 1 and "Traceback" not in output
        assert published(folder) == left
        assert zygote.track(cwd=folder)[0] == 0
        assert published(folder) == expected


def forget(folder: Path, experiment: str) -> None:
    """Delete the runs of an experiment, as a user does in the MLflow UI."""
    import sqlite3

    with sqlite3.connect(folder / "mlflow.db") as database:
        database.execute(
            "UPDATE runs SET lifecycle_stage = 'deleted' WHERE experiment_id ="
            " (SELECT experiment_id FROM experiments WHERE name = ?)",
            (experiment,),
        )
    database.close()
