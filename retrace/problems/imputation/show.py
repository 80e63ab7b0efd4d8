"""Imputation: what each method puts in place of missing pixels."""

from dataclasses import replace
from typing import Any

import numpy as np

from retrace.pipeline.artifacts import observed_path, read_arrays, read_split
from retrace.pipeline.command import Refusal
from retrace.report import charts, strips
from retrace.report.model import (
    Arrays,
    Block,
    Case,
    Cell,
    Chart,
    Column,
    Gallery,
    Row,
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
    short,
    total_seconds,
    trivial,
)
from retrace.report.pictures import completed

PROBLEM = "imputation"
TITLE = "Imputation"
LEAD = (
    "Pixels of a test image are hidden; a network that was trained on whole images has to give "
    "them back. Errors count on the missing pixels alone."
)
PREFERRED_MASK = "bottom"  # on the first screen and along iterations, where there is such a mask
FIRST = 6  # methods that the gallery shows before someone asks for more
WATCHED = 2  # images along iterations
SAMPLES = 6  # completions of one image
COVERAGE = "coverage_"  # and the interval, in a metrics file of a run that gives samples
Intervals = dict[str, tuple[float, float]]


def section(state: State) -> Section:
    """Tables, trade-off, gallery by mask and case, and completions along the iterations."""
    runs = state.scores(PROBLEM)
    if not runs:
        return Section(PROBLEM, TITLE, LEAD, None, [])
    masks = list(next(iter(runs.values()))["masks"])
    runs = {name: s for name, s in runs.items() if set(masks) <= set(s["masks"])}
    means = {name: mean(s, masks, "mse") for name, s in runs.items()}
    order = sorted(runs, key=lambda name: means[name])
    best = best_of(runs, means, better="lower")
    gallery, steps, pictures, intervals = shown(state, runs, masks, order=order, best=best)
    points = [
        charts.Point(short(name, PROBLEM), s["seconds"], means[name], trivial(s))
        for name, s in runs.items()
    ]
    seconds = Chart(
        "Quality against seconds",
        charts.tradeoff(
            points,
            name=f"{PROBLEM}-seconds",
            label="MSE over missing pixels",
            unit=f"seconds, {runs[best]['n']} images under {len(masks)} masks",
        ),
        "MSE over missing pixels, mean over masks, against seconds: "
        + "; ".join(f"{p.label} {p.value:.3f} in {p.seconds:.1f} s" for p in points),
        "Further down is better, further left is faster; grey: no image is looked at.",
    )
    blocks: list[Block] = [
        summary_table(runs, masks, order=order, intervals=intervals),
        mask_table(runs, masks, order=order),
        *([seconds] if len(points) > 1 else []),
        *gallery,
        *steps,
    ]
    greys = [name for name in order if trivial(runs[name])]
    baseline = f"{means[greys[0]]:.3f} ({short(greys[0], PROBLEM)})" if greys else "–"
    summary = Summary(
        headline=f"{mean(runs[best], masks, 'agreement'):.0%} still read as the same digit",
        meaning="by an independent classifier, after the missing pixels were filled in",
        pictures=pictures,
        method=short(best, PROBLEM),
        result=number(means[best], ".3f", *intervals.get(best, (None, None))),
        measure=f"MSE over missing pixels, mean over {len(masks)} masks",
        better="lower",
        baseline=baseline,
        runs=len(runs),
        seconds=total_seconds(runs.values()),
    )
    return Section(PROBLEM, TITLE, LEAD, summary, blocks)


def mean(scores: Scores, masks: list[str], key: str) -> float:
    return float(np.mean([scores["masks"][mask][key] for mask in masks]))


