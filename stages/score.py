"""Score one reconstruction against the truth; the only stage that sees both."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.artifacts import (
    BASELINES,
    CODES,
    OPTIMA,
    checkpoint_path,
    headline_path,
    history_path,
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
from stages.params import Params, load
from stages.scoring import (
    decoder_inversion,
    identification,
    network_inversion,
    quality,
    uncertainty,
)

RANKS = (50, 100, 150)  # how many candidates, by the attack's own ranking, precision looks at

Means = Callable[[dict[str, Tensor]], dict[str, float]]
Arrays = dict[str, NDArray[Any]]
Scores = dict[str, Any]


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
        "agreement": (quality.labels_of(classifier, completed) == truth_labels).double(),
    }
    scores = with_psnr(means(measures))
    return {**scores, "mse_over_ridge": scores["mse"] / ridge_mse}


def score_training_data(estimate: Tensor, truth: identification.Truth, *, means: Means) -> Scores:
    """How many training images the candidates give away, beside how many held-out images.

    ``matched`` counts training images, matched one to one with a candidate, whose normalised
    cross-correlation (NCC) lies above each of `identification.THRESHOLDS`, mean image subtracted;
    ``null_matched`` held-out images and the same candidates, of all ``null_n`` of them, matched n
    at a time (see `identification.null_matching`); ``_raw`` without the mean image's subtraction.
    ``threshold`` is where at most 1 % of the held-out images are matched; ``identified`` and
    ``null_identified`` count above it, with a bootstrap interval over training images;
    ``null_bound`` is what so many held-out images can say of the true share (see
    `identification.null_bound`), and ``null_duplicates`` how many were taken out, since they nearly
    equal training images. ``precision_at`` is the share of the first candidates that are above it
    for some training image, ``distinct_at`` the number of those images; ranks beyond the last
    candidate are left out. ``median_mse`` and, of 28 x 28 images, ``median_ssim`` are of the
    identified ones, left out where there is none. ``most_reused`` is the number of training images
    that one candidate resembles best. Of coloured images also ``colour_error``, the largest,
    ``colours_recovered``, how many are within 0.02, and ``colour_precision``, the share of the
    candidates within 0.02 of an image's colour.

    Parameters
    ----------
    estimate : (K, rows, columns) or (K, channels, rows, columns)
        Candidates in [0, 1], best first by the attack's own ranking; K may be 0.
    truth : Truth
        n training and m held-out images.
    means : function
        Takes per-image measures to means with intervals.
    """
    images, n = truth.images, len(truth.images)
    candidates = estimate.flatten(1)
    scores: Scores = {
        "candidates": len(candidates),
        "null_n": len(truth.held_out),
        "null_duplicates": truth.null_duplicates,
        "null_bound": identification.null_bound(len(truth.held_out)),
    }

    def compared(
        mean: Tensor | None, suffix: str
    ) -> tuple[Tensor, identification.Matching, Tensor]:
        """Count matches; give the correlations, their matching, and the null's values."""
        similarity = identification.correlations(candidates, images, mean=mean)
        matching = identification.match(similarity)
        null_values = identification.null_matching(candidates, truth, mean=mean).values
        bars = [float(threshold) for threshold in identification.THRESHOLDS]
        for key, values in (("matched", matching.values), ("null_matched", null_values)):
            counts = identification.counts_above(values, bars)
            scores[f"{key}{suffix}"] = dict(zip(identification.THRESHOLDS, counts, strict=True))
        return similarity, matching, null_values

    compared(None, "_raw")
    similarity, matching, null_values = compared(truth.mean, "")
    threshold = identification.null_threshold(null_values)
    found = matching.values > threshold
    share = means({"identified": found.double()})
    scores |= {
        "threshold": threshold,
        "identified": int(found.sum()),
        "identified_low": n * share["identified_low"],
        "identified_high": n * share["identified_high"],
        "null_identified": int((null_values > threshold).sum()),
        "precision_at": {},
        "distinct_at": {},
        "most_reused": identification.most_reused(similarity),
    }
    for rank in RANKS:
        if rank <= len(candidates):
            precision, distinct = identification.first_candidates(
                similarity, first=rank, threshold=threshold
            )
            scores["precision_at"][str(rank)] = precision
            scores["distinct_at"][str(rank)] = distinct
    if bool(found.any()):
        # Colours in one row: an MSE needs no more.
        shape = tuple(estimate.shape[1:]) if estimate.dim() == 3 else (1, images.shape[1])
        nearest = candidates[matching.candidates[found]].unflatten(1, shape)
        originals = images[found].unflatten(1, shape)
        scores["median_mse"] = float(quality.mse(nearest, originals).quantile(0.5))
        if shape == (28, 28):
            scores["median_ssim"] = float(quality.ssim(nearest, originals).quantile(0.5))
    if truth.coloured:
        distances = identification.colour_distances(estimate, images)
        errors = identification.colour_errors(distances)
        scores["colour_error"] = float(errors.max())
        recovered = errors <= identification.COLOUR_TOLERANCE
        scores["colours_recovered"] = int(recovered.sum())
        if len(distances):
            true = distances.amin(dim=1) <= identification.COLOUR_TOLERANCE
            scores["colour_precision"] = float(true.double().mean())
    return scores


