"""Linear regression from the known pixels to the missing ones: the baseline to beat."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from retrace.methods.imputation._regression import Regression
from retrace.types import Callback, ignore


@torch.no_grad()
def reconstruct(
    network: nn.Module,
    observed: Tensor,
    *,
    penalty: Annotated[float, Field(ge=0)] = 0.0003,
    callback: Callback = ignore,
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
    return completed(observed, estimate)


def conditional_mean(values: Tensor, *, mean: Tensor, covariance: Tensor, penalty: float) -> Tensor:
    """m + C_·k (C_kk + λI)⁻¹ (x_k − m_k) for each row x of (B, n), NaN where a value is missing, k
    being its known values: (B, n) of the covariance's type, not clipped; the known values are
    smoothed by λ too."""
    mean = mean.to(covariance.dtype)
    regression = Regression(covariance, ~values.isnan(), penalty=penalty)
    return mean + regression(values.to(covariance.dtype) - mean)


def completed(observed: Tensor, estimate: Tensor) -> Tensor:
    """The observed (B, 28, 28), and where a pixel is missing an estimate (B, 784) within [0, 1]."""
    filling = estimate.clamp(0, 1).to(observed.dtype).reshape(observed.shape)
    return torch.where(observed.isnan(), filling, observed)
