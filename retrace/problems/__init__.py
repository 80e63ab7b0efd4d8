"""The problems. All that is known of one lies in its folder, which is the whole registry:

- ``observe.py``: ``observe(ground, **settings)`` gives what a method sees and, apart from it, the
  truth, as arrays. The settings are the problem's section of params.yaml.
- ``score.py``: a class ``Scorer``, made once from the ground, the records of the problem's runs
  and a function that gives means with intervals, and called for each run: its scores, and their
  headline. ``baselines`` is what the runs are measured against. Two constants have to be there:
  ``JUDGES`` names networks that scores need beside a run's own, and ``BASELINE`` the method of the
  run that others are compared with (or None).
- ``show.py``: ``section(state)`` gives tables, galleries and charts, ``pictures(run, ground)``
  pictures for MLflow.

A computing stage depends on the one file that it imports, so that drawing is no dependency of it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray
from torch import nn

from retrace.pipeline.artifacts import (
    checkpoint_path,
    dataset_of,
    history_path,
    load_checkpoint,
    observed_path,
    read_arrays,
    read_json,
    read_split,
    split_path,
    truth_path,
)
from retrace.pipeline.command import WrongValue
from retrace.types import Means, Split

Arrays = Mapping[str, NDArray[Any]]
Scores = dict[str, Any]


def names() -> list[str]:
    """The problems that there are: the folders beside this file."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("[!_]*/score.py"))


def part(problem: str, name: str) -> Any:
    """A module of a problem: its ``observe``, ``score`` or ``show``."""
    return import_module(f"retrace.problems.{problem}.{name}")


def needed(problem: str, source: str) -> set[str]:
    """Networks without which a problem is not observed or scored, beside those of its runs."""
    path = Path(source)
    observed_from = {path.stem} if path == checkpoint_path(path.stem) else set()
    return observed_from | set(part(problem, "score").JUDGES)


class Observations(NamedTuple):
    """What a problem gives to methods, and what it keeps from them.

    Given are ``observed``, which a method takes; ``dataset``; ``each``, whether every observation
    has an answer of its own, so that they may be solved in parts; and what else methods may use or
    what names the observations (``masks``, ``groups``).
    """

    given: Arrays
    truth: Arrays


class Run(NamedTuple):
    """A reconstruction: the record of how it was made, and its arrays."""

    name: str
    record: Mapping[str, Any]
    arrays: Arrays

    def snapshots(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """Steps and what was seen there; nothing of a method without iterations."""
        if "snapshots" in self.arrays:
            steps = self.arrays["snapshot_steps"].tolist()
            yield from zip(steps, self.arrays["snapshots"], strict=True)


def read_network(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """A network in evaluation mode, and the record of its training."""
    return load_checkpoint(checkpoint_path(name))[0], read_json(history_path(name))


@dataclass
class Ground:
    """What a problem is observed from and scored on. Files are read when they are asked for."""

    problem: str
    source: str = ""  # path of what it is observed from, beside the test images; see params.yaml
    split: Callable[[str], Split] = read_split  # of "train", "validation" or "test"
    load: Callable[[str], tuple[nn.Module, dict[str, Any]]] = read_network  # by a network's name
    read: Callable[[Path], Arrays] = read_arrays

    @cached_property
    def dataset(self) -> str:
        return dataset_of(split_path("test"))

    @cached_property
    def given(self) -> Arrays:
        """The observations, see `Observations`."""
        return self.read(observed_path(self.problem))

    @cached_property
    def truth(self) -> Arrays:
        """The truth, see `Observations`."""
        return self.read(truth_path(self.problem))

    def network(self, name: str) -> Any:
        return self.load(name)[0]

    def decoder(self) -> Any:
        """The network that is the source, refused where it has no decoder."""
        network = self.network(Path(self.source).stem)
        if not hasattr(network, "decoder_weights"):
            raise WrongValue(
                f"params.yaml: problems.{self.problem}.source = {self.source!r}: no decoder there; "
                "a network of the architecture vae is expected"
            )
        return network


class BaseScorer:
    """What a problem's own `Scorer` is made of; it is called with a `Run`."""

    baselines: Scores = {}  # noqa: RUF012 (replaced, not changed)

    def __init__(
        self, ground: Ground, records: Mapping[str, Mapping[str, Any]], means: Means
    ) -> None:
        self.ground, self.records, self.means = ground, records, means
