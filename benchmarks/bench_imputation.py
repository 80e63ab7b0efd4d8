"""Imputation by backpropagation: all images and masks in one batch, or one image at a time."""

import copy
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.metrics.pairwise import nan_euclidean_distances
from torch import Tensor, nn

from benchmarks.data import read_images, read_network
from benchmarks.timing import alternate, print_table, write_result
from retrace.data.masks import missing_pixels
from retrace.methods.imputation import knn
from retrace.methods.imputation.backpropagation import reconstruct
from retrace.networks import gallery
from retrace.pipeline.command import run
from retrace.pipeline.params import load

NETWORKS = ("deep", "ffnn")
IMAGES = 1000
ALONE = 44  # images done one at a time, four of each mask; their rate stands for all
STEPS = 10  # both sides pay for each step alike, so that the ratio does not depend on it
RATE = 0.05
ROUNDS = 5


def one_at_a_time(network: nn.Module, observed: Tensor, *, steps: int, rate: float) -> Tensor:
    """What a user would write first: a loop over images and torch's Adam on the missing pixels.

    The same objective, start and steps as `reconstruct` with ``known``, ``mean`` and ``input``.

    Parameters
    ----------
    network : Module
        (B, 28, 28) to (B, 28, 28); where its weights require gradients, they are computed.
    observed : (B, 28, 28)
        NaN where a pixel is missing.
    """
    estimates = []
    for image in observed:
        missing = image.isnan()
        free = network.mean[missing].clone().requires_grad_()  # type: ignore[index]
        optimiser = torch.optim.Adam([free], lr=rate)
        x = image.clone()
        for _ in range(steps):
            x = image.clone()
            x[missing] = free
            output = network(x.unsqueeze(0)).squeeze(0)
            loss = (output - x)[~missing].square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                free.clamp_(0, 1)
        x = image.clone()
        x[missing] = free.detach()
        estimates.append(x)
    return torch.stack(estimates)


def batched(network: nn.Module, observed: Tensor, *, steps: int, rate: float) -> Tensor:
    """The pipeline's own method with the same settings."""
    return reconstruct(network, observed, answer="input", steps=steps, learning_rate=rate)


def compare(network: nn.Module, observed: Tensor, *, alone: int) -> dict[str, Any]:
    """Images per second of both ways, and how far their estimates are apart on the same images."""
    trainable = copy.deepcopy(network).requires_grad_()  # as it is after training
    chosen = observed[torch.linspace(0, len(observed) - 1, alone).long()]
    fast = partial(batched, steps=STEPS, rate=RATE)
    slow = partial(one_at_a_time, steps=STEPS, rate=RATE)
    seconds = alternate(
        {
            "batched": partial(fast, network, observed),
            "one at a time": partial(slow, trainable, chosen),
            "one at a time, weights fixed": partial(slow, network, chosen),
        },
        rounds=ROUNDS,
    )
    rates = {
        name: (len(observed) if name == "batched" else alone) / value
        for name, value in seconds.items()
    }
    apart = fast(network, chosen) - slow(network, chosen)
    return {
        "images_per_second": rates,
        "ratio": rates["batched"] / rates["one at a time"],
        "ratio_weights_fixed": rates["batched"] / rates["one at a time, weights fixed"],
        "max_difference": apart.abs().max().item(),
    }


def neighbours(observed: Tensor, images: Tensor) -> dict[str, Any]:
    """Images per second of finding those nearest by known pixels, ours and scikit-learn's."""
    store = gallery.Network(count=len(images))
    labelled = (images, torch.zeros(len(images)))
    store.fit(labelled, labelled)

    def distances() -> object:
        return nan_euclidean_distances(observed.flatten(1).numpy(), images.flatten(1).numpy())

    ours = partial(knn.reconstruct, store, observed)
    seconds = alternate({"matrix products": ours, "scikit-learn": distances}, rounds=2)
    rates = {name: len(observed) / value for name, value in seconds.items()}
    return {"images_per_second": rates, "ratio": rates["matrix products"] / rates["scikit-learn"]}


def main() -> None:
    """Compare images per second of imputation by backpropagation: 1,000 images with all masks in
    one batch, and one image at a time (rate of a few images)."""
    dataset, images = read_images("test")
    truth = images[:IMAGES]
    masks = load().masks
    observed = torch.cat(
        [
            truth.where(
                torch.from_numpy(~missing_pixels(p, count=len(truth), seed=masks.seed + i)), np.nan
            )
            for i, p in enumerate(masks.patterns.values())
        ]
    )  # (masks x images, 28, 28)
    results: dict[str, Any] = {}
    for name in NETWORKS:
        network, weights = read_network(name, mean=images.mean(dim=0))
        results[name] = {"weights": weights, **compare(network, observed, alone=ALONE)}
    print_table(
        f"imputation by backpropagation, {len(truth)} images x {len(masks.patterns)} masks of "
        f"{dataset}, {STEPS} steps; one at a time: {ALONE} of them",
        ["images per second", *results],
        [
            *(
                [way, *(f"{result['images_per_second'][way]:.1f}" for result in results.values())]
                for way in results[NETWORKS[0]]["images_per_second"]
            ),
            ["ratio (wanted: 100)", *(f"{result['ratio']:.0f}" for result in results.values())],
            [
                "ratio, weights fixed",
                *(f"{r['ratio_weights_fixed']:.0f}" for r in results.values()),
            ],
            ["largest difference", *(f"{r['max_difference']:.1e}" for r in results.values())],
            ["weights", *(result["weights"] for result in results.values())],
        ],
    )
    nearest = neighbours(observed[-ALONE:], images)
    print_table(
        f"nearest of {len(images)} images by known pixels, {ALONE} images, a mask for each",
        ["images per second", ""],
        [[name, f"{rate:.0f}"] for name, rate in nearest["images_per_second"].items()],
    )
    sizes = {"images": len(truth), "masks": len(masks.patterns), "one_at_a_time": ALONE}
    write_result(
        "imputation",
        {
            "dataset": dataset,
            "networks": results,
            "neighbours": nearest,
            "rounds": ROUNDS,
            "sizes": sizes,
            "steps": STEPS,
        },
    )


if __name__ == "__main__":
    run(main)
