"""Imputation: what each method puts in place of missing pixels."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from retrace.measures import uncertainty
from retrace.pipeline.artifacts import baselines_path, read_json
from retrace.problems import Arrays, Ground, Run
from retrace.report import charts
from retrace.report.model import (
    METHOD,
    NETWORK,
    Better,
    Block,
    Cell,
    Chart,
    Column,
    Gallery,
    Scores,
    Section,
    State,
    Steps,
    Strip,
    Summary,
    Table,
    best_of,
    number,
    score,
    scored,
    steps_of,
    tabulated,
    total_seconds,
)
from retrace.report.pictures import TRACKED, completed, mosaic

PROBLEM = "imputation"
TITLE = "Imputation"
ORDER = 1
LEAD = (
    "Pixels of a test image are hidden; a network that was trained on whole images has to give "
    "them back. Errors count on the missing pixels alone."
)
PREFERRED_MASK = "bottom"  # on the first screen and along iterations, where there is such a mask
TRIVIAL = "fill"  # the method that looks at no image: grey
FIRST = 6  # methods that the gallery shows before someone asks for more
WATCHED = 4  # images along iterations
SAMPLES = 6  # completions of one image
COLUMNS = 10  # images of false minima
Intervals = dict[str, tuple[float, float]]


def section(state: State) -> Section:
    """Tables, trade-off, gallery by mask and case, and completions along the iterations."""
    runs = state.scores(PROBLEM)
    masks = list(next(iter(runs.values()))["masks"])
    # Of another state, some may have been scored under other masks.
    runs = {
        name: s | {"mse": mean(s, "mse"), "masks": {mask: s["masks"][mask] for mask in masks}}
        for name, s in sorted(runs.items(), key=lambda item: mean(item[1], "mse"))
        if set(masks) <= set(s["masks"])
    }
    greys = [name for name, s in runs.items() if s["method"] == TRIVIAL]
    best = best_of({name: s["mse"] for name, s in runs.items()}, better="lower", grey=greys)
    pictures: list[Strip] = []
    more: list[Block] = []
    with state.noting():
        pictures, more, intervals = pictured(state, runs, masks, best=best, grey=greys)
        for name, (low, high) in intervals.items():
            runs[name] |= {"mse_low": low, "mse_high": high}
    note = f"{len(masks)} masks, {runs[best]['n']} test images under each"
    with state.noting():
        right = read_json(baselines_path(PROBLEM))["classifier_accuracy"]
        note += f"; the classifier behind the agreement is right on {right:.2%} of the test images"
    stochastic = {name: s for name, s in runs.items() if "crps" in s["masks"][masks[0]]}
    by_mask = [scored(f"masks/{mask}/mse", ".4f", mask, "lower") for mask in masks]
    blocks: list[Block] = [
        summary_table(runs, grey=greys, note=note),
        tabulated("MSE over the missing pixels by mask", runs, by_mask, grey=greys),
        *([samples_table(stochastic)] if stochastic else []),
        *charts.tradeoff(
            [charts.Point(name, s["seconds"], s["mse"], name in greys) for name, s in runs.items()],
            label="MSE over missing pixels",
            form=".3f",
            unit=f"seconds, {runs[best]['n']} images under {len(masks)} masks",
            caption="Further down is better, further left is faster; grey: no image is looked at.",
        ),
        *([calibration(stochastic)] if stochastic else []),
        *more,
    ]
    agreement = mean(runs[best], "agreement")
    summary = Summary(
        headline=f"{agreement:.0%} still read as the same digit",
        meaning="by an independent classifier, after the missing pixels were filled in",
        pictures=pictures,
        method=best,
        result=score(runs[best], "mse", ".3f"),
        measure=f"MSE over missing pixels, mean over {len(masks)} masks",
        better="lower",
        baseline=f"{runs[greys[0]]['mse']:.3f} ({greys[0]})" if greys else "–",
        runs=len(runs),
        seconds=total_seconds(runs.values()),
    )
    rows = [
        {"run": name, "mask": mask, **s["masks"][mask]}
        for name, s in runs.items()
        for mask in masks
    ]
    return Section(PROBLEM, TITLE, LEAD, summary, blocks, rows={"imputation.csv": rows})


def mean(scores: Scores, key: str) -> float:
    """The mean of a score over masks."""
    return float(np.mean([mask[key] for mask in scores["masks"].values()]))


def over_masks(key: str, form: str, label: str, better: Better = "", hint: str = "") -> Column:
    """A column of the mean of a score over masks, empty where a mask lacks it."""

    def cell(scores: Scores) -> Cell:
        known = all(key in mask for mask in scores["masks"].values())
        return number(mean(scores, key), form) if known else Cell()

    return Column(label, better, hint, cell)


def summary_table(runs: Mapping[str, Scores], *, grey: list[str], note: str) -> Table:
    agreement = "completed images that a classifier labels as the original"
    columns = [
        METHOD,
        NETWORK,
        scored("mse", ".4f", "MSE", "lower", "over missing pixels, mean over masks"),
        over_masks("mse_over_ridge", ".2f", "÷ ridge", "lower", "divided by linear regression’s"),
        over_masks("psnr", ".1f", "PSNR, dB", "higher", "over missing pixels"),
        over_masks("ssim", ".3f", "SSIM", "higher", "of the completed image"),
        over_masks("agreement", ".3f", "agreement", "higher", agreement),
        scored("seconds", ".1f", "seconds"),
    ]
    note = f"Means over {note}. Intervals are 95 % bootstrap intervals over images."
    return tabulated("All methods, mean over masks", runs, columns, grey=grey, note=note)


def samples_table(runs: Mapping[str, Scores]) -> Table:
    """Of the runs that give samples, what those are worth."""
    shares = [
        over_masks(f"{kind}_{level}", ".0%", f"{label} {level} %", "", f"{of} in their interval")
        for kind, label, of in (
            ("coverage", "within", "missing pixels"),
            ("open_coverage", "open,", "missing pixels with a deviation above 0.05"),
        )
        for level in uncertainty.INTERVALS
    ]
    columns = [
        *shares,
        over_masks("open_share", ".0%", "open", "", "missing pixels with a deviation above 0.05"),
        over_masks("crps", ".4f", "CRPS", "lower"),
        over_masks("mse", ".4f", "MSE of the mean", "lower"),
        over_masks("sample_mse", ".4f", "of a sample", "lower"),
        over_masks("best_mse", ".4f", "of the best sample", "lower"),
        over_masks("sample_agreement", ".2f", "right", "higher", "read as the true digit"),
        over_masks("label_entropy", ".2f", "entropy", "", "of what is read in samples, bits"),
    ]
    note = (
        "Shares of missing pixels within the intervals, of all and of open ones, whose deviation "
        "is above 0.05. Right: the share of samples that the classifier reads as the true digit; "
        "entropy of what it reads, in bits."
    )
    return tabulated("What the samples are worth, mean over masks", runs, columns, note=note)


def calibration(runs: Mapping[str, Scores]) -> Chart:
    """Share of pixels in the 50, 80 and 95 % intervals against that share."""
    nominal = [int(level) / 100 for level in uncertainty.INTERVALS]

    def curves(kind: str) -> dict[str, charts.Curve]:
        return {
            name: (nominal, [mean(s, f"{kind}_{level}") for level in uncertainty.INTERVALS])
            for name, s in runs.items()
        }

    open_pixels, all_pixels = curves("open_coverage"), curves("coverage")
    return Chart(
        "Intervals for missing pixels",
        lambda: charts.lines(
            open_pixels,
            x="interval",
            y="share of pixels inside",
            dashed=all_pixels,
            marks=True,
            diagonal=True,
        ),
        "Share of open pixels inside the intervals: "
        + "; ".join(
            f"{name} " + ", ".join(f"{value:.0%}" for value in values)
            for name, (_, values) in open_pixels.items()
        ),
        "Solid: pixels that the method calls open. Dashed: all missing pixels. A calibrated method "
        "lies on the grey line.",
        file="calibration",
    )


def pictured(
    state: State, runs: Mapping[str, Scores], masks: list[str], *, best: str, grey: list[str]
) -> tuple[list[Strip], list[Block], Intervals]:
    """Pictures of the first screen; gallery, and strips of samples and along iterations; intervals
    of means."""
    ground = Ground(PROBLEM)
    truth, observed = ground.truth["images"], ground.given["observed"]
    position = {mask: ground.given["masks"].tolist().index(mask) for mask in masks}
    reference = state.arrays(PROBLEM, best, "estimate")["estimate"]
    errors = missing_mse(reference, observed, truth)  # (masks, n)
    note = f"MSE of {best}: {{:.3f}} to {{:.3f}}"
    cases = {
        mask: state.cases(
            f"{PROBLEM}/{mask}", errors[i], {"original": truth, "given": observed[i]}, note=note
        )
        for mask, i in position.items()
    }
    preferred = PREFERRED_MASK if PREFERRED_MASK in masks else masks[0]
    i = position[preferred]
    intervals: Intervals = {}
    drawn: list[Steps] = []
    watched: list[Steps] = []
    first = [*[name for name in runs if name not in grey][: FIRST - 1], *grey[:1]]
    for name, s in runs.items():  # one at a time: their arrays are large
        with state.noting():
            arrays = state.arrays(PROBLEM, name)
            of_run = missing_mse(arrays["estimate"], observed, truth)
            intervals[name] = state.interval(of_run[list(position.values())].mean(axis=0))
            for mask, m in position.items():
                for case in cases[mask]:
                    known = observed[m, case.index]
                    full = completed(arrays["estimate"][m, case.index], known)
                    value = f"{of_run[m, case.index].mean():.3f}"
                    alt = f"completed by {name}, {mask}"
                    case.add(name, full, truth[case.index], alt, value, first=name in first)
            given, where = observed[i], f"mask {preferred}: {name}"
            if all(key in arrays for key in uncertainty.ARRAYS):
                kept = {key: arrays[key][i] for key in ("estimate", "deviation", "samples")}
                classifier = ground.network("classifier")
                steps = samples(kept, truth, given, classifier, where=where)
                drawn.append(replace(steps, file=f"ambiguous_{name}"))
            if "snapshots" in arrays:
                steps = iterations(arrays, truth, given, position=i, where=where)
                watched.append(replace(steps, file=f"iterations_{name}", open=not watched))
            settings = s["settings"]
            if (settings.get("objective"), settings.get("answer")) == ("known", "input"):
                network = ground.network(s["network"])
                steps = false_minima(network, arrays["estimate"][i], truth, given, where=where)
                watched.append(replace(steps, file=f"false_minima_{name}"))
    gallery = Gallery(
        "Good, median and worst images",
        f"Under each mask, all test images in the order of {best}’s MSE over the "
        "missing pixels (the best mean of all methods that look at the image): those around the "
        "5 % quantile, around the median, and the last ones. Beside each method its MSE on the "
        "images shown.",
        cases,
        "mask",
        first=preferred,
        sheets={f"{PROBLEM}_{mask}": [mask] for mask in masks},
    )
    middle = state.chosen[f"{PROBLEM}/{preferred}"]["median"][:1]
    full = completed(reference[i, middle], observed[i, middle])
    pictures = [
        Strip("original", truth[middle], "a test image"),
        Strip("given", observed[i, middle], f"the same with its {preferred} missing"),
        Strip("completed", full, "the completion"),
    ]
    return pictures, [gallery, *drawn, *watched], intervals


def missing_mse(estimate: Any, observed: Any, truth: Any) -> Any:
    """MSE over the missing pixels, (masks, n), of estimates (masks, n, 28, 28)."""
    missing = np.isnan(observed)
    squares = np.where(missing, (np.clip(estimate, 0, 1) - truth) ** 2, 0)
    return squares.sum(axis=(2, 3)) / missing.sum(axis=(2, 3))


def iterations(
    arrays: Arrays, truth: NDArray[Any], observed: NDArray[Any], *, position: int, where: str
) -> Steps:
    """Completions of the first images (n, 28, 28) under the mask at a position after more and more
    iterations."""
    taken = arrays["snapshots"][:, position, :WATCHED]  # (S, images, 28, 28)
    captions = ["original", "given", *(str(step) for step in arrays["snapshot_steps"])]
    frames = [
        np.stack([truth[i], observed[i], *(completed(frame, observed[i]) for frame in taken[:, i])])
        for i in range(taken.shape[1])
    ]
    alt = "test image {}: original, given, then the completion step by step"
    return steps_of(f"Along the iterations, {where}", frames, captions, alt=alt)


def samples(
    arrays: Arrays,
    truth: NDArray[Any],
    observed: NDArray[Any],
    classifier: nn.Module,
    *,
    where: str,
) -> Steps:
    """The most ambiguous images: mean, standard deviation and samples.

    Of arrays under one mask: ``estimate``, ``deviation`` (n, 28, 28) and ``samples`` (n, K, 28, 28)
    uint8, in which the classifier reads the digits; truth and observed are (n, 28, 28).
    """
    drawn = uncertainty.completions(torch.from_numpy(arrays["samples"]), torch.from_numpy(observed))
    read = uncertainty.read_digits(drawn, classifier)
    unsure = uncertainty.ambiguous(read)
    digits = ["".join(map(str, labels)) for labels in read[unsure, :SAMPLES].tolist()]
    index = unsure.numpy()
    given, found = observed[index], drawn[unsure, :SAMPLES].numpy()
    spread = np.where(np.isnan(given), 2 * arrays["deviation"][index].astype(np.float32), 0)
    rows = [
        Strip("original", truth[index], "original images", captions=digits),
        Strip("given", given, "what is given of them"),
        Strip("mean", completed(arrays["estimate"][index], given), "mean completions"),
        Strip("deviation", spread, "standard deviation of each pixel", colours="heat"),
        *(
            Strip(f"sample {i + 1}", found[:, i], f"plausible completions, {i + 1}")
            for i in range(found.shape[1])
        ),
    ]
    note = (
        "The images whose samples the classifier reads most differently; the numbers are the "
        "digits that it reads, in the samples' order. Deviation: black is none, yellow 0.5."
    )
    return Steps(f"Several plausible completions, {where}", rows, note)


@torch.no_grad()
def false_minima(
    network: nn.Module,
    estimate: NDArray[Any],
    truth: NDArray[Any],
    observed: NDArray[Any],
    *,
    where: str,
) -> Steps:
    """Inputs that an autoencoder f explains better than the truth, and the share of them.

    The loss is the mean (f(x) - x)² over known pixels, above each column in thousandths: the
    truth's, and that of the optimised input. The columns are the first images where the latter is
    lower. Estimate, truth and observed, NaN where a pixel is missing, are (n, 28, 28).
    """
    inputs = {"truth": truth, "optimised": completed(estimate, observed)}
    known = ~np.isnan(observed)
    outputs, losses = {}, {}
    for name, images in inputs.items():
        outputs[name] = network(torch.from_numpy(images.astype(np.float32))).numpy()
        errors = np.where(known, outputs[name] - images, 0.0)
        losses[name] = (errors**2).sum(axis=(1, 2)) / known.sum(axis=(1, 2))
    lower = losses["optimised"] < losses["truth"]
    index = np.flatnonzero(lower)[:COLUMNS]
    index = index if len(index) else np.arange(min(COLUMNS, len(truth)))
    captions = [
        f"{1000 * losses['truth'][i]:.1f}/{1000 * losses['optimised'][i]:.1f}" for i in index
    ]
    rows = [Strip("given", observed[index], "what is given", captions=captions)]
    for name, images in inputs.items():
        rows.append(Strip(f"{name} x", images[index], f"{name} images"))
        rows.append(Strip(f"f({name} x)", outputs[name][index], f"{name} images, autoencoded"))
    title = f"A lower loss than the truth's in {lower.mean():.1%} of {len(truth)} images, {where}"
    note = (
        "Loss of the known pixels, in thousandths, of the truth and of the optimised input: the "
        "network explains what it was optimised to explain, not the image."
    )
    return Steps(title, rows, note, open=False)


def pictures(run: Run, ground: Ground) -> Iterator[tuple[str, int, Any]]:
    """For each mask the first test images as rows original, given, completed and error; of one
    mask also the completion along the iterations."""
    truth, observed = ground.truth["images"][:TRACKED], ground.given["observed"][:, :TRACKED]

    def picture(found: NDArray[Any], given: NDArray[Any]) -> NDArray[np.uint8]:
        full = completed(found[:TRACKED], given)
        return mosaic([truth, given, full, abs(full - truth)])

    for i, mask in enumerate(ground.given["masks"].tolist()):
        yield f"{mask}/completed", 0, picture(run.arrays["estimate"][i], observed[i])
        for step, snapshot in run.snapshots() if mask == PREFERRED_MASK else ():
            yield f"{mask}/iterations", step, picture(snapshot[i], observed[i])
