"""Samples of what the missing pixels may be, given the known ones, and their mean."""

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from retrace.methods.imputation import _latent, ridge
from retrace.types import Callback, Seed

BATCH = 250  # images at once: what needs the memory is (samples, 250, 784)
LEVELS = (0.025, 0.1, 0.25, 0.75, 0.9, 0.975)  # ends of the 95, 80 and 50 % intervals


@torch.no_grad()
def reconstruct(
    network: _latent.Prior,
    observed: Tensor,
    *,
    sampler: Literal["importance", "pseudo_gibbs"],
    noise: Literal["none", "gaussian"],
    likelihood_blocks: Annotated[float, Field(gt=0)],
    likelihood_scattered: Annotated[float, Field(gt=0)],
    penalty: Annotated[float, Field(gt=0)],
    starts: Annotated[int, Field(ge=1)],
    search_steps: Annotated[int, Field(ge=1)],
    learning_rate: Annotated[float, Field(gt=0)],
    samples: Annotated[int, Field(ge=2)],
    completions: Annotated[int, Field(ge=1, le=100)],
    seed: Seed,
    callback: Callback,
) -> dict[str, Tensor]:
    """Sample codes given the known pixels, decode them, and add what the decoder leaves out.

    The sampler is one of

    - ``importance``: self-normalised importance sampling, the proposal being Gaussians with the
      posterior's curvature around the modes of `latent_search` (Owen 2013, "Monte Carlo theory",
      section 9.2); completions are drawn again by their weights;
    - ``pseudo_gibbs``: encode the completed image and draw a code, decode it and draw the missing
      pixels, and so on (Rezende et al. 2014, arXiv 1401.4082, appendix F): each of `samples` chains
      starts from the ridge completion and takes `search_steps` rounds; its last state counts. What
      it draws from is the posterior only as far as the encoder's Gaussian is.

    Parameters
    ----------
    network : Module
        See `retrace.networks.prior`.
    observed : (B, 28, 28)
        NaN where a pixel is missing.
    sampler : "importance" or "pseudo_gibbs"
    noise : "none" or "gaussian"
        Samples are decoded codes G(z); or G(z) plus a draw of the residual x − G(z), a Gaussian
        with the training images' moments, given the known pixels.
    likelihood_blocks, likelihood_scattered : float
        β of the importance sampler, by whether known pixels lie among the missing ones.
    penalty : float
        λ in squared pixel units: of the ridge completion, and of the residual's regression.
    starts, search_steps, learning_rate
        Of the search for modes.
    samples : int
        Of each image: what mean, deviation and intervals are taken from.
    completions : int
        Of each image that are returned.
    seed : int
    callback : function
        Not called.

    Returns
    -------
    dict
        ``estimate`` (B, 28, 28), the posterior's mean; ``deviation`` (B, 28, 28) float16, the
        standard deviation; ``quantiles`` (B, 6, 28, 28) uint8 at `LEVELS`, and ``samples``
        (B, completions, 28, 28) uint8, both in 255ths.
    """
    generator = torch.Generator().manual_seed(seed)
    root = None
    if noise == "gaussian":
        root = _root(network.residual_covariance)
    answers: list[dict[str, Tensor]] = []
    for batch in observed.split(BATCH):
        completion = ridge.conditional_mean(
            batch.flatten(1),
            mean=network.mean.flatten(),
            covariance=network.covariance,
            penalty=penalty,
        ).float()
        if sampler == "importance":
            drawn, weights = _importance(
                network,
                batch,
                completion,
                likelihood=(likelihood_blocks, likelihood_scattered),
                starts=starts,
                search_steps=search_steps,
                learning_rate=learning_rate,
                samples=samples,
                generator=generator,
            )
        else:
            drawn = pseudo_gibbs(
                network, batch, completion, rounds=search_steps, chains=samples, generator=generator
            )
            weights = torch.full(drawn.shape[:2], 1 / samples)
        answers.append(
            _summary(
                network,
                batch,
                drawn,
                weights,
                root=root,
                penalty=penalty,
                completions=completions,
                generator=generator,
            )
        )
    return {key: torch.cat([answer[key] for answer in answers]) for key in answers[0]}


