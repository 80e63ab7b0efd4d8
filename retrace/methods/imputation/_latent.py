"""Codes of a VAE that explain the known pixels: their modes, and samples of their posterior.

The posterior of a code z, given the known pixels k of an image x, is taken as
p(z | x_k) ∝ exp(−β Σ_k BCE(x_i, G_i(z)) − ‖z‖²/2), β being the weight of the likelihood: 1 is what
the VAE was trained with, though its pixels, independent given z, make it too certain of few and too
uncertain of scattered ones.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, softplus

from retrace.types import Callback

DECAY, SQUARED_DECAY, STABILISER = 0.9, 0.99, 1e-8  # Adam's
NEAR, MOST = 5, 0.75  # pixels a side; share of the missing pixels
EVEN = 0.2  # share of samples that is spread evenly over modes, so that none is left out


class Prior(Protocol):
    """What the methods use of `retrace.networks.prior`, where shapes are documented."""

    mean: Tensor
    covariance: Tensor
    residual_mean: Tensor
    residual_covariance: Tensor
    basis: Tensor
    weights: Tensor
    means: Tensor
    covariances: Tensor
    decoder: nn.Sequential

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]: ...
    def decode(self, codes: Tensor) -> Tensor: ...


@dataclass
class Known:
    """The known pixels of B images, as the likelihood sees them.

    Attributes
    ----------
    pixels : (B, 784)
        0 where missing.
    weight : (B, 784)
        β where known, 0 where missing.
    """

    pixels: Tensor
    weight: Tensor

    @classmethod
    def of(cls, observed: Tensor, *, likelihood: Tensor | float) -> "Known":
        """Of (B, 28, 28) with NaN where missing, β being one number or (B,)."""
        flat = observed.flatten(1)
        beta = torch.as_tensor(likelihood, dtype=flat.dtype).expand(len(flat)).unsqueeze(1)
        return cls(flat.nan_to_num(0.0), beta * ~flat.isnan())

    def energy(self, logits: Tensor, codes: Tensor) -> Tensor:
        """−log p(z, x_k) but for constants, (..., B); logits (..., B, 784), codes (..., B, d)."""
        entropy = (self.weight * (softplus(logits) - self.pixels * logits)).sum(dim=-1)
        return entropy + codes.square().sum(dim=-1) / 2

    def gradient(self, decoder: nn.Module, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of the energy at codes (..., B, d), and the logits (..., B, 784) there."""
        with torch.enable_grad():
            variable = codes.detach().requires_grad_()
            logits = decoder(variable)
        # ∂energy/∂logits is written out: the energy itself is not needed for it.
        outer = self.weight * (logits.detach().sigmoid() - self.pixels)
        (gradient,) = torch.autograd.grad(logits, variable, outer)
        return gradient + codes, logits.detach()


