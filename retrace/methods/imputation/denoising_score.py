"""Samples of the missing pixels by reverse diffusion, the prior being a denoiser's score."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from pydantic import Field
from torch import Tensor

from retrace.methods.imputation import posterior
from retrace.types import BadInput, Callback, Seed

BATCH = 50  # images at once: (50, k, k) systems of k known pixels, and (samples, 50, 784) values
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
    highest_noise: Annotated[float, Field(gt=0)],
    lowest_noise: Annotated[float, Field(gt=0)],
    levels: Annotated[int, Field(ge=1)],
    penalty: Annotated[float, Field(gt=0)],
    samples: Annotated[int, Field(ge=2, multiple_of=2)],
    completions: Annotated[int, Field(ge=1, le=100)],
    seed: Seed,
    callback: Callback,
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
    seed : int
    callback : function
        Not called.

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
    gaussians = [_Gaussian.of(network, network.variances)]
    gaussians += [_Gaussian.of(network, network.error_variances(noise)) for noise in steps]
    answers, order = [], []
    for rows, pixels in _groups(~observed.flatten(1).isnan()):
        known = _Known.of(network, observed[rows], pixels, penalty=penalty)
        estimate, drawn = _diffused(
            network, known, gaussians, steps, samples=samples, generator=generator
        )
        answers.append(
            {
                "estimate": estimate.mean(dim=0).clamp(0, 1).unflatten(1, (28, 28)),
                **posterior.described(drawn.clamp(0, 1), completions=completions),
            }
        )
        order.append(rows)
    back = torch.cat(order).argsort()
    return {key: torch.cat([answer[key] for answer in answers])[back] for key in answers[0]}


def _groups(known: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Images that are solved together, at most `BATCH`: one mask for all, or as many known pixels.

    Parameters
    ----------
    known : (B, 784) bool

    Returns
    -------
    list of (rows, pixels)
        Positions (b,) of the images, and of the known pixels (b, k) of each, or (1, k) of all.
    """
    masks, which, images = known.unique(dim=0, return_inverse=True, return_counts=True)
    groups = []
    for mask in (images > 1).nonzero().flatten():
        pixels = masks[mask].nonzero().T
        groups += [(rows, pixels) for rows in (which == mask).nonzero().flatten().split(BATCH)]
    alone = (images == 1)[which].nonzero().flatten()
    counts = known[alone].sum(dim=1)
    for count in counts.unique().tolist():
        for rows in alone[counts == count].split(BATCH):
            groups.append((rows, known[rows].nonzero()[:, 1].unflatten(0, (len(rows), count))))
    return groups


@dataclass
class _Gaussian:
    """A Gaussian in the coordinates: its variances (784,), and its covariance of pixels."""

    variances: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, network: Denoiser, variances: Tensor) -> "_Gaussian":
        covariance = (network.basis * variances) @ network.basis.T
        # Their products would be denormal numbers, with which a factor takes four times as long.
        return cls(variances, torch.where(covariance.abs() < NEGLIGIBLE, 0.0, covariance))


