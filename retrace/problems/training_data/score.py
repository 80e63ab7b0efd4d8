"""How many training images the candidates of an attack give away."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from retrace.measures import identification, quality
from retrace.measures.identification import Truth
from retrace.networks.margin import training_set
from retrace.pipeline.command import Refusal
from retrace.pipeline.params import find
from retrace.problems import BaseScorer, Ground, Run, Scores
from retrace.types import BadInput, Means, Split

JUDGES = ()
BASELINE = None
OTHER_DRAW = 1000  # how far the offset of held-out coloured images lies behind that of the others
RANKS = (50, 100, 150)  # how many candidates, by the attack's own ranking, precision looks at


def truth_of(ground: Ground, network: str, *, null: bool = True) -> Truth:
    """Training and held-out images of a network."""
    record, where = ground.load(network)[1], f"networks.{network}"
    architecture = find("networks", record["architecture"], where=f"{where}.architecture")
    choose = getattr(architecture, "training_set", None)
    if choose is None:
        raise BadInput(f"{where}: no training images can be attacked there")
    split = ground.split("train")
    return truth_in(split, record["training"], where=f"{where}.training", null=null, choose=choose)


def truth_in(
    split: Split,
    training: Mapping[str, Any],
    *,
    where: str,
    null: bool = True,
    choose: Callable[..., tuple[Tensor, Tensor, Tensor]] = training_set,
) -> Truth:
    """Take the training images of a network from the training split, all others for the null.

    Its architecture's `training_set` chooses them, by keys of its ``training`` section, whose path
    is `where`; without the null no image is held out, which takes no time. The null is the whole
    split but the training images and their near-duplicates. Coloured images are drawn, not taken
    from the split: another draw of n is held out, which may be the same images.

    Raises
    ------
    BadInput
        When a key is missing, or no image is left for the null.
    """
    keys = [key for key in inspect.signature(choose).parameters if key != "split"]
    missing = [key for key in keys if key not in training]
    if missing:
        raise BadInput(f"{where}.{missing[0]} is missing: no training images can be attacked there")
    chosen = {key: training[key] for key in keys}
    images, _, mean = choose(split, **chosen)
    coloured = chosen.get("examples") == "colours"
    if not null:
        return Truth(images, images[:0], mean, coloured)
    if coloured:
        drawn = {**chosen, "offset": chosen["offset"] + OTHER_DRAW}
        return Truth(images, choose(split, **drawn)[0], mean, coloured)
    everything = split[0].flatten(1)
    found = identification.near_duplicates(images, everything, shape=tuple(split[0].shape[1:]))
    others = everything[found.of == identification.UNMATCHED]
    if not len(others):
        raise BadInput(
            f"{where}.per_class = {chosen['per_class']}: all {len(everything)} images of the split "
            "are training images or nearly one, so that none is left to be held out"
        )
    copies = len(everything) - len(others) - len(images)
    return Truth(images, others, mean, coloured, null_duplicates=copies)


def score_candidates(estimate: Tensor, truth: Truth, *, means: Means) -> Scores:
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


class Scorer(BaseScorer):
    """Counts of identified images, beside those of held-out images."""

    known: tuple[str, Truth, float] | None = None

    def truth_of(self, network: str) -> tuple[Truth, float]:
        """Training and held-out images of a network, and the seconds that it was trained for. Of
        one network at a time: the held-out images are many."""
        if self.known is None or self.known[0] != network:
            seconds = self.ground.load(network)[1]["seconds"]
            self.known = network, truth_of(self.ground, network), seconds
        return self.known[1:]

    def __call__(self, run: Run) -> tuple[Scores, Scores]:
        truth, seconds = self.truth_of(run.record["network"])
        estimate = torch.from_numpy(run.arrays["estimate"])
        if math.prod(estimate.shape[1:]) != truth.images.shape[1]:
            raise Refusal(
                f"{run.name}: the estimate has images of shape {tuple(estimate.shape[1:])}; "
                f"{truth.images.shape[1]} values are expected"
            )
        if not bool(torch.isfinite(estimate).all()):
            raise Refusal(f"{run.name}: the estimate is not finite")
        scores = score_candidates(estimate, truth, means=self.means)
        headline = {key: scores[key] for key in ("identified", "null_identified", "threshold")}
        headline |= {f"{key}_99": scores[key]["0.99"] for key in ("matched", "null_matched")}
        if "100" in scores["precision_at"]:
            headline["precision_100"] = scores["precision_at"]["100"]
        key = "colours_recovered" if truth.coloured else "null_n"
        headline[key] = scores[key]
        return {"n": len(truth.images), "training_seconds": seconds, **scores}, headline
