"""The encoder's mean: one pass, the baseline of every inversion."""

import torch
from torch import Tensor, nn

from retrace.methods.decoder_inversion._decoder import answer_of, problem_of
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
        See `_decoder.answer_of`.
    """
    weights, images = problem_of(network, observed, precision="float64")
    codes = network.encode(observed.float())[0].double()  # type: ignore[operator]
    return answer_of(weights, images, codes)
