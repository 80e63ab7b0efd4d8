"""Samples of the missing pixels by reverse diffusion, the prior being a denoiser's score."""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple, Protocol

import torch
from pydantic import Field
from torch import Tensor

from retrace.methods.imputation import posterior
from retrace.methods.imputation._regression import Regression
from retrace.types import BadInput, Callback, Seed, ignore

BATCH = 50  # images at once: what needs the memory is (samples, 50, 784)
NEGLIGIBLE = 1e-12  # squared pixel units, of a covariance

Product = Callable[[Tensor], Tensor]  # a covariance times (S, b, 784) values


class Denoiser(Protocol):
    """What the method uses of `retrace.networks.denoiser`, where shapes are documented."""

    mean_image: Tensor
    basis: Tensor
    variances: Tensor

    def denoise(self, noisy: Tensor, noise: Tensor) -> Tensor: ...
    def error_variances(self, noise: float) -> Tensor: ...


@torch.no_grad()
def reconstruct(
    network: Denoiser,
    observed: Tensor,
    *,
    highest_noise: Annotated[float, Field(gt=0)] = 2.0,
    lowest_noise: Annotated[float, Field(gt=0)] = 0.2,
    levels: Annotated[int, Field(ge=1)] = 12,
    penalty: Annotated[float, Field(gt=0)] = 0.001,
    samples: Annotated[int, Field(ge=2, multiple_of=2)] = 20,
    completions: Annotated[int, Field(ge=1, le=100)] = 10,
    seed: Seed = 0,
    callback: Callback = ignore,
) -> dict[str, Tensor]:
    """Draw images given the known pixels, from noise to none, and average them.

    An image x₀ with noise σ is x = x₀ + σ n. Given x, x₀ has the mean D(x; σ), the denoiser's
    output, and the covariance σ² J, J = ∂D/∂x (Tweedie's formula and its derivative). As if it were
    Gaussian, known pixels y are then a linear regression, as `ridge` is, but of what the denoiser
    leaves, at every noise level and for every image:

        E[x₀ | x, y] = D(x; σ) + σ² (Jᵀ)_·k (C_kk + λ I)⁻¹ (y − D_k(x; σ)).

    Jᵀ is symmetric where D is exact, and its product with a vector is one pass of
    backpropagation. In the inverse stands C(σ), the denoiser's mean squared error over many images,
    which J averages to: so a Cholesky factor serves all samples. With a multiple of the identity in
    its place this is pseudoinverse guidance (Song et al. 2023, "Pseudoinverse-guided diffusion
    models for inverse problems", equation 7), with σ² J there too the moment projection of Boys et
    al. 2023 (arXiv 2310.06721). From σ to the next σ' below it goes by a draw of x₀, a Gaussian of
    covariance C conditioned by Matheron's rule, and one of x' given x₀ and x (Ho et al. 2020, arXiv
    2006.11239, equation 6, for noise that adds up):

        x' ~ N(x₀ + (σ'/σ)² (x − x₀), σ'² (1 − (σ'/σ)²)).

    For Gaussian data and an exact D, and λ → 0, the draws are exact, whatever the noise levels: one
    level is ridge regression with samples. It starts from a Gaussian draw given the known pixels,
    with `highest_noise` on it.

    Parameters
    ----------
    network : Module
        See `retrace.networks.denoiser`.
    observed : (B, 28, 28)
        NaN where a pixel is missing.
    highest_noise, lowest_noise : float
        The first σ and the last, in pixel units; between them, evenly spaced in log σ.
    levels : int
        How many σ.
    penalty : float
        λ, in squared pixel units.
    samples : int
        Of each image: what mean, deviation and intervals are taken from.
    completions : int
        Of each image that are returned.

    Returns
    -------
    dict
        ``estimate``, ``deviation``, ``quantiles`` and ``samples`` as of `posterior`. The estimate
        is the mean of E[x₀ | x, y] at the last σ, over samples.

    Raises
    ------
    BadInput
        When the lowest noise is above the highest.
    """
    if lowest_noise > highest_noise:
        raise BadInput(
            f"lowest_noise = {lowest_noise:g}: allowed is up to highest_noise, {highest_noise:g}"
        )
    generator = torch.Generator().manual_seed(seed)
    steps = torch.linspace(math.log(highest_noise), math.log(lowest_noise), levels).exp().tolist()
    spreads = [network.variances, *(network.error_variances(noise) for noise in steps)]
    covariances = [covariance_of(network, variances) for variances in spreads]
    answers = []
    before = torch.empty(0)
    for batch in observed.split(BATCH):
        seen = ~batch.flatten(1).isnan()
        if not torch.equal(seen, before):  # else the factors serve again
            regressions = [Regression(c, seen, penalty=penalty) for c in covariances]
            gaussians = [Gaussian(*pair) for pair in zip(spreads, regressions, strict=True)]
            before = seen
        known = Known.of(network, batch, gaussians[0].regression, penalty=penalty)
        estimate, drawn = diffused(
            network, known, gaussians, steps, samples=samples, generator=generator
        )
        answers.append(
            {
                "estimate": estimate.mean(dim=0).clamp(0, 1).unflatten(1, (28, 28)),
                **posterior.described(drawn.clamp(0, 1), completions=completions),
            }
        )
    return {key: torch.cat([answer[key] for answer in answers]) for key in answers[0]}


