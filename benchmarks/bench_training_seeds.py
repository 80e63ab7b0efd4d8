"""Does training survive any seed? The project's initialisation, and PyTorch's own."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.data import dataset_name, read_splits
from benchmarks.timing import print_table, write_result
from retrace.networks._training import train
from retrace.pipeline.command import run
from retrace.pipeline.params import NetworkEntry, find, load
from retrace.types import BadInput

NETWORKS = ("conv_upsampled", "conv_transposed")
SEEDS = range(5)
TRAINING, VALIDATION = 12_000, 2_000  # images seen, images validated on


def build(entry: NetworkEntry, *, seed: int, ours: bool) -> nn.Module:
    """A new network with the project's initialisation or PyTorch's, whose output bias is near 0."""
    torch.manual_seed(seed)
    architecture = find("networks", entry.architecture, where="networks")
    network: nn.Module = architecture.Network(**entry.arguments)
    if not ours:
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                module.reset_parameters()
    return network


def validation_mse(
    network: nn.Module, training: Tensor, validation: Tensor, *, settings: dict[str, Any]
) -> float | None:
    """Validation MSE after training; None when the loss was not finite."""
    history: list[dict[str, float]] = []
    labels = [torch.zeros(len(images), dtype=torch.int64) for images in (training, validation)]
    with suppress(BadInput):  # of a collapsed network, which is counted here
        train(
            network,
            (training, labels[0]),
            (validation, labels[1]),
            **settings,
            progress=history.append,
        )
    return history[-1]["validation_mse"] if history else None


def main() -> None:
    """Train both convolutional autoencoders of params.yaml on 12,000 images for five seeds, with
    the project's initialisation and with PyTorch's, and count how many collapse."""
    dataset = dataset_name()
    (images, _), (held_out, _) = read_splits()
    training, validation = images[:TRAINING], held_out[:VALIDATION]
    epochs = -(-TRAINING // len(training))  # a small dataset is seen more often
    mean_image_mse = (validation - training.mean(dim=0)).square().mean().item()
    allowed = mean_image_mse / 2
    networks = load().networks
    results: dict[str, dict[str, Any]] = {}
    for name in NETWORKS:
        for seed in SEEDS:
            for way in ("ours", "pytorch"):
                network = build(networks[name], seed=seed, ours=way == "ours")
                settings = {**networks[name].training, "seed": seed, "epochs": epochs}
                mse = validation_mse(network, training, validation, settings=settings)
                result = results.setdefault(f"{name}, {way}", {"mse": [], "collapsed": 0})
                result["mse"].append(mse)
                result["collapsed"] += mse is None or mse >= allowed
    print_table(
        f"validation MSE on {dataset} after {epochs} epoch(s) of {len(training)} images; collapsed "
        f"is not below {allowed:.4f}, half the mean image's",
        ["initialisation", *(f"seed {seed}" for seed in SEEDS), "collapsed"],
        [
            [
                name,
                *("not finite" if mse is None else f"{mse:.4f}" for mse in result["mse"]),
                f"{result['collapsed']} of {len(SEEDS)}",
            ]
            for name, result in results.items()
        ],
    )
    write_result(
        "training_seeds",
        {
            "allowed_mse": allowed,
            "dataset": dataset,
            "epochs": epochs,
            "networks": results,
            "sizes": {"training": len(training), "validation": len(validation)},
        },
    )


if __name__ == "__main__":
    run(main)
