"""Run the trials of a sweep, by the functions that the stages call, in workers of the engine.

What is made lies under the digest of everything that it is made of: parameters, data and code. So
a trial that is done is not done again, in whichever sweep it turns up, an interrupted sweep goes
on where it was, and trials share the networks that they have in common.
"""

import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout
from pydantic import ValidationError
from torch import nn
from tqdm import tqdm

from retrace.checks import check_networks
from retrace.data.masks import drawn
from retrace.data.split import split_raw
from retrace.execution import engine
from retrace.execution.reconstruction import reconstruct
from retrace.measures.quality import means_with_intervals
from retrace.pipeline.artifacts import (
    DATASET,
    MASKS,
    as_tensors,
    checkpoint_path,
    load_checkpoint,
    observed_path,
    read_json,
    read_split,
    reconstruction_path,
    save_checkpoint,
    truth_path,
    write_json,
)
from retrace.pipeline.command import Refusal, WrongValue
from retrace.pipeline.device import chosen
from retrace.pipeline.params import PARAMS, NetworkEntry, Params, read_yaml
from retrace.problems import Arrays, Ground, Run, part
from retrace.sweeps.trials import Sweep, Trial
from retrace.training import train_network
from retrace.types import BadInput, Split

FOLDER = Path("data/sweeps")
# Files of this package that networks and trials are made by. Where a task runs changes no result:
# the engine is none of them.
OF_NETWORKS = ("networks/*.py", "pipeline/*.py", "training.py", "types.py")
OF_TRIALS = (
    *(*OF_NETWORKS, "data/masks.py", "execution/reconstruction.py", "execution/shards.py"),
    *("measures/*.py", "problems/__init__.py", "problems/*/observe.py"),
)
OF_PROBLEM = ("methods/*.py", "methods/{}/*.py", "problems/{}/score.py")

Result = dict[str, Any]


class Task(NamedTuple):
    """What a worker makes: a trial, or without `path` a network."""

    root: str  # the repository, absolute; the machines of a cluster share it
    params: dict[str, Any]  # of the trial
    resplit: bool  # whether its splits are others than those in data/
    networks: dict[str, str]  # paths of checkpoints by name
    path: str = ""


def digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


@cache
def code(*patterns: str) -> str:
    """Digest of files of this package."""
    package = Path(__file__).parents[1]
    files = {file for pattern in patterns for file in package.glob(pattern)}
    content = {str(file.relative_to(package)): file.read_text("utf-8") for file in files}
    return digest(content)


class Plan:
    """The tasks of a sweep, by the path of what they make, none twice."""

    def __init__(self, base: Params) -> None:
        self.base = base
        self.networks: dict[str, Task] = {}
        self.trials: dict[str, Task] = {}
        self.data = digest(read_json(DATASET)["sha256"])
        lock = Path("dvc.lock")
        self.locked = read_yaml(lock)["stages"] if lock.exists() else {}
        self.in_step = cache(self._in_step)

    def add(self, trial: Trial) -> Path:
        """Plan a trial and the networks that it needs; give the path of its file."""
        params, content = trial.params, trial.params.model_dump()
        data, resplit = self.data, params.data != self.base.data
        if resplit:
            data = digest([data, content["data"], code("data/split.py")])
        task = Task(str(Path.cwd()), content, resplit, {})
        for name, entry in params.networks.items():
            if not resplit and entry == self.in_step(name, params.device):
                task.networks[name] = str(checkpoint_path(name))
                continue
            key = digest([name, entry.model_dump(), params.device, data, code(*OF_NETWORKS)])
            task.networks[name] = path = str(FOLDER / f"networks/{key}.safetensors")
            self.networks.setdefault(path, task._replace(networks={name: path}))
        masked = str(MASKS) in {entry.source for entry in params.problems.values()}
        matters = content | {"data": data, "masks": content["masks"] if masked else None}
        own = (pattern.format(name) for name in params.problems for pattern in OF_PROBLEM)
        key = digest([matters, code(*OF_TRIALS, *own)])
        path = str(FOLDER / f"trials/{key}.json")
        self.trials.setdefault(path, task._replace(path=path))
        return Path(path)

    def _in_step(self, name: str, device: str) -> NetworkEntry | None:
        """The entry, whole, by which models/ holds a network, as long as dvc.lock says that it was
        trained on this device, and by data and code that are here."""
        stage = self.locked.get(f"train@{name}", {})
        stated = stage.get("params", {}).get(PARAMS.name, {})
        if stated.get("device") != device or f"networks.{name}" not in stated:
            return None
        for item in [*stage["deps"], *stage["outs"]]:
            path, md5 = Path(item["path"]), item["md5"]
            content = path.read_bytes() if path.is_file() else b""
            found = hashlib.md5(content, usedforsecurity=False).hexdigest()
            if found != md5 and not md5.endswith(".dir"):  # DVC's sum of a folder
                return None
        try:
            entry = NetworkEntry.model_validate(stated[f"networks.{name}"])
            return check_networks({name: entry})[name]
        except (ValidationError, Refusal):  # of former code, which took other values
            return None


