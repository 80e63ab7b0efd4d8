"""The repository works in any folder, and keeps to it."""

import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import ROOT, execute

from retrace.checks import check_place
from retrace.pipeline.command import Refusal
from retrace.tracking.runs import read_lock

# All that has a meaning in a URI, a configuration, a shell, a Makefile or a pattern.
HOSTILE = 'C#, 50%20x what?now; it\'s "q" $HOME `x` \\t *[a] & é'


@pytest.fixture(scope="module")
def clone(make_workspace: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone under a hostile name, with one trained network and the data of a demo."""
    folder = make_workspace(tmp_path_factory.mktemp("place") / HOSTILE)
    (folder / "demo.yaml").write_text("{}\n", encoding="utf-8")  # the parameters are tiny already
    execute("dvc", "repro", "train@linear", cwd=folder)
    script = "import retrace.commands.demo as d; d.prepare(d.FOLDER)"
    execute(sys.executable, "-c", script, cwd=folder)
    execute("dvc", "repro", "download", cwd=folder / "demo")
    return folder


def test_nothing_lies_outside_the_repository(clone: Path, tmp_path: Path) -> None:
    packages = tmp_path / HOSTILE  # as if .venv lay in the clone
    packages.mkdir()
    mlflow = find_spec("mlflow")
    assert mlflow and mlflow.origin
    (packages / "mlflow").symlink_to(Path(mlflow.origin).parent)
    track = (sys.executable, "-m", "stages.track")
    for published in ("1 runs published, 0 were there", "0 runs published, 1 were there"):
        assert published in execute(*track, cwd=clone, PYTHONPATH=str(packages)).stdout
    assert list(clone.parent.iterdir()) == [clone]
    assert list(clone.glob(".dvc/cache/files/md5/??/*"))
    assert list(clone.glob("demo/.dvc/cache/files/md5/??/*"))
    assert list(clone.glob("mlruns/networks/*/artifacts/checkpoint/linear.safetensors"))
    status = execute("git", "status", "--short", "--ignored", cwd=clone).stdout.splitlines()
    new = {line[3:].split("/")[0] for line in status if line.startswith(("??", "!!"))}
    made = {"data", "demo", "dvc.lock", "mlflow.db", "mlruns", "models"}
    assert made <= new <= made | {".dvc", "mlflow.db-shm", "mlflow.db-wal", "stages"}


def test_dvc_gc_spares_the_other_cache(clone: Path) -> None:
    demo = clone / "demo"
    for folder in (clone, demo):
        execute("dvc", "gc", "--workspace", "--force", cwd=folder)
    for folder in (clone, demo):
        shutil.rmtree(folder / "data/raw")
        execute("dvc", "checkout", "data/raw", cwd=folder)
        assert list((folder / "data/raw").iterdir())


@pytest.mark.parametrize("text", ["", "<<<<<<< HEAD\n", "schema: '2.0'\n", "stages: 5\n"])
def test_a_broken_lock_is_not_published(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.lock").write_text(text, encoding="utf-8")
    with pytest.raises(Refusal, match=r"dvc\.lock is broken; `retrace mend` mends it"):
        read_lock()


def test_a_folder_in_place_of_the_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").mkdir()
    script = "from retrace.tracking.store import store; store().__enter__()"
    done = execute(sys.executable, "-c", script, cwd=tmp_path, check=False, PYTHONPATH=str(ROOT))
    assert "mlflow.db is a folder" in done.stderr.splitlines()[-1]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """The Makefile under a hostile name, and a `python` that says what it was given."""
    folder = tmp_path / HOSTILE
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    shutil.copyfile(ROOT / "Makefile", folder / "Makefile")
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$0 $*" "$PWD"\n', encoding="utf-8")
    python.chmod(0o755)
    for name in ("pyproject.toml", "constraints.txt", ".venv/ready"):
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("target", ["demo", "run", "track", "plots", "report", "ui"])
def test_make_runs_the_python_of_a_folder_of_any_name(target: str, made: Path) -> None:
    store = made / HOSTILE
    store.mkdir()
    (store / "mlflow.db").touch()
    said = execute("make", "--silent", target, cwd=made, STORE=HOSTILE).stdout.splitlines()
    there = store if target == "track" else made
    assert said[0].startswith(f"{made}/.venv/bin/python -m ")
    assert said[1] == str(there)


@pytest.mark.parametrize("name", ["a:b", "{a", "a}"])
def test_make_refuses_what_cannot_work(name: str, made: Path) -> None:
    folder = made.rename(made.parent / name)
    result = execute("make", "setup", cwd=folder, check=False)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert f"{folder} holds " in result.stderr and "rename it" in result.stderr


def test_paths_that_dvc_cannot_take_are_refused() -> None:
    check_place(Path("/", HOSTILE))
    for name in ("{", "a}", "\udcff"):
        with pytest.raises(Refusal, match="rename it"):
            check_place(Path("/", name))


def test_the_demo_refuses_before_it_makes_anything(
    make_workspace: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = make_workspace(tmp_path / "{a}")
    result = execute(sys.executable, "-m", "retrace", "demo", cwd=folder, check=False)
    assert result.returncode == 2 and result.stderr.startswith("retrace: the path ")
    assert result.stderr.count("\n") == 1
    assert not (folder / "demo").exists()
    result = execute("dvc", "repro", "split", cwd=folder, check=False)
    assert "retrace: the path " in result.stderr and not (folder / "data").exists()
