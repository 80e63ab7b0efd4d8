"""Scores against scikit-image, scipy and closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from retrace.measures import quality

pytestmark = pytest.mark.numerical


@given(
    seed=st.integers(0, 2**31),
    height=st.integers(11, 30),
    width=st.integers(11, 30),
    spread=st.floats(0.0, 1.0),
)
@settings(max_examples=30)
def test_ssim_agrees_with_scikit_image(seed: int, height: int, width: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.random((3, height, width))
    estimate = np.clip(truth + spread * rng.normal(size=truth.shape), 0, 1)
    expected = [
        structural_similarity(
            x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0
        )
        for x, y in zip(estimate, truth, strict=True)
    ]
    got = quality.ssim(torch.from_numpy(estimate), torch.from_numpy(truth))
    np.testing.assert_allclose(got, expected, atol=1e-6, rtol=0)


def test_ssim_of_digits_agrees_in_single_precision(images: torch.Tensor) -> None:
    truth, estimate = images[:20], images[20:40]
    expected = [
        structural_similarity(
            x.astype(np.float64),
            y.astype(np.float64),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
        )
        for x, y in zip(estimate.numpy(), truth.numpy(), strict=True)
    ]
    np.testing.assert_allclose(quality.ssim(estimate, truth), expected, atol=1e-6, rtol=0)


def test_ssim_of_an_image_with_itself_is_one_and_of_its_negative_is_not(
    images: torch.Tensor,
) -> None:
    assert quality.ssim(images[:5], images[:5]).tolist() == pytest.approx([1.0] * 5)
    assert (quality.ssim(images[:5], 1 - images[:5]) < 0.1).all()


def test_ssim_refuses_what_it_cannot_measure() -> None:
    with pytest.raises(ValueError, match="at least 11"):
        quality.ssim(torch.zeros(1, 10, 28), torch.zeros(1, 10, 28))
    with pytest.raises(ValueError, match="shapes differ"):
        quality.ssim(torch.zeros(1, 28, 28), torch.zeros(2, 28, 28))


def test_mse_counts_only_the_marked_pixels() -> None:
    truth = torch.zeros(2, 4, 4)
    estimate = torch.full((2, 4, 4), 0.5)
    estimate[:, 0] = 1.0
    where = torch.zeros(2, 4, 4, dtype=torch.bool)
    where[0, 0], where[1, 1:] = True, True
    assert quality.mse(estimate, truth, where).tolist() == [1.0, 0.25]
    assert quality.mse(estimate, truth).tolist() == [(4 + 12 * 0.25) / 16] * 2


def test_psnr_agrees_with_scikit_image() -> None:
    rng = np.random.default_rng(0)
    truth, estimate = rng.random((2, 28, 28))
    expected = peak_signal_noise_ratio(truth, estimate, data_range=1.0)
    assert quality.psnr(float(((truth - estimate) ** 2).mean())) == pytest.approx(expected)
    assert quality.psnr(0.0) == 200


def test_bootstrap_agrees_with_scipy_and_with_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    low, high = quality.bootstrap(values, resamples=20_000, seed=0)
    reference = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    error = values.std() / 20
    assert low == pytest.approx(reference.low, abs=0.05 * error)
    assert high == pytest.approx(reference.high, abs=0.05 * error)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_bootstrap_keeps_columns_paired() -> None:
    values = np.random.default_rng(1).normal(size=(50, 1))
    low, high = quality.bootstrap(np.hstack([values, values, -values]), resamples=500, seed=0)
    assert low[0] == low[1] and high[0] == high[1]
    assert low[2] == pytest.approx(-high[0])
