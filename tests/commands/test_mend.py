"""dvc.lock, however broken: what is whole stays, what Git has comes back, the rest is named."""

import copy
import random
import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY, commit, execute, write_params
from dvc.utils.serialize import dumps_yaml, load_yaml

from retrace.commands.mend import BROKEN, LOCK, mend
from retrace.pipeline.command import Refusal

PIPELINE = """
stages:
  first: {cmd: one, deps: [a.txt], outs: [b.txt, c.txt]}
  train:
    foreach: ${networks}
    do: {cmd: "train ${key}", params: ["networks.${key}"], deps: [b.txt], outs: ["${key}.bin"]}
  score: {cmd: score, deps: [c.txt, x.bin], outs: [s.json: {cache: false}]}
  track: {cmd: track, deps: [s.json, b.txt]}
"""
PARAMS = "networks: {x: {size: 1}, y: {size: 2}}\n"


def entry(command: str, deps: list[str], outs: list[str], **params: Any) -> dict[str, Any]:
    """As DVC writes one."""

    def files(names: list[str]) -> list[dict[str, Any]]:
        return [{"path": n, "hash": "md5", "md5": f"{n:a<32}"[:32], "size": 12} for n in names]

    found: dict[str, Any] = {"cmd": command, "deps": files(deps)}
    if params:
        found["params"] = {"params.yaml": params}
    return {**found, "outs": files(outs)} if outs else found


STAGES = {
    "first": entry("one", ["a.txt"], ["b.txt", "c.txt"]),
    "train@x": entry("train x", ["b.txt"], ["x.bin"], **{"networks.x": {"answer": "no"}}),
    "train@y": entry("train y", ["b.txt"], ["y.bin"], **{"networks.y": {"rate": 1e-05}}),
    "score": entry("score", ["c.txt", "x.bin"], ["s.json"]),
    "track": entry("track", ["s.json", "b.txt"], []),
}


def text_of(stages: dict[str, Any]) -> str:
    text: str = dumps_yaml({"schema": "2.0", "stages": stages})
    return text


FULL = text_of(STAGES)


def write(folder: Path, content: str | bytes) -> None:
    (folder / LOCK).write_bytes(content.encode() if isinstance(content, str) else content)


