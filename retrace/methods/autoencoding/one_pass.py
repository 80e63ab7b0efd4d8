"""The image after the bottleneck: one pass through an autoencoder."""

import torch
from torch import Tensor, nn

from retrace.types import Callback, ignore

BATCH = 1000  # images at once: the feature maps of a batch should stay near the cache


@torch.no_grad()
def reconstruct(network: nn.Module, observed: Tensor, *, callback: Callback = ignore) -> Tensor:
    """Encode and decode.

    Parameters
    ----------
    network : Module
        An autoencoder: (B, 28, 28) to (B, 28, 28).
    observed : (B, 28, 28)
        Complete images in [0, 1].

    Returns
    -------
    (B, 28, 28)
    """
    return torch.cat([network(batch) for batch in observed.split(BATCH)])
