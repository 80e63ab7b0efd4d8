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

import sys
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from retrace.methods.training_data._row_space import TIGHT, RowSpace
from retrace.methods.training_data.row_differences import (
    differences,
    distinct,
    two_hidden_layers,
    unit_groups,
)
from retrace.types import BadInput, Callback, Seed

SAME_START = 0.93  # normalised cross-correlation at which two starts are one
SAME_IMAGE = 0.96  # the same for two candidates
SAME_POINT = 0.99  # the same for two points to walk from, or walked to
ANCHORED = 40  # iterations in which a candidate is held to its start
ANCHOR = 0.3  # weight of the start in them
RELAXATION = 1.6  # over-relaxation of ADMM (Boyd et al. 2011, section 3.4.3)
# Penalties on the coordinates, by how strongly the weights determine them: a large one is robust
# and finds images with large dual variables, a small one leaves room for the others.
SEARCHES: tuple[tuple[float, ...], ...] = (
    (1e-5, 1e-6, 1e-7, 1e-8),
    (1e-6, 1e-7, 1e-8),
    (1e-7, 1e-8),
)
POLISH = (1e-8, 1e-9, 1e-10)
FEW_DIMENSIONS = 0.25  # share of the pixels below which the row space's rank counts as small
RIGID = 0.02  # rigidity above which a point counts as a vertex
WALK = 12  # faces that a walk crosses at most
# The same penalties where the rank is small, each with the weight of the random objective there.
CLIMB = (1e-9, 0.1)
SETTLE: tuple[tuple[float, float], ...] = ((1e-9, 0.05), (1e-10, 0.02), (1e-11, 0.0))
CLIMB_ITERATIONS = 150
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
    candidates: Annotated[int, Field(ge=8)],
    starts: Annotated[int, Field(ge=8)],
    public_starts: Annotated[int, Field(ge=0)],
    objectives: Annotated[int, Field(ge=1)],
    neighbours: Annotated[int, Field(ge=1)],
    rounds: Annotated[int, Field(ge=1)],
    passes: Annotated[int, Field(ge=1)],
    iterations: Annotated[int, Field(ge=1)],
    penalty: Annotated[float, Field(ge=0)],
    faint: Annotated[float, Field(gt=0, lt=1)],
    trusted: Annotated[float, Field(gt=0, lt=1)],
    deflation: Annotated[float, Field(ge=0)],
    seed: Seed,
    callback: Callback,
    memory: Memory,
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
        Times that a search looks anew which pixels are nearly 0, for each penalty.
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
    memory : Memory
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
        print(FULL_RANK.format(pixels=len(mean)), file=sys.stderr)
        guesses = differences(
            space.rows, groups, mean, neighbours=neighbours, limit=candidates, duplicate=SAME_START
        )
        return guesses.clamp(0, 1).unflatten(1, shape)
    kept = memory.load()
    begin = int(kept.get("round", 0))
    pool = torch.as_tensor(kept["pool"]) if kept else torch.zeros(0, len(mean))
    residual = torch.as_tensor(kept["residual"]) if kept else torch.zeros(0)
    few = len(space.values) < FEW_DIMENSIONS * len(mean)
    search = partial(
        solve, mean=mean, passes=passes, iterations=iterations, penalty=penalty, shape=shape
    )
    for number in range(begin, rounds):
        certain = residual < trusted
        public = pool[:0]
        if public_starts and number == 0:
            public = public_images(observed[:public_starts], mean)
        if few:
            fresh = to_vertices(
                space,
                pool[certain],
                search,
                count=objectives,
                public=public,
                faint=faint,
                generator=torch.Generator().manual_seed(seed + number),
            )
        else:
            duals, rows = space.deflate(pool[certain])
            starts_from = differences(
                rows,
                groups,
                mean,
                neighbours=neighbours * (1 + number % 3),
                limit=starts,
                duplicate=SAME_START,
            )
            fresh = from_starts(
                space,
                torch.cat([starts_from, pool[~certain][:starts], public]),
                search,
                searches=SEARCHES if number == 0 else SEARCHES[1 + number % 2 :][:1],
                faint=faint,
                duals=duals,
                deflation=deflation,
            )
        pool = torch.cat([pool, fresh])
        residual = torch.cat([residual, certificate(space, fresh, few=few)])
        order = residual.argsort(stable=True)
        order = order[distinct(pool[order] - mean, at=SAME_IMAGE)]
        pool, residual = pool[order], residual[order]
        memory.save(
            {
                "pool": pool.cpu().numpy(),
                "residual": residual.cpu().numpy(),
                "round": np.array(number + 1),
            }
        )
        if len(pool):
            callback(number + 1, residual, pool.unflatten(1, shape))
    return pool[:candidates].unflatten(1, shape)


