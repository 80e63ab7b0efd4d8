"""The training images that resemble the known pixels most."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from retrace.types import Callback, ignore

CHUNK = 1000  # images whose distances to the whole gallery are taken at once


def reconstruct(
    network: nn.Module,
    observed: Tensor,
    *,
    neighbours: Annotated[int, Field(ge=1)] = 10,
    callback: Callback = ignore,
) -> Tensor:
    """Mean of the nearest training images, by the Euclidean distance over known pixels.

    Parameters
    ----------
    network : Module
        Has ``images`` (n, 28, 28) uint8.
    observed : (B, 28, 28)
        NaN where a pixel is missing.
    neighbours : int
        At most n count.

    Returns
    -------
    (B, 28, 28)
    """
    assert isinstance(network.images, Tensor)
    gallery = network.images.flatten(1).float() / 255
    count = min(neighbours, len(gallery))
    estimates = []
    for chunk in observed.flatten(1).split(CHUNK):
        # |x - g|^2 over known pixels, but for |x|^2, which is the same for the whole gallery.
        known = (~chunk.isnan()).float()
        distances = torch.addmm(
            known @ gallery.square().T, chunk.nan_to_num(0.0), gallery.T, alpha=-2
        )
        nearest = distances.topk(count, largest=False).indices
        estimates.append(gallery[nearest].mean(dim=1))
    return torch.cat(estimates).reshape(observed.shape)
