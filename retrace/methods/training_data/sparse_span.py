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
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from retrace.methods.training_data._constants import (
    FEW_DIMENSIONS,
    POLISH,
    SAME_IMAGE,
    SAME_START,
    SEARCHES,
    SETTLE,
)
from retrace.methods.training_data._polytope import (
    Search,
    far_along,
    near,
    once,
    settle,
    walk,
)
from retrace.methods.training_data._row_space import MarginSpace
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
    space = MarginSpace(weights, bias, mean)
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


def certificate(space: MarginSpace, images: Tensor, *, few: bool) -> Tensor:
    """Residuals of the candidates' patterns; 1 more for one that is no vertex, if the rank is
    small: few images leave few patterns, which mixtures share."""
    residual = space.certify(images)
    if few:
        residual += (~space.rigid(images)).float()
    return residual


def from_starts(
    space: MarginSpace,
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
    space: MarginSpace,
    found: Tensor,
    search: Search,
    *,
    count: int,
    public: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Vertices of the polytope far along random objectives, or near public images: (m, d)."""
    objectives = space.objectives(found, count, generator)
    reached = far_along(space, objectives, search, duals=space.none, weight=0.0)
    if len(public):
        maps = [space.projection(strength, space.none, 0.0) for strength, _ in SETTLE]
        drawn = settle(maps, near(maps[0], public), search).clamp_(0, 1)
        reached = once(space, torch.cat([reached, drawn]))
    ends = walk(space, reached, generator)
    return torch.cat([reached, once(space, ends)])
