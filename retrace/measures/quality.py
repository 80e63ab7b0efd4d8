"""How good is a reconstruction: MSE, PSNR, SSIM and the bootstrap interval of a mean."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

GAUSSIAN_SIGMA = 1.5  # pixels
GAUSSIAN_RADIUS = 5  # pixels; scikit-image truncates its filter at 3.5 standard deviations
K1, K2 = 0.01, 0.03
CHUNK = 256  # images whose windows are taken together: their arrays stay in the cache
BATCH = 1000  # images that a classifier sees at once


def mse(estimate: Tensor, truth: Tensor, where: Tensor | None = None) -> Tensor:
    """Mean squared error (B,) float64 of each image (B, H, W) over its pixels, or over those marked
    in `where`, at least one of each image."""
    squared = (estimate.double() - truth.double()).square()
    if where is None:
        return squared.mean(dim=(1, 2))
    counted = squared.where(where, torch.zeros((), dtype=torch.float64))
    return counted.sum(dim=(1, 2)) / where.sum(dim=(1, 2))


def psnr(mean_squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error, for images in [0, 1].

    Of the mean error over images, not the mean of each image's PSNR: a single image without error
    would make the latter infinite. An error of 0 gives 200 dB, since JSON has no infinity.
    """
    return float(-10 * np.log10(max(mean_squared_error, 1e-20)))


def ssim(estimate: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of each image (Wang et al. 2004, IEEE TIP 13(4), equation 13).

    Agrees with ``skimage.metrics.structural_similarity(..., gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=1.0)`` to 1e-6, for a whole batch in a few matrix
    products: the window is separable and only the pixels whose window lies inside the image
    count, so that filtering is one product with a banded matrix from each side.

    Parameters
    ----------
    estimate, truth : (B, H, W)
        Values in [0, 1]; H and W at least 11.

    Returns
    -------
    (B,) float64

    Raises
    ------
    ValueError
        When the shapes differ or an image is smaller than the window.
    """
    if estimate.shape != truth.shape:
        raise ValueError(f"shapes differ: {tuple(estimate.shape)} and {tuple(truth.shape)}")
    rows, columns = (_window_matrix(size) for size in estimate.shape[1:])
    chunks = zip(estimate.split(CHUNK), truth.split(CHUNK), strict=True)
    return torch.cat([_ssim(x.double(), y.double(), rows, columns) for x, y in chunks])


def _ssim(x: Tensor, y: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    maps = torch.cat([x, y, x * x + y * y, x * y])  # (4B, H, W)
    maps = (maps @ columns.T).transpose(1, 2) @ rows.T  # (4B, W - 10, H - 10)
    mean_x, mean_y, mean_squares, mean_product = maps.split(len(x))
    product, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    luminance = (2 * product + K1**2) / (squares + K1**2)
    # Only the sum of the two variances counts, so that x² and y² need one window, not two.
    structure = (2 * (mean_product - product) + K2**2) / (mean_squares - squares + K2**2)
    return (luminance * structure).mean(dim=(1, 2))


def _window_matrix(size: int) -> Tensor:
    """(size - 10, size): row i holds the Gaussian window that starts at pixel i."""
    window = 2 * GAUSSIAN_RADIUS + 1
    if size < window:
        raise ValueError(f"images of at least {window} pixels a side are needed, not {size}")
    offsets = torch.arange(-GAUSSIAN_RADIUS, GAUSSIAN_RADIUS + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / GAUSSIAN_SIGMA) ** 2)
    weights /= weights.sum()
    matrix = torch.zeros(size - window + 1, size, dtype=torch.float64)
    for row in range(len(matrix)):
        matrix[row, row : row + window] = weights
    return matrix


def bootstrap(
    values: NDArray[np.float64], *, resamples: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentile bootstrap interval (95 %) of column means (Efron & Tibshirani 1993, chapter 13).

    Of values (n,) or (n, k), a row for each image: low and high, () or (k,). Rows are drawn
    together, so that columns stay paired.
    """
    n = len(values)
    # How often each row is drawn is multinomial: one matrix product instead of n draws a resample.
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    means = counts.astype(np.float64) @ values / n
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return low, high


@torch.no_grad()
def labels_of(classifier: nn.Module, images: Tensor) -> Tensor:
    """The classifier's labels (n,) of (n, 28, 28) images."""
    return torch.cat([classifier(batch).argmax(dim=1) for batch in images.split(BATCH)])


def means_with_intervals(
    values: dict[str, Tensor], *, resamples: int = 2000, seed: int = 0
) -> dict[str, float]:
    """Mean and 95 % bootstrap interval of measures (n,) of the same images, resampled together:
    ``x``, ``x_low`` and ``x_high`` for each measure ``x``. See `bootstrap`."""
    table = torch.stack([value.double() for value in values.values()], dim=1).numpy()
    low, high = bootstrap(table, resamples=resamples, seed=seed)
    result: dict[str, float] = {}
    for i, name in enumerate(values):
        result |= {
            name: float(table[:, i].mean()),
            f"{name}_low": float(low[i]),
            f"{name}_high": float(high[i]),
        }
    return result


def with_psnr(scores: dict[str, float]) -> dict[str, float]:
    """Add the PSNR that belongs to the MSE and to the ends of its interval."""
    return scores | {
        "psnr": psnr(scores["mse"]),
        "psnr_low": psnr(scores["mse_high"]),
        "psnr_high": psnr(scores["mse_low"]),
    }
