"""Training images of an ordinary network: vertices that the weights certify, one after the other.

Facts that the attack rests on, for any chain of linear layers (see retrace/methods/_stationarity):

1. Every row of [W_1, b_1], or of its change by fine-tuning, is a combination of the training
   images, each with a 1. The spectrum falls off a cliff after as many values as there are images.
2. Where these are fewer than the pixels at the ends of their range, each image is a vertex of the
   polytope that the box of pixels cuts out of the row space (see `_polytope`).
3. With weight decay, the column of an image is known from the image and the weights, and lies in
   the column space: this certifies a vertex without the truth.
4. A certified image can be taken away. With X the images, each with its 1, and C their columns,
   [W_1, b_1] - C (X [W_1, b_1]^+ C)^-1 X has as many dimensions fewer (Wedderburn 1934), and the
   vertices of what is left are near those of the images that are still missing.
"""

import warnings
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from retrace.methods._stationarity import Columns, chain_of, changed_rows
from retrace.methods.training_data._constants import POLISH_FREE, SAME_IMAGE
from retrace.methods.training_data._polytope import Search, far_along, once, settle, walk
from retrace.methods.training_data._row_space import RowSpace
from retrace.methods.training_data.row_differences import distinct
from retrace.types import Callback, Seed, ignore

FULL_RANK = (
    "vertices: the first layer's rows have {rank} dimensions above their noise, of {pixels} "
    "pixels: more training images than the span can hold, or a start that is still there. Every "
    "image lies in it, so that there is nothing to search"
)
FULL = 0.75  # share of the pixels above which a row space has no vertices that tell anything
FEWEST = 3  # certified images from which on it is worth while to take them away
EVERYWHERE = 2  # rounds that search the whole row space even where images are certified
FLATNESS = 0.25  # power of the singular values by which flat directions weigh the coordinates
FIRST_BAR = 0.15  # residual above which no candidate counts, whatever the others have


class Ground(NamedTuple):
    """What is searched, and how: see `reconstruct`."""

    space: RowSpace
    columns: Columns
    search: Search
    objectives: int
    deflation: float


def reconstruct(
    network: nn.Module,
    observed: Tensor,
    *,
    candidates: Annotated[int, Field(ge=1)] = 2000,
    objectives: Annotated[int, Field(ge=1)] = 200,
    rounds: Annotated[int, Field(ge=1)] = 8,
    passes: Annotated[int, Field(ge=1)] = 6,
    iterations: Annotated[int, Field(ge=1)] = 60,
    penalty: Annotated[float, Field(ge=0)] = 0.2,
    faint: Annotated[float, Field(gt=0, lt=1)] = 0.1,
    trusted: Annotated[float, Field(gt=1)] = 1.8,
    deflation: Annotated[float, Field(ge=0)] = 10.0,
    seed: Seed = 0,
    callback: Callback = ignore,
) -> dict[str, Tensor]:
    """Search the polytope of the row space, certify vertices, take them away, search what is left.

    Parameters
    ----------
    network : Module
        A chain of linear layers: see `chain_of`; with ``start_weight`` and ``start_bias`` of its
        first layer where it is fine-tuned.
    observed : Tensor
        Public images, which this attack does not use.
    candidates : int
        At most so many are returned.
    objectives : int
        Random directions in each search.
    rounds : int
        Each of them searches the whole row space (the first two), what is left of it without the
        certified images, and the whole again with a condition that they have no share.
    passes, iterations, penalty, faint
        See `sparse_span.reconstruct`.
    trusted : float
        A vertex is certified where its residual is below so many times the median of those that
        are certified.
    deflation : float
        Weight of that condition.
    seed : int
        Of the random directions.
    callback : function
        Called after each round with the residuals (K,) and the candidates.

    Returns
    -------
    estimate : (K, *shape) float32
        Vertices in [0, 1], smallest residual first. None where the row space has nothing to
        search.
    residual : (K,) float32
        Of the column, see `Columns.fit`: near 0 for a training image of a network with
        weight decay, less telling of a fine-tuned one.

    Raises
    ------
    BadInput
        When the network is not covered.
    """
    chain = chain_of(network)
    shape: tuple[int, ...] = network.shape  # type: ignore[assignment]
    rows, duals = changed_rows(network, chain)
    columns = Columns(chain, rows)
    rank, pixels = len(columns.values), len(chain.mean)
    pool, residual = torch.zeros(0, pixels), torch.zeros(0)
    if rank > FULL * pixels:
        warnings.warn(FULL_RANK.format(rank=rank, pixels=pixels), stacklevel=2)
        return {"estimate": pool.unflatten(1, shape), "residual": residual}
    space = RowSpace(rows, chain.mean, rank)
    search = Search(shape, passes, iterations, penalty, faint)
    ground = Ground(space, columns, search, objectives, deflation)
    for number in range(rounds):
        generator = torch.Generator().manual_seed(seed + number)
        for look in (look_everywhere, look_beyond, look_aside):
            # Roughly known columns take away more than their images.
            certain = duals == "outputs"
            known = pool[residual < bar_of(residual, trusted)] if certain else pool[:0]
            enough = len(known) >= FEWEST
            if not (number < EVERYWHERE or not enough if look is look_everywhere else enough):
                continue
            fresh = look(ground, known, generator)
            fresh = fresh[space.rigid(fresh)]
            found = columns.fit(fresh, duals=duals)[0].float()
            pool, residual = torch.cat([pool, fresh]), torch.cat([residual, found])
            order = residual.argsort(stable=True)
            order = order[distinct(pool[order] - space.mean, at=SAME_IMAGE)]
            pool, residual = pool[order], residual[order]
        if len(pool):
            callback(number + 1, residual, pool.unflatten(1, shape))
    pool, residual = pool[:candidates], residual[:candidates]
    return {"estimate": pool.unflatten(1, shape), "residual": residual}


