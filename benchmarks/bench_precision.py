"""Mixed precision where params.yaml takes it: how much faster, and at what price in error."""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.data import read_images, read_network, read_splits
from benchmarks.timing import alternate, print_table, write_result
from retrace.data.masks import missing_pixels
from retrace.execution.shards import one_thread
from retrace.measures.quality import mse
from retrace.networks._training import train
from retrace.pipeline.command import run
from retrace.pipeline.device import computing_on, matmul_precision
from retrace.pipeline.params import GIVEN, Params, bind, find, load
from retrace.types import Precision

CPU = torch.device("cpu")
PRECISIONS: tuple[Precision, ...] = ("float32", "mixed")
IMAGES = 500
MASK = "bottom"
EPOCHS = 2
TURNS = 1


def trained(params: Params, name: str, precision: Precision) -> list[dict[str, float]]:
    """The history of a network's first epochs."""
    entry = params.networks[name]
    torch.manual_seed(0)
    network = find("networks", entry.architecture, where=name).Network(**entry.arguments)
    training, validation = read_splits()
    settings = {**entry.training, "epochs": EPOCHS, "grace": EPOCHS}
    with computing_on(CPU, precision):
        return train(network, training, validation, **settings)


def imputed(params: Params, name: str, observed: Tensor, precision: Precision) -> Tensor:
    """The estimate of a run, as a shard of it is solved: with one thread."""
    entry = params.runs[name]
    method = find("methods.imputation", entry.method, where=name).reconstruct
    settings = bind(method, entry.settings, where=name, given=GIVEN)
    network, _ = read_network(entry.network, mean=observed.nan_to_num(0.0).mean(dim=0))
    with one_thread(), computing_on(CPU, precision):
        answer = method(network, observed, **settings)
    estimate: Tensor = answer["estimate"] if isinstance(answer, dict) else answer
    return estimate


def main() -> None:
    """Compare seconds and errors of float32 with those of mixed precision, for each network and run
    of params.yaml that takes it."""
    params = load()
    dataset, images = read_images("test")
    truth = images[:IMAGES]
    pattern = params.masks.patterns[MASK]
    missing = torch.from_numpy(missing_pixels(pattern, count=len(truth), seed=params.masks.seed))
    observed = truth.masked_fill(missing, np.nan)

    contestants: dict[str, Any] = {}
    for name, network in params.networks.items():
        if network.precision == "mixed":
            contestants[f"training of {name}"] = partial(trained, params, name)
    for name, entry in params.runs.items():
        if entry.precision == "mixed":
            contestants[name] = partial(imputed, params, name, observed)
    results: dict[str, Any] = {}
    for name, contestant in contestants.items():
        answers: dict[Precision, Any] = {}

        def keep(precision: Precision, contestant: Any = contestant, to: Any = answers) -> None:
            to[precision] = contestant(precision)

        calls: dict[str, Any] = {p: partial(keep, p) for p in PRECISIONS}
        seconds = alternate(calls, rounds=TURNS)
        errors = {}
        for precision, answer in answers.items():
            if isinstance(answer, list):
                errors[precision] = answer[-1]["training_loss"]
            else:
                errors[precision] = mse(answer.clamp(0, 1), truth, where=missing).mean().item()
        ratio = seconds["float32"] / seconds["mixed"]
        results[name] = {"seconds": seconds, "ratio": ratio, "errors": errors}
    print_table(
        f"{len(truth)} images of {dataset}, mask {MASK}; {EPOCHS} epochs of training; "
        f"mixed is {matmul_precision(CPU, 'mixed')} here",
        ["", *(f"{p}, s" for p in PRECISIONS), "ratio", *(f"{p}, error" for p in PRECISIONS)],
        [
            [
                name,
                *(f"{r['seconds'][p]:.2f}" for p in PRECISIONS),
                f"{r['ratio']:.2f}",
                *(f"{r['errors'][p]:.5f}" for p in PRECISIONS),
            ]
            for name, r in results.items()
        ],
    )
    write_result("precision", {"dataset": dataset, "works": results, "rounds": TURNS})


if __name__ == "__main__":
    run(main)
