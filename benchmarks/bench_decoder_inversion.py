"""Decoder inversion: batched bounded layers against scipy, and Gauss-Newton against 45 starts."""

import time
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.optimize import lsq_linear
from torch import Tensor, nn

from benchmarks.data import read_images
from benchmarks.timing import alternate, print_table, write_result
from retrace.methods._chain import decode
from retrace.methods.decoder_inversion import bounded, gauss_newton
from retrace.methods.decoder_inversion._decoder import problem_of
from retrace.pipeline.artifacts import checkpoint_path, load_checkpoint, read_arrays, truth_path
from retrace.pipeline.command import Refusal, run
from retrace.pipeline.params import GIVEN, bind, load
from retrace.problems.decoder_inversion.observe import PENALTIES

TRUTH = truth_path("decoder_inversion")
IMAGES = 1000
ALONE = 6  # images done one at a time by scipy; their rate stands for all
CLAMP = 0.001
ITERATIONS = 60  # of the bounded solver
FIRST, GRID = 100, (0.001, 0.002, 0.005, 0.01, 0.02)  # validation images that the penalty is for


def layer_by_layer(matrices: list[Tensor], images: Tensor) -> list[Tensor]:
    """What a user would write first: scipy's `lsq_linear` for each image and layer.

    Returns
    -------
    list of (B, n)
        Hidden values of each layer, from the last to the second.
    """
    wanted, solutions = images.clamp(CLAMP, 1 - CLAMP).logit(), []
    for weight in reversed(matrices[1:]):
        bounds = (CLAMP - 1, 1 - CLAMP)
        found = [lsq_linear(weight.numpy(), b.numpy(), bounds=bounds).x for b in wanted]
        solutions.append(torch.from_numpy(np.stack(found)))
        wanted = solutions[-1].atanh()
    return solutions


def batched(matrices: list[Tensor], images: Tensor) -> list[Tensor]:
    """The same by the pipeline's own solver."""
    wanted, solutions = images.clamp(CLAMP, 1 - CLAMP).logit(), []
    for weight in reversed(matrices[1:]):
        h = bounded.box_solutions(weight, wanted, bound=1 - CLAMP, iterations=ITERATIONS)
        solutions.append(h)
        wanted = h.atanh()
    return solutions


def compare_bounded(network: nn.Module, observed: Tensor) -> dict[str, Any]:
    """Images per second of both, and the largest ratio of their objectives in the last layer, where
    both solve the same problem."""
    matrices, images = problem_of(network, observed, precision="float64")
    chosen = images[torch.linspace(0, len(images) - 1, ALONE).long()]
    seconds = alternate(
        {
            "batched": partial(batched, matrices, images),
            "one at a time": partial(layer_by_layer, matrices, chosen),
        },
        rounds=1,
    )
    rates = {
        "batched": len(images) / seconds["batched"],
        "one at a time": len(chosen) / seconds["one at a time"],
    }
    wanted = chosen.clamp(CLAMP, 1 - CLAMP).logit()
    objectives = [
        (solve(matrices, chosen)[0] @ matrices[-1].T - wanted).square().sum(dim=1)
        for solve in (batched, layer_by_layer)
    ]
    return {
        "images_per_second": rates,
        "ratio": rates["batched"] / rates["one at a time"],
        "largest_objective_ratio": float((objectives[0] / objectives[1]).max()),
    }


