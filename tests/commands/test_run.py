"""`retrace run` does what `dvc repro` does, and dvc.lock is written in time."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import execute

from retrace.commands import run


@pytest.mark.xdist_group("pipeline")
def test_dvc_finds_all_in_step(finished: Path) -> None:
    assert "up to date" in execute("dvc", "status", cwd=finished).stdout
    again = execute(sys.executable, "-m", "retrace.commands.run", cwd=finished).stdout
    assert re.search(r"^0 stages ran, \d+ were up to date", again, re.MULTILINE)
    assert (finished / "metrics/report.html").resolve().as_uri() in again


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