def locked(folder: Path) -> Any:
    """The stages of dvc.lock as DVC reads them."""
    return load_yaml(str(folder / LOCK))["stages"]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A workspace that lies in no repository of Git."""
    folder = tmp_path / "plain"
    (folder / ".dvc").mkdir(parents=True)
    shutil.copyfile(ROOT / ".dvc/.gitignore", folder / ".dvc/.gitignore")
    (folder / ".dvc/config").write_text("[core]\n    analytics = false\n", encoding="utf-8")
    (folder / "dvc.yaml").write_text(PIPELINE, encoding="utf-8")
    (folder / "params.yaml").write_text(PARAMS, encoding="utf-8")
    write(folder, FULL)
    return folder


@pytest.fixture
def repository(plain: Path) -> Path:
    """The same, committed with all of its dvc.lock."""
    execute("git", "init", "--quiet", "--initial-branch=main", cwd=plain)
    commit(plain, "Start")
    return plain


def mended(folder: Path, broken: str | bytes) -> str:
    """Break dvc.lock, mend it; give the one line, which is the only one."""
    write(folder, broken)
    (line,) = mend(folder)
    assert "\n" not in line
    assert mend(folder) == []
    return line


def test_after_a_cut_anywhere_all_comes_back_from_the_last_commit(repository: Path) -> None:
    """Also after one between two lines, which leaves a text that DVC reads without a word."""
    lines = [i + 1 for i, letter in enumerate(FULL) if letter == "\n"][:-1]
    for length in [*lines, *random.Random(0).sample(range(len(FULL)), 20)]:  # noqa: S311
        assert "from the last commit" in mended(repository, FULL[:length]), FULL[:length]
        assert (repository / LOCK).read_text(encoding="utf-8") == FULL
        assert (repository / BROKEN).read_text(encoding="utf-8") == FULL[:length]


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (b"", ": empty; 0 stages kept, 5 (first, train@x, train@y, score, track) from"),
        (b"\n \n", ": empty; "),
        (bytes(4096), "holds nothing but 4096 NUL bytes"),
        (FULL[:600].encode() + bytes(500), "holds NUL bytes, as after a power cut, in 1 (train@x)"),
        (FULL.encode()[:600] + bytes(40) + FULL.encode()[640:], "in 1 (train@x); 4 stages kept"),
        (FULL.replace("cmd: train x", "cmd: [").encode(), "damaged in 1 (train@x); 4 stages kept"),
        (FULL.replace("    cmd: train x\n", "").encode(), "damaged in 1 (train@x); 4 stages"),
        (FULL.encode().replace(b"md5: x.bin", b"md5: \xff.bin", 1), "damaged in 1 (train@x); 4"),
        (b"garbage" + FULL.encode(), "before the first stage; 5 stages kept, 0 from"),
        (random.Random(0).randbytes(2000).replace(b"\0", b"x"), "0 stages kept, 5 ("),  # noqa: S311
    ],
)
def test_each_kind_of_damage_is_called_what_it_is(
    broken: bytes, words: str, repository: Path
) -> None:
    assert words in mended(repository, broken)
    assert (repository / LOCK).read_text(encoding="utf-8") == FULL
    assert (repository / BROKEN).read_bytes() == broken


def test_ends_of_lines_are_no_damage(repository: Path) -> None:
    write(repository, FULL.replace("\n", "\r\n"))
    assert mend(repository) == []
    assert "cut off in track; 4 stages kept" in mended(repository, FULL[:-9].replace("\n", "\r\n"))
    assert (repository / LOCK).read_bytes() == FULL.encode()


def test_what_is_newer_than_the_last_commit_stays(repository: Path) -> None:
    newer = copy.deepcopy(STAGES)
    newer["train@x"]["outs"][0]["md5"] = "f" * 32
    text = text_of(newer)
    assert "2 stages kept, 3 (train@y, score, track) from" in mended(
        repository, text[: text.index("train y")]
    )
    assert locked(repository) == newer


def test_without_a_commit_of_it_each_stage_that_is_lost_is_named(plain: Path) -> None:
    line = mended(plain, FULL[: FULL.index("train y")])
    assert "cut off in train@y; 2 stages kept, 0 from Git (" in line and "no Git repository" in line
    assert "left to `dvc repro`, which runs or restores them: " in line and "train@y" in line
    assert locked(plain) == {name: STAGES[name] for name in ("first", "train@x")}
    execute("git", "init", "--quiet", cwd=plain)
    line = mended(plain, FULL[: FULL.index("train y")])
    assert "2 stages kept, 0 from the last commit" in line
    assert "3 (train@y, score, track)" in line
    assert "removed, since nothing is left of it" in mended(plain, FULL[:30])
    assert not (plain / LOCK).exists()


def test_without_a_commit_a_last_stage_without_its_outs_was_cut(plain: Path) -> None:
    (plain / LOCK).unlink()
    execute("git", "init", "--quiet", cwd=plain)
    commit(plain)
    end = FULL.index("    outs:\n", FULL.index("  score:"))
    line = mended(plain, FULL[:end])
    assert "cut off between two lines" in line and "2 (score, track)" in line
    assert list(locked(plain)) == ["first", "train@x", "train@y"]


def test_what_dvc_yaml_no_longer_names_is_not_missed(repository: Path) -> None:
    """Who removes a run and its entry does not get it back, and no new key is called a cut."""
    fewer = copy.deepcopy(STAGES)
    del fewer["train@y"], fewer["track"]
    write(repository, text_of(fewer))
    (repository / "params.yaml").write_text("networks: {x: {size: 1}}\n", encoding="utf-8")
    pipeline = PIPELINE[: PIPELINE.index("  track:")]
    (repository / "dvc.yaml").write_text(pipeline, encoding="utf-8")
    assert mend(repository) == []
    del fewer["score"]["outs"]
    pipeline = pipeline.replace(", outs: [s.json: {cache: false}]", "")
    (repository / "dvc.yaml").write_text(pipeline, encoding="utf-8")
    write(repository, text_of(fewer))
    assert mend(repository) == []
    assert locked(repository) == fewer


def conflict(folder: Path, *, style: str = "merge") -> dict[str, Any]:
    """A merge in which both sides changed train@x, one side train@y, and the other added and
    changed a stage; give what the mended dvc.lock shall hold."""
    ours, theirs = copy.deepcopy(STAGES), copy.deepcopy(STAGES)
    ours["train@x"]["outs"][0]["md5"] = "c" * 32
    theirs["train@x"]["outs"][0]["md5"] = "d" * 32
    theirs["train@x"]["deps"][0]["md5"] = "e" * 32  # far enough off to be merged without a conflict
    ours["train@y"]["outs"][0]["md5"] = "1" * 31 + "f"
    theirs["score"]["outs"][0]["md5"] = "2" * 31 + "f"
    theirs["other"] = entry("other", ["a.txt"], ["o.txt"])
    execute("git", "switch", "--quiet", "--create", "other", cwd=folder)
    write(folder, text_of(theirs))
    commit(folder, "Other")
    execute("git", "switch", "--quiet", "main", cwd=folder)
    write(folder, text_of(ours))
    commit(folder, "Main")
    options = (
        "-c",
        f"merge.conflictStyle={style}",
        "-c",
        "user.name=T",
        "-c",
        "user.email=t@e.org",
    )
    assert execute("git", *options, "merge", "other", cwd=folder, check=False).returncode
    assert "<<<<<<<" in (folder / LOCK).read_text(encoding="utf-8")
    return {**ours, "score": theirs["score"], "other": theirs["other"]}


@pytest.mark.parametrize("style", ["merge", "diff3", "zdiff3"])
def test_a_merge_conflict_is_joined_by_whole_stages(style: str, repository: Path) -> None:
    expected = conflict(repository, style=style)
    line = mended(repository, (repository / LOCK).read_bytes())
    assert "a merge conflict; 2 stages are alike on both sides" in line
    assert "changed on one side and taken from it: 3 (train@y, score, other)" in line
    assert "changed on both and kept as on this branch: 1 (train@x)" in line
    assert "`dvc repro`, then `git add dvc.lock`" in line
    assert locked(repository) == expected


@pytest.mark.parametrize("when", ["added", "committed"])
def test_also_where_the_markers_were_added_or_committed(when: str, repository: Path) -> None:
    expected = conflict(repository)
    execute("git", "add", LOCK, cwd=repository)
    if when == "committed":
        commit(repository, "Oops")
    line = mended(repository, (repository / LOCK).read_bytes())
    # From what both sides began is not asked here, so that what differs is kept as on this branch.
    assert "a merge conflict; 2 stages are alike on both sides" in line
    ours = load_yaml_of(repository, "main^" if when == "committed" else "main")
    assert locked(repository) == {**ours, "other": expected["other"]}


def load_yaml_of(folder: Path, revision: str) -> Any:
    text = execute("git", "show", f"{revision}:{LOCK}", cwd=folder).stdout
    (folder / "shown.yaml").write_text(text, encoding="utf-8")
    return load_yaml(str(folder / "shown.yaml"))["stages"]


def test_without_git_a_merge_conflict_leaves_what_is_alike(repository: Path) -> None:
    expected = conflict(repository)
    shutil.rmtree(repository / ".git")
    line = mended(repository, (repository / LOCK).read_bytes())
    assert "are alike on both sides and kept (" in line and "no Git repository" in line
    assert "left to `dvc repro`, which runs or restores them: " in line
    found = locked(repository)
    assert "train@x" not in found and "train@x" in line
    assert found["first"] == expected["first"] and found["track"] == expected["track"]


@pytest.mark.parametrize("name", ["dvc.yaml", "params.yaml"])
def test_a_merge_conflict_elsewhere_is_its_authors(name: str, repository: Path) -> None:
    text = (repository / name).read_text(encoding="utf-8")
    (repository / name).write_text(f"{text}<<<<<<< HEAD\n", encoding="utf-8")
    write(repository, FULL[:100])
    with pytest.raises(Refusal, match=r": resolve its merge conflict first \(line \d+: <<<<<<<"):
        mend(repository)
    assert (repository / LOCK).read_text(encoding="utf-8") == FULL[:100]


def test_where_git_refuses_its_words_are_told_and_nothing_is_lost(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert mend(repository) == []
    for broken in (FULL[:300], "<<<<<<< HEAD\n" + FULL):
        write(repository, broken)
        with pytest.raises(
            Refusal, match=r"dubious ownership.* git config .*safe.directory"
        ) as told:
            mend(repository)
        assert "\n" not in str(told.value)
        assert (repository / LOCK).read_text(encoding="utf-8") == broken


@pytest.mark.parametrize(
    ("command", "said"),
    [("mend", "no pipeline is here; run from the folder of"), ("run", "params.yaml is missing")],
)
def test_where_there_is_no_pipeline_nothing_is_made(
    command: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC takes a folder that holds a .dvc for the root of a repository."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refusal, match=said):
        import_module(f"retrace.commands.{command}").main()
    assert not list(tmp_path.iterdir())


@pytest.mark.xdist_group("pipeline")
def test_the_lock_of_a_pipeline_cut_off_in_the_middle(finished: Path, tmp_path: Path) -> None:
    """Where YAML still reads it: `mend` once said nothing of such a cut."""
    text = (finished / LOCK).read_text(encoding="utf-8")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").touch()
    write(tmp_path, text[: text.index("md5:", len(text) // 2) + 10])
    (line,) = mend(tmp_path)
    assert "cut off in " in line
    stages = load_yaml(str(finished / LOCK))["stages"]
    kept = locked(tmp_path)
    assert kept == dict(list(stages.items())[: len(kept)]) and len(kept) > 10


def without_git(folder: Path) -> str:
    """A PATH with all that is on ours but Git."""
    programs = folder / "programs"
    programs.mkdir()
    for name in ("python", "dvc"):
        (programs / name).symlink_to(Path(sys.executable).parent / name)
    return str(programs)


@pytest.mark.parametrize("installed", [True, False])
def test_dvc_works_where_there_is_no_repository(
    installed: bool, plain: Path, tmp_path: Path
) -> None:
    """An archive from the web, unpacked."""
    extra: dict[str, Any] = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    if not installed:
        extra["PATH"] = without_git(tmp_path)
    dvc = str(Path(sys.executable).parent / "dvc")
    assert execute(dvc, "status", cwd=plain, check=False, **extra).returncode
    told = execute(sys.executable, "-m", "retrace", "mend", cwd=plain, **extra).stdout
    assert told.count("\n") == 1 and "dvc config --local --unset core.no_scm" in told
    assert not execute(sys.executable, "-m", "retrace", "mend", cwd=plain, **extra).stdout
    for path in (".dvc/config.local", "dvc.lock"):
        (plain / path).unlink(missing_ok=True)
    text = (plain / "params.yaml").read_bytes()
    write_params(plain, TINY)  # which are checked before
    assert (
        "core.no_scm"
        in execute(sys.executable, "-m", "retrace", "run", cwd=plain, check=False, **extra).stdout
    )
    (plain / "params.yaml").write_bytes(text)
    assert "train@x" in execute(dvc, "status", cwd=plain, **extra).stdout
    execute("git", "init", "--quiet", cwd=plain)
    execute(dvc, "config", "--local", "--unset", "core.no_scm", cwd=plain)
    assert not execute(sys.executable, "-m", "retrace", "mend", cwd=plain, **extra).stdout
