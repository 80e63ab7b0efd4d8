"""Training images from the weights alone: corners of the box of pixels in the weights' row space.

Facts that the attack rests on, for a homogeneous network with two hidden layers at a KKT point:

1. The row of unit j in [W_1, b_1] is a_j sum_i p_i 1[z_ij > 0] [x_i, 1], with z_ij its input from
   image i and p_i from the dual variables: the row space is the span of the images. Each image is
   a point of that space within the box [0, 1]^d, most of its pixels at 0.
2. So the pattern of the units that an image switches on, times their gains, lies in the column
   space of [W_1, b_1], but for the units at whose kink it lies (z_ij = 0), where any share between
   0 and 1 is a subgradient. Other images do not fulfil this: it certifies a candidate without the
   truth.
3. The pattern gives the dual basis: what image i adds to the rows can be taken away, and its share
   in any other candidate can be read. What remains is a smaller problem.
4. Where the row space has far fewer dimensions than an image has pixels at the ends of their
   range, a training image is a vertex of the polytope that the box cuts out of the space, and
   one that hundreds of constraints hold at once. Mixtures of images lie on its faces: walking
   along a face to its end gives an image of the mixture.
"""

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from retrace.methods._admm import Map, admm
from retrace.methods.training_data._constants import (
    ANCHOR,
    ANCHORED,
    CHUNK,
    CLIMB,
    CLIMB_ITERATIONS,
    FEW_DIMENSIONS,
    POLISH,
    SAME_IMAGE,
    SAME_POINT,
    SAME_START,
    SEARCHES,
    SETTLE,
    SETTLED,
    TIGHT,
    WALK,
)
from retrace.methods.training_data._row_space import RowSpace
from retrace.methods.training_data.row_differences import (
    differences,
    distinct,
    two_hidden_layers,
    unit_groups,
)
from retrace.types import BadInput, Callback, Seed, ignore

FULL_RANK = (
    "sparse_span: the first layer's rows span all {pixels} pixels: more training images than the "
    "span allows, or no training. Every image lies in it, so there is nothing to search: the "
    "candidates are differences of units"
)


class Memory(Protocol):
    """Keeps arrays from an interrupted attack for the next one with the same inputs."""

    def load(self) -> dict[str, Any]: ...

    def save(self, arrays: dict[str, Any]) -> None: ...


