"""SIGKILL at random moments of a `dvc repro`: the next one ends with what an undisturbed one gives,
byte for byte, and nothing else."""

import random
import re
import shutil
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import commit, execute
from dvc.lock import make_lock
from harness import FEW, FULL, Zygote, files, kill, published, started

from retrace.commands.mend import LOCK, mend, parsed
from retrace.data.download import temporary_folder
from retrace.pipeline.command import Refusal

pytestmark = pytest.mark.xdist_group("faults")
KILLS = range(50 if FULL else 1)


@pytest.mark.parametrize("seed", KILLS)
def test_the_next_repro_gives_the_same_bytes(
    seed: int, zygote: Zygote, untouched: Path, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    finished, seconds = undisturbed
    folder = shutil.copytree(untouched, tmp_path / "workspace", symlinks=True)
    moment = random.Random(seed).uniform(0, seconds)  # noqa: S311
    code, output = zygote.run("dvc", "repro", cwd=folder, kill_after=moment)
    assert code in (-9, 0), output[-3000:]
    ran = re.findall(r"Running stage '([^']+)'", output)
    mended = mend(folder)
    after, output = zygote.run("dvc", "repro", cwd=folder)
    print(f"killed after {moment:.1f} s, in or after {ran[-1:]}; mended: {mended}")
    assert after == 0, output[-3000:]
    expected, given = files(finished), files(folder)
    assert set(given) == set(expected)
    assert not [name for name, content in expected.items() if given[name] != content]
    assert published(folder) == published(finished)
    assert zygote.run("dvc", "status", cwd=folder)[1].count("up to date") == 1


@FEW
@pytest.mark.parametrize("seed", range(5))
def test_also_where_stages_are_processes_of_their_own(
    seed: int, untouched: Path, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    """Times differ here, so that files with times are compared by their names alone."""
    folder = shutil.copytree(untouched, tmp_path / "workspace", symlinks=True)
    process = started("dvc", "repro", cwd=folder)
    time.sleep(random.Random(seed).uniform(0, 60))  # noqa: S311
    kill(process.pid)
    print(process.communicate()[0][-200:])
    mend(folder)
    execute("dvc", "repro", cwd=folder)
    expected, given = files(undisturbed[0]), files(folder)
    assert set(given) == set(expected)
    assert not [
        name
        for name, content in expected.items()
        if name.endswith((".npz", ".safetensors", ".png")) and given[name] != content
    ]
    assert [row[:3] for row in published(folder)] == [r[:3] for r in published(undisturbed[0])]


def cut_lock(folder: Path, part: int) -> None:
    """Cut dvc.lock off behind one `part`-th, where DVC does not read it any more."""
    text = (folder / LOCK).read_text(encoding="utf-8")
    length = next(n for n in range(len(text) // part, len(text)) if not parsed(text[:n]))
    (folder / LOCK).write_text(text[:length], encoding="utf-8")


def test_a_lock_that_is_cut_off_anywhere_is_mended_and_read_by_dvc(
    undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    """Whole stages stay as they are; no other content is ever made up."""
    text = (undisturbed[0] / LOCK).read_text(encoding="utf-8")
    stages = yaml.safe_load(text)["stages"]
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").touch()
    lengths = random.Random(0).sample(range(len(text)), 60 if FULL else 15)  # noqa: S311
    for length in lengths:
        (tmp_path / LOCK).write_text(text[:length], encoding="utf-8")
        broken = parsed(text[:length]) is None
        # A stage is taken for whole where the whole name of the next one follows.
        whole = len(re.findall(r"^  [^ -].*:$", text[:length], re.MULTILINE)) - 1
        assert bool(mend(tmp_path)) is broken
        if not broken:
            continue  # DVC reads it: a stage that lacks its last entries runs again
        if whole < 1:
            assert not (tmp_path / LOCK).exists()
        else:
            mended = parsed((tmp_path / LOCK).read_text(encoding="utf-8"))
            assert mended and mended["stages"] == dict(list(stages.items())[:whole])
        assert sorted(path.name for path in tmp_path.iterdir()) in ([".dvc"], [".dvc", LOCK])


def test_after_a_cut_lock_repro_runs_no_training_again(
    zygote: Zygote, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    """The state that a kill leaves while DVC writes dvc.lock, and DVC's own lock file."""
    folder = shutil.copytree(undisturbed[0], tmp_path / "workspace", symlinks=True)
    cut_lock(folder, 3)
    (folder / ".dvc/tmp/rwlock").write_text('{"read": {"a')
    assert zygote.run("dvc", "repro", cwd=folder)[0] != 0  # DVC reads neither
    done = execute(sys.executable, "-m", "retrace", "mend", cwd=folder).stdout
    assert done.count("cut off") == 2
    code, output = zygote.run("dvc", "repro", cwd=folder)
    assert code == 0, output[-3000:]
    again = {name.split("@")[0] for name in re.findall(r"Running stage '([^']+)'", output)}
    # What writes files that DVC does not cache cannot be restored by it.
    assert again <= {"score", "report", "track"}
    assert files(folder) == files(undisturbed[0])
    assert published(folder) == published(undisturbed[0])


def test_what_the_last_commit_knows_comes_back_from_it(
    undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    folder = shutil.copytree(undisturbed[0], tmp_path / "workspace", symlinks=True)
    text = (folder / LOCK).read_text(encoding="utf-8")
    commit(folder)
    for part in (1000, 3, 2):
        cut_lock(folder, part)
        assert "from the last commit" in mend(folder)[0]
        assert yaml.safe_load((folder / LOCK).read_text()) == yaml.safe_load(text)
    assert mend(folder) == []


def test_a_lock_that_is_being_written_is_not_mended(tmp_path: Path) -> None:
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    (tmp_path / ".dvc/config").touch()
    (tmp_path / LOCK).write_text("schema: '2.0'\nsta", encoding="utf-8")
    lock = make_lock(str(tmp_path / ".dvc/tmp/lock"))
    with lock, pytest.raises(Refusal, match="a DVC command is at work"):
        mend(tmp_path)
    assert (tmp_path / LOCK).read_text(encoding="utf-8") == "schema: '2.0'\nsta"


def test_what_a_killed_download_left_is_removed_and_a_living_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    left = tmp_path / ".raw.abc.part"
    (left / "raw").mkdir(parents=True)
    with temporary_folder(path) as first, temporary_folder(path) as second:
        assert first.is_dir() and second.is_dir() and not left.exists()
    assert not list(tmp_path.iterdir())
