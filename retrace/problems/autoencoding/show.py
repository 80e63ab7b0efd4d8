"""Autoencoding: what is left of an image behind each bottleneck, beside PCA of the same size."""

import numpy as np

from retrace.measures import quality
from retrace.pipeline.artifacts import BASELINES, history_path, read_json, read_split
from retrace.pipeline.command import Refusal
from retrace.report import charts, strips
from retrace.report import sheets as report
from retrace.report.model import (
    Block,
    Case,
    Chart,
    Column,
    Gallery,
    Row,
    Scores,
    Section,
    State,
    Strip,
    Summary,
    Table,
    best_of,
    number,
    score,
    short,
    total_seconds,
    words,
)

PROBLEM = "autoencoding"
TITLE = "Autoencoding"
LEAD = (
    "An image passes through an autoencoder’s bottleneck. How much of it comes out again, and how "
    "much would PCA keep with as many numbers?"
)


def section(state: State) -> Section:
    """Table, chart and gallery of all autoencoders."""
    runs = state.scores(PROBLEM)
    if not runs:
        return Section(PROBLEM, TITLE, LEAD, None, [])
    best = best_of(runs, {n: s["mse_over_pca"] for n, s in runs.items()}, better="lower")
    blocks: list[Block] = [table(runs)]
    with charts.style():
        figure = report.code_size_figure(runs, read_json(BASELINES)["pca_mse"])
    blocks.append(
        Chart(
            "What the bottleneck costs",
            charts.svg(figure, name=PROBLEM),
            "MSE on test images against the number of values in the code: PCA as a curve, each "
            f"network as a point below it. The lowest ratio to PCA has {short(best, PROBLEM)}.",
            "Below PCA’s curve, a network keeps more than any linear code of its size.",
        )
    )
    points = [
        charts.Point(short(name, PROBLEM), seconds, s["mse"], False)
        for name, s in runs.items()
        if (seconds := state.seconds(history_path(s["network"]))) is not None
    ]
    if len(points) > 1:
        blocks.append(
            Chart(
                "Quality against seconds",
                charts.tradeoff(
                    points,
                    name=f"{PROBLEM}-seconds",
                    label="MSE, test images",
                    unit="seconds of training",
                ),
                "MSE against the seconds that each network was trained for: "
                + "; ".join(f"{p.label} {p.value:.4f} after {p.seconds:.0f} s" for p in points),
                "Further down is better, further left is faster.",
            )
        )
    pictures, gallery = shown(state, runs, best=best)
    blocks += [gallery] if gallery else []
    scores = runs[best]
    summary = Summary(
        headline=f"{scores['mse_over_pca']:.2f} × PCA’s error",
        meaning=f"with {scores['code_size']} numbers for 784 pixels",
        pictures=pictures,
        method=short(best, PROBLEM),
        result=score(scores, "mse", ".4f"),
        measure=f"MSE, {scores['n']} test images",
        better="lower",
        baseline=f"{scores['pca_mse']:.4f} (PCA, {scores['code_size']} numbers)",
        runs=len(runs),
        seconds=total_seconds(runs.values()),
    )
    return Section(PROBLEM, TITLE, LEAD, summary, blocks)


def table(runs: dict[str, Scores]) -> Table:
    columns = [
        Column("network"),
        Column("code"),
        Column("MSE", "lower", "over all test images"),
        Column("÷ PCA", "lower", "the MSE divided by PCA’s with as many components"),
        Column("PSNR, dB", "higher"),
        Column("SSIM", "higher"),
        Column("seconds", "", "of all test images"),
    ]
    rows = [
        Row(
            short(name, PROBLEM),
            [
                *words(s["network"]),
                number(s["code_size"], "d"),
                score(s, "mse", ".4f"),
                number(s["mse_over_pca"], ".2f"),
                score(s, "psnr", ".1f"),
                score(s, "ssim", ".3f"),
                number(s["seconds"], ".2f"),
            ],
        )
        for name, s in runs.items()
    ]
    for size, mse in sorted({(s["code_size"], s["pca_mse"]) for s in runs.values()}):
        cells = [*words("–"), number(size, "d"), number(mse, ".4f"), number(1.0, ".2f")]
        cells += [number(quality.psnr(mse), ".1f"), *words("", "")]
        rows.append(Row(f"PCA, {size}", cells, trivial=True))
    return Table("Every autoencoder on all test images", columns, rows)


def shown(
    state: State, runs: dict[str, Scores], *, best: str
) -> tuple[list[Strip], Gallery | None]:
    """Pictures of the first screen, and the gallery."""
    try:
        truth = read_split("test")[0].numpy()
    except Refusal as refusal:
        state.lacks(refusal)
        return [], None
    first = state.arrays(best, "estimate")
    if first is None:
        return [], None
    error = ((first["estimate"] - truth) ** 2).mean(axis=(1, 2))
    chosen = state.choose(PROBLEM, error)
    outputs = {
        name: arrays["estimate"]
        for name in runs
        if (arrays := state.arrays(name, "estimate")) is not None
    }
    cases = []
    for case, index in chosen.items():
        rows = [Strip("original", strips.grey(truth[index]), f"{case}: originals", given=True)]
        for name, output in outputs.items():
            found = np.clip(output[index], 0, 1)
            wrong = abs(found - truth[index])
            rows.append(
                Strip(
                    short(name, PROBLEM),
                    strips.grey(found),
                    f"{case}: {short(name, PROBLEM)}",
                    strips.heat(wrong),
                    f"{(wrong**2).mean():.4f}",
                )
            )
        note = (
            f"MSE of {short(best, PROBLEM)}: {error[index].min():.4f} to {error[index].max():.4f}"
        )
        cases.append(Case(case, note, rows))
    gallery = Gallery(
        "Good, median and worst images",
        f"All test images in the order of {short(best, PROBLEM)}’s MSE: those around the 5 % "
        "quantile, around the median, and the last ones.",
        {"all": cases},
        "",
    )
    middle = chosen["median"][:1]
    one = np.clip(first["estimate"][middle], 0, 1)
    pictures = [
        Strip("original", strips.grey(truth[middle]), "a test image"),
        Strip("output", strips.grey(one), "the same behind the bottleneck"),
        Strip("error", strips.heat(abs(one - truth[middle])), "where they differ"),
    ]
    return pictures, gallery