def summary_table(
    runs: dict[str, Scores], masks: list[str], *, order: list[str], intervals: Intervals
) -> Table:
    """Means over masks, the coverage of intervals too where a run gives samples."""
    levels = {
        key: key.removeprefix(COVERAGE)
        for name in order
        for key in runs[name]["masks"][masks[0]]
        if key.startswith(COVERAGE) and not key.endswith(("_low", "_high"))
    }
    columns = [
        Column("method"),
        Column("network"),
        Column("MSE", "lower", "over missing pixels, mean over masks"),
        Column("÷ ridge", "lower", "the MSE divided by that of linear regression"),
        Column("PSNR, dB", "higher", "over missing pixels"),
        Column("SSIM", "higher", "of the completed image"),
        Column("agreement", "higher", "completed images that a classifier labels as the original"),
        *(
            Column(f"within {level} %", "", f"missing pixels within their own {level} % interval")
            for level in levels.values()
        ),
        Column("seconds"),
    ]
    rows = []
    for name in order:
        s = runs[name]
        means = {k: mean(s, masks, k) for k in ("mse_over_ridge", "psnr", "ssim", "agreement")}
        covered = [
            number(mean(s, masks, key), ".1%")
            if all(key in s["masks"][m] for m in masks)
            else Cell()
            for key in levels
        ]
        rows.append(
            Row(
                short(name, PROBLEM),
                [
                    Cell(s["method"]),
                    Cell(s["network"]),
                    number(mean(s, masks, "mse"), ".4f", *intervals.get(name, (None, None))),
                    number(means["mse_over_ridge"], ".2f"),
                    number(means["psnr"], ".1f"),
                    number(means["ssim"], ".3f"),
                    number(means["agreement"], ".3f"),
                    *covered,
                    number(s["seconds"], ".1f"),
                ],
                trivial=trivial(s),
            )
        )
    note = (
        f"Means over {len(masks)} masks, {runs[order[0]]['n']} test images under each; intervals "
        "are 95 % bootstrap intervals over images."
    )
    return Table("All methods, mean over masks", columns, rows, note)


def mask_table(runs: dict[str, Scores], masks: list[str], *, order: list[str]) -> Table:
    rows = [
        Row(
            short(name, PROBLEM),
            [score(runs[name]["masks"][mask], "mse", ".4f") for mask in masks],
            trivial=trivial(runs[name]),
        )
        for name in order
    ]
    columns = [Column(mask, "lower") for mask in masks]
    return Table("MSE over the missing pixels by mask", columns, rows)


def shown(
    state: State, runs: dict[str, Scores], masks: list[str], *, order: list[str], best: str
) -> tuple[list[Gallery], list[Steps], list[Strip], Intervals]:
    """Gallery, strips along iterations, pictures of the first screen, and intervals of means."""
    try:
        truth = read_split("test")[0].numpy()
        observations = read_arrays(observed_path(PROBLEM))
    except Refusal as refusal:
        state.lacks(refusal)
        return [], [], [], {}
    observed = observations["observed"]
    position = {mask: observations["masks"].tolist().index(mask) for mask in masks}
    truth = truth[: observed.shape[1]]
    reference = state.arrays(best, "estimate")
    if reference is None:
        return [], [], [], {}
    errors = missing_mse(reference["estimate"], observed, truth)  # (masks, n)
    chosen = {m: state.choose(f"{PROBLEM}/{m}", errors[i]) for m, i in position.items()}
    cases: dict[str, list[Case]] = {}
    for mask, i in position.items():
        cases[mask] = []
        for case, index in chosen[mask].items():
            alt = f"{mask}, {case}"
            rows = [
                Strip("original", strips.grey(truth[index]), f"{alt}: originals", given=True),
                Strip("given", strips.grey(observed[i, index]), f"{alt}: given", given=True),
            ]
            low, high = errors[i, index].min(), errors[i, index].max()
            note = f"MSE of {short(best, PROBLEM)}: {low:.3f} to {high:.3f}"
            cases[mask].append(Case(case, note, rows))
    preferred = PREFERRED_MASK if PREFERRED_MASK in masks else masks[0]
    intervals: Intervals = {}
    steps: list[Steps] = []
    plausible: list[Steps] = []
    first = [n for n in order if not trivial(runs[n])][: FIRST - 1]
    first += [name for name in order if trivial(runs[name])][:1]
    for name in order:
        arrays = state.arrays(name)
        if arrays is None:
            continue
        of_run = missing_mse(arrays["estimate"], observed, truth)
        intervals[name] = state.interval(of_run[list(position.values())].mean(axis=0))
        label = short(name, PROBLEM)
        for mask, i in position.items():
            for part in cases[mask]:
                index = chosen[mask][part.name]
                full = completed(arrays["estimate"][i, index], observed[i, index])
                part.strips.append(
                    Strip(
                        label,
                        strips.grey(full),
                        f"{mask}, {part.name}: completed by {label}",
                        strips.heat(abs(full - truth[index])),
                        f"{of_run[i, index].mean():.3f}",
                        first=name in first,
                    )
                )
        i = position[preferred]
        if "snapshots" in arrays:
            found = iterations(arrays, truth, observed, position=i, mask=preferred, run=label)
            steps.append(replace(found, open=not steps))
        if arrays.get("samples", truth).ndim == 5:
            plausible.append(
                samples(arrays, truth, observed, position=i, mask=preferred, run=label)
            )
    gallery = Gallery(
        "Good, median and worst images",
        f"Under each mask, all test images in the order of {short(best, PROBLEM)}’s MSE over the "
        "missing pixels (the best mean of all methods that look at the image): those around the "
        "5 % quantile, around the median, and the last ones. Beside each method its MSE on the "
        "images shown.",
        cases,
        "mask",
        first=preferred,
    )
    middle = chosen[preferred]["median"][:1]
    i = position[preferred]
    full = completed(reference["estimate"][i, middle], observed[i, middle])
    pictures = [
        Strip("original", strips.grey(truth[middle]), "a test image"),
        Strip("given", strips.grey(observed[i, middle]), f"the same with its {preferred} missing"),
        Strip("completed", strips.grey(full), "the completion"),
    ]
    return [gallery], [*plausible, *steps], pictures, intervals


