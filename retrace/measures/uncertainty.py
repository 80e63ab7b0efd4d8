"""How honest the samples of a stochastic imputation are."""

import numpy as np
import torch
from torch import Tensor

from retrace.measures import quality
from retrace.types import Means

ARRAYS = ("samples", "quantiles", "deviation")  # what a run has that can be scored here
INTERVALS = {"50": (2, 3), "80": (1, 4), "95": (0, 5)}  # of the six quantiles, by per cent
OPEN = 0.05  # pixel units: where the deviation is above, the known pixels leave the pixel open
SHOWN = 10  # of the most ambiguous images
DIGITS = 10
CHUNK = 1000  # images that are scored at once


def score(
    samples: Tensor,
    quantiles: Tensor,
    deviation: Tensor,
    *,
    truth: Tensor,
    observed: Tensor,
    labels: Tensor,
    classifier: torch.nn.Module,
    means: Means,
) -> dict[str, float]:
    """Scores of the samples under one mask, over missing pixels.

    ``coverage_50``, ``_80``, ``_95`` are the shares of pixels within the intervals, both ends
    included; ``open_coverage_…`` the same over pixels that the method itself calls open, its
    standard deviation there being above 0.05 (`open_share` of the missing ones): of the others,
    black in every sample and in the truth, nearly all are covered whatever the interval.
    ``crps`` is the continuous ranked probability score (Gneiting & Raftery 2007, equation 21, with
    its unbiased estimate), lower is better, and the mean absolute error for a method that is
    certain. ``deviation`` is the standard deviation, averaged; ``sample_mse`` the squared error of
    a sample, ``best_mse`` of the best sample of each image. ``sample_agreement`` is the share of
    samples that the classifier reads as the true digit, ``label_entropy`` the entropy in bits over
    the digits that it reads in the samples of an image.

    Parameters
    ----------
    samples : (n, K, 28, 28) uint8
        K at least 2.
    quantiles : (n, 6, 28, 28) uint8
        At 2.5, 10, 25, 75, 90 and 97.5 %.
    deviation : (n, 28, 28)
    truth, observed : (n, 28, 28)
        Observed is NaN where a pixel is missing.
    labels : (n,)
        The true digits.
    classifier : Module
        (B, 28, 28) to logits.
    """
    parts = [
        _measures(*part, classifier=classifier)
        for part in zip(
            *(x.split(CHUNK) for x in (samples, quantiles, deviation, truth, observed, labels)),
            strict=True,
        )
    ]
    measures = {key: torch.cat([values[key] for values, _ in parts]) for key in parts[0][0]}
    counts = {key: sum(pixels[key] for _, pixels in parts) for key in parts[0][1]}
    is_open = counts["open"]
    pooled = {"open_share": is_open / counts["missing"]}
    for name in INTERVALS:
        pooled[f"open_coverage_{name}"] = counts[f"open_{name}"] / is_open if is_open else 1.0
    return means(measures) | pooled


def _measures(
    samples: Tensor,
    quantiles: Tensor,
    deviation: Tensor,
    truth: Tensor,
    observed: Tensor,
    labels: Tensor,
    *,
    classifier: torch.nn.Module,
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Measures (n,) of some images, and counts of their pixels, for `score`."""
    missing = observed.isnan()
    is_open = missing & (deviation > OPEN)
    counts = {"missing": int(missing.sum()), "open": int(is_open.sum())}
    grey = (truth * 255).round()
    measures: dict[str, Tensor] = {}
    for name, (low, high) in INTERVALS.items():
        inside = (quantiles[:, low] <= grey) & (grey <= quantiles[:, high])
        measures[f"coverage_{name}"] = _mean(inside.double(), missing)
        counts[f"open_{name}"] = int((inside & is_open).sum())
    drawn = completions(samples, observed)  # (n, K, 28, 28)
    errors = torch.stack([quality.mse(s, truth, where=missing) for s in drawn.unbind(1)])
    read = read_digits(drawn, classifier)
    measures |= {
        "deviation": _mean(deviation.double(), missing),
        "crps": _mean(crps(drawn, truth), missing),
        "sample_mse": errors.mean(dim=0),
        "best_mse": errors.amin(dim=0),
        "sample_agreement": (read == labels.unsqueeze(1)).double().mean(dim=1),
        "label_entropy": entropy(read),
    }
    return measures, counts


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Mean of each image (n,) over the pixels marked."""
    return (values * where).sum(dim=(1, 2)) / where.sum(dim=(1, 2))


def completions(samples: Tensor, observed: Tensor) -> Tensor:
    """Samples (n, K, 28, 28) uint8 as images in [0, 1], the known pixels pasted in."""
    known = observed.unsqueeze(1)
    return torch.where(known.isnan(), samples.to(observed.dtype) / 255, known)


def crps(samples: Tensor, truth: Tensor) -> Tensor:
    """E|X − y| − E|X − X'|/2 by pixel, (n, h, w), of samples (n, K, h, w) and truth (n, h, w)."""
    count = samples.shape[1]
    ordered = samples.double().sort(dim=1).values
    # Σ_{i<j} |x_i − x_j| = Σ_i (2i − K + 1) x_(i), i from 0.
    ranks = 2 * torch.arange(count, dtype=torch.float64) - count + 1
    spread = (ranks.view(-1, 1, 1) * ordered).sum(dim=1) / (count * (count - 1))
    return (ordered - truth.unsqueeze(1)).abs().mean(dim=1) - spread


def read_digits(images: Tensor, classifier: torch.nn.Module) -> Tensor:
    """The classifier's labels (n, K) of (n, K, 28, 28) images."""
    return quality.labels_of(classifier, images.flatten(0, 1)).unflatten(0, images.shape[:2])


def entropy(labels: Tensor) -> Tensor:
    """Entropy (n,) in bits of the labels (n, K) of each image."""
    shares = torch.stack([(labels == digit).double().mean(dim=1) for digit in range(DIGITS)], dim=1)
    return -torch.special.xlogy(shares, shares).sum(dim=1) / np.log(2)


def ambiguous(labels: Tensor) -> Tensor:
    """Indices of the images with the largest entropy of their samples' labels (n, K), at most
    `SHOWN`, the first image of equal ones first."""
    return entropy(labels).argsort(descending=True, stable=True)[:SHOWN]