def compare_starts(network: nn.Module, observed: Tensor) -> dict[str, Any]:
    """Objective of the two Gauss-Newton runs over the best known from 45 starts, and seconds for
    1,000 images that no code produced."""
    optima = read_arrays(TRUTH)["objective"]
    matrices, images = problem_of(network, observed, precision="float64")
    mean = network.encode(observed.float())[0].double()  # type: ignore[operator]
    encoded = (decode(matrices, mean) - images).square().mean()
    results: dict[str, Any] = {}
    for name, run_entry in load().runs.items():
        if run_entry.method != "gauss_newton":
            continue
        settings = bind(
            gauss_newton.reconstruct, run_entry.settings, where=f"runs.{name}", given=GIVEN
        )
        known = PENALTIES.index(settings["penalty"])
        best = torch.from_numpy(optima[known])
        started = time.perf_counter()
        answer = gauss_newton.reconstruct(network, observed, **settings)
        seconds = time.perf_counter() - started
        codes, residual = answer["estimate"], answer["residual"]
        norms = codes.norm(dim=1)
        objective = 784 * residual + settings["penalty"] * norms.square()
        results[name] = {
            "seconds_per_1000": 1000 * seconds / len(observed),
            "mse_over_encoder": float(residual.mean() / encoded),
            "objective_over_best": float(objective[: len(best)].mean() / best.mean()),
            "solved": float((objective[: len(best)] <= 1.01 * best).double().mean()),
            "images_with_known_best": len(best),
            "norm_median": float(norms.median()),
            "norm_max": float(norms.max()),
        }
    return results


def choose_penalty(network: nn.Module, validation: Tensor) -> dict[str, Any]:
    """MSE over the encoder's and norm of the codes by penalty, on validation images.

    The rule: the largest penalty of the grid whose MSE is at most a tenth above that of the codes
    without one, after 100 iterations from the encoder's mean.
    """
    weights, images = problem_of(network, validation, precision="float64")
    start = network.encode(validation.float())[0].double()  # type: ignore[operator]
    encoded = (decode(weights, start) - images).square().mean()
    by_penalty = {}
    for penalty in (0.0, *GRID):
        fit = gauss_newton.levenberg_marquardt(
            weights, images, start, penalty=penalty, iterations=100, tolerance=1e-6
        )
        mse = (decode(weights, fit.codes) - images).square().mean()
        by_penalty[penalty] = {
            "mse_over_encoder": float(mse / encoded),
            "norm_median": float(fit.codes.norm(dim=1).median()),
            "norm_max": float(fit.codes.norm(dim=1).max()),
        }
    bound = 1.1 * by_penalty[0.0]["mse_over_encoder"]
    chosen = max(p for p in GRID if by_penalty[p]["mse_over_encoder"] <= bound)
    return {"by_penalty": {str(p): values for p, values in by_penalty.items()}, "chosen": chosen}


@torch.no_grad()
def main() -> None:
    """Compare the bounded solver with scipy's, and Gauss-Newton with the best known from 45 starts,
    on test images; show which penalty the validation images choose."""
    if not checkpoint_path("vae").exists() or not TRUTH.exists():
        raise Refusal(f"the network vae or {TRUTH} is missing; `dvc repro` makes them")
    network, _ = load_checkpoint(checkpoint_path("vae"))
    dataset, images = read_images("test")
    observed = images[:IMAGES].double()
    layers = compare_bounded(network, observed)
    starts = compare_starts(network, observed)
    penalty = choose_penalty(network, read_images("validation")[1][:FIRST].double())
    print_table(
        f"bounded layers, {len(observed)} images of {dataset} at once; one at a time: {ALONE}",
        ["", "images per second"],
        [
            *([way, f"{rate:.2f}"] for way, rate in layers["images_per_second"].items()),
            ["ratio (wanted: 50)", f"{layers['ratio']:.0f}"],
            ["largest ratio of objectives", f"{layers['largest_objective_ratio']:.7f}"],
        ],
    )
    keys = ("seconds_per_1000", "mse_over_encoder", "objective_over_best", "solved", "norm_max")
    print_table(
        "Gauss-Newton on test images, best known from 45 starts",
        ["", *starts],
        [[key, *(f"{result[key]:.3f}" for result in starts.values())] for key in keys],
    )
    print_table(
        f"penalty, first {FIRST} validation images",
        ["", "MSE / encoder's", "median norm"],
        [
            [p, f"{values['mse_over_encoder']:.3f}", f"{values['norm_median']:.1f}"]
            for p, values in penalty["by_penalty"].items()
        ],
    )
    write_result(
        "decoder_inversion",
        {"dataset": dataset, "bounded": layers, "gauss_newton": starts, "penalty": penalty},
    )


if __name__ == "__main__":
    run(main)