def covariance_of(network: Denoiser, variances: Tensor) -> Tensor:
    """Covariance of the pixels (784, 784), of variances (784,) of the coordinates."""
    covariance = (network.basis * variances) @ network.basis.T
    # Their products would be denormal numbers, with which a factor takes four times as long.
    return torch.where(covariance.abs() < NEGLIGIBLE, 0.0, covariance)


class Gaussian(NamedTuple):
    """Variances (784,) of the coordinates, and the regression on the known pixels of a batch."""

    variances: Tensor
    regression: Regression


class Known(NamedTuple):
    """The known pixels of b images."""

    values: Tensor  # (b, q), known in some image, less the mean image's; NaN where missing
    where: Tensor  # (b, q) bool
    basis: Tensor  # (q, 784), rows of the denoiser's
    penalty: float  # λ

    @classmethod
    def of(
        cls, network: Denoiser, observed: Tensor, regression: Regression, *, penalty: float
    ) -> "Known":
        values = (observed - network.mean_image).flatten(1)[:, regression.seen]
        return cls(values, regression.known, network.basis[regression.seen], penalty)

    def corrections(
        self, coordinates: Tensor, gaussian: Gaussian, product: Product, *, blur: Tensor | float
    ) -> Tensor:
        """What the known pixels, with `blur` on them, change in coordinates (S, b, 784).

        That is P Bᵀ_k (C_kk + λ I)⁻¹ (y − blur − B_k z), with the basis B and P as `product`.
        """
        lacking = self.values - blur - coordinates @ self.basis.T  # (S, b, q)
        return product(gaussian.regression.weights(lacking) @ self.basis)

    def draw(
        self, means: Tensor, gaussian: Gaussian, product: Product, generator: torch.Generator
    ) -> Tensor:
        """Coordinates (S, b, 784) from Gaussians around `means`, given the known pixels.

        Matheron's rule: a draw of the Gaussian, corrected by what the known pixels with a draw of
        their own noise say of it.
        """
        drawn = means + gaussian.variances.sqrt() * normal(means.shape, means, generator)
        blur = means.new_zeros(len(means), *self.where.shape)
        noise = normal((len(means), int(self.where.sum())), means, generator)
        blur[:, self.where] = self.penalty**0.5 * noise
        return drawn + self.corrections(drawn, gaussian, product, blur=blur)


def normal(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal, (S, ...): the second half of the samples has the negatives of the first's.

    Of what is linear in them the mean has then no error (antithetic variates; Owen 2013, "Monte
    Carlo theory", section 8.2).
    """
    half = torch.randn(shape[0] // 2, *shape[1:], dtype=like.dtype, generator=generator)
    return torch.cat([half, -half])


def diffused(
    network: Denoiser,
    known: Known,
    gaussians: list[Gaussian],
    steps: list[float],
    *,
    samples: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """E[x₀ | x, y] at the last noise level, and draws of x₀, both (S, b, 784) pixels."""
    size = (samples, len(known.values), len(network.variances))
    start = torch.zeros(size, dtype=known.values.dtype)
    first = gaussians[0].variances
    drawn = known.draw(start, gaussians[0], lambda values: values * first, generator)
    noisy = drawn + steps[0] * normal(size, drawn, generator)
    for i, (noise, gaussian) in enumerate(zip(steps, gaussians[1:], strict=True)):
        means, product = denoised(network, noisy, noise)
        drawn = known.draw(means, gaussian, product, generator)
        if i + 1 < len(steps):
            share = (steps[i + 1] / noise) ** 2
            noisy = torch.lerp(drawn, noisy, share)
            spread = steps[i + 1] * (1 - share) ** 0.5
            noisy += spread * normal(size, noisy, generator)
    means += known.corrections(means, gaussians[-1], product, blur=0.0)
    mean_image = network.mean_image.flatten()
    estimate, images = (mean_image + values @ network.basis.T for values in (means, drawn))
    return estimate, images


def denoised(network: Denoiser, noisy: Tensor, noise: float) -> tuple[Tensor, Product]:
    """D(x; σ) of coordinates (S, b, 784), and the product of σ² Jᵀ with such values."""
    with torch.enable_grad():
        variable = noisy.flatten(0, 1).requires_grad_()
        level = torch.full((1, 1), noise, dtype=noisy.dtype)
        output = network.denoise(variable, level)

    def product(values: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(output, variable, values.flatten(0, 1), retain_graph=True)
        return noise**2 * gradient.unflatten(0, noisy.shape[:2])

    return output.detach().unflatten(0, noisy.shape[:2]), product
