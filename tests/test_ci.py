"""`.ci/repro.py`: nothing may run that did not change."""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, commit, execute

SCRIPT = ROOT / ".ci" / "repro.py"
CONFIG = "[core]\n    analytics = false\n    check_update = false\n    no_scm = true\n"
# first -> second, and other by itself. `second` writes an uncached output, as a score does.
STAGES: dict[str, dict[str, Any]] = {
    "first": {
        "cmd": "cat source.txt > first.txt && echo ${a} >> first.txt",
        "deps": ["source.txt"],
        "params": ["a"],
        "outs": ["first.txt"],
    },
    "second": {
        "cmd": "cat first.txt > second.txt && echo ${b} >> second.txt",
        "deps": ["first.txt"],
        "params": ["b"],
        "outs": [{"second.txt": {"cache": False}}],
    },
    "other": {
        "cmd": "mkdir -p other && echo ${c} > other/other.txt",
        "deps": ["source.txt"],
        "params": ["c"],
        "outs": ["other"],
    },
}


def write(folder: Path, *, a: int = 1, **changes: dict[str, Any]) -> None:
    """Write params.yaml, and dvc.yaml with changes to stages."""
    stages = {name: {**stage, **changes.get(name, {})} for name, stage in STAGES.items()}
    for name, content in (
        ("params.yaml", {"a": a, "b": 1, "c": 1}),
        ("dvc.yaml", {"stages": stages}),
    ):
        (folder / name).write_text(yaml.safe_dump(content), encoding="utf-8")


def repro(folder: Path) -> tuple[int, dict[str, set[str]]]:
    """Exit code, and what ran by reason."""
    done = execute(sys.executable, str(SCRIPT), cwd=folder, check=False)
    lines = re.findall(r"^repro: ran, ([\w ]+):(.*)$", done.stdout, re.MULTILINE)
    assert len(lines) == (4 if done.returncode in (0, 1) else 0), done.stderr
    return done.returncode, {title: set(names.split()) for title, names in lines if names}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DVC repository of three stages, each run once."""
    folder = tmp_path_factory.mktemp("original")
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text(CONFIG, encoding="utf-8")
    (folder / "source.txt").write_text("source\n", encoding="utf-8")
    write(folder)
    assert repro(folder) == (0, {"changed": {"first", "second", "other"}})
    return folder


@pytest.fixture
def workspace(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "copy")


def test_no_stage_has_both_cached_and_uncached_outputs() -> None:
    """DVC restores no such stage: a clone with the cache would run it again for nothing."""
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    stages = [stage.get("do", stage) for stage in yaml.safe_load(text)["stages"].values()]
    assert len(stages) >= 10
    for stage in stages:
        outputs = [*stage.get("outs", []), *stage.get("metrics", [])]
        cached = {not isinstance(out, dict) or out.popitem()[1]["cache"] for out in outputs}
        assert len(cached) < 2, stage


@pytest.mark.xdist_group("pipeline")
def test_a_fresh_clone_with_the_cache_alone_runs_no_stage_of_the_pipeline(
    finished: Path, tmp_path: Path
) -> None:
    origin, clone = (
        shutil.copytree(finished, tmp_path / "origin", symlinks=True),
        tmp_path / "clone",
    )
    commit(origin)
    execute("git", "clone", "--quiet", str(origin), str(clone), cwd=tmp_path)
    shutil.copytree(origin / ".dvc" / "cache", clone / ".dvc" / "cache")
    assert repro(clone) == (0, {})
    assert execute("git", "status", "--porcelain", cwd=clone).stdout == ""


def test_only_what_changed_and_what_follows_it_runs(workspace: Path) -> None:
    assert repro(workspace) == (0, {})
    write(workspace, a=2)
    assert repro(workspace) == (0, {"changed": {"first"}, "follows": {"second"}})


def test_deleted_outputs_come_from_the_cache(workspace: Path) -> None:
    (workspace / "first.txt").unlink()
    shutil.rmtree(workspace / "other")
    assert repro(workspace) == (0, {})
    assert (workspace / "other" / "other.txt").read_text(encoding="utf-8") == "1\n"


def test_a_cold_cache_is_allowed_and_reported(workspace: Path) -> None:
    (workspace / "first.txt").unlink()
    shutil.rmtree(workspace / "other")
    shutil.rmtree(workspace / ".dvc" / "cache")
    assert repro(workspace) == (0, {"cold": {"first", "other"}})


def test_what_runs_unchanged_fails(workspace: Path) -> None:
    # `second` comes after a changed stage, but reads what it read before. DVC restores no output
    # that persists, although the cache has it.
    write(
        workspace,
        first={"cmd": f"{STAGES['first']['cmd']} && true"},
        second={"always_changed": True},
        other={"outs": [{"other": {"persist": True}}]},
    )
    shutil.rmtree(workspace / "other")
    assert repro(workspace) == (1, {"changed": {"first"}, "NO REASON": {"second", "other"}})


def test_an_undeclared_output_fails(workspace: Path) -> None:
    # `first` has changed, and writes what `other` reads; nothing in dvc.yaml says so.
    command = f"{STAGES['first']['cmd']} && echo more >> source.txt"
    write(workspace, first={"cmd": command, "deps": ["params.yaml"]})
    code, ran = repro(workspace)
    assert (code, ran["NO REASON"]) == (1, {"other"})


def test_the_exit_code_of_dvc_is_kept(workspace: Path) -> None:
    write(workspace, second={"cmd": "exit 3"})
    code, ran = repro(workspace)
    assert code not in (0, 1)
    assert ran == {}
