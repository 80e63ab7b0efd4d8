"""One pass through an autoencoder: fill the missing pixels, encode, decode."""

from typing import Literal

import torch
from torch import Tensor, nn

from retrace.types import Callback, ignore

BATCH = 1000  # images at once: the feature maps of a batch should stay near the cache


@torch.no_grad()
def reconstruct(
    network: nn.Module,
    observed: Tensor,
    *,
    start: Literal["zero", "mean"] = "mean",
    callback: Callback = ignore,
) -> Tensor:
    """Give the network's output for the image whose missing pixels are filled with a constant.

    Parameters
    ----------
    network : Module
        An autoencoder: (B, 28, 28) to (B, 28, 28), with the training images' ``mean``.
    observed : (B, 28, 28)
        NaN where a pixel is missing.
    start : "zero" or "mean"
        What the missing pixels are filled with.

    Returns
    -------
    (B, 28, 28)
    """
    filling = network.mean if start == "mean" else torch.zeros(28, 28)
    filled = torch.where(observed.isnan(), filling, observed)  # type: ignore[arg-type]
    return torch.cat([network(batch) for batch in filled.split(BATCH)])
