"""Fill the missing pixels with a constant: the baselines that any method has to beat."""

from typing import Literal

import torch
from torch import Tensor, nn

from retrace.types import Callback, ignore


def reconstruct(
    network: nn.Module,
    observed: Tensor,
    *,
    value: Literal["zero", "mean"] = "mean",
    callback: Callback = ignore,
) -> Tensor:
    """Keep the known pixels; the missing ones become 0 or the training mean of that pixel.

    Parameters
    ----------
    network : Module
        Has ``mean``, the (28, 28) mean of the training images.
    observed : (B, 28, 28)
        NaN where a pixel is missing.

    Returns
    -------
    (B, 28, 28)
    """
    mean = network.mean.to(observed.dtype).reshape(28, 28)  # type: ignore[operator]
    filling = torch.zeros_like(mean) if value == "zero" else mean
    return torch.where(observed.isnan(), filling, observed)
