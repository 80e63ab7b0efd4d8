"""Split the observations of a run into shards, solve each, and put the answers together.

The plan depends on the observations alone: shards of `SIZE` observations in their order, each with
a seed of its own. So one worker, two or twenty give the same bytes, and memory is bounded by the
size of a shard, whatever the number of images, masks and restarts.
"""

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor, nn
from tqdm import tqdm

from retrace.execution import engine
from retrace.pipeline.artifacts import unfilled
from retrace.pipeline.command import Refusal
from retrace.pipeline.device import chosen, computing_on, described, matmul_precision
from retrace.types import Precision

SIZE = 1000  # observations of a shard
STARTING = 6.0  # seconds of work left from which on workers pay, which import torch first
WATCHED = 8  # images of each group whose estimates are kept along the iterations
SHOWN_STEPS = (0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000)

Arrays = dict[str, NDArray[Any]]
Progress = Callable[[int, float], None]


class Watched(NamedTuple):
    """What was seen along the iterations of one shard."""

    losses: NDArray[np.float64]  # (steps, parts), means over the images of each part
    # By step, estimates (at most 8, ...) of the first images of each part; and those of the last
    # step that there was, none where there was none.
    snapshots: dict[int, list[NDArray[Any]]]
    last: list[NDArray[Any]]


class Recorder:
    """Keeps what a method shows along its iterations: mean losses, and some estimates."""

    def __init__(
        self,
        *,
        parts: Sequence[tuple[int, int | None]],
        steps: int,
        progress: Progress | None = None,
    ) -> None:
        self.parts = [slice(*part) for part in parts]
        self.steps = steps
        self.progress = progress
        self.losses: list[list[float]] = []
        self.snapshots: dict[int, list[NDArray[Any]]] = {}
        self.last: list[NDArray[Any]] = []

    def __call__(self, step: int, loss: Tensor, estimate: Tensor) -> None:
        """Take the losses (B,) and the estimate (B, 28, 28) of a step."""
        loss = loss.detach().double()
        self.losses.append([loss[part].mean().item() for part in self.parts])
        shown = (estimate.detach()[part][:WATCHED] for part in self.parts)
        self.last = [images.cpu().numpy().copy() for images in shown]
        if step in SHOWN_STEPS or step == self.steps:
            self.snapshots[step] = self.last
        if self.progress:
            self.progress(step, loss.mean().item())

    def watched(self) -> Watched:
        return Watched(np.array(self.losses), self.snapshots, self.last)


class Shard(NamedTuple):
    """A task: plain arrays, so that every engine can send it anywhere."""

    method: str  # problem and method, as in ``imputation.ridge``
    architecture: str
    arguments: Mapping[str, Any]  # of the network
    weights: bytes  # as safetensors
    observed: NDArray[Any]  # (B, 28, 28)
    settings: Mapping[str, Any]  # of the method, with the shard's own seed
    parts: list[tuple[int, int]]  # where groups (masks) begin and end, or what is here of them
    steps: int  # iterations, or 0 for a method without
    device: str  # as in params.yaml: whoever solves the shard sees which one that is there
    precision: Precision  # see `retrace.pipeline.device.computing_on`


class Solved(NamedTuple):
    """Answers of a shard, or of all, arrays of leading length B; what was watched (of all, as
    `merged_watched` gives it); bytes, at most, that a process took; labels of the devices; what
    their products rounded to (see `retrace.pipeline.device.matmul_precision`)."""

    answers: Arrays
    watched: Any
    peak_memory: int
    device: str
    matmul_precision: str


