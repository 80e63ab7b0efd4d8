"""What the scores are measured against: PCA of any code size, ridge on each mask, and how good the
judge of completed images is."""

from typing import Any

import torch
from torch import Tensor

from stages.artifacts import (
    BASELINES,
    checkpoint_path,
    load_checkpoint,
    observed_path,
    read_arrays,
    read_split,
    write_json,
)
from stages.command import run
from stages.methods.imputation import ridge
from stages.params import load
from stages.scoring.quality import labels_of, mse


def pca_curve(images: Tensor, *, mean: Tensor, covariance: Tensor) -> list[float]:
    """MSE of PCA with 0, 1, … 784 components on given images.

    Parameters
    ----------
    images : (n, 28, 28)
    mean, covariance : (784,), (784, 784)
        Of the training images.

    Returns
    -------
    list of 785 float
    """
    components = torch.linalg.eigh(covariance).eigenvectors.flip(1)  # largest first
    centred = images.flatten(1).double() - mean
    # Orthonormal components: what a code of size k misses is the energy of all later ones.
    energy = (centred @ components).square().mean(dim=0)
    missed = torch.cat([energy, energy.new_zeros(1)]).flip(0).cumsum(0).flip(0)
    curve: list[float] = (missed / len(energy)).tolist()
    return curve


def main() -> None:
    """Write metrics/baselines.json: MSE of PCA by code size, of ridge by mask, and the classifier's
    accuracy on test images."""
    gaussian, _ = load_checkpoint(checkpoint_path("gaussian"))
    mean, covariance = gaussian.mean, gaussian.covariance
    assert isinstance(mean, Tensor) and isinstance(covariance, Tensor)
    images, labels = read_split("test")
    classifier, _ = load_checkpoint(checkpoint_path("classifier"))
    arrays = read_arrays(observed_path("imputation"))
    observed = torch.from_numpy(arrays["observed"])  # (masks, n, 28, 28)
    flat = observed.flatten(0, 1)
    estimate = ridge.reconstruct(
        gaussian, flat, penalty=load().scoring.ridge, callback=lambda *_: None
    )
    truth = images[: observed.shape[1]].repeat(len(observed), 1, 1)
    errors = mse(estimate, truth, where=flat.isnan()).unflatten(0, (len(observed), -1)).mean(dim=1)
    content: dict[str, Any] = {
        "dataset": str(arrays["dataset"]),
        "classifier_accuracy": (labels_of(classifier, images) == labels).double().mean().item(),
        "pca_mse": pca_curve(images, mean=mean, covariance=covariance),
        "ridge_mse": dict(zip(arrays["masks"].tolist(), errors.tolist(), strict=True)),
    }
    write_json(BASELINES, content)
    print(f"classifier right on {content['classifier_accuracy']:.2%} of the test images")
    print(f"PCA-16 {content['pca_mse'][16]:.4f}, PCA-32 {content['pca_mse'][32]:.4f}")
    print("ridge " + ", ".join(f"{m} {e:.4f}" for m, e in content["ridge_mse"].items()))


if __name__ == "__main__":
    run(main)
