"""`retrace run` does what `dvc repro` does, and dvc.lock is written in time."""

import copy
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import TINY, execute, write_params
from dvc.utils.serialize import dumps_yaml

from retrace.commands import run
from retrace.pipeline.command import Refusal


@pytest.mark.xdist_group("pipeline")
def test_dvc_finds_all_in_step(finished: Path) -> None:
    assert "up to date" in execute("dvc", "status", cwd=finished).stdout
    again = execute(sys.executable, "-m", "retrace.commands.run", cwd=finished).stdout
    assert re.search(r"^0 stages ran, \d+ were up to date", again, re.MULTILINE)
    assert (finished / "metrics/report.html").resolve().as_uri() in again


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"networks": {"ffnn": None}}, "networks.ffnn = None: input should be a valid dict"),
        ({"networks": {"ffnn": {}}}, "networks.ffnn.architecture: this key is missing"),
        ({"runs": {"x": None}}, "runs.x = None: input should be a valid dictionary"),
        ({"runs": {"x": {"method": "fill"}}}, "runs.x.problem: this key is missing"),
        ({"runs": None}, "runs = None: input should be a valid dictionary"),
        ({"sweeps": {"x": {"runs": ["gone"]}}}, r"sweeps\.x"),
    ],
)
def test_dvc_is_not_asked_what_is_wrong_in_params_yaml(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    write_params(tmp_path, {**TINY, **changes})
    with pytest.raises(Refusal, match=rf"^params\.yaml: {said}"):
        run.reproduce(tmp_path)


def test_nothing_is_removed_before_all_is_checked(tmp_path: Path) -> None:
    params = copy.deepcopy(TINY)
    del params["networks"]["ffnn"]
    write_params(tmp_path, params)
    made = tmp_path / "models/ffnn.safetensors"
    made.parent.mkdir()
    made.touch()
    lock = {"stages": {"train@ffnn": {"outs": [{"path": "models/ffnn.safetensors"}]}}}
    (tmp_path / "dvc.lock").write_text(dumps_yaml(lock), encoding="utf-8")
    with pytest.raises(Refusal, match="network = 'ffnn': allowed are"):
        run.reproduce(tmp_path)
    assert made.exists()


class Stage(SimpleNamespace):
    """What `Steps` asks of a stage of DVC."""

    def reproduce(self, **keywords: Any) -> "Stage":
        return self


def test_dvc_lock_is_written_before_a_stage_that_may_read_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[list[str]] = []

    def dump_stages(stages: list[Stage], *, update_pipeline: bool) -> None:
        assert not update_pipeline
        written.append([stage.addressing for stage in stages])

    file = SimpleNamespace(dump_stages=dump_stages)
    stages = [
        Stage(addressing=name, outs=outs, dvcfile=file)
        for name, outs in (("a", ["x"]), ("b", ["y"]), ("track", []), ("c", ["z"]))
    ]
    steps = run.Steps(SimpleNamespace(index=SimpleNamespace(stages=stages)))
    steps.take(stages[0])
    steps.take(stages[1])
    assert written == []
    steps.take(stages[2])
    assert written == [["a", "b"]]
    monkeypatch.setattr(run, "EVERY", -1)
    steps.take(stages[3])
    assert written == [["a", "b"], ["track", "c"]]