@dataclass
class _Known:
    """The known pixels of b images.

    Attributes
    ----------
    values : (b, k)
        Less the mean image's.
    pixels : (b, k) or (1, k)
        Their positions.
    penalty : float
        λ.
    basis : (784, 784)
    """

    values: Tensor
    pixels: Tensor
    penalty: float
    basis: Tensor

    @classmethod
    def of(cls, network: Denoiser, observed: Tensor, pixels: Tensor, *, penalty: float) -> "_Known":
        centred = (observed - network.mean_image).flatten(1)
        each = pixels.expand(len(centred), -1)
        return cls(centred.gather(1, each), pixels, penalty, network.basis)

    def corrections(
        self, coordinates: Tensor, gaussian: _Gaussian, product: Product, *, blur: Tensor | float
    ) -> Tensor:
        """What the known pixels, with `blur` on them, change in coordinates (S, b, 784).

        That is P Bᵀ_k (C_kk + λ I)⁻¹ (y − blur − B_k z), with the basis B and P as `product`.
        """
        samples, images = coordinates.shape[:2]
        covariance = gaussian.covariance[self.pixels.unsqueeze(2), self.pixels.unsqueeze(1)]
        covariance.diagonal(dim1=1, dim2=2).add_(self.penalty)
        factors = torch.linalg.cholesky(covariance)  # (b, k, k) or (1, k, k)
        each = self.pixels.expand(images, -1).expand(samples, -1, -1)
        lacking = self.values - blur - (coordinates @ self.basis.T).gather(2, each)
        # The right-hand sides of one system side by side: (b, k, S), or (1, k, b S).
        sides = lacking.permute(1, 2, 0)
        if len(factors) == 1:
            sides = sides.transpose(0, 1).flatten(1).unsqueeze(0)
        solved = torch.cholesky_solve(sides, factors)
        if len(factors) == 1:
            solved = solved.squeeze(0).unflatten(1, (images, samples)).transpose(0, 1)
        weights = torch.zeros_like(coordinates).scatter_(2, each, solved.permute(2, 0, 1))
        return product(weights @ self.basis)

    def draw(
        self, means: Tensor, gaussian: _Gaussian, product: Product, generator: torch.Generator
    ) -> Tensor:
        """Coordinates (S, b, 784) from Gaussians around `means`, given the known pixels.

        Matheron's rule: a draw of the Gaussian, corrected by what the known pixels with a draw of
        their own noise say of it.
        """
        drawn = means + gaussian.variances.sqrt() * _normal(means.shape, means, generator)
        blur = self.penalty**0.5 * _normal((len(means), *self.values.shape), means, generator)
        return drawn + self.corrections(drawn, gaussian, product, blur=blur)


def _normal(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal, (S, ...): the second half of the samples has the negatives of the first's.

    Of what is linear in them the mean has then no error (antithetic variates; Owen 2013, "Monte
    Carlo theory", section 8.2).
    """
    half = torch.randn(shape[0] // 2, *shape[1:], dtype=like.dtype, generator=generator)
    return torch.cat([half, -half])


def _diffused(
    network: Denoiser,
    known: _Known,
    gaussians: list[_Gaussian],
    steps: list[float],
    *,
    samples: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """E[x₀ | x, y] at the last noise level, and draws of x₀, both (S, b, 784) pixels."""
    size = (samples, len(known.values), len(known.basis))
    start = torch.zeros(size, dtype=known.values.dtype)
    first = gaussians[0].variances
    drawn = known.draw(start, gaussians[0], lambda values: values * first, generator)
    noisy = drawn + steps[0] * _normal(size, drawn, generator)
    for i, (noise, gaussian) in enumerate(zip(steps, gaussians[1:], strict=True)):
        means, product = _denoised(network, noisy, noise)
        drawn = known.draw(means, gaussian, product, generator)
        if i + 1 < len(steps):
            share = (steps[i + 1] / noise) ** 2
            noisy = torch.lerp(drawn, noisy, share)
            spread = steps[i + 1] * (1 - share) ** 0.5
            noisy += spread * _normal(size, noisy, generator)
    means += known.corrections(means, gaussians[-1], product, blur=0.0)
    mean_image = network.mean_image.flatten()
    estimate, images = (mean_image + values @ known.basis.T for values in (means, drawn))
    return estimate, images


def _denoised(network: Denoiser, noisy: Tensor, noise: float) -> tuple[Tensor, Product]:
    """D(x; σ) of coordinates (S, b, 784), and the product of σ² Jᵀ with such values."""
    with torch.enable_grad():
        variable = noisy.flatten(0, 1).requires_grad_()
        level = torch.full((1, 1), noise, dtype=noisy.dtype)
        output = network.denoise(variable, level)

    def product(values: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(output, variable, values.flatten(0, 1), retain_graph=True)
        return noise**2 * gradient.unflatten(0, noisy.shape[:2])

    return output.detach().unflatten(0, noisy.shape[:2]), product
