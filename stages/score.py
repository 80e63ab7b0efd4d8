"""Score one reconstruction against the truth; the only stage that sees both."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages import quality
from stages.artifacts import (
    BASELINES,
    checkpoint_path,
    headline_path,
    load_checkpoint,
    metrics_path,
    observed_path,
    read_arrays,
    read_json,
    read_split,
    reconstruction_path,
    timing_path,
    write_json,
)
from stages.command import Refusal, run
from stages.params import load

CLASSIFIER_BATCH = 1000

Means = Callable[[dict[str, Tensor]], dict[str, float]]


def means_with_intervals(
    values: dict[str, Tensor], *, resamples: int, seed: int
) -> dict[str, float]:
    """Mean and 95 % bootstrap interval of per-image measures.

    Parameters
    ----------
    values : dict of (n,)
        Measures of the same images, resampled together.
    resamples, seed : int
        See `quality.bootstrap`.

    Returns
    -------
    dict
        ``x``, ``x_low`` and ``x_high`` for each measure ``x``.
    """
    table = torch.stack([value.double() for value in values.values()], dim=1).numpy()
    low, high = quality.bootstrap(table, resamples=resamples, seed=seed)
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
        "psnr": quality.psnr(scores["mse"]),
        "psnr_low": quality.psnr(scores["mse_high"]),
        "psnr_high": quality.psnr(scores["mse_low"]),
    }


def score_autoencoding(
    estimate: Tensor, truth: Tensor, *, code_size: int, pca_mse: list[float], means: Means
) -> dict[str, Any]:
    """MSE, PSNR and SSIM, and the MSE as a ratio to PCA with the same code size.

    Parameters
    ----------
    estimate, truth : (n, 28, 28)
    code_size : int
    pca_mse : list of 785 float
        PCA's MSE on the same images by number of components.
    means : function
        Takes per-image measures to means with intervals.
    """
    measures = {"mse": quality.mse(estimate, truth), "ssim": quality.ssim(estimate, truth)}
    scores = with_psnr(means(measures))
    pca = pca_mse[code_size]
    return {**scores, "code_size": code_size, "mse_over_pca": scores["mse"] / pca, "pca_mse": pca}


@torch.no_grad()
def labels_of(classifier: torch.nn.Module, images: Tensor) -> Tensor:
    """The classifier's labels (n,) of (n, 28, 28) images."""
    batches = images.split(CLASSIFIER_BATCH)
    return torch.cat([classifier(batch).argmax(dim=1) for batch in batches])


def score_imputation(
    estimate: Tensor,
    truth: Tensor,
    *,
    observed: Tensor,
    classifier: torch.nn.Module,
    truth_labels: Tensor,
    ridge_mse: float,
    means: Means,
) -> dict[str, Any]:
    """Scores of one mask.

    ``mse`` and ``psnr`` over missing pixels only; ``ssim`` and ``agreement`` of the completed
    image, the known pixels pasted in; ``known_residual`` is the MSE on the known pixels before
    they are pasted; ``agreement`` is the share of completed images that the classifier labels as
    it labels the original.

    Parameters
    ----------
    estimate, truth, observed : (n, 28, 28)
        Observed is NaN where a pixel is missing.
    classifier : Module
        (B, 28, 28) to logits.
    truth_labels : (n,)
        The classifier's labels of the originals.
    ridge_mse : float
        Of linear regression on the same images and mask.
    means : function
        Takes per-image measures to means with intervals.
    """
    missing = observed.isnan()
    completed = torch.where(missing, estimate.clamp(0, 1), observed)

    measures = {
        "mse": quality.mse(completed, truth, where=missing),
        "ssim": quality.ssim(completed, truth),
        "known_residual": quality.mse(estimate, truth, where=~missing),
        "agreement": (labels_of(classifier, completed) == truth_labels).double(),
    }
    scores = with_psnr(means(measures))
    return {**scores, "mse_over_ridge": scores["mse"] / ridge_mse}


def main(name: str) -> None:
    """Score one run of params.yaml into metrics/<run>.json and metrics/headline/<run>.json."""
    params = load()
    if name not in params.runs:
        raise Refusal(f"runs.{name}: unknown; allowed are {', '.join(params.runs)}")
    entry, scoring = params.runs[name], params.scoring
    arrays = read_arrays(reconstruction_path(name))
    estimate = torch.from_numpy(arrays["estimate"])
    observations = read_arrays(observed_path(entry.problem))
    observed = torch.from_numpy(observations["observed"])
    if estimate.shape != observed.shape:
        raise Refusal(
            f"{reconstruction_path(name)}: estimate has shape {tuple(estimate.shape)}; "
            f"{tuple(observed.shape)} is expected"
        )
    truth, _ = read_split("test")
    truth = truth[: estimate.shape[-3]]
    baselines = read_json(BASELINES)

    def means(values: dict[str, Tensor]) -> dict[str, float]:
        return means_with_intervals(values, resamples=scoring.resamples, seed=scoring.seed)

    result: dict[str, Any] = {
        "dataset": str(arrays["dataset"]),
        "problem": entry.problem,
        "method": entry.method,
        "network": entry.network,
        "n": len(truth),
        "seed": entry.settings.get("seed", 0),
        "seconds": read_json(timing_path(name))["seconds"],
    }
    headline = dict(result)
    if entry.problem == "autoencoding":
        scores = score_autoencoding(
            estimate,
            truth,
            code_size=int(arrays["code_size"]),
            pca_mse=baselines["pca_mse"],
            means=means,
        )
        result |= scores
        headline |= {key: scores[key] for key in ("mse", "psnr", "ssim", "mse_over_pca")}
    elif entry.problem == "imputation":
        classifier, _ = load_checkpoint(checkpoint_path("classifier"))
        truth_labels = labels_of(classifier, truth)
        result["masks"] = {
            mask: score_imputation(
                estimate[i],
                truth,
                observed=observed[i],
                classifier=classifier,
                truth_labels=truth_labels,
                ridge_mse=baselines["ridge_mse"][mask],
                means=means,
            )
            for i, mask in enumerate(observations["masks"].tolist())
        }
        # The mean over masks, for `dvc metrics show`: a table that fits on a screen.
        for key in ("mse", "psnr", "ssim", "mse_over_ridge", "known_residual", "agreement"):
            headline[key] = float(np.mean([m[key] for m in result["masks"].values()]))
    else:
        raise Refusal(f"runs.{name}.problem = {entry.problem!r}: there is no score for it yet")
    write_json(metrics_path(name), result)
    write_json(headline_path(name), headline)
    shown = {k: v for k, v in headline.items() if isinstance(v, float) and k != "seconds"}
    print(f"{name}: " + ", ".join(f"{key} {value:.4f}" for key, value in shown.items()))


if __name__ == "__main__":
    run(main, name="run")
