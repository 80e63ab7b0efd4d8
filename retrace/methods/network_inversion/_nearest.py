"""Nearest points of planes, half-spaces and their intersections with the box [0, 1]ⁿ: exact."""

from typing import NamedTuple

import torch
from torch import Tensor

EQUAL, AT_MOST, AT_LEAST = 0, -1, 1  # what an output has to be, of the wanted value
PROVED, DISPROVED, UNKNOWN = 1, 0, -1  # whether some input gives it
LARGEST = 1e150  # of a multiplier: its product with any weight is finite
TOGETHER = 2**14  # pixels of targets solved together: their arrays stay in the cache
STEPS = 40  # of Newton's method; what it has not solved by then is left to the breakpoints
ROUNDED = 2  # units of rounding of w·x that count as none


class Nearest(NamedTuple):
    """What was asked for, where it exists."""

    point: Tensor  # (B, n); the start where there is none
    feasible: Tensor  # (B,) bool, whether there is one


def box_range(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest w·x + b over the box [0, 1]ⁿ: (B, n) and (B,) to (B,) each."""
    return weight.clamp(max=0).sum(dim=1) + bias, weight.clamp(min=0).sum(dim=1) + bias


def violation(value: Tensor, wanted: Tensor, relation: Tensor) -> Tensor:
    """How far outputs are from what they have to be, 0 where they may stay: (B,) each."""
    excess = value - wanted
    return torch.where(
        relation == EQUAL, excess.abs(), torch.where(relation == AT_MOST, excess, -excess)
    ).clamp(min=0)


def nearest(
    start: Tensor, weight: Tensor, bias: Tensor, *, wanted: Tensor, relation: Tensor, box: bool
) -> Nearest:
    """The point nearest to x₀ among {x : w·x + b = v}, {… <= v} or {… >= v}, all rows at once.

    Without the box it is x₀ + λ w with λ = (v − b − w·x₀) / |w|². In the box, where x has to lie in
    [0, 1]ⁿ and the start need not, it is x(λ) = clip(x₀ + λ w, 0, 1) by the conditions of Karush,
    Kuhn and Tucker, and w·x(λ) is non-decreasing and piecewise linear in λ. Newton's method mostly
    finds the piece in eight steps, and from there the solution but for rounding; where it does not,
    a binary search over the 2n breakpoints does, and the point follows by interpolation.

    There is such a point in the box if and only if v lies in the range of w·x + b over the box,
    which is known exactly (`box_range`), up to the rounding of that sum. Start and weight are (B,
    n), bias and wanted (B,) float64; the relation (B,) is `EQUAL`, `AT_MOST` or `AT_LEAST`.
    """
    rows = max(1, TOGETHER // start.shape[1])
    parts = [x.split(rows) for x in (start, weight, bias, wanted, relation)]
    found = [_nearest(*part, box=box) for part in zip(*parts, strict=True)]
    return Nearest(*(torch.cat(x) for x in zip(*found, strict=True)))


def _nearest(
    start: Tensor, weight: Tensor, bias: Tensor, wanted: Tensor, relation: Tensor, *, box: bool
) -> Nearest:
    """`nearest` of a few rows."""
    origin = start.clamp(0, 1) if box else start
    at_origin = torch.linalg.vecdot(weight, origin) + bias
    stays = violation(at_origin, wanted, relation) == 0
    if not box:
        square = weight.square().sum(dim=1)
        safe = torch.where(square > 0, square, 1)
        point = origin + ((wanted - at_origin) / safe)[:, None] * weight
        # Once more: rounding in the first step was relative to where the start lies.
        rest = wanted - (weight * point).sum(dim=1) - bias
        point = point + (rest / safe)[:, None] * weight
        feasible = stays | (square > 0)
    else:
        low, high = box_range(weight, bias)
        rounding = torch.finfo(weight.dtype).eps * (weight.abs().sum(dim=1) + bias.abs())
        rounding = rounding * weight.shape[1] ** 0.5
        feasible = stays | (
            ((relation == AT_LEAST) | (wanted >= low - rounding))
            & ((relation == AT_MOST) | (wanted <= high + rounding))
        )
        level = torch.minimum(torch.maximum(wanted, low), high) - bias
        end = (wanted >= high).to(weight.dtype) - (wanted <= low).to(weight.dtype)
        point = _on_plane_in_box(start, weight, level, end * LARGEST)
    point = torch.where(stays[:, None], origin, point)
    return Nearest(torch.where(feasible[:, None], point, start), feasible)


def _on_plane_in_box(start: Tensor, weight: Tensor, wanted: Tensor, first: Tensor) -> Tensor:
    """clip(x₀ + λ w, 0, 1) with w·x = v, (B, n), v within reach; Newton's method starts at the
    first λ (B,)."""
    point, solved = _by_newton(start, weight, wanted, first)
    if not bool(solved.all()):
        left = ~solved
        point[left] = _by_breakpoints(start[left], weight[left], wanted[left])
    return point


def _by_newton(
    start: Tensor, weight: Tensor, wanted: Tensor, first: Tensor
) -> tuple[Tensor, Tensor]:
    """`_on_plane_in_box`, and whether w·x = v, (B,) bool, after at most `STEPS` steps."""
    multiplier, square = first, weight.square()
    allowed = ROUNDED * torch.finfo(weight.dtype).eps * weight.abs().sum(dim=1)
    free, point = torch.empty_like(start), torch.empty_like(start)
    for _ in range(STEPS):
        torch.addcmul(start, multiplier[:, None], weight, out=free)
        torch.clamp(free, 0, 1, out=point)
        error = wanted - torch.linalg.vecdot(weight, point)
        solved = error.abs() <= allowed
        if bool(solved.all()):
            break
        slope = torch.linalg.vecdot(square, free.eq_(point))  # of the pixels that still move
        step = torch.where(solved | (slope == 0), 0, error / slope)
        multiplier = (multiplier + step).clamp(-LARGEST, LARGEST)
    return point, solved


def _by_breakpoints(start: Tensor, weight: Tensor, wanted: Tensor) -> Tensor:
    """`_on_plane_in_box` by a search over all λ at which a pixel reaches 0 or 1."""
    moves = weight != 0
    safe = torch.where(moves, weight, 1)
    ends = torch.stack([-start / safe, (1 - start) / safe])
    ends = torch.where(moves, ends, 0).clamp(-LARGEST, LARGEST)
    breaks = ends.transpose(0, 1).flatten(1).sort(dim=1).values  # (B, 2n)

    def at(position: Tensor) -> tuple[Tensor, Tensor]:
        """The point and its w·x at a breakpoint: (B,) to (B, n) and (B,)."""
        multiplier = breaks.gather(1, position[:, None])
        point = torch.addcmul(start, multiplier, weight).clamp_(0, 1)
        return point, (weight * point).sum(dim=1)

    first = torch.zeros(len(start), dtype=torch.int64)
    last = torch.full_like(first, breaks.shape[1] - 1)
    for _ in range(int(breaks.shape[1]).bit_length()):
        middle = (first + last) // 2
        below = at(middle)[1] <= wanted
        first, last = torch.where(below, middle, first), torch.where(below, last, middle)
    (low, at_low), (high, at_high) = at(first), at(last)
    share = ((wanted - at_low) / torch.where(at_high > at_low, at_high - at_low, 1)).clamp(0, 1)
    return torch.lerp(low, high, share[:, None])
