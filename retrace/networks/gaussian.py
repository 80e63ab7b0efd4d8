"""Mean and covariance of the training images: the statistics that networks have to beat.

One covariance gives the training mean, PCA with any code size and ridge regression for any mask.
"""

import time

import torch
from torch import Tensor, nn

from retrace.networks._training import Progress, unwatched
from retrace.types import PIXELS, Split


class Network(nn.Module):
    """Gaussian over images, fitted in closed form."""

    mean: Tensor  # (784,) float64
    covariance: Tensor  # (784, 784) float64

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(PIXELS, dtype=torch.float64))
        self.register_buffer("covariance", torch.eye(PIXELS, dtype=torch.float64))

    def fit(
        self, training: Split, validation: Split, progress: Progress = unwatched
    ) -> list[dict[str, float]]:
        """Take mean and covariance (divided by n) of the (n, 28, 28) training images.

        Returns
        -------
        list of one dict
            The mean image's squared error on the validation images.
        """
        pixels = training[0].flatten(1).double()
        self.mean = pixels.mean(dim=0)
        centred = pixels - self.mean
        self.covariance = centred.T @ centred / len(pixels)
        error = self.evaluate(*validation)["mse"].double().mean().item()
        return [{"epoch": 1.0, "timestamp": time.time(), "validation_mse": error}]

    def evaluate(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Squared error of the mean image, averaged over pixels, per image: (B,)."""
        return {"mse": (images.flatten(1) - self.mean).square().mean(dim=1)}
