"""A step of the KKT attack: gradients written out layer by layer, and double backward.

Both multiply the same large matrices, seven for each pair of hidden layers and five for the first
layer, so that "written out" saves what autograd does beside them: gradients of the weights,
element-wise passes and new arrays. The products alone are timed too: nothing of the same precision
can be faster than they are.
"""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import alternate, print_table, write_result
from stages.command import run
from stages.methods.training_data.kkt import homogeneous_layers, value_and_gradients
from stages.networks.margin import Network

WIDTHS = [1000, 1000]
CANDIDATES = 1000
SHARPNESS = 19.2
MULTIPLIER_MINIMUM = 0.415
ROUNDS = 9


class ModifiedRelu(torch.autograd.Function):
    """ReLU whose derivative is σ(αz), as in the authors' code."""

    @staticmethod
    def forward(context: Any, z: Tensor, sharpness: float) -> Tensor:
        context.save_for_backward(z)
        context.sharpness = sharpness
        return z.relu()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (z,) = context.saved_tensors
        return gradient * (context.sharpness * z).sigmoid(), None


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
        hidden = ModifiedRelu.apply(layer(hidden), SHARPNESS)
    outputs = network.layers[-1](hidden).squeeze(1)
    parameters = list(network.parameters())
    gradients = torch.autograd.grad(
        (multipliers * signs * outputs).mean(), parameters, create_graph=True
    )
    loss = (x - 1).relu().square().sum() + (-1 - x).relu().square().sum()
    loss = loss + 5 * (MULTIPLIER_MINIMUM - multipliers).relu().square().sum()
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


def products(weights: list[Tensor], x: Tensor) -> None:
    """As many large matrix products, of the same sizes, as a step cannot do without."""
    hidden = x
    for position, weight in enumerate(weights[:-1]):  # the last has one row: a small product
        following = hidden @ weight.T
        for _ in range(1 if position == 0 else 2):
            following = torch.mm(hidden, weight.T, out=following)
        for _ in range(2 if position == 0 else 3):
            following @ weight
        following.T @ hidden
        hidden = following


def apart(left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> float:
    """Largest difference of the gradients, relative to the largest entry of the right one."""
    return max(
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(left[1:], right[1:], strict=True)
    )


def main() -> None:
    """Compare the seconds of one step's loss and gradients on 784-1000-1000-1 with 1,000
    candidates: written out, and by autograd's double backward, in float32 and in the float64
    that the authors' code computes in."""
    torch.manual_seed(0)
    network = Network(shape=[28, 28], widths=WIDTHS, first_deviation=0.03)
    point = start(network)
    precise = copy.deepcopy(network).double()
    precise_point = tuple(tensor.double() for tensor in point)
    weights, bias = homogeneous_layers(network)
    written_out = partial(
        value_and_gradients,
        weights,
        bias,
        *point,
        sharpness=SHARPNESS,
        multiplier_minimum=MULTIPLIER_MINIMUM,
    )
    others = {
        "loss.backward()": partial(double_backward, network, *point, weights_too=True),
        "loss.backward(inputs)": partial(double_backward, network, *point, weights_too=False),
        "loss.backward(), float64": partial(
            double_backward, precise, *precise_point, weights_too=True
        ),
    }
    alone = partial(products, weights, point[0])
    seconds = alternate(
        {"written out": written_out, "products alone": alone, **others}, rounds=ROUNDS
    )
    ratios = {name: seconds[name] / seconds["written out"] for name in others}
    ours = written_out()
    differences = {name: apart(ours, other()) for name, other in others.items()}
    sizes = [network.layers[0].in_features, *WIDTHS, 1]
    print_table(
        f"KKT attack, {'-'.join(map(str, sizes))}, {CANDIDATES} candidates: one step's gradients",
        ["", "ms", "ratio (wanted: 2)", "relative difference (allowed: 1e-5)"],
        [
            ["written out, float32", f"{1000 * seconds['written out']:.0f}", "", ""],
            ["its matrix products alone", f"{1000 * seconds['products alone']:.0f}", "", ""],
            *(
                [
                    f"autograd, {name}",
                    f"{1000 * seconds[name]:.0f}",
                    f"{ratios[name]:.2f}",
                    f"{differences[name]:.1e}",
                ]
                for name in others
            ),
        ],
    )
    write_result(
        "kkt",
        {
            "max_relative_difference": differences,
            # The same precision on both sides, and what the authors' code calls.
            "ratio": ratios["loss.backward()"],
            "ratios": ratios,
            "rounds": ROUNDS,
            "seconds": seconds,
            "sizes": {"candidates": CANDIDATES, "layers": sizes},
        },
    )


if __name__ == "__main__":
    run(main)
