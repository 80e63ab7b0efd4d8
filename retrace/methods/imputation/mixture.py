"""The conditional mean of a mixture of Gaussians: ridge regression that knows of shapes."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from retrace.methods.imputation._latent import Prior
from retrace.methods.imputation.ridge import completed
from retrace.types import Callback, ignore

IMAGES = 32  # with masks of their own, whose K systems of p equations are solved at once


@torch.no_grad()
def reconstruct(
    network: Prior,
    observed: Tensor,
    *,
    penalty: Annotated[float, Field(gt=0)] = 0.001,
    callback: Callback = ignore,
) -> Tensor:
    """E[x_u | x_k] under a mixture of K Gaussians, clipped to [0, 1].

    With one component this is `ridge` with the same penalty.

    Parameters
    ----------
    network : Module
        Has the mixture's ``mean``, ``covariance``, ``basis``, ``weights``, ``means`` and
        ``covariances``; see `retrace.networks.prior`.
    observed : (B, 28, 28)
        NaN where a pixel is missing.
    penalty : float
        λ, in squared pixel units: the variance of noise on every known pixel.

    Returns
    -------
    (B, 28, 28)
        Known pixels as observed.
    """
    estimate = conditional_mean(network, observed.flatten(1), penalty=penalty)
    return completed(observed, estimate)


def conditional_mean(network: Prior, values: Tensor, *, penalty: float) -> Tensor:
    """E[x | x_k] of each row x of (B, 784), NaN where a pixel is missing, k being its known pixels:
    (B, 784) float64, not clipped.

    The mixture is x = m + V t + e with orthonormal axes V (784, p), t from component c with
    probability π_c and then N(μ_c, Σ_c), and e ~ N(0, R), R = C − V VᵀCV Vᵀ being what the axes
    leave of the covariance C. With Ψ = R_kk + λI, λ the penalty, M = V_kᵀ Ψ⁻¹ V_k and
    b = V_kᵀ Ψ⁻¹ (x_k − m_k), component c has

    - precision S_c = Σ_c⁻¹ + M and mean t_c = S_c⁻¹ (Σ_c⁻¹ μ_c + b) of t given x_k,
    - evidence log p(x_k | c) = −½ (log|Σ_c| + log|S_c| + μ_cᵀ Σ_c⁻¹ μ_c − t_cᵀ S_c t_c) + const,

    by which the means are weighted (Bishop 2006, "Pattern Recognition and Machine Learning",
    equations 2.116 and 9.23); then E[x | x_k] = m + V t + R_·k Ψ⁻¹ (x_k − m_k − V_k t).
    """
    mean, covariance = network.mean.flatten().double(), network.covariance
    basis, components = network.basis, Components(network)
    inside = basis.T @ covariance @ basis
    rest = covariance - basis @ inside @ basis.T
    values = values.double()
    known = ~values.isnan()
    estimate = torch.empty_like(values)
    masks, which = known.unique(dim=0, return_inverse=True)
    for chunk in torch.arange(len(masks)).split(IMAGES):
        solved = []
        for mask in chunk.tolist():
            pixel = masks[mask].nonzero().flatten()
            rows = (which == mask).nonzero().flatten()
            system = rest.index_select(0, pixel).index_select(1, pixel)
            system.diagonal().add_(penalty)
            centred = (values[rows][:, pixel] - mean[pixel]).T  # (k, n)
            right = torch.cat([basis[pixel], centred], dim=1)
            whitened = torch.cholesky_solve(right, torch.linalg.cholesky(system))
            solved.append((rows, pixel, basis[pixel].T @ whitened, whitened))
        axes = basis.shape[1]
        information = torch.stack([product[:, :axes] for _, _, product, _ in solved])
        factors, log_determinants = components.posterior(information)
        for i, (rows, pixel, product, whitened) in enumerate(solved):
            codes = components.mean(factors[i], log_determinants[i], product[:, axes:])  # (p, n)
            left = whitened[:, axes:] - whitened[:, :axes] @ codes
            estimate[rows] = mean + (basis @ codes + rest[:, pixel] @ left).T
    return estimate


class Components:
    """The K Gaussians of a mixture in p coordinates, by their precisions."""

    def __init__(self, network: Prior) -> None:
        weights, means = network.weights, network.means
        factors = torch.linalg.cholesky(network.covariances)
        self.precisions = torch.cholesky_inverse(factors)  # (K, p, p)
        self.shifts = (self.precisions @ means.unsqueeze(2)).squeeze(2)  # (K, p): Σ⁻¹ μ
        log_determinants = 2 * factors.diagonal(dim1=1, dim2=2).log().sum(dim=1)
        squares = (means * self.shifts).sum(dim=1)
        self.constants = weights.log() - (log_determinants + squares) / 2

    def posterior(self, information: Tensor) -> tuple[Tensor, Tensor]:
        """Cholesky factors (G, K, p, p) of S_c for each M of (G, p, p), and log|S_c| (G, K)."""
        factors = torch.linalg.cholesky(self.precisions + information.unsqueeze(1))
        return factors, 2 * factors.diagonal(dim1=2, dim2=3).log().sum(dim=2)

    def mean(self, factors: Tensor, log_determinants: Tensor, evidence: Tensor) -> Tensor:
        """Mean of t (p, n) over components, for b (p, n) of images with the same mask."""
        right = self.shifts.unsqueeze(2) + evidence  # (K, p, n)
        codes = torch.cholesky_solve(right, factors)
        explained = (codes * right).sum(dim=1)  # (K, n): t_cᵀ S_c t_c
        scores = self.constants.unsqueeze(1) + (explained - log_determinants.unsqueeze(1)) / 2
        return (scores.softmax(dim=0).unsqueeze(1) * codes).sum(dim=0)
