"""The best of the statistics and of the networks that saw complete images only, averaged."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from retrace.methods.imputation import _latent, mixture
from retrace.types import Callback, Seed, ignore

BATCH = 250  # images at once: the samples' logits, (samples, 250, 784), are what needs the memory

Share = Annotated[float, Field(ge=0, le=1)]


@torch.no_grad()
def reconstruct(
    network: _latent.Prior,
    observed: Tensor,
    *,
    likelihood_blocks: Annotated[float, Field(gt=0)] = 1.0,
    likelihood_scattered: Annotated[float, Field(gt=0)] = 5.0,
    starts: Annotated[int, Field(ge=1)] = 5,
    search_steps: Annotated[int, Field(ge=1)] = 40,
    learning_rate: Annotated[float, Field(gt=0)] = 0.15,
    samples: Annotated[int, Field(ge=1)] = 100,
    residual_penalty: Annotated[float, Field(gt=0)] = 0.001,
    mixture_penalty: Annotated[float, Field(gt=0)] = 0.0003,
    mixture_blocks: Share = 0.5,
    mixture_scattered: Share = 0.4,
    threshold_blocks: Share = 0.1,
    threshold_scattered: Share = 0.25,
    seed: Seed = 0,
    callback: Callback = ignore,
) -> Tensor:
    """Average the VAE's and the mixture's idea of the missing pixels, and darken faint grey.

    1. The `mixture`'s conditional mean.
    2. Modes of the code's posterior from several starts (`latent_search`; the first start is the
       encoder's code of the mixture's completion, the others are drawn from the prior), decoded
       and averaged by exp(−energy); and the posterior's mean by importance sampling around them
       (`posterior`); half of each.
    3. A Gaussian regression, from known to missing pixels, of what the VAE leaves of an image:
       x − G(z). The VAE does not draw the strokes that are nearly determined by their neighbours;
       this does.
    4. The weighted average of 3 and 1; then values below τ are taken down (see `darkened`).

    Parameters
    ----------
    network : Module
        See `retrace.networks.prior`.
    observed : (B, 28, 28)
        NaN where a pixel is missing.
    likelihood_blocks, likelihood_scattered : float
        β, the weight of the known pixels against the prior, by whether known pixels lie among
        the missing ones (see `_latent.scattered`).
    starts : int
        Of the search for modes, for each image.
    learning_rate : float
        Of the search, in units of the code.
    samples : int
        Of the posterior, for each image.
    residual_penalty : float
        λ of the regression of the residual, in squared pixel units.
    mixture_penalty : float
        λ of the mixture, likewise.
    mixture_blocks, mixture_scattered : float
        Weight of 1 in the average.
    threshold_blocks, threshold_scattered : float
        τ, in pixel units.
    seed : int
        Of starts and samples.

    Returns
    -------
    (B, 28, 28)
    """
    generator = torch.Generator().manual_seed(seed)
    search = _latent.Search(
        likelihood_blocks, likelihood_scattered, starts, search_steps, learning_rate
    )
    estimates = []
    for batch in observed.split(BATCH):
        statistics = mixture.conditional_mean(network, batch.flatten(1), penalty=mixture_penalty)
        statistics = statistics.float()
        modes = search.modes(network, batch, statistics, generator)
        sampled = _latent.importance(
            modes.energy, _latent.laplace(modes), samples=samples, generator=generator
        )
        decoded = (modes.decoded().mean() + sampled.mean()) / 2
        decoded = _latent.with_residual(network, batch, decoded, penalty=residual_penalty)
        weight = _latent.by_kind(batch, mixture_blocks, mixture_scattered).unsqueeze(1)
        estimates.append(torch.lerp(decoded, statistics, weight).unflatten(1, (28, 28)))
    threshold = _latent.by_kind(observed, threshold_blocks, threshold_scattered)
    return darkened(torch.cat(estimates), threshold=threshold.view(-1, 1, 1))


def darkened(estimate: Tensor, *, threshold: Tensor) -> Tensor:
    """Take faint values of (B, 28, 28) down: v ↦ v · min(1, v / τ), continuous, monotone, 0 below
    0; τ (B, 1, 1) of 0 changes nothing but the range.

    Where a pixel is black in most images and bright in few, the mean is a faint grey, which is no
    image's; the median is black. That costs hardly any squared error, while SSIM, which compares
    local contrast, counts every grey window of a black background.
    """
    clipped = estimate.clamp(0, 1)
    return clipped * (clipped / threshold.clamp(min=1e-12)).clamp(max=1)
