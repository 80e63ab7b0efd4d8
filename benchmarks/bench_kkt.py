"""A step of the KKT attack: ∇f written out layer by layer, and double backward.

With ∇f written out, one backward pass through the loss remains, which computes no gradient of the
weights. In a trained network layers have low rank, and products with their factors cost next to
nothing (`factored`); in a network as it was drawn they do not, and the ratio is what the saved
products and passes give.
"""

import copy
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import alternate, print_table, write_result
from retrace.methods.training_data.kkt import (
    ModifiedRelu,
    Setting,
    Target,
    factored,
    homogeneous_layers,
    unexplained,
)
from retrace.networks.margin import Network
from retrace.pipeline.artifacts import checkpoint_path, load_checkpoint
from retrace.pipeline.command import run

WIDTHS = [1000, 1000]
CANDIDATES = 1000
SETTING = Setting(0.00174, 0.28, multiplier_minimum=0.415, sharpness=19.2)
ROUNDS = 9
TRAINED = ("margin_mlp", "margin_100")


def written_out(
    target: Target, x: Tensor, multipliers: Tensor, signs: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients of x and the multipliers, as the attack computes them."""
    variables = x.clone().requires_grad_(), multipliers.clone().requires_grad_()
    loss = unexplained(target, *variables, signs, SETTING)
    of_x, of_multipliers = torch.autograd.grad(loss, variables)
    return loss.detach(), of_x, of_multipliers


def double_backward(
    network: Network, x: Tensor, multipliers: Tensor, signs: Tensor, *, weights_too: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients of x and the multipliers by autograd, twice through the network.

    Parameters
    ----------
    network : Network
        Its weights require gradients, without which autograd gives no ∇f.
    x : (m, d)
    multipliers, signs : (m,)
    weights_too : bool
        Call ``loss.backward()``, as the authors' code does: the gradients of the loss with
        respect to the weights come along, and nothing uses them. Otherwise only those of x and
        the multipliers are computed.
    """
    variables = x.clone().requires_grad_(), multipliers.clone().requires_grad_()
    x, multipliers = variables
    hidden = x
    for layer in network.layers[:-1]:
        z = layer(hidden)
        hidden = ModifiedRelu.apply(z, (SETTING.sharpness * z).sigmoid())
    outputs = network.layers[-1](hidden).squeeze(1)
    parameters = list(network.parameters())
    gradients = torch.autograd.grad(
        (multipliers * signs * outputs).mean(), parameters, create_graph=True
    )
    loss = (x - 1).relu().square().sum() + (-1 - x).relu().square().sum()
    loss = loss + 5 * (SETTING.multiplier_minimum - multipliers).relu().square().sum()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        loss = loss + (parameter.detach() - gradient).square().sum()
    if weights_too:
        network.zero_grad()
        loss.backward()
        assert x.grad is not None and multipliers.grad is not None
        return loss.detach(), x.grad, multipliers.grad
    of_x, of_multipliers = torch.autograd.grad(loss, variables)
    return loss.detach(), of_x, of_multipliers


def start(network: Network) -> tuple[Tensor, Tensor, Tensor]:
    """x (m, d), the multipliers (m,) and the signs (m,) somewhere on the way of an attack.

    The multipliers are as large as makes Σ λ y ∇f / m about as large as the weights, so that
    neither of the two hides errors in the other.
    """
    generator = torch.Generator().manual_seed(0)
    x = 0.5 * torch.randn(CANDIDATES, len(network.mean), generator=generator)
    multipliers = 1000 * torch.rand(CANDIDATES, generator=generator)
    signs = torch.ones(CANDIDATES)
    signs[CANDIDATES // 2 :] = -1
    return x, multipliers, signs


def apart(left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> float:
    """Largest difference of the gradients, relative to the largest entry of the right one."""
    return max(
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(left[1:], right[1:], strict=True)
    )


def compare(network: Network) -> dict[str, Any]:
    """Seconds of a step's loss and gradients, ratios and differences, for one network."""
    point = start(network)
    precise = copy.deepcopy(network).double()
    precise_point = tuple(tensor.double() for tensor in point)
    weights, bias = homogeneous_layers(network)
    began = time.perf_counter()
    chains = factored(weights)
    factoring = time.perf_counter() - began
    end = torch.ones_like(network.mean)
    ours = partial(written_out, Target(weights, bias, chains, -end, end), *point)
    others = {
        "loss.backward()": partial(double_backward, network, *point, weights_too=True),
        "loss.backward(inputs)": partial(double_backward, network, *point, weights_too=False),
        "loss.backward(), float64": partial(
            double_backward, precise, *precise_point, weights_too=True
        ),
    }
    seconds = alternate({"written out": ours, **others}, rounds=ROUNDS)
    found = ours()
    return {
        "factoring_seconds": factoring,  # once for an attack
        "ranks": [chain[-1].shape[0] if len(chain) > 1 else None for chain in chains],
        "max_relative_difference": {name: apart(found, other()) for name, other in others.items()},
        "ratio": {name: seconds[name] / seconds["written out"] for name in others},
        "seconds": seconds,
    }


def main() -> None:
    """Compare the seconds of one step's loss and gradients on 784-1000-1000-1 with 1,000
    candidates: ∇f written out, and by autograd's double backward, in float32 and in the float64
    that the authors' code computes in; for the pipeline's trained networks and one as drawn."""
    torch.manual_seed(0)
    networks = {"as drawn": Network(shape=[28, 28], widths=WIDTHS, first_deviation=0.03)}
    for name in TRAINED:
        network, _ = load_checkpoint(checkpoint_path(name))
        assert isinstance(network, Network)
        networks[name] = network.requires_grad_()
    results = {name: compare(network) for name, network in networks.items()}
    rows = []
    for name, result in results.items():
        written = f"{1000 * result['seconds']['written out']:.0f}"
        for other, ratio in result["ratio"].items():
            milliseconds = f"{1000 * result['seconds'][other]:.0f}"
            difference = f"{result['max_relative_difference'][other]:.1e}"
            rows.append([name, written, other, milliseconds, f"{ratio:.2f}", difference])
    print_table(
        f"KKT attack, 784-1000-1000-1, {CANDIDATES} candidates: one step's gradients",
        ["network", "written out, ms", "autograd", "ms", "ratio (wanted: 2)", "difference (1e-5)"],
        rows,
    )
    write_result(
        "kkt",
        {"networks": results, "rounds": ROUNDS, "candidates": CANDIDATES, "widths": WIDTHS},
    )


if __name__ == "__main__":
    run(main)