def _importance(
    network: _latent.Prior,
    observed: Tensor,
    completion: Tensor,
    *,
    likelihood: tuple[float, float],
    starts: int,
    search_steps: int,
    learning_rate: float,
    samples: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Images (S, B, 784) and weights (S, B)."""
    known = _latent.Known.of(observed, likelihood=_latent.by_kind(observed, *likelihood))
    first = _latent.starts(network, observed, completion, count=starts, generator=generator)
    codes, logits = _latent.search(
        network.decoder, known, first, steps=search_steps, learning_rate=learning_rate
    )
    proposal = _latent.laplace(network.decoder, known, codes, logits)
    drawn, weights = _latent.importance(
        network.decoder, known, proposal, samples=samples, generator=generator
    )
    return drawn.sigmoid_(), weights


def pseudo_gibbs(
    network: _latent.Prior,
    observed: Tensor,
    completion: Tensor,
    *,
    rounds: int,
    chains: int,
    generator: torch.Generator,
) -> Tensor:
    """Decoded images (chains, B, 784) after so many rounds; see `reconstruct`.

    Parameters
    ----------
    network : Module
        Has ``encode`` and ``decode``.
    observed : (B, 28, 28)
        NaN where a pixel is missing.
    completion : (B, 784)
        The state that all chains start from.
    rounds, chains : int
    generator : Generator
    """
    missing = observed.isnan()
    state = torch.where(missing, completion.clamp(0, 1).reshape(observed.shape), observed)
    state = state.repeat(chains, 1, 1)  # (chains·B, 28, 28)
    gaps, known = missing.repeat(chains, 1, 1), observed.repeat(chains, 1, 1)
    decoded = state
    for _ in range(rounds):
        mean, log_variance = network.encode(state)
        noise = torch.randn(mean.shape, generator=generator)
        decoded = network.decode(mean + (log_variance / 2).exp() * noise)
        # The mean of a pixel in place of a draw: MNIST's pixels are no coin flips.
        state = torch.where(gaps, decoded, known)
    return decoded.flatten(1).unflatten(0, (chains, -1))


def _summary(
    network: _latent.Prior,
    observed: Tensor,
    drawn: Tensor,
    weights: Tensor,
    *,
    root: Tensor | None,
    penalty: float,
    completions: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """What `reconstruct` returns, of images (S, B, 784) with weights (S, B).

    With a `root` R of the residual's covariance R Rᵀ, the residual is drawn given the known pixels
    by Matheron's rule: a draw r of the Gaussian, plus the regression of what the known pixels still
    lack, x_k − G(z)_k − r_k − noise.
    """
    samples, images = drawn.shape[:2]
    which = torch.multinomial(weights.T, samples, replacement=True, generator=generator)  # (B, S)
    chosen = drawn[which.T, torch.arange(images)]  # (S, B, 784), all of one weight
    mean = torch.einsum("sb,sbp->bp", weights, drawn)
    if root is not None:
        moments = {"mean": network.residual_mean, "covariance": network.residual_covariance}
        known = observed.flatten(1)
        mean += _regressed(known - mean, moments, penalty)
        draws = torch.randn(samples, images, len(root), generator=generator) @ root.T
        draws += network.residual_mean
        blur = penalty**0.5 * torch.randn(draws.shape, generator=generator)
        lacking = known - chosen - draws - blur
        # The mean was counted in the draws: only the linear part of the regression is added.
        linear = {**moments, "mean": torch.zeros_like(network.residual_mean)}
        chosen = chosen + draws + _regressed(lacking, linear, penalty)
    estimate = mean.clamp(0, 1).unflatten(1, (28, 28))
    return {"estimate": estimate, **described(chosen.clamp_(0, 1), completions=completions)}


def described(drawn: Tensor, *, completions: int) -> dict[str, Tensor]:
    """``deviation``, ``quantiles`` and ``samples`` as `reconstruct` returns them.

    Parameters
    ----------
    drawn : (S, B, 784)
        Samples in [0, 1], all of one weight; S at least 2.
    completions : int
        The first so many are returned.
    """
    levels = torch.tensor(LEVELS)
    return {
        "deviation": drawn.std(dim=0).unflatten(1, (28, 28)).half(),
        "quantiles": _bytes(torch.stack(list(_quantiles(drawn, levels)), dim=1)),
        "samples": _bytes(drawn[:completions].transpose(0, 1)),
    }


def _quantiles(values: Tensor, levels: Tensor) -> Iterator[Tensor]:
    """Quantiles (B, P) of (S, B, P) over S at each level, by Weibull's positions p (S + 1).

    Those leave, of exchangeable values, the share p below them on average.
    """
    ordered = values.sort(dim=0).values
    for level in levels.tolist():
        position = min(max(level * (len(values) + 1) - 1, 0.0), len(values) - 1.0)
        low = int(position)
        high = min(low + 1, len(values) - 1)
        yield torch.lerp(ordered[low], ordered[high], position - low)


def _bytes(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8).unflatten(2, (28, 28))


def _regressed(values: Tensor, moments: dict[str, Tensor], penalty: float) -> Tensor:
    return ridge.conditional_mean(values, **moments, penalty=penalty).float()


def _root(covariance: Tensor) -> Tensor:
    """R with R Rᵀ = covariance, float32; some pixels never vary, so that there is no Cholesky."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()).float()
