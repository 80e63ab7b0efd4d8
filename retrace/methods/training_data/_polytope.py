"""The polytope that the box of pixels cuts out of a row space: points of it, and its vertices.

A training image is a point of the row space within the box [0, 1]^d, most of its pixels at 0. Where
the space has fewer dimensions than an image has pixels at the ends of their range, it is a vertex
of the polytope, and one that hundreds of constraints hold at once. Mixtures of images lie on its
faces: walking along a face to its end gives an image of the mixture.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from retrace.methods._admm import Map, admm
from retrace.methods.training_data._constants import (
    ANCHOR,
    ANCHORED,
    CHUNK,
    CLIMB,
    CLIMB_ITERATIONS,
    SAME_POINT,
    SETTLE,
    SETTLED,
    TIGHT,
    WALK,
)
from retrace.methods.training_data._row_space import RowSpace
from retrace.methods.training_data.row_differences import distinct


class Search(NamedTuple):
    """How `settle` looks for an image: see `reconstruct`."""

    shape: tuple[int, ...]
    passes: int
    iterations: int
    penalty: float
    faint: float


def far_along(
    space: RowSpace, objectives: Tensor, search: Search, *, duals: Tensor, weight: float
) -> Tensor:
    """Points of the polytope far along objectives (m, d): (m, d) in no particular order, those that
    are one counted once.

    A linear programme first, whose solution is a vertex of some kind; then, with the objective
    fading, pixels that look empty are drawn to 0. See `RowSpace.projection` for the duals (k, r) of
    known images and the weight of the condition that they have no share.
    """
    count = len(objectives)

    def project(strengths: Sequence[float]) -> list[Map]:
        return [space.projection(strength, duals, weight) for strength in strengths]

    strength, price = CLIMB
    climbed = settle(
        project([strength]),
        space.mean.repeat(count, 1),
        search._replace(passes=1, iterations=CLIMB_ITERATIONS, penalty=0.0),
        objectives=objectives,
        weights=[price],
    )
    strengths, weights = zip(*SETTLE, strict=True)
    maps = project(strengths)
    reached = settle(maps, climbed, search, objectives=objectives, weights=weights)
    return once(space, reached.clamp_(0, 1))


def once(space: RowSpace, images: Tensor) -> Tensor:
    """Images (m, d), of those that are one point only the first."""
    return images[distinct(images - space.mean, at=SAME_POINT)]


def walk(space: RowSpace, images: Tensor, generator: torch.Generator) -> Tensor:
    """Go from points of a polytope (m, d) to its vertices, along its faces, both ways at first, in
    a random sense later: (2 m, d) float32 in no particular order.

    Each step goes in the direction that leaves all tight pixels as they are (see
    `RowSpace.held`), until another pixel reaches the end of its range.
    """
    at = torch.cat([images, images])
    sense = torch.ones(len(at), 1)
    sense[len(images) :] = -1
    ended = []
    for step in range(WALK):
        rigid, directions = space.held(at, generator)
        ended.append(at[rigid])
        at, sense = at[~rigid], sense[~rigid]
        if step:
            sense = torch.randint(0, 2, (len(at), 1), generator=generator) * 2.0 - 1
        directions = directions * sense
        room = torch.where(directions > 0, 1 - at, at) / directions.abs().clamp(min=1e-12)
        room[(at < TIGHT) | (at > 1 - TIGHT)] = torch.inf
        nearest = room.amin(dim=1, keepdim=True)
        # Without a free pixel there is nowhere to go.
        at = (at + directions * nearest.nan_to_num(posinf=0.0)).clamp_(0, 1)
    return torch.cat([*ended, at])


def in_box(wished: Tensor) -> Tensor:
    """Proximal map of the box of pixels."""
    return wished.clamp(0, 1)


def in_box_at_a_price(wished: Tensor, *, price: Tensor) -> Tensor:
    """The same, of the box and the linear function price · b."""
    return (wished - price).clamp_(0, 1)


def anchored(wished: Tensor, *, project: Map, starts: Tensor) -> Tensor:
    """The same, of the row space and `ANCHOR` / 2 |x − start|²."""
    return project((wished + ANCHOR * starts) / (1 + ANCHOR))


def near(project: Map, starts: Tensor) -> Tensor:
    """Points of the row space, (m, d), in the box but for the last steps, held to their starts."""
    return torch.cat(
        [
            admm(
                partial(anchored, project=project, starts=some),
                in_box,
                in_box(some),
                iterations=ANCHORED,
                relaxation=1.0,
            )[0]
            for some in starts.split(CHUNK)
        ]
    )


def settle(
    maps: Sequence[Map],
    starts: Tensor,
    search: Search,
    *,
    objectives: Tensor | None = None,
    weights: Sequence[float] = (),
) -> Tensor:
    """Alternate between the row space and the box of pixels, all candidates at once, from starts
    (m, d): (m, d) float32 in the row space, not clamped.

    The maps, see `RowSpace.projection`, are used one after the other. Pixels that look empty pay a
    constant price for not being 0; the others are free within [0, 1]. Which look empty is decided
    anew in each pass, by the local average: a plain l1 norm would prefer images with little ink. A
    candidate that a pass leaves where it was, within `SETTLED`, waits for the next projection. Each
    candidate is drawn along its objective (m, d), if there are any, with a weight for each map.
    """
    at = starts.clone()
    for rows in torch.arange(len(at)).split(CHUNK):
        for position, project in enumerate(maps):
            moving = rows
            for _ in range(search.passes):
                before = at[moving]
                box = in_box(before)
                empty = local_average(box, search.shape) < search.faint
                price = search.penalty * empty.float()
                if objectives is not None:
                    price -= weights[position] * objectives[moving]
                prox = partial(in_box_at_a_price, price=price)
                after, _ = admm(project, prox, box, iterations=search.iterations)
                at[moving] = after
                moving = moving[(after - before).abs().amax(dim=1) > SETTLED]
                if len(moving) == 0:
                    break
    return at


def local_average(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Average over 3 x 3 pixels with binomial weights: (m, d) to (m, d)."""
    line = torch.tensor([0.25, 0.5, 0.25])
    kernel = torch.outer(line, line).expand(1, 1, 3, 3)
    planes = images.reshape(-1, 1, *shape[-2:])
    return nn.functional.conv2d(planes, kernel, padding=1).reshape(images.shape)