def make(sweep: Sweep, base: Params, *, name: str) -> tuple[list[Result], int]:
    """Make what is not there yet of a sweep: networks first, then trials; give the results, and how
    many of them were done before.

    A result has ``trial``, its digest; ``started``, ``seconds``; ``refused``, the reason or None;
    ``params``; and by run ``metrics``, numbers for a table, ``scores``, all of them, and the
    ``record`` of the reconstruction. A value that is refused is a result, since it would be again;
    any other refusal, of a device or a file, ends the sweep, which goes on from there the next
    time. So does it where another sweep is running here, or the engine cannot work.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(FOLDER / "lock", timeout=0):
            plan = Plan(base)
            files = [plan.add(trial) for trial in sweep.trials]
            before = sum(file.exists() for file in files)
            todo = [task for path, task in plan.trials.items() if not Path(path).exists()]
            wanted = {path for task in todo for path in task.networks.values()}
            untrained = [
                task
                for path, task in plan.networks.items()
                if path in wanted and not Path(path).with_suffix(".json").exists()
            ]
            for kind, function, tasks in (("networks", train, untrained), ("trials", score, todo)):
                with tqdm(total=len(tasks), desc=f"{name}: {kind}", disable=None) as bar:
                    for _ in engine.run(function, tasks) if tasks else ():
                        bar.update()
    except Timeout:
        raise Refusal("another sweep is running here; start this one when it has ended") from None
    return [read_json(file) for file in files], before


@contextmanager
def working(task: Task) -> Iterator[tuple[Params, Callable[[str], Split]]]:
    """Give a trial's parameters and splits; what is computed takes no further workers, one thread,
    and prints nothing."""
    os.environ.update(RETRACE_ENGINE="local", RETRACE_WORKERS="1")
    torch.set_num_threads(1)
    silent = io.StringIO()
    with chdir(task.root), redirect_stdout(silent), redirect_stderr(silent):
        params = Params.model_validate(task.params)
        parts = cache(partial(split_raw, params.data))

        @cache
        def split(name: str) -> Split:
            return as_tensors(parts()[name]) if task.resplit else read_split(name)

        yield params, split


def train(task: Task) -> None:
    """Train a network; its record is written last, or why it was refused."""
    ((name, path),) = task.networks.items()
    with working(task) as (params, split):
        try:
            network, record = train_network(
                name,
                params.networks[name],
                split("train"),
                split("validation"),
                device=chosen(params.device),
                dataset=params.data.name,
            )
            kept = {key: record[key] for key in ("architecture", "arguments", "dataset")}
            save_checkpoint(network, name=name, path=Path(path), **kept)
        except WrongValue as refusal:
            record = {"refused": str(refusal)}
        write_json(Path(path).with_suffix(".json"), record)


def score(task: Task) -> None:
    """Make and score the runs of a trial."""
    path = Path(task.path)
    with working(task) as (params, split):
        result: Result = {"trial": path.stem, "params": task.params, "runs": {}, "refused": None}
        started = time.time()
        try:
            for problem in params.problems:
                result["runs"] |= scores_of(problem, params, split, task)
        except (WrongValue, BadInput) as refusal:
            result |= {"runs": {}, "refused": str(refusal)}
        write_json(path, {**result, "started": started, "seconds": time.time() - started})


def scores_of(
    problem: str, params: Params, split: Callable[[str], Split], task: Task
) -> dict[str, Result]:
    """Results of a problem's runs, by their names, see `make`. What stages hand on as files is
    handed on in memory, under the same paths."""

    def load(name: str) -> tuple[nn.Module, Result]:
        path = Path(task.networks[name])
        record = read_json(path.with_suffix(".json"))
        if "refused" in record:
            raise WrongValue(record["refused"])
        return load_checkpoint(path)[0], record

    entry, scoring = params.problems[problem], params.scoring
    files: dict[Path, Arrays] = {}
    if entry.source == str(MASKS):
        files[MASKS] = drawn(params.masks, available=len(split("test")[0]))
    means = partial(means_with_intervals, resamples=scoring.resamples, seed=scoring.seed)
    ground = Ground(problem, entry.source, split, load, files.__getitem__)
    given, truth = part(problem, "observe").observe(ground, **entry.settings)
    files |= {observed_path(problem): given, truth_path(problem): truth}
    records = {}
    for name, run in params.runs.items():
        if run.problem == problem:
            network, trained = load(run.network)
            files[reconstruction_path(problem, name)], records[name] = reconstruct(
                name,
                run,
                network,
                dict(given),
                header=trained,
                device=params.device,
                interrupted=FOLDER / f"interrupted/{Path(task.path).stem}-{name}.npz",
            )
    scorer = part(problem, "score").Scorer(ground, records, means)
    results = {}
    for name, record in records.items():
        scores, headline = scorer(Run(name, record, files[reconstruction_path(problem, name)]))
        trained = load(record["network"])[1]
        metrics = {**headline, "n": scores["n"], "seconds": record["seconds"]}
        metrics["training_seconds"] = trained["seconds"]
        last = trained["epochs"][-1] if trained["epochs"] else {}
        if "test_error" in last:
            metrics["test_accuracy"] = 1 - last["test_error"]
        if "epsilon" in last:
            metrics["epsilon"] = last["epsilon"]
        results[name] = {"metrics": metrics, "scores": scores, "record": record}
    return results
