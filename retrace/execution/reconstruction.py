"""Reconstruct: hand observations and a trained network to a method. The truth is not here.

Where there is an estimate for each observation, the observations are split into shards, which run
side by side. Attacks on training data and network inversions are not split: an attack's candidates
share one loss and one deflation, and an inversion takes seconds. They run here, in one process.
"""

import hashlib
import inspect
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from retrace.execution import shards
from retrace.pipeline.artifacts import interrupted_path, read_arrays, write_arrays
from retrace.pipeline.command import Refusal
from retrace.pipeline.device import announce, chosen, computing_on, described, matmul_precision
from retrace.pipeline.params import GIVEN, RunEntry, bind, find, refused
from retrace.types import BadInput, Precision


class Memory:
    """Keeps the arrays of a method that was interrupted in a file until the run ends, for the next
    run with the same inputs: texts that identify code, settings and network."""

    def __init__(self, path: Path, *, inputs: list[str]) -> None:
        self.path = path
        self.key = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()

    def load(self) -> dict[str, Any]:
        """The arrays of the interrupted run, or none."""
        if not self.path.exists():
            return {}
        try:
            arrays = read_arrays(self.path)
        except Refusal:
            return {}  # nothing is lost but time
        return arrays if str(arrays.pop("key", "")) == self.key else {}

    def save(self, arrays: dict[str, Any]) -> None:
        write_arrays(self.path, {**arrays, "key": np.array(self.key)})

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)


def inputs_of(
    entry: RunEntry, network: nn.Module, *, settings: dict[str, Any], dataset: str
) -> list[str]:
    """Texts that say what a run is made of, for its `Memory`."""
    methods = Path(__file__).parents[1] / "methods"
    code = [*methods.glob("*.py"), *(methods / entry.problem).glob("*.py")]
    weights = save({key: value.contiguous() for key, value in network.state_dict().items()})
    return [
        # All of the problem's methods, and what problems share: they share code.
        *(path.read_text(encoding="utf-8") for path in sorted(code)),
        json.dumps([settings, entry.precision], sort_keys=True),
        hashlib.sha256(weights).hexdigest(),
        dataset,
    ]


def undivided(
    method: Callable[..., Any],
    network: nn.Module,
    observations: shards.Arrays,
    settings: dict[str, Any],
    *,
    kept: Memory,
    steps: int,
    label: str,
    device: torch.device,
    precision: Precision,
) -> shards.Solved:
    """Run a method on everything at once, in this process."""
    with (
        shards.progress_bar(label, total=steps, shown=steps > 0) as (_, progress),
        computing_on(device, precision),
    ):
        recorder = shards.Recorder(parts=[(0, None)], steps=steps, progress=progress)
        given: dict[str, Any] = {"callback": recorder}
        accepted = inspect.signature(method).parameters
        if "memory" in accepted:
            given["memory"] = kept
        if "beside" in accepted:
            given["beside"] = {
                key: torch.from_numpy(value).to(device)
                for key, value in observations.items()
                if value.dtype.kind == "f" and key != "observed"
            }
        observed = torch.from_numpy(observations["observed"]).to(device)
        answers = shards.arrays_of(method(network.to(device), observed, **settings, **given))
    # One part, whose size does not matter: it is the whole of the one group.
    watched = shards.merged_watched([recorder.watched()], [[1]], groups=1)
    rounded = matmul_precision(device, precision)
    return shards.Solved(answers, watched, shards.peak_memory(), described(device), rounded)


def reconstruct(
    name: str,
    entry: RunEntry,
    network: nn.Module,
    observations: shards.Arrays,
    *,
    header: dict[str, Any],
    device: str,
    interrupted: Path | None = None,
) -> tuple[shards.Arrays, dict[str, Any]]:
    """Hand observations and a network to the method of a run. Refused when a setting is wrong, when
    the network belongs to another run or dataset, when the method refuses its input, or gives an
    estimate that is not finite.

    Parameters
    ----------
    observations : dict
        ``observed``, ``dataset``, ``each`` (see `retrace.problems`) and what else the problem has.
    header : dict
        Of the checkpoint.
    device : str
        As in params.yaml.
    interrupted : Path, optional
        Where a method that can go on keeps what it has; data/interrupted/<run>.npz.

    Returns
    -------
    arrays : dict
        ``estimate`` (float, finite) and what else the method gives; of a method with iterations
        ``loss``, ``snapshots`` and ``snapshot_steps`` (see `shards.merged_watched`).
    record : dict
        How it was made, which goes beside the arrays.
    """
    where = f"runs.{name}"
    method = find(f"methods.{entry.problem}", entry.method, where=f"{where}.method").reconstruct
    settings = bind(method, entry.settings, where=f"{where}.settings", given=GIVEN)
    dataset = str(observations["dataset"])
    if header["network"] != entry.network:
        raise Refusal(
            f"{where}: the checkpoint holds the network {header['network']!r}, {entry.network!r} "
            "is expected; delete it and run `dvc repro`"
        )
    if header["dataset"] != dataset:
        raise Refusal(
            f"{where}: the network was trained on {header['dataset']}, the observations are of "
            f"{dataset}; run `dvc repro`"
        )
    observed = observations["observed"]
    kept = Memory(
        interrupted or interrupted_path(name),
        inputs=inputs_of(entry, network, settings=settings, dataset=dataset),
    )
    steps = settings.get("steps") or settings.get("rounds") or 0
    place = chosen(device)
    announce(name, matmul_precision(place, entry.precision), entry.precision)
    common: dict[str, Any] = {"steps": steps, "label": name, "precision": entry.precision}
    started = time.time()
    try:
        if observations["each"]:
            solved = shards.run(
                network,
                observed,
                method=f"{entry.problem}.{entry.method}",
                header=header,
                settings=settings,
                device=device,
                **common,
            )
            leading = observed.shape[:-2]
            answers = {k: v.reshape(*leading, *v.shape[1:]) for k, v in solved.answers.items()}
        else:
            solved = undivided(
                method, network, observations, settings, kept=kept, device=place, **common
            )
            answers = solved.answers
    except BadInput as error:
        raise refused(error, where=where, sections={"settings": settings}) from None
    seconds = time.time() - started
    if not bool(np.isfinite(answers["estimate"]).all()):
        raise Refusal(
            f"{where}: the estimate is not finite; lower settings.learning_rate if there is one"
        )
    identity = {key: getattr(entry, key) for key in ("problem", "method", "network")}
    identity |= {"dataset": dataset}
    arrays = {
        **answers,
        "code_size": np.array(getattr(network, "code_size", 0)),
        **{key: np.array(value) for key, value in identity.items()},
        **solved.watched,
    }
    record = {
        "run": name,
        **identity,
        "precision": entry.precision,
        "settings": settings,
        "started": started,
        "seconds": seconds,
        "peak_memory": solved.peak_memory,
        "device": solved.device,
        "matmul_precision": solved.matmul_precision,
    }
    kept.forget()
    return arrays, record
