"""Linear regression from the known pixels to the missing ones: the baseline to beat."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from stages.artifacts import Callback

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
    flat = observed.flatten(1).double()
    known = ~flat.isnan()
    centred = torch.where(known, flat - mean, 0.0)
    weights = torch.zeros_like(centred)  # (B, 784): (C_kk + λI)⁻¹ (x_k − m_k), 0 where missing
    masks, which = known.unique(dim=0, return_inverse=True)
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
                right = centred[rows.unsqueeze(1), pixel].T
                weights[rows.unsqueeze(1), pixel] = torch.cholesky_solve(right, factor).T
    estimate = (mean + weights @ covariance).clamp(0, 1)
    return torch.where(known, flat, estimate).to(observed.dtype).reshape(observed.shape)
