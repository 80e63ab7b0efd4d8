"""The code of the VAE that explains the known pixels best, decoded."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from retrace.methods.imputation import _latent
from retrace.types import Callback, Seed, ignore


@torch.no_grad()
def reconstruct(
    network: _latent.Prior,
    observed: Tensor,
    *,
    likelihood_blocks: Annotated[float, Field(gt=0)] = 1.0,
    likelihood_scattered: Annotated[float, Field(gt=0)] = 5.0,
    start_penalty: Annotated[float, Field(gt=0)] = 0.0003,
    restarts: Annotated[int, Field(ge=1)] = 5,
    steps: Annotated[int, Field(ge=1)] = 40,
    learning_rate: Annotated[float, Field(gt=0)] = 0.15,
    answer: Literal["best", "average"] = "average",
    seed: Seed = 0,
    callback: Callback = ignore,
) -> Tensor:
    """Minimise β Σ_k BCE(x_i, G_i(z)) + ‖z‖²/2 over codes z from several starts, and decode.

    The maximum a posteriori code (Bora et al. 2017, arXiv 1703.03208, with the prior's penalty and
    the cross-entropy that the VAE was trained with).

    Parameters
    ----------
    network : Module
        See `retrace.networks.prior`.
    observed : (B, 28, 28)
        NaN where a pixel is missing.
    likelihood_blocks, likelihood_scattered : float
        β, by whether known pixels lie among the missing ones (see `_latent.scattered`).
    start_penalty : float
        λ of the ridge regression that completes the image for the encoder, which is the first
        start; the others are drawn from the prior.
    restarts : int
        Starts of each image, searched in one batch.
    learning_rate : float
        Adam's, in units of the code.
    answer : "best" or "average"
        What the code with the lowest energy decodes to; or the average over starts by exp(−energy).
    seed : int
        Of the starts.

    Returns
    -------
    (B, 28, 28)
    """
    completion = _latent.ridge_completion(network, observed, penalty=start_penalty)
    search = _latent.Search(likelihood_blocks, likelihood_scattered, restarts, steps, learning_rate)
    generator = torch.Generator().manual_seed(seed)
    modes = search.modes(network, observed, completion, generator, callback)
    if answer == "best":
        return modes.best()
    return modes.decoded().mean().reshape(observed.shape)
