"""SSIM of many image pairs: one batch here, a loop over scikit-image's function there."""

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.metrics import structural_similarity
from torch import Tensor

from benchmarks.data import read_images
from benchmarks.timing import alternate, print_table, write_result
from retrace.measures import quality
from retrace.pipeline.command import run

IMAGES = 1000
LEVELS = 11  # of noise: as many pairs as an imputation run has
LOOPED = 1000  # pairs that the loop does; their rate stands for all
ROUNDS = 5


def pairs(images: Tensor, *, levels: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images with noise of standard deviation 0, 0.1, 0.2, ... in [0, 1], and the images: each
    (images x levels, 28, 28), the levels innermost."""
    truth = images.repeat_interleave(levels, dim=0)
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(seed))
    deviations = 0.1 * torch.arange(levels).repeat(len(images))
    return (truth + deviations[:, None, None] * noise).clamp(0, 1), truth


def loop(estimate: NDArray[np.float64], truth: NDArray[np.float64]) -> NDArray[np.float64]:
    """SSIM of (n, 28, 28) pairs by scikit-image, one after the other: (n,)."""
    return np.array(
        [
            structural_similarity(
                x,
                y,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
                data_range=1.0,
            )
            for x, y in zip(estimate, truth, strict=True)
        ]
    )


def main() -> None:
    """Compare pairs per second of retrace.measures.quality.ssim on 11,000 pairs with a loop over
    scikit-image's structural_similarity (rate of 1,000 pairs), and their values."""
    dataset, images = read_images("test")
    estimate, truth = pairs(images[:IMAGES], levels=LEVELS, seed=0)
    x, y = (tensor[:LOOPED].double().numpy() for tensor in (estimate, truth))
    seconds = alternate(
        {"batch": lambda: quality.ssim(estimate, truth), "loop": lambda: loop(x, y)}, rounds=ROUNDS
    )
    rates = {"batch": len(truth) / seconds["batch"], "loop": len(x) / seconds["loop"]}
    ratio = rates["batch"] / rates["loop"]
    apart = float(np.abs(quality.ssim(estimate, truth)[:LOOPED].numpy() - loop(x, y)).max())
    print_table(
        f"SSIM of {dataset}: {len(truth)} pairs in a batch, {len(x)} of them in a loop",
        ["", "pairs per second"],
        [
            ["retrace.measures.quality.ssim", f"{rates['batch']:.0f}"],
            ["loop over scikit-image", f"{rates['loop']:.0f}"],
            ["ratio (wanted: 8)", f"{ratio:.1f}"],
            ["largest difference (allowed: 1e-6)", f"{apart:.1e}"],
        ],
    )
    write_result(
        "ssim",
        {
            "dataset": dataset,
            "max_difference": apart,
            "pairs_per_second": rates,
            "ratio": ratio,
            "rounds": ROUNDS,
            "sizes": {"batch": len(truth), "loop": len(x)},
        },
    )


if __name__ == "__main__":
    run(main)
