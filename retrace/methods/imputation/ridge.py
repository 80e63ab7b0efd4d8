"""Linear regression from the known pixels to the missing ones: the baseline to beat."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from retrace.types import Callback

SOLVE_BATCH = 64  # systems of up to 783 equations solved at once: 64 x 783^2 doubles are 314 MB


@torch.no_grad()
def reconstruct(
    network: nn.Module,
    observed: Tensor,
    *,
    penalty: Annotated[float, Field(ge=0)],
    callback: Callback,
) -> Tensor:
    """Conditional mean of a Gaussian, m_u + C_uk (C_kk + λI)⁻¹ (x_k − m_k), clipped to [0, 1].

    With mean m and covariance C of the training images this is ridge regression with penalty
    λ n, for any mask from one covariance (Bishop 2006, "Pattern Recognition and Machine
    Learning", equation 2.81).

    Parameters
    ----------
    network : Module
        Has ``mean`` (784,) and ``covariance`` (784, 784).
    observed : (B, 28, 28)
        NaN where a pixel is missing.
    penalty : float
        λ, in squared pixel units.
    callback : function
        Not called: there is no iteration to watch.

    Returns
    -------
    (B, 28, 28)
        Known pixels as observed.
    """
    mean, covariance = network.mean, network.covariance
    assert isinstance(mean, Tensor) and isinstance(covariance, Tensor)
    estimate = conditional_mean(
        observed.flatten(1), mean=mean.flatten(), covariance=covariance, penalty=penalty
    )
    completed = torch.where(
        observed.isnan(), estimate.clamp(0, 1).reshape(observed.shape), observed
    )
    return completed.to(observed.dtype)


def conditional_mean(values: Tensor, *, mean: Tensor, covariance: Tensor, penalty: float) -> Tensor:
    """m + C_·k (C_kk + λI)⁻¹ (x_k − m_k) for each row x, k being its known values.

    Parameters
    ----------
    values : (B, n) or (S, B, n)
        NaN where a value is missing; the S versions of a row miss the same values.
    mean, covariance : (n,), (n, n)
    penalty : float
        λ.

    Returns
    -------
    (B, n) or (S, B, n) float64
        Not clipped; the known values are smoothed by λ too.
    """
    values, mean = values.double(), mean.double()
    known = ~values.isnan()
    centred = torch.where(known, values - mean, 0.0)
    weights = torch.zeros_like(centred)  # (…, B, n): (C_kk + λI)⁻¹ (x_k − m_k), 0 where missing
    first = known if known.dim() == 2 else known[0]
    masks, which = first.unique(dim=0, return_inverse=True)
    counts = masks.sum(dim=1)
    for count in counts.unique().tolist():
        for chunk in (counts == count).nonzero().flatten().split(SOLVE_BATCH):
            pixels = masks[chunk].nonzero()[:, 1].unflatten(0, (len(chunk), count))
            system = covariance[pixels.unsqueeze(2), pixels.unsqueeze(1)]
            system.diagonal(dim1=1, dim2=2).add_(penalty)
            factors = torch.linalg.cholesky(system)
            # Masks that many images share are solved for all of them at once.
            for factor, pixel, mask in zip(factors, pixels, chunk.tolist(), strict=True):
                rows = (which == mask).nonzero().flatten()
                right = centred[..., rows.unsqueeze(1), pixel]  # (…, rows, k)
                solved = torch.cholesky_solve(right.reshape(-1, count).T, factor).T
                weights[..., rows.unsqueeze(1), pixel] = solved.reshape(right.shape)
    return mean + weights @ covariance