def reconstruct(
    network: nn.Module,
    observed: Tensor,
    *,
    candidates: Annotated[int, Field(ge=8)] = 300,
    starts: Annotated[int, Field(ge=8)] = 2000,
    public_starts: Annotated[int, Field(ge=0)] = 0,
    objectives: Annotated[int, Field(ge=1)] = 200,
    neighbours: Annotated[int, Field(ge=1)] = 30,
    rounds: Annotated[int, Field(ge=1)] = 5,
    passes: Annotated[int, Field(ge=1)] = 6,
    iterations: Annotated[int, Field(ge=1)] = 60,
    penalty: Annotated[float, Field(ge=0)] = 0.2,
    faint: Annotated[float, Field(gt=0, lt=1)] = 0.1,
    trusted: Annotated[float, Field(gt=0, lt=1)] = 0.065,
    deflation: Annotated[float, Field(ge=0)] = 10.0,
    seed: Seed = 0,
    callback: Callback = ignore,
    memory: Memory | None = None,
) -> Tensor:
    """Search the row space for images, certify them, take them away, search what is left.

    Parameters
    ----------
    network : Module
        Homogeneous, two hidden layers: see `row_differences.two_hidden_layers`.
    observed : (N, *shape)
        Public images; only with `public_starts`.
    candidates : int
        At most so many are returned.
    starts : int
        Row differences (see `row_differences`) that a search starts from.
    public_starts : int
        So many public images as further starts; 0 keeps to the weights alone.
    objectives : int
        Where the rank is small, so many random objectives in each round, instead of row
        differences.
    neighbours : int
        Units that each unit is compared with in the first round; each later round takes more.
    rounds : int
        Searches; between two, certified candidates are taken out of the problem.
    passes : int
        Times that a search looks anew which pixels are nearly 0, for each penalty, at most.
    iterations : int
        Of ADMM in a pass.
    penalty : float
        On pixels that look empty, in pixel units.
    faint : float
        A pixel looks empty where the 3 x 3 average is below this.
    trusted : float
        A candidate with a smaller certificate residual is taken out of the problem.
    deflation : float
        Weight of the condition that the images already found have no share in a candidate.
    seed : int
        Of the random objectives.
    callback : function
        Called after each round with the certificate residuals (K,) and the candidates.
    memory : Memory, optional
        Keeps the pool after each round; an interrupted attack goes on from there.

    Returns
    -------
    (K, *shape) float32
        In [0, 1], smallest certificate residual first; where the rank is small, vertices before
        all others. None where the units have nothing in common.

    Raises
    ------
    BadInput
        When the network is not covered.
    """
    weights, bias = two_hidden_layers(network)
    mean: Tensor = network.get_buffer("mean")
    shape: tuple[int, ...] = network.shape  # type: ignore[assignment]
    space = RowSpace(weights, bias, mean)
    groups = unit_groups(weights)
    if len(space.values) >= len(mean):
        warnings.warn(FULL_RANK.format(pixels=len(mean)), stacklevel=2)
        guesses = differences(
            space.rows, groups, mean, neighbours=neighbours, limit=candidates, duplicate=SAME_START
        )
        return guesses.clamp(0, 1).unflatten(1, shape)
    kept = memory.load() if memory else {}
    pool = torch.as_tensor(kept.get("pool", np.zeros((0, len(mean)), np.float32)))
    residual = torch.as_tensor(kept.get("residual", np.zeros(0, np.float32)))
    few = len(space.values) < FEW_DIMENSIONS * len(mean)
    search = Search(shape, passes, iterations, penalty, faint)
    for number in range(int(kept.get("round", 0)), rounds):
        certain = residual < trusted
        public = pool[:0]
        if public_starts and number == 0:
            public = public_images(observed[:public_starts], mean)
        if few:
            generator = torch.Generator().manual_seed(seed + number)
            fresh = to_vertices(
                space, pool[certain], search, count=objectives, public=public, generator=generator
            )
        else:
            duals, rows = space.deflate(pool[certain])
            guesses = differences(
                rows,
                groups,
                mean,
                neighbours=neighbours * (1 + number % 3),
                limit=starts,
                duplicate=SAME_START,
            )
            fresh = from_starts(
                space,
                torch.cat([guesses, pool[~certain][:starts], public]),
                search,
                searches=SEARCHES if number == 0 else SEARCHES[1 + number % 2 :][:1],
                duals=duals,
                deflation=deflation,
            )
        pool = torch.cat([pool, fresh])
        residual = torch.cat([residual, certificate(space, fresh, few=few)])
        order = residual.argsort(stable=True)
        order = order[distinct(pool[order] - mean, at=SAME_IMAGE)]
        pool, residual = pool[order], residual[order]
        if memory:
            arrays = {"pool": pool.cpu().numpy(), "residual": residual.cpu().numpy()}
            memory.save({**arrays, "round": np.array(number + 1)})
        if len(pool):
            callback(number + 1, residual, pool.unflatten(1, shape))
    return pool[:candidates].unflatten(1, shape)


def public_images(observed: Tensor, mean: Tensor) -> Tensor:
    """Public images as starts, (m, d); refused where the network takes another kind of image."""
    images = observed.flatten(1)
    if images.shape[1] != len(mean):
        raise BadInput(
            f"public_starts: the public images have {images.shape[1]} pixels, those of "
            f"the network {len(mean)}; only 0 is possible here"
        )
    return images


class Search(NamedTuple):
    """How `settle` looks for an image: see `reconstruct`."""

    shape: tuple[int, ...]
    passes: int
    iterations: int
    penalty: float
    faint: float


