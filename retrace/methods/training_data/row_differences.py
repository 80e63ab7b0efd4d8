"""Training images from the weights alone, without any optimisation: differences of units."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from retrace.methods.training_data._constants import (
    BLOCK,
    DEAD,
    FARTHEST,
    RANKED,
    SAME_DIRECTION,
    SAME_START,
)
from retrace.methods.training_data.kkt import homogeneous_layers
from retrace.types import BadInput, Callback, ignore


def reconstruct(
    network: nn.Module,
    observed: Tensor,
    *,
    candidates: Annotated[int, Field(ge=1)] = 700,
    neighbours: Annotated[int, Field(ge=1)] = 30,
    duplicate: Annotated[float, Field(gt=0, le=1)] = SAME_START,
    callback: Callback = ignore,
) -> Tensor:
    """Take differences of neighbouring units for images.

    At a KKT point the weights and bias of a first-layer unit are its gain times the sum of
    lambda_i y_i [x_i, 1] over the images that it is active on. Two units of one group (the same
    outgoing direction, see `unit_groups`) whose patterns differ in one image differ by that
    image, up to a factor, which its last coordinate, 1, gives.

    Parameters
    ----------
    network : Module
        Homogeneous, two hidden layers: see `kkt.homogeneous_layers`.
    observed : Tensor
        Public images, which this attack does not use.
    candidates : int
        At most so many are returned.
    neighbours : int
        Nearest units that each unit is compared with.
    duplicate : float
        Of two candidates whose normalised cross-correlation is above it, the worse is dropped.

    Returns
    -------
    (K, *shape) float32
        In [0, 1]; the one that leaves the pixel range least comes first.

    Raises
    ------
    BadInput
        When the network is not covered.
    """
    weights, bias = two_hidden_layers(network)
    rows = torch.cat([weights[0], bias[:, None]], dim=1)
    mean: Tensor = network.get_buffer("mean")
    found = differences(
        rows,
        unit_groups(weights),
        mean,
        neighbours=neighbours,
        limit=candidates,
        duplicate=duplicate,
    )
    shape: tuple[int, ...] = network.shape  # type: ignore[assignment]
    return found.clamp(0, 1).unflatten(1, shape)


def two_hidden_layers(network: nn.Module) -> tuple[list[Tensor], Tensor]:
    """The weights and the bias of a network that the span attacks cover; refused where it is no
    homogeneous network, or has another number of hidden layers than two."""
    weights, bias = homogeneous_layers(network)
    if len(weights) != 3:
        raise BadInput(
            f"the attack does not cover this network: it has {len(weights) - 1} hidden layers; "
            "2 are needed"
        )
    if not (bias.any() and all(weight.any() for weight in weights)):
        raise BadInput(
            "the attack does not cover this network: a layer or the first layer's bias is 0 "
            "throughout, so that nothing of an image is in it"
        )
    return weights, bias


def unit_groups(weights: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Outgoing directions of the first layer's units: which take part, int64, the lengths of their
    outgoing weights, and the unit vectors (units, 2).

    Trained far, the second layer has rank two: its units push the output either up or down, and
    all that push one way do so with the same weights, up to a factor.
    """
    _, values, vectors = torch.linalg.svd(weights[1], full_matrices=False)
    outgoing = vectors[:2].T * values[:2]
    lengths = outgoing.norm(dim=1)
    live = torch.nonzero(lengths > DEAD * lengths.max()).flatten()
    return live, lengths[live], outgoing[live] / lengths[live, None]


def differences(
    rows: Tensor,
    groups: tuple[Tensor, Tensor, Tensor],
    mean: Tensor,
    *,
    neighbours: int,
    limit: int,
    duplicate: float,
) -> Tensor:
    """Differences of neighbouring rows within each group as images, (K, d) float32, the likeliest
    first: they are not clamped, and how far they leave the pixel range is their order.

    Parameters
    ----------
    rows : (n_1, d + 1)
        Weights and bias of the first layer's units.
    groups
        See `unit_groups`.
    neighbours, limit, duplicate
        See `reconstruct` (`limit` is its `candidates`).
    """
    live, lengths, directions = groups
    units = rows[live].float() / lengths[:, None]
    distances = torch.cdist(units, units)
    distances[directions @ directions.T < SAME_DIRECTION] = torch.inf
    distances.fill_diagonal_(torch.inf)
    nearest = distances.topk(min(neighbours, len(units) - 1), largest=False)
    first = torch.arange(len(units))[:, None].expand_as(nearest.indices)
    finite = nearest.values.isfinite()
    difference = units[first[finite]] - units[nearest.indices[finite]]
    centred = difference[:, :-1] / difference[:, -1:]
    centred = centred[centred.norm(dim=1) < FARTHEST]  # not infinite, not NaN either
    images = centred + mean
    outside = (images - images.clamp(0, 1)).norm(dim=1) / centred.norm(dim=1).clamp(min=3)
    images = images[outside.argsort(stable=True)][:RANKED]
    return images[distinct(images - mean, at=duplicate, limit=limit)]


def distinct(centred: Tensor, *, at: float, limit: int | None = None) -> Tensor:
    """Indices of the vectors (m, d), best first and the mean image subtracted, that no earlier kept
    one correlates with above `at`; so many at most, where there is a limit."""
    unit = nn.functional.normalize(centred, eps=1e-6)
    kept: list[int] = []
    for start in range(0, len(unit), BLOCK):
        block = unit[start : start + BLOCK]
        alive = ~(block @ unit[kept].T > at).any(dim=1)
        same = block @ block.T > at
        for index in range(len(block)):
            if alive[index]:
                kept.append(start + index)
                if len(kept) == limit:
                    return torch.tensor(kept)
                alive &= ~same[index]
    return torch.tensor(kept, dtype=torch.int64)
