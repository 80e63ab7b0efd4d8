"""What is left of an image behind a bottleneck, beside PCA of the same size."""

from typing import Any

import torch
from torch import Tensor

from retrace.measures import quality
from retrace.pipeline.command import Refusal
from retrace.problems import BaseScorer, Run, Scores

JUDGES = ("gaussian",)
BASELINE = None
HEADLINE = ("mse", "psnr", "ssim", "mse_over_pca")


def pca_curve(images: Tensor, *, mean: Tensor, covariance: Tensor) -> list[float]:
    """MSE of PCA with 0, 1, … 784 components on images (n, 28, 28), by the training images' mean
    (784,) and covariance (784, 784)."""
    components = torch.linalg.eigh(covariance).eigenvectors.flip(1)  # largest first
    centred = images.flatten(1).double() - mean
    # Orthonormal components: what a code of size k misses is the energy of all later ones.
    energy = (centred @ components).square().mean(dim=0)
    missed = torch.cat([energy, energy.new_zeros(1)]).flip(0).cumsum(0).flip(0)
    curve: list[float] = (missed / len(energy)).tolist()
    return curve


class Scorer(BaseScorer):
    """MSE, PSNR and SSIM over all test images, and the MSE as a ratio to PCA's with the same code
    size, left out where PCA misses nothing: with a component for each pixel."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.truth = torch.from_numpy(self.ground.truth["images"])
        moments = self.ground.network("gaussian")
        curve = pca_curve(self.truth, mean=moments.mean, covariance=moments.covariance)
        self.baselines = {"pca_mse": curve}

    def __call__(self, run: Run) -> tuple[Scores, Scores]:
        estimate = torch.from_numpy(run.arrays["estimate"])
        if estimate.shape != self.truth.shape:
            raise Refusal(
                f"{run.name}: estimate has shape {tuple(estimate.shape)}; "
                f"{tuple(self.truth.shape)} is expected"
            )
        measures = {
            "mse": quality.mse(estimate, self.truth),
            "ssim": quality.ssim(estimate, self.truth),
        }
        scores = quality.with_psnr(self.means(measures))
        code_size = int(run.arrays["code_size"])
        curve = self.baselines["pca_mse"]
        pca = curve[min(code_size, len(curve) - 1)]
        found: Scores = {"n": len(estimate), **scores, "code_size": code_size, "pca_mse": pca}
        if pca:
            found["mse_over_pca"] = scores["mse"] / pca
        return found, {key: found[key] for key in HEADLINE if key in found}