def certificate(space: RowSpace, images: Tensor, *, few: bool) -> Tensor:
    """Residuals of the candidates' patterns; 1 more for one that is no vertex, if the rank is
    small: few images leave few patterns, which mixtures share."""
    residual = space.certify(images)
    if few:
        residual += (~space.rigid(images)).float()
    return residual


def from_starts(
    space: RowSpace,
    starts: Tensor,
    search: Search,
    *,
    searches: Sequence[Sequence[float]],
    duals: Tensor,
    deflation: float,
) -> Tensor:
    """Points of the row space and the box near the starts, (m, d)."""
    if len(starts) == 0:
        return starts
    # Without the deflation: the shares of the images found are known only roughly.
    polish = [space.projection(strength, duals, 0.0) for strength in POLISH]
    fresh = []
    for strengths in searches:
        maps = [space.projection(strength, duals, deflation) for strength in strengths]
        reached = settle(maps, near(maps[0], starts), search)
        # The flattest first: pixels at the ends of their range are what an image has.
        flat = (reached - reached.round()).abs() < 5e-3
        order = flat.sum(dim=1).argsort(descending=True, stable=True)
        reached = reached[order]
        reached = reached[distinct(reached.clamp(0, 1) - space.mean, at=SAME_IMAGE)]
        reached = settle(polish, reached, search._replace(faint=search.faint / 2))
        fresh.append(reached.clamp_(0, 1))
    return torch.cat(fresh)


def to_vertices(
    space: RowSpace,
    found: Tensor,
    search: Search,
    *,
    count: int,
    public: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Vertices of the polytope far along random objectives, or near public images: (m, d).

    A linear programme first, whose solution is a vertex of some kind; then, with the objective
    fading, pixels that look empty are drawn to 0; then walks to the ends of the faces reached.
    """
    objectives = space.objectives(found, count, generator)
    unknown = objectives.new_zeros(0, len(space.values)).double()

    def project(strengths: Sequence[float]) -> list[Map]:
        return [space.projection(strength, unknown, 0.0) for strength in strengths]

    strength, weight = CLIMB
    climbed = settle(
        project([strength]),
        space.mean.repeat(count, 1),
        search._replace(passes=1, iterations=CLIMB_ITERATIONS, penalty=0.0),
        objectives=objectives,
        weights=[weight],
    )
    strengths, weights = zip(*SETTLE, strict=True)
    maps = project(strengths)
    reached = settle(maps, climbed, search, objectives=objectives, weights=weights)
    if len(public):
        reached = torch.cat([reached, settle(maps, near(maps[0], public), search)])
    reached.clamp_(0, 1)
    reached = reached[distinct(reached - space.mean, at=SAME_POINT)]
    ends = walk(space, reached, generator)
    return torch.cat([reached, ends[distinct(ends - space.mean, at=SAME_POINT)]])


def walk(space: RowSpace, images: Tensor, generator: torch.Generator) -> Tensor:
    """Go from points of a polytope (m, d) to its vertices, along its faces, both ways at first, in
    a random sense later: (2 m, d) float32 in no particular order.

    Each step goes in the direction that leaves all tight pixels as they are (see
    `RowSpace.rigid`), until another pixel reaches the end of its range.
    """
    at = torch.cat([images, images])
    sense = torch.ones(len(at), 1)
    sense[len(images) :] = -1
    ended = []
    for step in range(WALK):
        rigid = space.rigid(at)
        ended.append(at[rigid])
        at, sense = at[~rigid], sense[~rigid]
        if step:
            sense = torch.randint(0, 2, (len(at), 1), generator=generator) * 2.0 - 1
        directions = space.loosest(at) * sense
        room = torch.where(directions > 0, 1 - at, at) / directions.abs().clamp(min=1e-12)
        room[(at < TIGHT) | (at > 1 - TIGHT)] = torch.inf
        nearest = room.min(dim=1, keepdim=True).values
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
