"""`dvc repro`, faster: stages are forked from a warm process, and dvc.lock is written now and then.

DVC writes the whole of dvc.lock after every stage, in pure Python. Here it is written every half
minute, at the end, and before a stage that may read it. Nothing is lost in between: what a stage
made is in DVC's run cache already, from where the next run takes it.
"""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrace import warm
from retrace.checks import check_place
from retrace.commands.mend import mend, without_git
from retrace.commands.report import REPORT
from retrace.pipeline.artifacts import metrics_path, read_json
from retrace.pipeline.command import INTERRUPTED, Refusal, run
from retrace.problems import names

if TYPE_CHECKING:
    from dvc.stage import Stage

EVERY = 30  # seconds between two writes of dvc.lock
LEAST = 0.5  # seconds that a stage takes, at least


class Steps(logging.Filter):
    """Reproduces one stage after the other, as DVC does; keeps what is due for dvc.lock, and says
    ``stage 12 of 104`` and how long the rest may take in place of DVC's own words."""

    def __init__(self, repo: Any) -> None:
        super().__init__()
        self.names = [stage.addressing for stage in repo.index.stages]
        self.known = {name: seconds_of(name) for name in self.names}
        self.spent: dict[str, float] = {}  # of the stages that ran
        self.due: list[Stage] = []
        self.written = time.monotonic()
        self.position = 0

    def take(self, stage: "Stage", **keywords: Any) -> "Stage | None":
        """Reproduce a stage; None where it is up to date."""
        self.position += 1
        if not stage.outs:
            self.write()
        begun = time.monotonic()
        done: Stage | None = stage.reproduce(**keywords)
        if done:
            self.spent[stage.addressing] = time.monotonic() - begun
            self.due.append(done)
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
            name = self.names[self.position - 1]
            print(f"stage {self.position} of {len(self.names)}, {self.left()}: {name}", flush=True)
        return False

    def left(self) -> str:
        """How long the rest will take: as long as it took when the metrics here were made, else as
        long as the other stages do on average."""
        others = [spent for name, spent in self.spent.items() if self.known[name] is None]
        mean = sum(others) / len(others) if others else LEAST
        rest = self.names[self.position - 1 :]
        seconds = sum(mean if self.known[name] is None else self.known[name] or 0 for name in rest)
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
        When DVC refuses or a stage fails, whose own line stands above.
    KeyboardInterrupt
        When a stage was interrupted.
    """
    check_place(folder.resolve())
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
            with Repo() as repo:
                steps = Steps(repo)
                logger.filters = [steps]
                try:
                    repo.reproduce(repro_fn=steps.take)
                finally:
                    with repo.lock:
                        steps.write()
            if steps.spent or not REPORT.exists():
                subprocess.run([sys.executable, "-m", "retrace.commands.report"], check=True)
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
    ran, rest = len(steps.spent), len(steps.names) - len(steps.spent)
    seconds = time.monotonic() - begun
    print(f"{ran} stages ran, {rest} were up to date, in {seconds:.0f} s")


def main() -> None:
    """Run the pipeline of dvc.yaml as `dvc repro` does, but faster, and draw the report."""
    reproduce(Path())


if __name__ == "__main__":
    run(main)
