"""Samples of what the missing pixels may be, given the known ones, and their mean."""

from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from retrace.methods.imputation import _latent, ridge
from retrace.methods.imputation._regression import Regression
from retrace.types import Callback, Seed, ignore

BATCH = 250  # images at once: what needs the memory is (samples, 250, 784)
LEVELS = (0.025, 0.1, 0.25, 0.75, 0.9, 0.975)  # ends of the 95, 80 and 50 % intervals


@torch.no_grad()
def reconstruct(
    network: _latent.Prior,
    observed: Tensor,
    *,
    sampler: Literal["importance", "pseudo_gibbs"] = "importance",
    noise: Literal["none", "gaussian"] = "gaussian",
    likelihood_blocks: Annotated[float, Field(gt=0)] = 1.0,
    likelihood_scattered: Annotated[float, Field(gt=0)] = 5.0,
    penalty: Annotated[float, Field(gt=0)] = 0.003,
    starts: Annotated[int, Field(ge=1)] = 5,
    search_steps: Annotated[int, Field(ge=1)] = 40,
    learning_rate: Annotated[float, Field(gt=0)] = 0.15,
    samples: Annotated[int, Field(ge=2)] = 60,
    completions: Annotated[int, Field(ge=1, le=100)] = 10,
    seed: Seed = 0,
    callback: Callback = ignore,
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

    Returns
    -------
    dict
        ``estimate`` (B, 28, 28), the posterior's mean; ``deviation`` (B, 28, 28) float16, the
        standard deviation; ``quantiles`` (B, 6, 28, 28) uint8 at `LEVELS`, and ``samples``
        (B, completions, 28, 28) uint8, both in 255ths.
    """
    generator = torch.Generator().manual_seed(seed)
    residual = Residual.of(network, penalty=penalty) if noise == "gaussian" else None
    search = _latent.Search(
        likelihood_blocks, likelihood_scattered, starts, search_steps, learning_rate
    )
    answers: list[dict[str, Tensor]] = []
    for batch in observed.split(BATCH):
        completion = _latent.ridge_completion(network, batch, penalty=penalty).float()
        if sampler == "importance":
            modes = search.modes(network, batch, completion, generator)
            drawn = _latent.importance(
                modes.energy, _latent.laplace(modes), samples=samples, generator=generator
            )
        else:
            drawn = pseudo_gibbs(
                network, batch, completion, rounds=search_steps, chains=samples, generator=generator
            )
        mean, equal = drawn.mean(), resampled(drawn, generator)
        if residual is not None:
            mean, equal = residual.added(mean, equal, batch, generator)
        answers.append(
            {
                "estimate": mean.clamp(0, 1).unflatten(1, (28, 28)),
                **described(equal.clamp_(0, 1), completions=completions),
            }
        )
    return {key: torch.cat([answer[key] for answer in answers]) for key in answers[0]}


def pseudo_gibbs(
    network: _latent.Prior,
    observed: Tensor,
    completion: Tensor,
    *,
    rounds: int,
    chains: int,
    generator: torch.Generator,
) -> _latent.Images:
    """Images that chains decode after so many rounds, all of them from a completion (B, 784) of
    (B, 28, 28), NaN where a pixel is missing; see `reconstruct`."""
    missing = observed.isnan()
    state = ridge.completed(observed, completion).repeat(chains, 1, 1)  # (chains·B, 28, 28)
    gaps, known = missing.repeat(chains, 1, 1), observed.repeat(chains, 1, 1)
    decoded = state
    for _ in range(rounds):
        mean, log_variance = network.encode(state)
        noise = torch.randn(mean.shape, generator=generator)
        decoded = network.decode(mean + (log_variance / 2).exp() * noise)
        # The mean of a pixel in place of a draw: MNIST's pixels are no coin flips.
        state = torch.where(gaps, decoded, known)
    pixels = decoded.flatten(1).unflatten(0, (chains, -1))
    return _latent.Images(pixels, torch.full(pixels.shape[:2], 1 / chains))


def resampled(drawn: _latent.Images, generator: torch.Generator) -> Tensor:
    """As many images (S, B, 784) drawn again by their weights: all of one weight."""
    count, batch = drawn.weights.shape
    which = torch.multinomial(drawn.weights.T, count, replacement=True, generator=generator)
    return drawn.pixels[which.T, torch.arange(batch)]


class Residual(NamedTuple):
    """What the decoder leaves of an image, x − G(z): a Gaussian, in float32."""

    mean: Tensor  # (784,)
    covariance: Tensor  # (784, 784)
    root: Tensor  # R, (784, 784), with R Rᵀ the covariance
    penalty: float  # λ of the regression on the known pixels

    @classmethod
    def of(cls, network: _latent.Prior, *, penalty: float) -> "Residual":
        # Some pixels never vary, so that there is no Cholesky factor.
        values, vectors = torch.linalg.eigh(network.residual_covariance)
        root = vectors * values.clamp(min=0).sqrt()
        return cls(
            network.residual_mean.float(),
            network.residual_covariance.float(),
            root.float(),
            penalty,
        )

    def added(
        self, mean: Tensor, images: Tensor, observed: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """A mean (B, 784) plus the residual's, and images (S, B, 784) plus draws of it.

        Both are given the known pixels of (B, 28, 28). The draws are by Matheron's rule: a draw r
        of the Gaussian, plus the regression of what the known pixels still lack,
        x_k − G(z)_k − r_k − noise.
        """
        known = observed.flatten(1)
        images = images + self.mean
        images += torch.randn(images.shape, generator=generator) @ self.root.T
        blur = self.penalty**0.5 * torch.randn(images.shape, generator=generator)
        mean = mean + self.mean
        lacking = torch.cat([(known - mean).unsqueeze(0), known - images - blur])
        regression = Regression(self.covariance, ~known.isnan(), penalty=self.penalty)
        found = regression(lacking)
        return mean + found[0], images.add_(found[1:])


def described(drawn: Tensor, *, completions: int) -> dict[str, Tensor]:
    """``deviation``, ``quantiles`` and ``samples`` as `reconstruct` returns them, of samples (S, B,
    784) in [0, 1], all of one weight, S at least 2."""
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