def observed_like(name: str, estimate: Tensor, problem: str) -> tuple[Arrays, Tensor]:
    """Observations of a problem and their ``observed`` array, which the estimate must resemble.

    Raises
    ------
    Refusal
        When the two differ in shape.
    """
    observations = read_arrays(observed_path(problem))
    observed = torch.from_numpy(observations["observed"])
    if estimate.shape != observed.shape:
        raise Refusal(
            f"{reconstruction_path(name)}: estimate has shape {tuple(estimate.shape)}; "
            f"{tuple(observed.shape)} is expected"
        )
    return observations, observed


def of_autoencoding(
    name: str, arrays: Arrays, params: Params, means: Means
) -> tuple[Scores, Scores]:
    """Scores of an autoencoder on all test images, and its headline."""
    estimate = torch.from_numpy(arrays["estimate"])
    observed_like(name, estimate, "autoencoding")
    truth, _ = read_split("test")
    truth = truth[: len(estimate)]
    scores = score_autoencoding(
        estimate,
        truth,
        code_size=int(arrays["code_size"]),
        pca_mse=read_json(BASELINES)["pca_mse"],
        means=means,
    )
    headline = {key: scores[key] for key in ("mse", "psnr", "ssim", "mse_over_pca")}
    return {"n": len(truth), **scores}, headline