def missing_mse(estimate: Any, observed: Any, truth: Any) -> Any:
    """MSE over the missing pixels, (masks, n), of estimates (masks, n, 28, 28)."""
    missing = np.isnan(observed)
    squares = np.where(missing, (np.clip(estimate, 0, 1) - truth) ** 2, 0)
    return squares.sum(axis=(2, 3)) / missing.sum(axis=(2, 3))


def iterations(
    arrays: Arrays, truth: Any, observed: Any, *, position: int, mask: str, run: str
) -> Steps:
    """Completions of the first images after more and more iterations."""
    taken = arrays["snapshots"][:, position, :WATCHED]  # (S, images, 28, 28)
    rows = []
    for i in range(taken.shape[1]):
        given = observed[position, i]
        frames = [completed(frame, given) for frame in taken[:, i]]
        picture = strips.grey([truth[i], given, *frames])
        alt = f"{run}, test image {i + 1}: original, given, then the completion step by step"
        rows.append(Strip(f"{i + 1}", picture, alt))
    captions = ["original", "given", *(str(step) for step in arrays["snapshot_steps"])]
    title = f"Along the iterations, mask {mask}: {run}"
    return Steps(title, captions, rows, "The numbers count steps; the first test images.")


def samples(
    arrays: Arrays, truth: Any, observed: Any, *, position: int, mask: str, run: str
) -> Steps:
    """Several completions of the first images, (masks, images, samples, 28, 28) of bytes or in
    [0, 1], and where they differ."""
    drawn = arrays["samples"][position, :WATCHED, :SAMPLES]
    drawn = drawn / 255 if drawn.dtype == np.uint8 else drawn
    rows = []
    for i in range(len(drawn)):
        given = observed[position, i]
        frames = [completed(frame, given) for frame in drawn[i]]
        spread = arrays["deviation"][position, i] if "deviation" in arrays else drawn[i].std(axis=0)
        spread = np.where(np.isnan(given), spread, 0)
        rows.append(
            Strip(
                f"{i + 1}",
                strips.grey([truth[i], given, *frames]),
                f"{run}, test image {i + 1}: original, given, and {len(frames)} completions",
                strips.heat([spread / max(float(spread.max()), 1e-9)]),
            )
        )
    captions = ["original", "given", *(str(i + 1) for i in range(drawn.shape[1])), "deviation"]
    note = "Each a draw; the last picture shows the standard deviation of a pixel, 0 in black."
    return Steps(f"Several plausible completions, mask {mask}: {run}", captions, rows, note)
