"""A forked stage is as one that starts by itself."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, environment, execute

from retrace import warm

STAGE = """
import json, os, sys, time
from pathlib import Path
import torch

given = {"arguments": sys.argv[1:], "folder": os.getcwd(), "mark": os.environ.get("MARK"),
         "process": os.getpid(), "parent": os.getppid(), "sum": float(torch.ones(9).sum())}
print(json.dumps(given), flush=True)
if "sleep" in sys.argv:
    time.sleep(600)
if "raise" in sys.argv:
    raise RuntimeError("said by the stage")
sys.exit(len(sys.argv))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a stage that says what it is given."""
    folder = tmp_path_factory.mktemp("warm")
    (folder / "stages").mkdir()
    package = (ROOT / "stages/__init__.py").read_text(encoding="utf-8")
    (folder / "stages/__init__.py").write_text(package, encoding="utf-8")
    (folder / "stages/say.py").write_text(STAGE, encoding="utf-8")
    shutil.copytree(ROOT / "retrace", folder / "retrace")
    return folder


@pytest.fixture(scope="module")
def variable(folder: Path) -> Iterator[dict[str, str]]:
    with warm.running(folder) as variable:
        assert variable
        yield variable


def say(folder: Path, *words: str, **extra: str) -> "subprocess.CompletedProcess[str]":
    return execute(*(sys.executable, "-m", "stages.say", *words), cwd=folder, check=False, **extra)


def test_a_stage_is_the_same_where_it_is_forked(folder: Path, variable: dict[str, str]) -> None:
    """Arguments, environment, working folder, streams and exit code."""
    forked = say(folder, "a b", "é", MARK="x", **variable)
    alone = say(folder, "a b", "é", MARK="x")
    found, expected = (json.loads(done.stdout) for done in (forked, alone))
    assert found.pop("parent") != os.getpid() == expected.pop("parent")
    assert found.pop("process") != expected.pop("process")
    assert found == expected
    assert forked.returncode == alone.returncode == 3


def test_an_error_is_shown_and_the_next_stage_starts(
    folder: Path, variable: dict[str, str]
) -> None:
    broken = say(folder, "raise", **variable)
    assert broken.returncode == 1 and "RuntimeError: said by the stage" in broken.stderr
    assert say(folder, **variable).returncode == 1  # as many as words


def test_without_anyone_there_a_stage_starts_by_itself(folder: Path, tmp_path: Path) -> None:
    done = say(folder, RETRACE_WARM=str(tmp_path / "nobody"))
    assert json.loads(done.stdout)["parent"] == os.getpid()


@pytest.mark.parametrize("closed", ["<&-", "2>&-"])
def test_without_one_of_its_streams_a_stage_starts_by_itself(
    closed: str, folder: Path, variable: dict[str, str]
) -> None:
    shell = f'exec "{sys.executable}" -m stages.say {closed}'
    done = execute("sh", "-c", shell, cwd=folder, check=False, **variable)
    assert json.loads(done.stdout)["parent"] == os.getpid() and done.returncode == 1


@pytest.mark.parametrize("said", [b"", (100).to_bytes(4), (100).to_bytes(4) + b"{"])
def test_who_dies_while_it_hands_over_is_not_waited_for(
    said: bytes, folder: Path, variable: dict[str, str]
) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(variable[warm.VARIABLE])
        if said:
            socket.send_fds(connection, [said[:4]], [0, 1, 2])
            connection.sendall(said[4:])
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(4) == (1).to_bytes(4)
    assert say(folder, **variable).returncode == 1


def test_ctrl_c_is_passed_on(folder: Path, variable: dict[str, str]) -> None:
    command = [sys.executable, "-m", "stages.say", "sleep"]
    undo = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"
    start = f"os.execv(sys.executable, {command!r})"
    settings = {**environment(), **variable}
    with subprocess.Popen(
        [sys.executable, "-c", undo + start],
        cwd=folder,
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as caller:
        assert caller.stdout and caller.stderr
        caller.stdout.readline()
        caller.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in caller.stderr.read()
    assert caller.returncode == 1


@pytest.mark.parametrize("deadly", [signal.SIGKILL, signal.SIGTERM])
def test_a_stage_dies_with_who_called(deadly: int, folder: Path, variable: dict[str, str]) -> None:
    command = [sys.executable, "-m", "stages.say", "sleep"]
    settings = {**environment(), **variable}
    with subprocess.Popen(
        command, cwd=folder, env=settings, stdout=subprocess.PIPE, text=True
    ) as caller:
        assert caller.stdout
        stage = json.loads(caller.stdout.readline())["process"]
        os.kill(caller.pid, deadly)
    while Path(f"/proc/{stage}/status").exists():
        time.sleep(0.01)
    assert say(folder, **variable).returncode == 1


def test_a_stage_takes_the_code_that_dvc_will_see(folder: Path) -> None:
    with warm.running(folder) as variable:
        assert json.loads(say(folder, **variable).stdout)["parent"] != os.getpid()
        code = folder / "retrace/types.py"
        code.write_text(code.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
        assert json.loads(say(folder, **variable).stdout)["parent"] == os.getpid()
