"""`retrace ui`: MLflow's server on a store, whatever the paths hold."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, environment

from retrace.commands import ui
from retrace.pipeline.command import Refusal


def test_the_server_starts_from_a_path_that_mlflow_can_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    python = tmp_path / "50% %s" / "bin" / "python"
    python.parent.mkdir(parents=True)
    tell = "import json, os, sys; print(json.dumps([*sys.argv, os.getcwd()])); sys.exit(3)"
    python.write_text(f"#!{sys.executable}\n{tell}\n", encoding="utf-8")
    python.chmod(0o755)
    store = tmp_path / "a store %"
    store.mkdir()
    (store / "mlflow.db").touch()
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(SystemExit) as stopped:
        ui.main(store=store, port=5005)
    assert stopped.value.code == 3
    started, *command, place = json.loads(capfd.readouterr().out)
    assert "%" not in started and not Path(started).exists()  # the link is gone again
    assert " ".join(command) == (
        "-m mlflow server --host 127.0.0.1 --port 5005 --workers 1 "
        "--backend-store-uri sqlite:///mlflow.db"
    )
    assert place == str(store)


def test_it_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"typo/mlflow.db is missing; `make track` makes it"):
        ui.main(store=tmp_path / "typo", port=5000)
    assert not (tmp_path / "typo").exists()


def test_a_port_that_cannot_be_listened_on_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    with socket.socket() as other:
        other.bind((ui.HOST, 0))
        other.listen()
        used = other.getsockname()[1]
        for port, said in (
            (70000, "--port 70000: allowed are 1 to 65535"),
            (-1, "--port -1: allowed are 1 to 65535"),
            (used, f"--port {used}: Address already in use; choose another"),
        ):
            with pytest.raises(Refusal) as refusal:
                ui.main(store=tmp_path, port=port)
            assert str(refusal.value) == said


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGINT, 0), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
def test_the_server_ends_with_it_and_without_a_traceback(
    number: signal.Signals, expected: int, tmp_path: Path
) -> None:
    """Of a server, here in place of MLflow's, that answers Ctrl-C with a traceback."""
    (tmp_path / "mlflow.db").touch()
    (tmp_path / "mlflow.py").write_text(
        "import os, time; print(os.getpid(), flush=True); time.sleep(60)", encoding="utf-8"
    )
    with socket.socket() as free:
        free.bind((ui.HOST, 0))
        port = str(free.getsockname()[1])
    with subprocess.Popen(
        [sys.executable, "-m", "retrace.commands.ui", "--store", str(tmp_path), "--port", port],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout
        server = int(process.stdout.readline())
        os.killpg(process.pid, number)  # as a terminal does
        said = process.stdout.read()
        assert (process.wait(), said) == (expected, "")
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)