def scattered(observed: Tensor) -> Tensor:
    """Whether known pixels lie among the missing ones, for each of (B, 28, 28): (B,) bool.

    That is when at least 3 of 4 missing pixels have a known one within the 5 x 5 around them.
    """
    missing = observed.isnan()
    known = (~missing).to(torch.float32).unsqueeze(1)
    near = max_pool2d(known, NEAR, stride=1, padding=NEAR // 2).squeeze(1) > 0
    share = (near & missing).sum(dim=(1, 2)) / missing.sum(dim=(1, 2)).clamp(min=1)
    return share >= MOST


def by_kind(observed: Tensor, blocks: float, among: float) -> Tensor:
    """(B,): `among` for images whose missing pixels are `scattered`, `blocks` for the others."""
    return torch.where(scattered(observed), among, blocks)


def starts(
    network: Prior,
    observed: Tensor,
    completion: Tensor,
    *,
    count: int,
    generator: torch.Generator,
) -> Tensor:
    """(count, B, d): the encoder's code of a completion (B, 784), and draws from the prior."""
    completed = torch.where(
        observed.isnan(), completion.clamp(0, 1).reshape(observed.shape), observed
    )
    code, _ = network.encode(completed)
    drawn = torch.randn(count - 1, *code.shape, generator=generator)
    return torch.cat([code.unsqueeze(0), drawn])


def mean(logits: Tensor, weights: Tensor) -> Tensor:
    """(B, 784): mean of the images of logits (S, B, 784) with weights (S, B) that sum to 1."""
    return torch.einsum("sb,sbp->bp", weights, logits.sigmoid())


@torch.no_grad()
def search(
    decoder: nn.Module,
    known: Known,
    starts: Tensor,
    *,
    steps: int,
    learning_rate: float,
    callback: Callback | None = None,
) -> tuple[Tensor, Tensor]:
    """Lower the energy from each start with Adam, its step going down to 0 as a cosine.

    Parameters
    ----------
    decoder : Module
        (..., d) codes to (..., 784) logits.
    known : Known
        Of B images.
    starts : (K, B, d)
    steps : int
    learning_rate : float
    callback : function, optional
        Called before each step and at the end with the lowest energy (B,) over starts, and what
        its code decodes to, (B, 28, 28).

    Returns
    -------
    codes : (K, B, d)
    logits : (K, B, 784)
    """
    codes = starts.clone()
    first, second = torch.zeros_like(codes), torch.zeros_like(codes)
    for step in range(steps):
        gradient, logits = known.gradient(decoder, codes)
        if callback is not None:
            callback(step, *_best(known, codes, logits))
        first.lerp_(gradient, 1 - DECAY)
        second.lerp_(gradient.square(), 1 - SQUARED_DECAY)
        unbiased = (second / (1 - SQUARED_DECAY ** (step + 1))).sqrt_().add_(STABILISER)
        rate = learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
        codes.addcdiv_(first, unbiased, value=-rate / (1 - DECAY ** (step + 1)))
    logits = decoder(codes)
    if callback is not None:
        callback(steps, *_best(known, codes, logits))
    return codes, logits


def _best(known: Known, codes: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    energy, start = known.energy(logits, codes).min(dim=0)
    chosen = logits[start, torch.arange(len(start))]
    return energy, chosen.sigmoid().unflatten(1, (28, 28))


@torch.no_grad()
def precision(decoder: nn.Sequential, known: Known, codes: Tensor) -> Tensor:
    """Gauss-Newton Hessian of the energy, I + β Jᵀ diag(σ'(ℓ)) J over known pixels.

    J is the Jacobian of the logits ℓ; the decoder is piecewise linear, so that nothing but the
    curvature of σ is left out.

    Parameters
    ----------
    decoder : Sequential
        Linear layers with ReLU between them.
    known : Known
        Of B images.
    codes : (B, d)

    Returns
    -------
    (B, d, d)
    """
    jacobian = torch.eye(codes.shape[1]).expand(len(codes), -1, -1)  # (B, d, d)
    values = codes
    for layer in decoder:
        values = layer(values)
        if isinstance(layer, nn.Linear):
            # Inputs first, so that one matrix serves the whole batch: (B, d, units).
            jacobian = jacobian @ layer.weight.T
        else:
            jacobian = jacobian * (values > 0).unsqueeze(1)
    mean = values.sigmoid()
    curvature = (known.weight * mean * (1 - mean)).unsqueeze(1)
    return torch.eye(codes.shape[1]) + (jacobian * curvature) @ jacobian.mT


@dataclass
class Proposal:
    """A mixture of Gaussians around K modes for each of B images.

    Attributes
    ----------
    modes : (K, B, d)
    factors : (K, B, d, d)
        Lower Cholesky factors of the precisions.
    weights : (K, B)
        Sum to 1 over K.
    """

    modes: Tensor
    factors: Tensor
    weights: Tensor

    def draw(self, samples: int, generator: torch.Generator) -> Tensor:
        """(S, B, d) samples."""
        count, batch, size = self.modes.shape
        which = torch.multinomial(self.weights.T, samples, replacement=True, generator=generator)
        noise = torch.randn(samples, batch, size, generator=generator)
        codes = torch.empty_like(noise)
        for k in range(count):  # all samples through each factor: a solve costs less than a gather
            spread = torch.linalg.solve_triangular(
                self.factors[k].mT, noise.permute(1, 2, 0), upper=True
            )
            drawn = self.modes[k] + spread.permute(2, 0, 1)
            codes = torch.where(which.T.eq(k).unsqueeze(2), drawn, codes)
        return codes

    def log_density(self, codes: Tensor) -> Tensor:
        """(S, B) of codes (S, B, d), without the constant −d/2 log 2π."""
        terms = []
        for mode, factor, weight in zip(self.modes, self.factors, self.weights, strict=True):
            scaled = (codes - mode).permute(1, 0, 2) @ factor  # (B, S, d)
            scale = factor.diagonal(dim1=1, dim2=2).log().sum(dim=1) + weight.log()
            terms.append(scale - scaled.square().sum(dim=2).T / 2)
        return torch.stack(terms).logsumexp(dim=0)


@torch.no_grad()
def laplace(decoder: nn.Sequential, known: Known, codes: Tensor, logits: Tensor) -> Proposal:
    """Gaussians at modes with the posterior's curvature, weighted by their evidence.

    Parameters
    ----------
    decoder : Sequential
    known : Known
    codes, logits : (K, B, d), (K, B, 784)
        The modes.
    """
    factors = torch.linalg.cholesky(torch.stack([precision(decoder, known, c) for c in codes]))
    scale = factors.diagonal(dim1=2, dim2=3).log().sum(dim=2)
    weights = (-known.energy(logits, codes) - scale).softmax(dim=0)
    return Proposal(codes, factors, (1 - EVEN) * weights + EVEN / len(codes))


@torch.no_grad()
def importance(
    decoder: nn.Module,
    known: Known,
    proposal: Proposal,
    *,
    samples: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Self-normalised importance sampling (Owen 2013, "Monte Carlo theory", section 9.2).

    Returns
    -------
    logits : (S, B, 784)
    weights : (S, B)
        Sum to 1 over S.
    """
    codes = proposal.draw(samples, generator)
    logits = decoder(codes)
    weights = (-known.energy(logits, codes) - proposal.log_density(codes)).softmax(dim=0)
    return logits, weights
