"""Codes of a VAE that explain the known pixels: their modes, and samples of their posterior.

The posterior of a code z, given the known pixels k of an image x, is taken as
p(z | x_k) ∝ exp(−β Σ_k BCE(x_i, G_i(z)) − ‖z‖²/2), β being the weight of the likelihood: 1 is what
the VAE was trained with, though its pixels, independent given z, make it too certain of few and too
uncertain of scattered ones.
"""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, max_pool2d, softplus
from torch.optim.lr_scheduler import LambdaLR

from retrace.methods.imputation.ridge import completed, conditional_mean
from retrace.types import Callback, ignore

BETAS = (0.9, 0.99)  # Adam's; the second forgets sooner than usual, since the search is short
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


class Energy(NamedTuple):
    """−log p(z, x_k) of B images but for constants, and what it is made of."""

    decoder: nn.Sequential  # (..., d) codes to (..., 784) logits: linear layers, ReLU between them
    seen: Tensor  # (q,) int64, known in some image: the other pixels' logits are not needed
    pixels: Tensor  # (B, q), 0 where missing
    weight: Tensor  # (B, q), β where known, 0 where missing

    @classmethod
    def of(
        cls, decoder: nn.Sequential, observed: Tensor, *, likelihood: Tensor | float
    ) -> "Energy":
        """Of (B, 28, 28) with NaN where missing, β being one number or (B,)."""
        flat = observed.flatten(1)
        seen = (~flat.isnan()).any(dim=0).nonzero().flatten()
        flat = flat[:, seen]
        beta = torch.as_tensor(likelihood, dtype=flat.dtype).expand(len(flat)).unsqueeze(1)
        return cls(decoder, seen, flat.nan_to_num(0.0), beta * ~flat.isnan())

    @property
    def last(self) -> tuple[Tensor, Tensor]:
        """Weight (q, units) and bias (q,) of the last layer, for the seen pixels alone."""
        weight, bias = self.decoder[-1].weight, self.decoder[-1].bias
        assert isinstance(weight, Tensor) and isinstance(bias, Tensor)
        return weight[self.seen], bias[self.seen]

    def logits(self, codes: Tensor) -> Tensor:
        """(..., B, q) of the seen pixels; codes (..., B, d)."""
        return linear(self.decoder[:-1](codes), *self.last)

    def at(self, codes: Tensor, logits: Tensor) -> Tensor:
        """(..., B) at codes (..., B, d) with logits (..., B, q) of the seen pixels."""
        entropy = (self.weight * (softplus(logits) - self.pixels * logits)).sum(dim=-1)
        return entropy + codes.square().sum(dim=-1) / 2

    def gradient(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient at codes (..., B, d), and the seen pixels' logits (..., B, q) there."""
        with torch.enable_grad():
            variable = codes.detach().requires_grad_()
            logits = self.logits(variable)
        # ∂energy/∂logits is written out: the energy itself is not needed for it.
        outer = self.weight * (logits.detach().sigmoid() - self.pixels)
        (gradient,) = torch.autograd.grad(logits, variable, outer)
        return gradient + codes, logits.detach()

    def precision(self, codes: Tensor) -> Tensor:
        """Gauss-Newton Hessian, I + β Jᵀ diag(σ'(ℓ)) J over known pixels: (B, d, d) at (B, d).

        J is the Jacobian of the logits ℓ; the decoder is piecewise linear, so that nothing but the
        curvature of σ is left out.
        """
        identity = torch.eye(codes.shape[1])
        jacobian, values = identity.expand(len(codes), -1, -1), codes  # (B, d, d)
        for layer in list(self.decoder)[:-1]:
            values = layer(values)
            if isinstance(layer, nn.Linear):
                # Inputs first, so that one matrix serves the whole batch: (B, d, units).
                jacobian = jacobian @ layer.weight.T
            else:
                jacobian = jacobian * (values > 0).unsqueeze(1)
        weight, bias = self.last
        jacobian = jacobian @ weight.T  # (B, d, q)
        mean = linear(values, weight, bias).sigmoid()
        curvature = (self.weight * mean * (1 - mean)).unsqueeze(1)
        return identity + (jacobian * curvature) @ jacobian.mT


class Images(NamedTuple):
    """S weighted images for each of B: (S, B, 784), and weights (S, B) that sum to 1 over S."""

    pixels: Tensor
    weights: Tensor

    def mean(self) -> Tensor:
        """(B, 784)."""
        return torch.einsum("sb,sbp->bp", self.weights, self.pixels)


class Modes(NamedTuple):
    """What the search found: codes (K, B, d), and their energies (K, B)."""

    energy: Energy
    codes: Tensor
    energies: Tensor

    def decoded(self) -> Images:
        """With weights exp(−energy)."""
        return Images(self.energy.decoder(self.codes).sigmoid(), (-self.energies).softmax(dim=0))

    def best(self) -> Tensor:
        """(B, 28, 28), what the codes of the lowest energy decode to."""
        chosen = self.codes[self.energies.argmin(dim=0), torch.arange(self.codes.shape[1])]
        return self.energy.decoder(chosen).sigmoid().unflatten(1, (28, 28))

    def show(self, step: int, callback: Callback) -> None:
        callback(step, self.energies.amin(dim=0), self.best())


class Search(NamedTuple):
    """How modes are sought: β by whether known pixels lie among the missing ones, the starts of
    each image, and steps and learning rate of Adam."""

    likelihood_blocks: float
    likelihood_scattered: float
    starts: int
    steps: int
    learning_rate: float

    @torch.no_grad()
    def modes(
        self,
        network: Prior,
        observed: Tensor,
        completion: Tensor,
        generator: torch.Generator,
        callback: Callback = ignore,
    ) -> Modes:
        """From the encoder's code of a completion (B, 784), and from draws of the prior.

        The callback is called before each step and at the end with the lowest energy (B,) over
        starts, and what its code decodes to.
        """
        likelihood = by_kind(observed, self.likelihood_blocks, self.likelihood_scattered)
        energy = Energy.of(network.decoder, observed, likelihood=likelihood)
        code, _ = network.encode(completed(observed, completion))
        drawn = torch.randn(self.starts - 1, *code.shape, generator=generator)
        codes = torch.cat([code.unsqueeze(0), drawn])
        return descend(
            energy, codes, steps=self.steps, learning_rate=self.learning_rate, callback=callback
        )


def ridge_completion(network: Prior, observed: Tensor, *, penalty: float) -> Tensor:
    """(B, 784) float64: where searches start, the `ridge` of (B, 28, 28) by the prior's moments."""
    return conditional_mean(
        observed.flatten(1),
        mean=network.mean.flatten(),
        covariance=network.covariance,
        penalty=penalty,
    )


def with_residual(network: Prior, observed: Tensor, decoded: Tensor, *, penalty: float) -> Tensor:
    """Decoded images (B, 784), and the Gaussian regression of what the decoder leaves of an image
    from the known pixels of (B, 28, 28), in which that is seen, to the missing ones."""
    return decoded + conditional_mean(
        observed.flatten(1) - decoded,
        mean=network.residual_mean,
        covariance=network.residual_covariance,
        penalty=penalty,
    ).to(decoded.dtype)


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


@torch.no_grad()
def descend(
    energy: Energy, codes: Tensor, *, steps: int, learning_rate: float, callback: Callback = ignore
) -> Modes:
    """Lower the energy from codes (K, B, d) with Adam, its step going down to 0 as a cosine.

    See `Search.modes` for the callback.
    """
    codes = codes.clone()
    optimiser = torch.optim.Adam([codes], lr=learning_rate, betas=BETAS, fused=True)
    schedule = LambdaLR(optimiser, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)

    for step in range(steps):
        codes.grad, logits = energy.gradient(codes)
        if callback is not ignore:  # energies and images are not needed but to be shown
            Modes(energy, codes, energy.at(codes, logits)).show(step, callback)
        optimiser.step()
        schedule.step()
    modes = Modes(energy, codes, energy.at(codes, energy.logits(codes)))
    modes.show(steps, callback)
    return modes


class Proposal(NamedTuple):
    """A mixture of Gaussians around K modes for each of B images."""

    modes: Tensor  # (K, B, d)
    factors: Tensor  # (K, B, d, d), lower Cholesky factors of the precisions
    weights: Tensor  # (K, B), whose sums over K are 1

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
def laplace(modes: Modes) -> Proposal:
    """Gaussians at modes with the posterior's curvature, weighted by their evidence."""
    precisions = torch.stack([modes.energy.precision(codes) for codes in modes.codes])
    factors = torch.linalg.cholesky(precisions)
    scale = factors.diagonal(dim1=2, dim2=3).log().sum(dim=2)
    weights = (-modes.energies - scale).softmax(dim=0)
    return Proposal(modes.codes, factors, (1 - EVEN) * weights + EVEN / len(weights))


@torch.no_grad()
def importance(
    energy: Energy, proposal: Proposal, *, samples: int, generator: torch.Generator
) -> Images:
    """Self-normalised importance sampling (Owen 2013, "Monte Carlo theory", section 9.2)."""
    codes = proposal.draw(samples, generator)
    logits = energy.decoder(codes)
    energies = energy.at(codes, logits[..., energy.seen])
    weights = (-energies - proposal.log_density(codes)).softmax(dim=0)
    return Images(logits.sigmoid_(), weights)
