"""`dvc repro`, faster: stages are forked from a warm process, and dvc.lock is written now and then.

DVC writes the whole of dvc.lock after every stage, in pure Python. Here it is written every half
minute, at the end, and before a stage that may read it. Little is lost by a kill in between: what
a stage made is in DVC's run cache already, from where the next run takes it; scores and the
report, which are in Git and in no cache, are made again.
"""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrace import warm
from retrace.checks import check_entries, check_place, remove_left_over
from retrace.commands.mend import mend, without_git
from retrace.commands.report import REPORT
from retrace.pipeline.artifacts import metrics_path, read_json
from retrace.pipeline.command import INTERRUPTED, Refusal, run
from retrace.pipeline.params import PARAMS, load
from retrace.problems import names
from retrace.sweeps.trials import check_sweeps

if TYPE_CHECKING:
    from dvc.stage import Stage

EVERY = 30  # seconds between two writes of dvc.lock
LEAST = 0.5  # seconds that a stage takes, at least


class Steps(logging.Filter):
    """Reproduces one stage after the other, as DVC does; keeps what is due for dvc.lock, and says
    ``stage 12 of 104`` and how long the rest may take in place of DVC's own words."""

    def __init__(self, repo: Any) -> None:
        super().__init__()
        names = [stage.addressing for stage in repo.index.stages]
        self.known = {name: seconds_of(name) for name in names}
        self.rest = set(names)
        self.now = ""
        self.spent: dict[str, float] = {}  # of the stages that ran
        self.restored = 0  # those that DVC's run cache had
        self.due: list[Stage] = []
        self.written = time.monotonic()

    def take(self, stage: "Stage", **keywords: Any) -> "Stage | None":
        """Reproduce a stage; None where it is up to date."""
        self.now = stage.addressing
        if not stage.outs:
            self.write()
        begun = time.monotonic()
        done: Stage | None = stage.reproduce(**keywords)
        if done:
            self.due.append(done)
            if self.now in self.spent:
                self.spent[self.now] = time.monotonic() - begun
            else:
                self.restored += 1
        self.rest.discard(self.now)
        if time.monotonic() - self.written > EVERY:
            self.write()
        return done

    def write(self) -> None:
        """Bring dvc.lock up to date."""
        if self.due:
            self.due[0].dvcfile.dump_stages(self.due, update_pipeline=False)
        self.due, self.written = [], time.monotonic()

    def filter(self, record: logging.LogRecord) -> bool:
        if str(record.msg).startswith("Running stage"):
            position, count = len(self.known) - len(self.rest) + 1, len(self.known)
            print(f"stage {position} of {count}, {self.left()}: {self.now}", flush=True)
            self.spent[self.now] = 0.0
        return False

    def left(self) -> str:
        """How long the rest will take: as long as it took when the metrics here were made, else as
        long as the other stages do on average."""
        others = [spent for name, spent in self.spent.items() if self.known[name] is None]
        mean = sum(others) / len(others) if others else LEAST
        expected = [self.known[name] for name in self.rest]
        seconds = sum(mean if known is None else known for known in expected)
        return f"{seconds / 60:.0f} min left" if seconds > 90 else f"{seconds:.0f} s left"


def seconds_of(stage: str) -> float | None:
    """Seconds that a reconstruction took when the metrics here were made."""
    kind, _, name = stage.partition("@")
    found = [path for problem in names() if (path := metrics_path(problem, name)).exists()]
    if kind != "reconstruct" or not found:
        return None
    return LEAST + float(read_json(found[0])["seconds"])


def reproduce(folder: Path) -> None:
    """Run the pipeline in a folder, and draw the report.

    Raises
    ------
    Refusal
        When params.yaml is wrong, DVC refuses or a stage fails, whose own line stands above.
    KeyboardInterrupt
        When a stage was interrupted.
    """
    check_place(folder.resolve())
    # Before DVC, which reads params.yaml too and names neither key nor value.
    params = load(folder / PARAMS)
    check_entries(params)
    check_sweeps(params)
    print("".join(f"{line}\n" for line in [*without_git(folder), *mend(folder)]), end="")
    begun, here = time.monotonic(), Path.cwd()
    os.environ.pop("DVC_ROOT", None)
    with warm.running(folder) as variable:
        from dvc.exceptions import DvcException
        from dvc.repo import Repo
        from dvc.stage.exceptions import StageCmdFailedError

        logging.getLogger("dvc").setLevel(logging.WARNING)
        logger = logging.getLogger("dvc.stage.run")
        logger.setLevel(logging.INFO)
        os.chdir(folder)
        os.environ.update(variable)
        try:
            remove_left_over(params)  # not by `check` alone, which DVC's cache may stand in for
            with Repo() as repo:
                steps = Steps(repo)
                logger.filters = [steps]
                try:
                    repo.reproduce(repro_fn=steps.take)
                finally:
                    with repo.lock:
                        steps.write()
            if steps.spent or steps.restored or not REPORT.exists():
                drawn = subprocess.run(
                    [sys.executable, "-m", "retrace.commands.report"], check=False
                )
                if drawn.returncode:
                    raise Refusal("the report was not drawn, as said above; all results are there")
            else:
                print(f"The report is {REPORT.resolve().as_uri()}")
        except DvcException as error:
            cause = error.__cause__
            if isinstance(cause, StageCmdFailedError) and str(cause).endswith(f" {INTERRUPTED}"):
                raise KeyboardInterrupt from None
            raise Refusal(" ".join(str(error).split())) from None
        finally:
            logger.filters = []
            os.environ.pop(warm.VARIABLE, None)
            os.chdir(here)
    ran, restored = len(steps.spent), steps.restored
    same, seconds = len(steps.known) - ran - restored, time.monotonic() - begun
    cached = f"{restored} came from the cache, " if restored else ""
    print(f"{ran} stages ran, {cached}{same} were up to date, in {seconds:.0f} s")


def main() -> None:
    """Run the pipeline of dvc.yaml as `dvc repro` does, but faster, and draw the report."""
    reproduce(Path())


if __name__ == "__main__":
    run(main)