def public_images(observed: Tensor, mean: Tensor) -> Tensor:
    """Public images as starts, (m, d).

    Raises
    ------
    BadInput
        When the network takes another kind of image.
    """
    images = observed.flatten(1)
    if images.shape[1] != len(mean):
        raise BadInput(
            f"public_starts: the public images have {images.shape[1]} pixels, those of "
            f"the network {len(mean)}; only 0 is possible here"
        )
    return images


class Search(Protocol):
    """`solve` with the settings of the attack."""

    def __call__(
        self,
        maps: list[tuple[Tensor, Tensor]],
        *,
        starts: Tensor,
        faint: float,
        anchored: int = 0,
        objective: tuple[Tensor, Sequence[float]] | None = None,
        passes: int = ...,
        iterations: int = ...,
        penalty: float = ...,
    ) -> Tensor: ...


def certificate(space: RowSpace, images: Tensor, *, few: bool) -> Tensor:
    """Residuals of the candidates' patterns; 1 more for one that is no vertex, if the rank is
    small: few images leave few patterns, which mixtures share."""
    residual = space.certify(images)
    if few:
        residual += (space.rigidity(images)[0] < RIGID).float()
    return residual


def from_starts(
    space: RowSpace,
    starts: Tensor,
    search: Search,
    *,
    searches: Sequence[Sequence[float]],
    faint: float,
    duals: Tensor,
    deflation: float,
) -> Tensor:
    """Points of the row space and the box near the starts, (m, d)."""
    if len(starts) == 0:
        return starts
    fresh = []
    for strengths in searches:
        maps = [space.projection(strength, duals, deflation) for strength in strengths]
        reached = search(maps, starts=starts, faint=faint, anchored=ANCHORED)
        # The flattest first: pixels at the ends of their range are what an image has.
        flat = (reached - reached.round()).abs() < 5e-3
        order = flat.sum(dim=1).argsort(descending=True, stable=True)
        reached = reached[order]
        reached = reached[distinct(reached.clamp(0, 1) - space.mean, at=SAME_IMAGE)]
        # Without the deflation: the shares of the images found are known only roughly.
        maps = [space.projection(strength, duals, 0.0) for strength in POLISH]
        fresh.append(search(maps, starts=reached, faint=faint / 2).clamp_(0, 1))
    return torch.cat(fresh)


