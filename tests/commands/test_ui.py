"""`retrace ui`: MLflow's server on a store, whatever the paths hold."""

import json
import sys
from pathlib import Path

import pytest

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
