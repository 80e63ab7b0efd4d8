"""Reconstruct: hand observations and a trained network to a method. The truth is not here.

Where there is an estimate for each observation, the observations are split into shards, which run
side by side. Attacks on training data and network inversions are not split: an attack's candidates
share one loss and one deflation, and an inversion takes seconds. They run here, in one process.
"""

import hashlib
import inspect
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from stages import shards
from stages.artifacts import (
    checkpoint_path,
    interrupted_path,
    load_checkpoint,
    observed_path,
    read_arrays,
    reconstruction_path,
    timing_path,
    write_arrays,
    write_json,
)
from stages.command import Refusal, run
from stages.device import (
    Precision,
    announce,
    chosen,
    computing_on,
    described,
    matmul_precision,
)
from stages.params import GIVEN, RunEntry, bind, find, load

# Problems with an estimate for each observation: those are split into shards.
LIKE_OBSERVED = ("autoencoding", "imputation", "decoder_inversion")


class Memory:
    """Keeps the arrays of a method that was interrupted, for the next run with the same inputs.

    Parameters
    ----------
    path : Path
        Where they lie until the run ends.
    inputs : list of str
        Text that identifies code, settings and network: arrays of other inputs are not used.
    """

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


def inputs_of(entry: RunEntry, *, settings: dict[str, Any], dataset: str) -> list[str]:
    """Texts that say what a run is made of, for its `Memory`."""
    methods = Path(__file__).parent / "methods" / entry.problem
    return [
        # All of the problem's methods: they share code.
        *(path.read_text(encoding="utf-8") for path in sorted(methods.glob("*.py"))),
        json.dumps([settings, entry.precision], sort_keys=True),
        hashlib.sha256(checkpoint_path(entry.network).read_bytes()).hexdigest(),
        dataset,
    ]


def undivided(
    method: Callable[..., Any],
    network: nn.Module,
    images: Tensor,
    settings: dict[str, Any],
    *,
    kept: Memory,
    steps: int,
    label: str,
    device: torch.device,
    precision: Precision,
) -> tuple[shards.Arrays, shards.Arrays]:
    """Run a method on everything at once, in this process; give its answers, and its loss and
    snapshots along the iterations."""
    with (
        tqdm(total=steps, desc=label, unit="step", disable=None if steps else True) as bar,
        computing_on(device, precision),
    ):

        def progress(step: int, loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.4g}")
            bar.update(step > 0)

        recorder = shards.Recorder(parts=[(0, None)], steps=steps, progress=progress)
        given: dict[str, Any] = {"callback": recorder}
        if "memory" in inspect.signature(method).parameters:
            given["memory"] = kept
        answer = method(network.to(device), images.to(device), **settings, **given)
    answers = answer if isinstance(answer, dict) else {"estimate": answer}
    # One part, whose size does not matter: it is the whole of the one group.
    watched = shards.merged_watched([recorder.watched()], [[1]], groups=1)
    return {key: value.cpu().numpy() for key, value in answers.items()}, watched


def main(name: str) -> None:
    """Run one reconstruction of params.yaml and write data/reconstructions/<run>.npz and .json."""
    params = load()
    runs = params.runs
    if name not in runs:
        raise Refusal(f"runs.{name}: unknown; allowed are {', '.join(runs)}")
    entry = runs[name]
    device = chosen(params.device)
    where = f"runs.{name}"
    method = find(f"methods.{entry.problem}", entry.method, where=f"{where}.method").reconstruct
    settings = bind(method, entry.settings, where=f"{where}.settings", given=GIVEN)
    network, header = load_checkpoint(checkpoint_path(entry.network))
    if header["network"] != entry.network:
        raise Refusal(
            f"{checkpoint_path(entry.network)} holds the network {header['network']!r}, "
            f"{entry.network!r} is expected; delete it and run `dvc repro`"
        )
    observations = read_arrays(observed_path(entry.problem))
    dataset = str(observations["dataset"])
    if header["dataset"] != dataset:
        raise Refusal(
            f"{where}: the network was trained on {header['dataset']}, the observations are of "
            f"{dataset}; run `dvc repro`"
        )
    observed = observations["observed"]
    kept = Memory(
        interrupted_path(name), inputs=inputs_of(entry, settings=settings, dataset=dataset)
    )
    steps = settings.get("steps") or settings.get("rounds") or 0
    rounded = matmul_precision(device, entry.precision)
    announce(name, rounded, entry.precision)
    started = time.time()
    if entry.problem in LIKE_OBSERVED:
        answers, watched, memory, devices, rounded = shards.run(
            network,
            observed,
            method=f"{entry.problem}.{entry.method}",
            header=header,
            settings=settings,
            steps=steps,
            label=name,
            device=params.device,
            precision=entry.precision,
        )
        leading = observed.shape[:-2]
        answers = {key: value.reshape(*leading, *value.shape[1:]) for key, value in answers.items()}
        count = math.prod(leading)
    else:
        answers, watched = undivided(
            method,
            network,
            torch.from_numpy(observed),
            settings,
            kept=kept,
            steps=steps,
            label=name,
            device=device,
            precision=entry.precision,
        )
        memory, devices = shards.peak_memory(), described(device)
        count = len(answers["estimate"])
    seconds = time.time() - started
    if not bool(np.isfinite(answers["estimate"]).all()):
        raise Refusal(
            f"{where}: the estimate is not finite; lower settings.learning_rate if there is one"
        )
    arrays = {
        **answers,
        "code_size": np.array(getattr(network, "code_size", 0)),
        **{key: np.array(getattr(entry, key)) for key in ("problem", "method", "network")},
        "dataset": np.array(dataset),
        **watched,
    }
    write_arrays(reconstruction_path(name), arrays)
    # Beside it, not in it: the same parameters give the same bytes, but never the same seconds.
    timing = {
        "started": started,
        "seconds": seconds,
        "peak_memory": memory,
        "device": devices,
        "matmul_precision": rounded,
    }
    write_json(timing_path(name), {"run": name, "dataset": dataset, **timing})
    kept.forget()
    print(f"{name}: {count} images in {seconds:.1f} s")


if __name__ == "__main__":
    run(main, name="run")