def plan(*, groups: int, images: int) -> list[tuple[slice, list[tuple[int, int]]]]:
    """Cut groups of as many images each into shards of `SIZE` observations: the observations of
    each, and where each group that it touches lies within it."""
    total = groups * images
    shards = []
    for start in range(0, total, SIZE):
        end = min(start + SIZE, total)
        touched = range(start // images, (end - 1) // images + 1)
        parts = [
            (max(g * images, start) - start, min((g + 1) * images, end) - start) for g in touched
        ]
        shards.append((slice(start, end), parts))
    return shards


def seed_of(seed: int, shard: int) -> int:
    """The seed of a shard; the first has the run's own, so that a run of one shard is what its
    method alone gives."""
    return int(np.random.SeedSequence([seed, shard]).generate_state(1)[0]) if shard else seed


def peak_memory() -> int:
    """Bytes that this process has taken so far, at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


@contextmanager
def one_thread() -> Any:
    """Sums depend on the number of threads: one, here as in every worker."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def solve(shard: Shard, *, progress: Progress | None = None) -> Solved:
    """Run the method on one shard, with one thread of the processor."""
    device = chosen(shard.device)
    method = import_module(f"retrace.methods.{shard.method}").reconstruct
    network = unfilled(shard.architecture, shard.arguments)
    # Copies, since where an array lies in memory may change the last digit of a product.
    weights = {key: tensor.clone() for key, tensor in load(shard.weights).items()}
    network.load_state_dict(weights, assign=True)
    network.eval().requires_grad_(False).to(device)
    observed = torch.tensor(shard.observed, device=device)
    recorder = Recorder(parts=shard.parts, steps=shard.steps, progress=progress)
    with one_thread(), computing_on(device, shard.precision):
        arrays = arrays_of(method(network, observed, **shard.settings, callback=recorder))
    for key, value in arrays.items():
        if len(value) != len(observed):
            raise Refusal(
                f"the method {shard.method} gave {len(value)} values of {key!r} for "
                f"{len(observed)} observations"
            )
    rounded = matmul_precision(device, shard.precision)
    return Solved(arrays, recorder.watched(), peak_memory(), described(device), rounded)


def arrays_of(answer: Tensor | dict[str, Tensor]) -> Arrays:
    """A method's answer; one with more to say than its estimate returns a dictionary."""
    answers = answer if isinstance(answer, dict) else {"estimate": answer}
    return {key: value.detach().cpu().numpy() for key, value in answers.items()}


@contextmanager
def progress_bar(label: str, *, total: int, shown: bool = True) -> Iterator[tuple[Any, Progress]]:
    """A progress bar in steps, and what a `Recorder` calls to move it."""
    with tqdm(total=total, desc=label, unit="step", disable=None if shown else True) as bar:

        def progress(step: int, loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.4g}")
            bar.update(step > 0)

        yield bar, progress


def merged_watched(watched: list[Watched], parts: list[list[int]], *, groups: int) -> Arrays:
    """Loss and snapshots of whole groups, as if there were one shard.

    Of what was watched in each shard, one that stopped early staying what it was at its last step,
    and the numbers of images in each part of each, which follow each other as the groups do:
    ``loss`` (steps, groups) float32, ``snapshots`` (S, groups, 8, ...), or as many as there are at
    every step, ``snapshot_steps`` (S,); empty for a method that has no iterations.
    """
    steps = max(len(one.losses) for one in watched)
    if not steps:
        return {}
    # Parts of one group lie side by side: of all parts in a row, cut after every whole group.
    counts = np.array([count for shard in parts for count in shard])
    group = (np.cumsum(counts) - 1) * groups // counts.sum()  # (parts,)
    losses = np.concatenate(
        [np.pad(one.losses, ((0, steps - len(one.losses)), (0, 0)), "edge") for one in watched],
        axis=1,
    )  # (steps, parts)
    shares = np.eye(groups)[group] * counts[:, None]  # (parts, groups)
    shown = sorted({step for one in watched for step in one.snapshots})
    snapshots = []
    for step in shown:
        images = [part for one in watched for part in one.snapshots.get(step, one.last)]
        by_group = [
            np.concatenate([images[i] for i in np.flatnonzero(group == g)])[:WATCHED]
            for g in range(groups)
        ]
        snapshots.append(np.stack(by_group))
    fewest = min(images.shape[1] for images in snapshots)  # an attack's candidates may get more
    return {
        "loss": (losses @ shares / shares.sum(axis=0)).astype(np.float32),
        "snapshots": np.stack([images[:, :fewest] for images in snapshots]),
        "snapshot_steps": np.array(shown),
    }


def run(
    network: nn.Module,
    observed: NDArray[Any],
    *,
    method: str,
    header: Mapping[str, Any],
    settings: Mapping[str, Any],
    steps: int,
    label: str,
    device: str,
    precision: Precision,
) -> Solved:
    """Solve all shards: here, until workers of the engine would pay for the rest.

    Parameters
    ----------
    observed : (groups, n, 28, 28) or (n, 28, 28)
    method, settings, steps, device, precision
        See `Shard`.
    header : dict
        Of the checkpoint: ``architecture`` and ``arguments``.
    """
    # A bad value is refused before there is work to lose. A GPU works for one process here: others
    # would wait for it, each with a context of its own.
    parallel = engine.parallel() and (chosen(device).type == "cpu" or engine.name() != "local")
    groups = len(observed) if observed.ndim == 4 else 1
    flat = observed.reshape(-1, *observed.shape[-2:])
    weights = save({key: value.contiguous() for key, value in network.state_dict().items()})
    whole = Shard(
        method=method,
        architecture=header["architecture"],
        arguments=header["arguments"],
        weights=weights,
        observed=flat,
        settings=settings,
        parts=[],
        steps=steps,
        device=device,
        precision=precision,
    )
    shards, rows = [], []
    for i, (where, parts) in enumerate(plan(groups=groups, images=len(flat) // groups)):
        rows.append(where)
        own = {**settings, "seed": seed_of(settings["seed"], i)} if "seed" in settings else settings
        shards.append(whole._replace(observed=flat[where], settings=own, parts=parts))
    answers: Arrays = {}
    solved: dict[int, Solved] = {}

    def keep(i: int, found: Solved) -> None:
        """Put the answers of a shard into their rows at once: no array is held twice."""
        for key, value in found.answers.items():
            if key not in answers:
                answers[key] = np.empty((len(flat), *value.shape[1:]), value.dtype)
            answers[key][rows[i]] = value
        solved[i] = found._replace(answers={})

    each = max(steps, 1)  # of the progress bar
    with progress_bar(label, total=each * len(shards)) as (bar, progress):
        for i, shard in enumerate(shards):
            started = time.monotonic()
            keep(i, solve(shard, progress=progress))
            bar.update(each * len(solved) - bar.n)
            # Asked after every shard, since the first may be the easiest.
            left = (time.monotonic() - started) * (len(shards) - len(solved))
            if left > STARTING and parallel:
                break
        done = len(solved)
        if done < len(shards):
            for position, result in engine.run(solve, shards[done:]):
                keep(done + position, result)
                bar.update(each)
    sizes = [[end - first for first, end in shard.parts] for shard in shards]
    ordered = [solved[i] for i in range(len(shards))]
    return Solved(
        answers,
        merged_watched([one.watched for one in ordered], sizes, groups=groups),
        max(peak_memory(), *(one.peak_memory for one in ordered)),
        ", ".join(sorted({one.device for one in ordered})),
        ", ".join(sorted({one.matmul_precision for one in ordered})),
    )
