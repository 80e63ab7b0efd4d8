"""Make a folder by running stages in it: what the workers of a sweep do.

A module of its own, since workers, on other machines too, import it by its name.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from retrace.pipeline.artifacts import read_json, write_json
from retrace.pipeline.command import Refusal
from retrace.pipeline.params import PARAMS

OUTCOME = Path("outcome.json")  # written last: a folder that has it is whole
LOG = Path("log.txt")


class Job(NamedTuple):
    """A folder to be made by a worker.

    Attributes
    ----------
    folder : str
        Absolute; its name is the hash of all that it is made of.
    params : dict
        Its params.yaml.
    links : dict
        Paths in it, and the absolute paths of the files made before that they stand for.
    steps : list of (stage, argument)
        What runs in it.
    """

    folder: str
    params: dict[str, Any]
    links: dict[str, str]
    steps: list[tuple[str, str]]


def work(job: Job) -> str | None:
    """Make a folder, whole or not at all; give the line of a stage that refused, if one did."""
    folder = Path(job.folder)
    # A worker whose end was seen too early may have made it meanwhile.
    if (folder / OUTCOME).exists():
        return refused_in(folder)
    # A trial is one task; what it runs takes no further workers.
    os.environ.update(RETRACE_ENGINE="local", RETRACE_WORKERS="1")
    import torch

    torch.set_num_threads(1)
    started = time.time()
    with made_whole(folder) as temporary:
        # JSON is YAML, but for its escapes beyond the first 65,536 characters.
        text = json.dumps(job.params, ensure_ascii=False)
        (temporary / PARAMS).write_text(text, encoding="utf-8")
        for name, target in job.links.items():
            place = temporary / name
            place.parent.mkdir(parents=True, exist_ok=True)
            # Relative, so that it holds when the repository is moved.
            place.symlink_to(os.path.relpath(target, place.parent.resolve()))
        refused = None
        with _inside(temporary):
            try:
                for stage, argument in job.steps:
                    import_module(f"stages.{stage}").main(*([argument] if argument else []))
            except Refusal as refusal:
                refused = str(refusal)
        outcome = {"started": started, "seconds": time.time() - started, "refused": refused}
        write_json(temporary / OUTCOME, outcome)
    return refused_in(folder)


def refused_in(folder: Path) -> str | None:
    refused: str | None = read_json(folder / OUTCOME)["refused"]
    return refused


@contextmanager
def made_whole(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside `folder`; rename it when the block succeeds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    name = tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent)
    try:
        yield Path(name)
        try:
            Path(name).rename(folder)
        except OSError:
            if not (folder / OUTCOME).exists():  # else another worker was faster, with the same
                raise
    finally:
        shutil.rmtree(name, ignore_errors=True)


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Work in a folder, and keep what the stages print in its log."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        with (
            LOG.open("w", encoding="utf-8", errors="backslashreplace") as log,
            redirect_stdout(log),
            redirect_stderr(log),
        ):
            yield
    finally:
        os.chdir(before)