def of_imputation(name: str, arrays: Arrays, params: Params, means: Means) -> tuple[Scores, Scores]:
    """Scores under each mask, and their means over masks as the headline."""
    estimate = torch.from_numpy(arrays["estimate"])
    observations, observed = observed_like(name, estimate, "imputation")
    truth, labels = read_split("test")
    truth = truth[: estimate.shape[1]]
    baselines = read_json(BASELINES)
    classifier, _ = load_checkpoint(checkpoint_path("classifier"))
    truth_labels = quality.labels_of(classifier, truth)
    masks = {
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
    if all(key in arrays for key in uncertainty.ARRAYS):
        for i, mask in enumerate(masks):
            masks[mask] |= uncertainty.score(
                *(torch.from_numpy(arrays[key][i]) for key in uncertainty.ARRAYS),
                truth=truth,
                observed=observed[i],
                labels=labels[: len(truth)],
                classifier=classifier,
                means=means,
            )
    # The mean over masks, for `dvc metrics show`: a table that fits on a screen.
    headline = {
        key: float(np.mean([mask[key] for mask in masks.values()]))
        for key in ("mse", "psnr", "ssim", "mse_over_ridge", "known_residual", "agreement")
    }
    return {"n": len(truth), "masks": masks}, headline


def of_training_data(
    name: str, arrays: Arrays, params: Params, means: Means
) -> tuple[Scores, Scores]:
    """Scores of candidates for the training images of a network, and their headline."""
    network = params.runs[name].network
    where = f"networks.{network}.training"
    training = params.networks[network].training
    truth = identification.truth_of(read_split("train"), training, where=where)
    estimate = torch.from_numpy(arrays["estimate"])
    if math.prod(estimate.shape[1:]) != truth.images.shape[1]:
        raise Refusal(
            f"{reconstruction_path(name)}: the estimate has images of shape "
            f"{tuple(estimate.shape[1:])}; {truth.images.shape[1]} values are expected"
        )
    if not bool(torch.isfinite(estimate).all()):
        raise Refusal(f"{reconstruction_path(name)}: the estimate is not finite")
    scores = score_training_data(estimate, truth, means=means)
    headline = {key: scores[key] for key in ("identified", "null_identified", "threshold")}
    headline |= {f"{key}_99": scores[key]["0.99"] for key in ("matched", "null_matched")}
    if "100" in scores["precision_at"]:
        headline["precision_100"] = scores["precision_at"]["100"]
    key = "colours_recovered" if truth.coloured else "null_n"
    headline[key] = scores[key]
    seconds = read_json(history_path(network))["seconds"]
    return {"n": len(truth.images), "training_seconds": seconds, **scores}, headline


def of_network_inversion(
    name: str, arrays: Arrays, params: Params, means: Means
) -> tuple[Scores, Scores]:
    """Scores of inputs against the outputs that were wanted of them, and their headline."""
    entry = params.runs[name]
    network, _ = load_checkpoint(checkpoint_path(entry.network))
    return network_inversion.score(
        network, arrays, method=entry.method, settings=entry.settings, means=means
    )


def of_decoder_inversion(
    name: str, arrays: Arrays, params: Params, means: Means
) -> tuple[Scores, Scores]:
    """Scores of codes by group of images, and their headline."""
    entry = params.runs[name]
    network, _ = load_checkpoint(checkpoint_path(entry.network))
    test, _ = read_split("test")
    codes = torch.from_numpy(read_arrays(CODES)["codes"]).double()
    observations = read_arrays(observed_path("decoder_inversion"))
    elbo = {"test_negative_elbo": decoder_inversion.negative_elbo(network, test)}
    network.double()
    estimate = decoder_inversion.checked(arrays, observations, codes, network)
    scores = decoder_inversion.score(
        estimate,
        observations=observations,
        codes=codes,
        optima=read_arrays(OPTIMA),
        penalty=entry.settings.get("penalty", 0.0),
        network=network,
        means=means,
    )
    headline = {
        f"code_error_{kind}": scores["on_range_float64"][f"code_error_{kind}"]
        for kind in ("median", "max")
    }
    headline |= {"solved": scores["on_range_float64"]["solved"]}
    headline |= {key: scores["off_range"][key] for key in ("mse", "mse_over_encoder")}
    seconds = read_json(timing_path(name))["seconds"]
    rest = {
        "code_size": codes.shape[1],
        "certificate": decoder_inversion.certificate(network, codes),
        "seconds_per_1000": 1000 * seconds / estimate[..., 0].numel(),
    }
    return {"n": len(codes), **elbo, **rest, **scores}, headline


PROBLEMS = {
    "autoencoding": of_autoencoding,
    "imputation": of_imputation,
    "network_inversion": of_network_inversion,
    "training_data": of_training_data,
    "decoder_inversion": of_decoder_inversion,
}


def main(name: str) -> None:
    """Score one run of params.yaml into metrics/<run>.json and metrics/headline/<run>.json."""
    params = load()
    if name not in params.runs:
        raise Refusal(f"runs.{name}: unknown; allowed are {', '.join(params.runs)}")
    entry, scoring = params.runs[name], params.scoring
    if entry.problem not in PROBLEMS:
        raise Refusal(f"runs.{name}.problem = {entry.problem!r}: there is no score for it yet")
    arrays = read_arrays(reconstruction_path(name))

    def means(values: dict[str, Tensor]) -> dict[str, float]:
        return means_with_intervals(values, resamples=scoring.resamples, seed=scoring.seed)

    scores, headline = PROBLEMS[entry.problem](name, arrays, params, means)
    identity = {
        "dataset": str(arrays["dataset"]),
        "problem": entry.problem,
        "method": entry.method,
        "network": entry.network,
        "n": scores["n"],
        "seed": entry.settings.get("seed", 0),
        "seconds": read_json(timing_path(name))["seconds"],
    }
    write_json(metrics_path(name), identity | scores)
    write_json(headline_path(name), identity | headline)
    shown = (f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in headline.items())
    print(f"{name}: " + ", ".join(shown))


if __name__ == "__main__":
    run(main, name="run")
