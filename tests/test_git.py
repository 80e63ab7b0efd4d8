"""What Git says is told in its own words; what needs no Git works without it."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, commit, execute

from retrace.commands import compare
from retrace.git import NoRepository, committed, git
from retrace.pipeline.command import Refusal
from retrace.report import page
from retrace.tracking import runs as track


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    execute("git", "init", "--quiet", cwd=tmp_path)
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "bytes").write_bytes(b"\xff\0 missing\n")
    commit(tmp_path)
    monkeypatch.chdir(inner)
    return tmp_path


def test_a_file_of_a_revision_is_read_by_its_path_from_here(repository: Path) -> None:
    assert committed("bytes") == committed("bytes", revision="HEAD^{commit}") == b"\xff\0 missing\n"
    assert committed("inner/bytes", folder=repository) == b"\xff\0 missing\n"
    for path, revision in (("no", "HEAD"), ("bytes", "nonsense"), ("", "HEAD"), ("bytes", ":2")):
        assert committed(path, revision=revision) is None
    execute("git", "checkout", "--quiet", "--orphan", "unborn", cwd=repository)
    assert committed("bytes") is None


def test_each_reason_is_told_in_one_line_with_what_to_do(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(elsewhere.parent))
    with pytest.raises(
        NoRepository, match=r"`git clone`.*`git init`.*not a git repository"
    ) as told:
        committed("bytes", folder=elsewhere)
    assert "\n" not in str(told.value)
    with pytest.raises(Refusal, match="Git says: fatal: Needed a single revision"):
        git("rev-parse", "--verify", "nonsense")
    (blob,) = git("rev-parse", "HEAD:./bytes").decode().split()
    loose = repository / ".git/objects" / blob[:2] / blob[2:]
    loose.chmod(0o600)
    loose.write_bytes(b"broken")
    with pytest.raises(Refusal, match="Git says: error: "):  # not "there is none"
        committed("bytes")
    monkeypatch.setenv("PATH", str(elsewhere))
    with pytest.raises(NoRepository, match="Git is not installed, or not on PATH"):
        committed("bytes")


def facts() -> str:
    return dict(page.repository_facts())["Git commit"]


def test_another_owner_is_no_missing_commit(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = git("rev-parse", "HEAD").decode().strip()
    assert compare.commit_of("HEAD") == facts() == track.git_commit() == head
    Path("bytes").write_bytes(b"changed")
    assert facts() == f"{head}, with changes that are not committed"
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    words = "detected dubious ownership.* git config --global --add safe.directory"
    for ask in (lambda: compare.commit_of("HEAD"), lambda: compare.shown_at("HEAD", "bytes")):
        with pytest.raises(Refusal, match=words) as told:
            ask()
        assert "\n" not in str(told.value) and "not a commit" not in str(told.value)
    assert "unknown (Git says: fatal: detected dubious ownership" in facts()
    assert track.git_commit() == "unknown"


def test_the_report_and_mlflow_do_without_git(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "inner"))
    assert facts() == "unknown (no Git repository)"
    assert track.git_commit() == "unknown"
    with pytest.raises(Refusal, match="Git is not installed"):
        compare.commit_of("HEAD")
    mlflow = "from mlflow.utils.git_utils import get_git_commit as commit"
    look = f"import retrace.tracking.store; {mlflow}; print(commit('.'))"
    settings: dict[str, Any] = {"PATH": str(tmp_path / "inner"), "PYTHONPATH": str(ROOT)}
    done = execute(sys.executable, "-W", "ignore", "-c", look, cwd=tmp_path, **settings)
    assert (done.stdout, done.stderr) == ("None\n", "")
