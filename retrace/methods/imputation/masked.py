"""A network trained with random masks fills in the missing pixels: the reference."""

import torch
from torch import Tensor, nn

from retrace.types import Callback, ignore


@torch.no_grad()
def reconstruct(network: nn.Module, observed: Tensor, *, callback: Callback = ignore) -> Tensor:
    """One pass through a network that was trained for it; the others saw complete images only.

    Parameters
    ----------
    network : Module
        Takes (B, 28, 28) images with NaN where a pixel is missing; see `retrace.networks.masked`.
    observed : (B, 28, 28)
        NaN where a pixel is missing.

    Returns
    -------
    (B, 28, 28)
    """
    output: Tensor = network(observed)
    return output