def to_vertices(
    space: RowSpace,
    found: Tensor,
    search: Search,
    *,
    count: int,
    public: Tensor,
    faint: float,
    generator: torch.Generator,
) -> Tensor:
    """Vertices of the polytope far along random objectives, or near public images: (m, d).

    A linear programme first, whose solution is a vertex of some kind; then, with the objective
    fading, pixels that look empty are drawn to 0; then walks to the ends of the faces reached.
    """
    objectives = space.objectives(found, count, generator)
    unknown = objectives.new_zeros(0, len(space.values)).double()

    def project(strengths: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
        return [space.projection(strength, unknown, 0.0) for strength in strengths]

    strength, weight = CLIMB
    climbed = search(
        project([strength]),
        starts=space.mean.expand(count, -1),
        objective=(objectives, [weight]),
        faint=faint,
        passes=1,
        iterations=CLIMB_ITERATIONS,
        penalty=0.0,
    )
    strengths, weights = zip(*SETTLE, strict=True)
    maps = project(strengths)
    reached = search(maps, starts=climbed, objective=(objectives, weights), faint=faint)
    if len(public):
        near = search(maps, starts=public, faint=faint, anchored=ANCHORED)
        reached = torch.cat([reached, near])
    reached.clamp_(0, 1)
    reached = reached[distinct(reached - space.mean, at=SAME_POINT)]
    ends = walk(space, reached, generator)
    return torch.cat([reached, ends[distinct(ends - space.mean, at=SAME_POINT)]])


def walk(space: RowSpace, images: Tensor, generator: torch.Generator) -> Tensor:
    """Go from points of a polytope to its vertices, along its faces, both ways at first.

    Each step goes in the direction that leaves all tight pixels as they are (see
    `RowSpace.rigidity`), until another pixel reaches the end of its range.

    Parameters
    ----------
    space : RowSpace
    images : (m, d)
        In the row space and in the box.
    generator : Generator
        Of the sense of each later step.

    Returns
    -------
    (2 m, d) float32
        In no particular order.
    """
    at = torch.cat([images, images])
    sense = torch.ones(len(at), 1)
    sense[len(images) :] = -1
    ended = []
    for step in range(WALK):
        rigidity, directions = space.rigidity(at)
        loose = rigidity < RIGID
        ended.append(at[~loose])
        at, directions, sense = at[loose], directions[loose], sense[loose]
        if step:
            sense = torch.randint(0, 2, (len(at), 1), generator=generator) * 2.0 - 1
        directions = directions * sense
        room = torch.where(directions > 0, 1 - at, at) / directions.abs().clamp(min=1e-12)
        room[(at < TIGHT) | (at > 1 - TIGHT)] = torch.inf
        nearest = room.min(dim=1, keepdim=True).values
        # Without a free pixel there is nowhere to go.
        at = (at + directions * nearest.nan_to_num(posinf=0.0)).clamp_(0, 1)
    return torch.cat([*ended, at])


def solve(
    maps: list[tuple[Tensor, Tensor]],
    *,
    mean: Tensor,
    starts: Tensor,
    passes: int,
    iterations: int,
    penalty: float,
    faint: float,
    shape: tuple[int, ...],
    anchored: int = 0,
    objective: tuple[Tensor, Sequence[float]] | None = None,
) -> Tensor:
    """Alternate between the row space and the box of pixels, all candidates at once (ADMM).

    Pixels that look empty pay a constant price for not being 0; the others are free within
    [0, 1]. Which look empty is decided anew in each pass, by the local average: a plain l1 norm
    would prefer images with little ink.

    Parameters
    ----------
    maps : list of (M, m)
        Projections, see `RowSpace.projection`, used one after the other.
    mean : (d,)
    starts : (m, d)
    passes, iterations, penalty, faint
        See `reconstruct`.
    shape : tuple of int
        Of an image.
    anchored : int
        Iterations at the first projection in which a candidate is held to its start.
    objective : ((m, d), weights), optional
        What each candidate is drawn along, and with which weight at each projection.

    Returns
    -------
    (m, d) float32
        In the row space, not clamped.
    """
    x, box, dual = starts, starts.clamp(0, 1), torch.zeros_like(starts)
    matrix, offset = maps[0]
    for _ in range(anchored):
        aim = (box - dual + ANCHOR * starts) / (1 + ANCHOR)
        x = torch.addmm(mean + offset, aim - mean, matrix)
        wished = x + dual
        box = wished.clamp(0, 1)
        dual = wished - box
    directions, weights = objective or (torch.zeros(1), [0.0] * len(maps))
    for (matrix, offset), weight in zip(maps, weights, strict=True):
        for _ in range(passes):
            box = x.clamp(0, 1)
            price = penalty * (local_average(box, shape) < faint).float() - weight * directions
            dual.zero_()
            for _ in range(iterations):
                x = torch.addmm(mean + offset, box - dual - mean, matrix)
                wished = torch.lerp(box, x, RELAXATION).add_(dual)
                box = (wished - price).clamp_(0, 1)
                dual = wished.sub_(box)
    return x


def local_average(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Average over 3 x 3 pixels with binomial weights: (m, d) to (m, d)."""
    line = torch.tensor([0.25, 0.5, 0.25])
    kernel = torch.outer(line, line).expand(1, 1, 3, 3)
    planes = images.reshape(-1, 1, *shape[-2:])
    return nn.functional.conv2d(planes, kernel, padding=1).reshape(images.shape)
