"""Reconstruct: hand observations and a trained network to a method. The truth is not here."""

import hashlib
import inspect
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

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
from stages.params import GIVEN, bind, find, load

WATCHED = 8  # images of each group whose estimates are kept along the iterations
# Problems with an estimate for each observation.
LIKE_OBSERVED = ("autoencoding", "imputation", "decoder_inversion")
SHOWN_STEPS = (0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000)


class Recorder:
    """Keeps what a method shows along its iterations: mean losses, and some estimates.

    Parameters
    ----------
    groups : int
        Number of equal groups (masks) that the batch consists of, in order.
    steps : int
        Iterations, or 0 for a method without.
    label : str
        Of the progress bar.
    """

    def __init__(self, *, groups: int, steps: int, label: str) -> None:
        self.groups = groups
        self.last = steps
        self.losses: list[Tensor] = []
        self.steps: list[int] = []
        self.snapshots: list[Tensor] = []
        self.bar = tqdm(total=steps, desc=label, unit="step", disable=None if steps else True)

    def __call__(self, step: int, loss: Tensor, estimate: Tensor) -> None:
        """Take the losses (B,) and the estimate (B, 28, 28) of a step."""
        by_group = loss.unflatten(0, (self.groups, -1)).mean(dim=1)
        self.losses.append(by_group)
        if step in SHOWN_STEPS or step == self.last:
            self.steps.append(step)
            self.snapshots.append(estimate.unflatten(0, (self.groups, -1))[:, :WATCHED].clone())
        self.bar.set_postfix(loss=f"{by_group.mean():.4g}")
        self.bar.update(step > 0)

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """``loss`` (steps, groups), ``snapshots`` (S, groups, 8, 28, 28), ``snapshot_steps`` (S,);
        empty for a method that has no iterations."""
        self.bar.close()
        if not self.losses:
            return {}
        return {
            "loss": torch.stack(self.losses).numpy(),
            "snapshots": torch.stack(self.snapshots).numpy(),
            "snapshot_steps": np.array(self.steps),
        }


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


def main(name: str) -> None:
    """Run one reconstruction of params.yaml and write data/reconstructions/<run>.npz and .json."""
    runs = load().runs
    if name not in runs:
        raise Refusal(f"runs.{name}: unknown; allowed are {', '.join(runs)}")
    entry = runs[name]
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
    observed = torch.from_numpy(observations["observed"])
    images = observed.flatten(0, -3)  # (groups x images, 28, 28)
    recorder = Recorder(
        groups=len(observed) if observed.dim() == 4 else 1,
        steps=settings.get("steps") or settings.get("rounds") or 0,
        label=name,
    )
    given: dict[str, Any] = {"callback": recorder}
    methods = Path(__file__).parent / "methods" / entry.problem
    memory = Memory(
        interrupted_path(name),
        inputs=[
            # All of the problem's methods: they share code.
            *(path.read_text(encoding="utf-8") for path in sorted(methods.glob("*.py"))),
            json.dumps(settings, sort_keys=True),
            hashlib.sha256(checkpoint_path(entry.network).read_bytes()).hexdigest(),
            dataset,
        ],
    )
    if "memory" in inspect.signature(method).parameters:
        given["memory"] = memory
    started = time.time()
    answer = method(network, images, **settings, **given)
    seconds = time.time() - started
    # A method with more to say than its estimate returns a dictionary of tensors.
    answers = answer if isinstance(answer, dict) else {"estimate": answer}
    estimate = answers["estimate"]
    if not bool(torch.isfinite(estimate).all()):
        raise Refusal(
            f"{where}: the estimate is not finite; lower settings.learning_rate if there is one"
        )
    if entry.problem in LIKE_OBSERVED:
        answers = {key: value.unflatten(0, observed.shape[:-2]) for key, value in answers.items()}
    arrays = {
        **{key: value.numpy() for key, value in answers.items()},
        "code_size": np.array(getattr(network, "code_size", 0)),
        **{key: np.array(getattr(entry, key)) for key in ("problem", "method", "network")},
        "dataset": np.array(dataset),
        **recorder.arrays(),
    }
    write_arrays(reconstruction_path(name), arrays)
    # Beside it, not in it: the same parameters give the same bytes, but never the same seconds.
    write_json(
        timing_path(name), {"run": name, "dataset": dataset, "started": started, "seconds": seconds}
    )
    memory.forget()
    count = len(images) if entry.problem in LIKE_OBSERVED else len(estimate)
    print(f"{name}: {count} images in {seconds:.1f} s")


if __name__ == "__main__":
    run(main, name="run")