def bar_of(residual: Tensor, trusted: float) -> float:
    """The residual below which vertices (K,) are certified: so many times the median of those below
    it, from `FIRST_BAR` down. Training images have residuals within a factor of two of each other;
    how large these are depends on the network."""
    bar = FIRST_BAR
    while len(below := residual[residual < bar]):
        lower = trusted * float(below.median())
        if lower >= bar:
            break
        bar = lower
    return bar


def look_everywhere(ground: Ground, known: Tensor, generator: torch.Generator) -> Tensor:
    """Points of the polytope along random directions that say nothing of the images known (k, d),
    and the ends of walks from them: (m, d)."""
    space = ground.space
    directions = directions_from(space, known, ground.objectives, generator)
    reached = far_along(space, directions, ground.search, duals=space.none, weight=0.0)
    return torch.cat([reached, once(space, walk(space, reached, generator))])


def directions_from(
    space: RowSpace, known: Tensor, count: int, generator: torch.Generator
) -> Tensor:
    """Random directions (count, d) that say nothing of images known (k, d): half of them as
    `RowSpace.objectives`, which see most of the images with large duals, half of them flatter."""
    half = count // 2
    strong = space.objectives(known, count - half, generator)
    weak = space.isotropic(known, half, generator, power=FLATNESS)
    return torch.cat([strong, weak])


def look_beyond(ground: Ground, known: Tensor, generator: torch.Generator) -> Tensor:
    """The same of what is left when the images known are taken away, then drawn into the whole."""
    space = ground.space
    columns, images, shares = shares_of(space, ground.columns, known)
    solved, singular = torch.linalg.solve_ex(shares, images @ space.basis)
    if bool(singular):  # columns repeat each other, as those of a single output may
        return known[:0]
    taken = (space.columns @ columns.T) @ solved
    rest = space.columns * space.values @ space.basis - taken
    rank = len(space.values) - len(known)
    if rank < FEWEST:
        return known[:0]
    smaller = ground._replace(space=RowSpace(rest, space.mean, rank))
    points = look_everywhere(smaller, known[:0], generator)
    return drawn_in(space, once(space, points), ground.search, generator)


def look_aside(ground: Ground, known: Tensor, generator: torch.Generator) -> Tensor:
    """Points of the whole polytope in which the images known have little share, then without that
    condition, since the shares are known only roughly."""
    space, search = ground.space, ground.search
    columns, _, shares = shares_of(space, ground.columns, known)
    readings, singular = torch.linalg.solve_ex(shares.T, columns / space.values)
    if bool(singular):
        return known[:0]
    directions = directions_from(space, known, ground.objectives, generator)
    reached = far_along(space, directions, search, duals=readings, weight=ground.deflation)
    return drawn_in(space, reached, search, generator)


def shares_of(space: RowSpace, columns: Columns, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of images known (k, d): their columns and themselves in the coordinates of the row space,
    both (k, r), and X [W_1, b_1]⁺ C, (k, k)."""
    fitted = columns.fit(known)[1]
    images = space.extended(known) @ space.basis.T
    return fitted, images, images @ (fitted / space.values).T


def drawn_in(space: RowSpace, points: Tensor, search: Search, generator: torch.Generator) -> Tensor:
    """Points (m, d) drawn into the polytope, and the ends of walks from there."""
    maps = [space.projection(strength, space.none, 0.0) for strength in POLISH_FREE]
    settled = settle(maps, points, search._replace(faint=search.faint / 2)).clamp_(0, 1)
    settled = once(space, settled)
    return torch.cat([settled, once(space, walk(space, settled, generator))])
