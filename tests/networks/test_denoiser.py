"""The denoiser against the best linear one."""

import pytest
import torch
from torch import Tensor

from retrace.networks import denoiser
from retrace.types import BadInput

pytestmark = pytest.mark.numerical


def test_an_untrained_denoiser_is_the_best_linear_one(images: Tensor) -> None:
    network = denoiser.Network(axes=30, width=8, blocks=2)
    centred = images[:500].double() - images[:500].double().mean(dim=0)
    covariance = centred.flatten(1).T @ centred.flatten(1) / 500
    variances, vectors = torch.linalg.eigh(covariance)
    network.mean_image = images[:500].mean(dim=0)
    variances = variances.flip(0).clamp(min=0)
    network.variances, network.basis = variances.float(), vectors.flip(1).float()
    generator = torch.Generator().manual_seed(0)
    noisy = images[500:505] + 0.3 * torch.randn(5, 28, 28, generator=generator)
    got = network.images(network.denoise(network.coordinates(noisy), torch.full((1, 1), 0.3)))
    blurred = covariance + 0.09 * torch.eye(784, dtype=torch.float64)
    wiener = torch.linalg.solve(blurred, covariance)
    expected = (noisy - network.mean_image).flatten(1).double() @ wiener
    torch.testing.assert_close(
        (got - network.mean_image).flatten(1).double(), expected, rtol=0, atol=1e-4
    )
    # And its error is what its variances say.
    linear = variances * 0.09 / (variances + 0.09)
    got = network.error_variances(0.3).double()
    torch.testing.assert_close(got, linear, rtol=1e-3, atol=1e-6)


def test_the_remaining_error_is_interpolated_between_its_levels() -> None:
    network = denoiser.Network(axes=3, width=4, blocks=1)
    network.remaining = torch.linspace(1, 0, denoiser.LEVELS).unsqueeze(1).repeat(1, 784)
    middle = (denoiser.LOWEST * denoiser.HIGHEST) ** 0.5
    for noise, share in ((denoiser.LOWEST / 2, 1.0), (middle, 0.5), (2 * denoiser.HIGHEST, 0.0)):
        expected = torch.full((784,), share * noise**2 / (1 + noise**2))
        torch.testing.assert_close(network.error_variances(noise), expected, rtol=0, atol=1e-5)


def test_more_axes_than_images_are_refused(images: Tensor) -> None:
    network = denoiser.Network(axes=20, width=4, blocks=1)
    with pytest.raises(BadInput, match=r"^axes = 20: 10 training images"):
        network.fit((images[:10], torch.zeros(10)), (images[:10], torch.zeros(10)))
