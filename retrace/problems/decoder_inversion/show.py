"""Decoder inversion: codes of a decoder's own outputs, and of images that no code produced."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from retrace.problems import Arrays, Ground, Run
from retrace.problems.decoder_inversion.score import OFF_RANGE, ROUNDING
from retrace.report import charts
from retrace.report.model import (
    METHOD,
    Block,
    Case,
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
    scored,
    steps_of,
    tabulated,
    total_seconds,
)
from retrace.report.pictures import TRACKED, code, mosaic

PROBLEM = "decoder_inversion"
TITLE = "Decoder inversion"
ORDER = 5
LEAD = (
    "An image that a decoder made from a code. Which code was it, and which code comes nearest for "
    "a real image that no code produced?"
)
PRECISIONS = dict(zip(ROUNDING, ("float64", "float32", "8 bits"), strict=True))
KINDS = {**PRECISIONS, OFF_RANGE: "test images"}
EXACT = next(iter(ROUNDING))
TRIVIAL = "encoder"  # the method that searches nothing: grey
WATCHED = 2  # images along iterations


def section(state: State) -> Section:
    """Tables on and off the range, errors by precision, gallery, iterations."""
    runs = state.scores(PROBLEM)
    runs = dict(sorted(runs.items(), key=lambda item: item[1][EXACT]["code_error_median"]))
    errors = {name: s[EXACT]["code_error_median"] for name, s in runs.items()}
    greys = [name for name, s in runs.items() if s["method"] == TRIVIAL]
    best = best_of(errors, better="lower", grey=greys)
    by_mse = dict(sorted(runs.items(), key=lambda item: item[1][OFF_RANGE]["mse"]))
    blocks: list[Block] = [
        on_range_table(runs, grey=greys),
        off_range_table(by_mse, grey=greys),
        precision_chart(runs),
        *charts.tradeoff(
            [
                charts.Point(name, s["seconds_per_1000"], s[OFF_RANGE]["mse"], name in greys)
                for name, s in runs.items()
            ],
            label="MSE, test images",
            form=".4f",
            unit="seconds for 1,000 images",
            caption="Further down is better, further left is faster; grey: nothing is searched.",
        ),
    ]
    pictures: list[Strip] = []
    with state.noting():
        pictures, more = pictured(state, runs, best=best, nearest=next(iter(by_mse)))
        blocks += more
    found = runs[best][EXACT]
    summary = Summary(
        headline=f"{found['solved']:.0%} of codes recovered",
        meaning=f"to a median error of {found['code_error_median']:.0e}, from outputs in float64",
        pictures=pictures,
        method=best,
        result=number(found["code_error_median"], ".0e"),
        measure="median of the largest error in a code, float64",
        better="lower",
        baseline=f"{errors[greys[0]]:.0e} ({greys[0]})" if greys else "–",
        runs=len(runs),
        seconds=total_seconds(runs.values()),
    )
    return Section(PROBLEM, TITLE, LEAD, summary, blocks)


def on_range_table(runs: dict[str, Scores], *, grey: list[str]) -> Table:
    def error(group: str) -> Callable[[Scores], Cell]:
        def cell(scores: Scores) -> Cell:
            keys = ("code_error_median", "code_error_p95", "code_error_max")
            median, tail, largest = (scores[group][key] for key in keys)
            return Cell(f"{median:.0e}", median, f"95 %: {tail:.0e}, largest {largest:.0e}")

        return cell

    hints = (
        "median of ‖z − ẑ‖∞; small: 95 % quantile, largest",
        "of G(ẑ) against G(z) before rounding",
        "same pixels within what was rounded away",
    )
    columns = [METHOD]
    for group, label in PRECISIONS.items():
        columns += [
            Column(f"{label}: error", "lower", hints[0], error(group)),
            scored(f"{group}/mse", ".0e", f"{label}: MSE", "lower", hints[1]),
            scored(f"{group}/solved", ".1%", f"{label}: solved", "higher", hints[2]),
        ]
    n = next(iter(runs.values()))["n"]
    return tabulated(
        f"The codes of {n} outputs of the decoder, by precision", runs, columns, grey=grey
    )


def off_range_table(runs: dict[str, Scores], *, grey: list[str]) -> Table:
    def off(key: str, form: str, *rest: Any) -> Column:
        return scored(f"{OFF_RANGE}/{key}", form, *rest)

    columns = [
        METHOD,
        off("mse", ".4f", "MSE", "lower"),
        off("mse_over_encoder", ".2f", "÷ encoder", "lower", "divided by the encoder’s"),
        off("ssim", ".3f", "SSIM", "higher"),
        off("norm_median", ".1f", "median ‖z‖", "", "length of the code"),
        off("norm_max", ".0f", "largest ‖z‖"),
        off("objective_over_best", ".3f", "÷ best known", "lower", "of 45 starts"),
        off("solved", ".0%", "solved", "higher", "within 1 % of the best known objective"),
        scored("seconds_per_1000", ".1f", "seconds / 1,000", "", "over images of both kinds"),
    ]
    n = next(iter(runs.values()))["n"]
    return tabulated(f"{n} test images, which no code produced", runs, columns, grey=grey)


def precision_chart(runs: dict[str, Scores]) -> Chart:
    places = range(len(PRECISIONS))
    series = {
        name: (places, [s[group]["code_error_median"] for group in PRECISIONS])
        for name, s in runs.items()
    }
    return Chart(
        "Error of the code by precision and method",
        lambda: charts.lines(
            series,
            x="precision of the observed image",
            y="median error of the code",
            marks=True,
            y_scale="log",
            ticks=list(PRECISIONS.values()),
        ),
        "; ".join(
            f"{label}: " + ", ".join(f"{value:.0e}" for value in values)
            for label, (_, values) in series.items()
        ),
        "Each rounding of the observation costs digits of the code; which methods survive it?",
    )


@torch.no_grad()
def decoded(network: nn.Module, codes: NDArray[Any]) -> NDArray[Any]:
    """(n, d) codes to (n, 28, 28) images by a network in float64."""
    images: NDArray[Any] = network.decode(torch.from_numpy(codes).double()).numpy()  # type: ignore[operator]
    return images


def pictured(
    state: State, runs: dict[str, Scores], *, best: str, nearest: str
) -> tuple[list[Strip], list[Block]]:
    """Pictures of the first screen; gallery by kind of image, and strips along iterations."""
    ground = Ground(PROBLEM)
    network = ground.network(runs[best]["network"]).double()
    codes, observed = ground.truth["codes"], ground.given["observed"]
    kinds: list[str] = ground.given["groups"].tolist()
    found: dict[str, Arrays] = {}
    for name in runs:
        with state.noting():
            found[name] = state.arrays(PROBLEM, name)
    if best not in found or nearest not in found:
        return [], []
    groups: dict[str, list[Case]] = {}
    for i, kind in enumerate(kinds):
        of = nearest if kind == OFF_RANGE else best
        if kind == OFF_RANGE:
            output = decoded(network, found[of]["estimate"][i])
            errors, what = ((output - observed[i]) ** 2).mean(axis=(1, 2)), "MSE"
        else:
            errors, what = abs(found[of]["estimate"][i] - codes).max(axis=1), "error"
        note = f"{what} of {of}: {{:.0e}} to {{:.0e}}"
        cases = state.cases(f"{PROBLEM}/{kind}", errors, {"image": observed[i]}, note=note)
        for case in cases:
            images = observed[i, case.index]
            for name, arrays in found.items():
                output = decoded(network, arrays["estimate"][i, case.index])
                alt = f"decoded again from the codes of {name}"
                case.add(name, output, images, alt, f"{((output - images) ** 2).mean():.1e}")
        groups[KINDS[kind]] = cases
    gallery = Gallery(
        "Good, median and worst images, decoded again",
        f"Outputs of the decoder in the order of {best}’s error of the code, test "
        f"images in the order of {nearest}’s MSE: those around the 5 % quantile, "
        "around the median, and the last ones. Beside each method its MSE on the images shown.",
        groups,
        "images",
        first=KINDS[kinds[0]],
        sheets={PROBLEM: [KINDS[EXACT], KINDS[OFF_RANGE]]},
    )
    off = kinds.index(OFF_RANGE)
    steps = [
        iterations(arrays, observed[off], position=off, network=network, run=name)
        for name, arrays in found.items()
        if "snapshots" in arrays
    ]
    middle, i = state.chosen[f"{PROBLEM}/{EXACT}"]["median"][0], kinds.index(EXACT)
    answer = found[best]["estimate"][i, middle]
    pictures = [
        Strip("code", code(codes[middle]), "a code: a value a square", colours="signed"),
        Strip("its image", observed[i, middle : middle + 1], "what it decodes to"),
        Strip("code found", code(answer), "the code found", colours="signed"),
    ]
    return pictures, [gallery, *steps]


def iterations(
    arrays: Arrays, images: NDArray[Any], *, position: int, network: nn.Module, run: str
) -> Steps:
    """Test images, decoded from the codes after more and more iterations."""
    captions = ["image", *(str(step) for step in arrays["snapshot_steps"])]
    taken = arrays["snapshots"][:, position, :WATCHED]  # (S, images, d)
    frames = [
        np.concatenate([images[i : i + 1], decoded(network, taken[:, i])])
        for i in range(taken.shape[1])
    ]
    alt = "test image {}, decoded step by step"
    return steps_of(f"Along the iterations, test images: {run}", frames, captions, alt=alt)


def pictures(run: Run, ground: Ground) -> Iterator[tuple[str, int, Any]]:
    """Of each group the images given, and below them decoded again and the error; of images off
    the range also along the iterations."""
    network = ground.network(run.record["network"]).double()
    kinds: list[str] = ground.given["groups"].tolist()

    def picture(i: int, codes: NDArray[Any]) -> Any:
        given = ground.given["observed"][i, :TRACKED]
        output = decoded(network, codes[:TRACKED])
        return mosaic([given, output, abs(output - given)])

    for i, kind in enumerate(kinds):
        yield f"{kind}/decoded", 0, picture(i, run.arrays["estimate"][i])
    off = kinds.index(OFF_RANGE)
    for step, snapshot in run.snapshots():
        yield f"{OFF_RANGE}/iterations", step, picture(off, snapshot[off])
