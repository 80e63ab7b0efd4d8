"""Descent on the input where the output is no affine function of it: planes drawn step by step."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from retrace.methods.network_inversion._nearest import box_range, nearest, violation
from retrace.types import BadInput, Callback

EXACT = 1e-9  # of the larger of 1 and the wanted value: such an output counts as the wanted one
PULL = 3  # every so many steps also go towards the start
REACH = 0.5  # share of the way to the end of the linear range that one step may ask for
TINY = 1e-12  # keeps Adam's division finite; its usual 1e-8 would slow small gradients
Function = Callable[[Tensor], Tensor]


class Descent(NamedTuple):
    """Where it ended."""

    point: Tensor  # (B, n)
    reached: Tensor  # (B,) bool, whether the output is the wanted one (`EXACT`)
    iterations: Tensor  # (B,) int64, steps until the point was found


def prepared(network: nn.Module, observed: Tensor, images: int | None) -> tuple[nn.Module, Tensor]:
    """A copy of the network and the first so many observed images, or all of them, in float64.

    Raises
    ------
    BadInput
        When there are fewer images.
    """
    images = images or len(observed)
    if images > len(observed):
        raise BadInput(f"images = {images}: {len(observed)} are observed")
    whole = copy.deepcopy(network).double().eval().requires_grad_(False)
    return whole, observed[:images].double()


def value_and_gradient(function: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs (B,) and their gradients (B, n) at x (B, n); row i of the output is of row i."""
    variable = x.detach().requires_grad_()
    value = function(variable)
    (gradient,) = torch.autograd.grad(value.sum(), variable)
    return value.detach(), gradient


def nearest_by_planes(
    function: Function,
    start: Tensor,
    *,
    wanted: Tensor,
    relation: Tensor,
    steps: int,
    callback: Callback,
) -> Descent:
    """A point of [0, 1]ⁿ near the start (B, n) whose output is the wanted one, for all rows at
    once.

    In each step the output of the function, (B, n) to (B,), is replaced by its tangent plane, for
    which the nearest point in the box is known exactly (see `_nearest.nearest`): seen from the
    present point, which leads to the wanted output quickly, and in every third step also from the
    start, which takes back what was not needed. Both are mixed by their distances (the fast
    adaptive boundary attack of Croce & Hein 2020, arXiv 1907.02044). The nearest point that gave
    the wanted output is kept: a local optimum, not certainly the nearest. The callback is called
    with what is left of the error and the point.
    """
    x = start
    best, closest = start, torch.full_like(wanted, torch.inf)
    least = torch.full_like(wanted, torch.inf)
    reached = torch.zeros(len(start), dtype=torch.bool)
    found = torch.zeros(len(start), dtype=torch.int64)
    allowed = EXACT * wanted.abs().clamp(min=1)
    for step in range(steps + 1):
        value, gradient = value_and_gradient(function, x)
        error = violation(value, wanted, relation)
        distance = (x - start).norm(dim=1)
        inside = error <= allowed
        better = torch.where(inside, distance < closest, ~reached & (error < least))
        best = torch.where(better[:, None], x, best)
        found = torch.where(better, step, found)
        least = torch.minimum(least, error)
        closest = torch.where(inside, torch.minimum(closest, distance), closest)
        reached = reached | inside
        callback(step, least, best)
        if step == steps:
            break
        bias = value - (gradient * x).sum(dim=1)
        low, high = box_range(gradient, bias)
        # A tangent plane says little far away: ask for no more than a share of its range.
        level = torch.maximum(value + REACH * (low - value), wanted)
        level = torch.minimum(value + REACH * (high - value), level)
        ahead = nearest(x, gradient, bias, wanted=level, relation=relation, box=True).point
        if step % PULL == PULL - 1:
            home = nearest(start, gradient, bias, wanted=level, relation=relation, box=True).point
            there, back = (ahead - x).norm(dim=1), (home - start).norm(dim=1)
            share = (there / (there + back).clamp(min=1e-300)).clamp(max=0.5)
            # At the wanted output already: go home as far as the plane allows.
            share = torch.where(error <= allowed, 0.5, share)
            ahead = torch.lerp(ahead, home, share[:, None])
        x = ahead
    return Descent(best, reached, found)


def ascend(
    function: Function,
    start: Tensor,
    *,
    steps: int,
    learning_rate: float,
    callback: Callback,
    box: bool = True,
) -> Tensor:
    """Raise the output by Adam on the input, for all rows at once: (B, n); kept in [0, 1]ⁿ, but for
    inputs that are no pixels."""
    x = start.clone()
    optimiser = torch.optim.Adam([x], lr=learning_rate, eps=TINY, maximize=True)
    for step in range(steps + 1):
        value, x.grad = value_and_gradient(function, x)
        callback(step, -value, x.clone())
        if step < steps:
            optimiser.step()
            if box:
                x.clamp_(0, 1)
    return x.detach()
