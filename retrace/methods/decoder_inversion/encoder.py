"""The encoder's mean: one pass, the baseline of every inversion."""

import torch
from torch import Tensor, nn

from retrace.methods.decoder_inversion._decoder import (
    decode,
    mean_square,
    problem_of,
    reproduced,
)
from retrace.types import Callback, ignore


@torch.no_grad()
def reconstruct(
    network: nn.Module, observed: Tensor, *, callback: Callback = ignore
) -> dict[str, Tensor]:
    """Take the mean of q(z | x) for the code, as autoencoding does.

    Parameters
    ----------
    network : Module
        Has ``decoder_weights()`` and ``encode``.
    observed : (B, 28, 28)
        In [0, 1].

    Returns
    -------
    dict
        ``estimate`` (B, d) float64, ``residual`` (B,), the mean squared difference of decoded and
        observed pixels, and ``converged`` (B,) bool: whether the image is reproduced.
    """
    weights, images = problem_of(network, observed, precision="float64")
    codes = network.encode(observed.float())[0].double()  # type: ignore[operator]
    pixels = decode(weights, codes)
    return {
        "estimate": codes,
        "residual": mean_square(pixels, images),
        "converged": reproduced(pixels, images),
    }
