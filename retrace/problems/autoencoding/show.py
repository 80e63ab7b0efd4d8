"""Autoencoding: what is left of an image behind each bottleneck, beside PCA of the same size."""

from collections.abc import Iterator
from math import inf
from typing import Any

import numpy as np
from matplotlib import pyplot
from matplotlib.figure import Figure

from retrace.measures import quality
from retrace.pipeline.artifacts import baselines_path, history_path, read_json
from retrace.problems import Ground, Run
from retrace.report import charts
from retrace.report.model import (
    NETWORK,
    Block,
    Chart,
    Gallery,
    Scores,
    Section,
    State,
    Strip,
    Summary,
    Table,
    best_of,
    score,
    scored,
    tabulated,
    total_seconds,
)
from retrace.report.pictures import COLOURS, TRACKED, mosaic

PROBLEM = "autoencoding"
TITLE = "Autoencoding"
ORDER = 6
LEAD = (
    "An image passes through an autoencoder’s bottleneck. How much of it comes out again, and how "
    "much would PCA keep with as many numbers?"
)
LARGEST = 256  # numbers in a code, in the chart


def section(state: State) -> Section:
    """Table, charts and gallery of all autoencoders."""
    runs = state.scores(PROBLEM)
    best = best_of({n: s.get("mse_over_pca", inf) for n, s in runs.items()}, better="lower")
    blocks: list[Block] = [table(runs)]
    with state.noting():
        blocks.append(code_sizes(runs, read_json(baselines_path(PROBLEM))["pca_mse"], best=best))
    points = []
    for name, s in runs.items():
        with state.noting():
            seconds = float(read_json(history_path(s["network"]))["seconds"])
            points.append(charts.Point(name, seconds, s["mse"]))
    blocks += charts.tradeoff(
        points,
        label="MSE, test images",
        form=".4f",
        unit="seconds of training",
        caption="Further down is better, further left is faster.",
    )
    pictures: list[Strip] = []
    with state.noting():
        pictures, gallery = pictured(state, runs, best=best)
        blocks.append(gallery)
    scores = runs[best]
    ratio = scores.get("mse_over_pca")
    summary = Summary(
        headline=f"{ratio:.2f} × PCA’s error" if ratio else f"MSE {scores['mse']:.4f}",
        meaning=f"with {scores['code_size']} numbers for 784 pixels",
        pictures=pictures,
        method=best,
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
        NETWORK,
        scored("code_size", "d", "code"),
        scored("mse", ".4f", "MSE", "lower", "over all test images"),
        scored("mse_over_pca", ".2f", "÷ PCA", "lower", "divided by PCA’s with as many components"),
        scored("psnr", ".1f", "PSNR, dB", "higher"),
        scored("ssim", ".3f", "SSIM", "higher"),
        scored("seconds", ".2f", "seconds", "", "of all test images"),
    ]
    linear = {
        f"PCA, {size}": {
            **{"network": "–", "code_size": size, "mse": mse, "mse_over_pca": 1.0},
            "psnr": quality.psnr(mse),
        }
        for size, mse in sorted({(s["code_size"], s["pca_mse"]) for s in runs.values()})
        if mse  # else it misses nothing
    }
    title = "Every autoencoder on all test images"
    return tabulated(title, runs | linear, columns, grey=linear)


def code_sizes(runs: dict[str, Scores], pca_mse: list[float], *, best: str) -> Chart:
    """MSE against code size: PCA as a curve, each network as a point."""

    def draw() -> Figure:
        figure, axes = pyplot.subplots(figsize=(6, 3.6))
        sizes = range(1, LARGEST + 1)
        axes.plot(sizes, [pca_mse[size] for size in sizes], color=charts.FAINT, label="PCA")
        for i, (name, s) in enumerate(runs.items()):
            mark = charts.MARKERS[i % len(charts.MARKERS)]
            colour = COLOURS[i % len(COLOURS)]
            axes.plot(s["code_size"], s["mse"], mark, color=colour, markersize=8, label=name)
        axes.set(xscale="log", yscale="log", xlabel="values in the code", ylabel="MSE, test images")
        axes.legend()
        return figure

    return Chart(
        "What the bottleneck costs",
        draw,
        "MSE on test images against the number of values in the code: PCA as a curve, each "
        f"network as a point below it. The lowest ratio to PCA has {best}.",
        "Below PCA’s curve, a network keeps more than any linear code of its size.",
        file="code_size",
    )


def pictured(state: State, runs: dict[str, Scores], *, best: str) -> tuple[list[Strip], Gallery]:
    """Pictures of the first screen, and the gallery."""
    truth = Ground(PROBLEM).truth["images"]
    first = state.arrays(PROBLEM, best, "estimate")["estimate"]
    error = ((first - truth) ** 2).mean(axis=(1, 2))
    note = f"MSE of {best}: {{:.4f}} to {{:.4f}}"
    cases = state.cases(PROBLEM, error, {"original": truth}, note=note)
    for name in runs:
        with state.noting():
            output = np.clip(state.arrays(PROBLEM, name, "estimate")["estimate"], 0, 1)
            for case in cases:
                images, wanted = output[case.index], truth[case.index]
                case.add(name, images, wanted, name, f"{((images - wanted) ** 2).mean():.4f}")
    gallery = Gallery(
        "Good, median and worst images",
        f"All test images in the order of {best}’s MSE: those around the 5 % quantile, around "
        "the median, and the last ones.",
        {"": cases},
        sheets={PROBLEM: [""]},
    )
    middle = state.chosen[PROBLEM]["median"][:1]
    one = np.clip(first[middle], 0, 1)
    pictures = [
        Strip("original", truth[middle], "a test image"),
        Strip("output", one, "the same behind the bottleneck"),
        Strip("error", abs(one - truth[middle]), "where they differ", colours="heat"),
    ]
    return pictures, gallery


def pictures(run: Run, ground: Ground) -> Iterator[tuple[str, int, Any]]:
    """The first test images, and below them output and error."""
    truth, output = ground.truth["images"][:TRACKED], run.arrays["estimate"][:TRACKED]
    yield "reconstruction", 0, mosaic([truth, output, abs(output - truth)])
