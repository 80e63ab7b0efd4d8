"""Decoder inversion: codes of a decoder's own outputs, and of images that no code produced."""

from typing import Any

import numpy as np
import torch

from retrace.pipeline.artifacts import (
    CODES,
    checkpoint_path,
    load_checkpoint,
    observed_path,
    read_arrays,
)
from retrace.pipeline.command import Refusal
from retrace.problems.decoder_inversion import score as decoder_inversion
from retrace.problems.decoder_inversion.score import OFF_RANGE, ROUNDING
from retrace.report import charts, strips
from retrace.report.model import (
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

PROBLEM = "decoder_inversion"
TITLE = "Decoder inversion"
LEAD = (
    "An image that a decoder made from a code. Which code was it, and which code comes nearest for "
    "a real image that no code produced?"
)
PRECISIONS = dict(zip(ROUNDING, ("float64", "float32", "8 bits"), strict=True))
EXACT = next(iter(ROUNDING))
WATCHED = 2  # images along iterations


def section(state: State) -> Section:
    """Tables on and off the range, errors by precision, gallery, iterations."""
    runs = state.scores(PROBLEM)
    if not runs:
        return Section(PROBLEM, TITLE, LEAD, None, [])
    errors = {name: s[EXACT]["code_error_median"] for name, s in runs.items()}
    best = best_of(runs, errors, better="lower")
    by_error = sorted(runs, key=lambda name: errors[name])
    by_mse = sorted(runs, key=lambda name: runs[name][OFF_RANGE]["mse"])
    blocks: list[Block] = [
        on_range_table(runs, order=by_error),
        off_range_table(runs, order=by_mse),
        precision_chart(runs, order=by_error),
        *([tradeoff(runs)] if len(runs) > 1 else []),
    ]
    pictures, more = shown(state, runs, order=by_error, best=best, nearest=by_mse[0])
    found = runs[best][EXACT]
    greys = [name for name in by_error if trivial(runs[name])]
    summary = Summary(
        headline=f"{found['solved']:.0%} of codes recovered",
        meaning=f"to a median error of {found['code_error_median']:.0e}, from outputs in float64",
        pictures=pictures,
        method=short(best, PROBLEM),
        result=number(found["code_error_median"], ".0e"),
        measure="median of the largest error in a code, float64",
        better="lower",
        baseline=f"{errors[greys[0]]:.0e} ({short(greys[0], PROBLEM)})" if greys else "–",
        runs=len(runs),
        seconds=total_seconds(runs.values()),
    )
    return Section(PROBLEM, TITLE, LEAD, summary, [*blocks, *more])


def on_range_table(runs: dict[str, Scores], *, order: list[str]) -> Table:
    columns = [Column("method")]
    for label in PRECISIONS.values():
        columns += [
            Column(f"{label}: error", "lower", "median of ‖z − ẑ‖∞; small: 95 % quantile"),
            Column(f"{label}: MSE", "lower", "of G(ẑ) against G(z) before rounding"),
            Column(f"{label}: solved", "higher", "same pixels within what was rounded away"),
        ]
    rows = []
    for name in order:
        cells = [Cell(runs[name]["method"])]
        for group in PRECISIONS:
            s = runs[name][group]
            error, tail = s["code_error_median"], s["code_error_p95"]
            cells += [
                Cell(f"{error:.0e}", error, f"95 %: {tail:.0e}"),
                score(s, "mse", ".0e"),
                number(s["solved"], ".1%"),
            ]
        rows.append(Row(short(name, PROBLEM), cells, trivial=trivial(runs[name])))
    n = next(iter(runs.values()))["n"]
    return Table(f"The codes of {n} outputs of the decoder, by precision", columns, rows)


def off_range_table(runs: dict[str, Scores], *, order: list[str]) -> Table:
    columns = [
        Column("method"),
        Column("MSE", "lower"),
        Column("÷ encoder", "lower", "the MSE divided by that of the encoder’s means"),
        Column("SSIM", "higher"),
        Column("median ‖z‖", "", "length of the code"),
        Column("solved", "higher", "within 1 % of the best known objective"),
        Column("seconds / 1,000", "", "over images of both kinds"),
    ]
    rows = []
    for name in order:
        s = runs[name][OFF_RANGE]
        rows.append(
            Row(
                short(name, PROBLEM),
                [
                    Cell(runs[name]["method"]),
                    score(s, "mse", ".4f"),
                    number(s["mse_over_encoder"], ".2f"),
                    score(s, "ssim", ".3f"),
                    number(s["norm_median"], ".1f"),
                    number(s.get("solved"), ".0%"),
                    number(runs[name]["seconds_per_1000"], ".1f"),
                ],
                trivial=trivial(runs[name]),
            )
        )
    n = next(iter(runs.values()))["n"]
    return Table(f"{n} test images, which no code produced", columns, rows)


def precision_chart(runs: dict[str, Scores], *, order: list[str]) -> Chart:
    places = list(range(len(PRECISIONS)))
    series = {
        short(name, PROBLEM): (places, [runs[name][g]["code_error_median"] for g in PRECISIONS])
        for name in order
    }
    return Chart(
        "Error of the code by precision and method",
        charts.lines(
            series,
            name=f"{PROBLEM}-precision",
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


def tradeoff(runs: dict[str, Scores]) -> Chart:
    points = [
        charts.Point(short(name, PROBLEM), s["seconds_per_1000"], s[OFF_RANGE]["mse"], trivial(s))
        for name, s in runs.items()
    ]
    return Chart(
        "Quality against seconds",
        charts.tradeoff(
            points,
            name=f"{PROBLEM}-seconds",
            label="MSE, test images",
            unit="seconds for 1,000 images",
        ),
        "MSE on test images against seconds for 1,000: "
        + "; ".join(f"{p.label} {p.value:.4f} in {p.seconds:.1f} s" for p in points),
        "Further down is better, further left is faster; grey: nothing is searched.",
    )


def shown(
    state: State, runs: dict[str, Scores], *, order: list[str], best: str, nearest: str
) -> tuple[list[Strip], list[Block]]:
    """Pictures of the first screen; gallery by kind of image, and strips along iterations."""
    try:
        network, _ = load_checkpoint(checkpoint_path(runs[best]["network"]))
        observations = read_arrays(observed_path(PROBLEM))
        codes = read_arrays(CODES)["codes"]
    except Refusal as refusal:
        state.lacks(refusal)
        return [], []
    network.double()
    found = {n: arrays for n in order if (arrays := state.arrays(n)) is not None}
    if best not in found or nearest not in found:
        return [], []
    kinds, observed = observations["groups"].tolist(), observations["observed"]
    names = {**PRECISIONS, OFF_RANGE: "test images"}
    groups: dict[str, list[Case]] = {}
    for i, kind in enumerate(kinds):
        reference = nearest if kind == OFF_RANGE else best
        if kind == OFF_RANGE:
            decoded = decoder_inversion.decoded(network, found[reference]["estimate"][i])
            errors, what = ((decoded - observed[i]) ** 2).mean(axis=(1, 2)), "MSE"
        else:
            errors = abs(found[reference]["estimate"][i] - codes).max(axis=1)
            what = "error"
        cases = []
        for case, index in state.choose(f"{PROBLEM}/{kind}", errors).items():
            images = observed[i, index]
            alt = f"{names[kind]}, {case}"
            rows = [Strip("image", strips.grey(images), f"{alt}: images given", given=True)]
            for name, arrays in found.items():
                output = decoder_inversion.decoded(network, arrays["estimate"][i, index])
                error = abs(output - images)
                rows.append(
                    Strip(
                        short(name, PROBLEM),
                        strips.grey(output),
                        f"{alt}: decoded again from the codes of {short(name, PROBLEM)}",
                        strips.heat(error),
                        f"{(error**2).mean():.1e}",
                    )
                )
            low, high = errors[index].min(), errors[index].max()
            note = f"{what} of {short(reference, PROBLEM)}: {low:.0e} to {high:.0e}"
            cases.append(Case(case, note, rows))
        groups[names[kind]] = cases
    gallery = Gallery(
        "Good, median and worst images, decoded again",
        f"Outputs of the decoder in the order of {short(best, PROBLEM)}’s error of the code, test "
        f"images in the order of {short(nearest, PROBLEM)}’s MSE: those around the 5 % quantile, "
        "around the median, and the last ones. Beside each method its MSE on the images shown.",
        groups,
        "images",
        first=names[kinds[0]],
    )
    steps = [
        iterations(state, name, arrays, observed, position=kinds.index(OFF_RANGE), network=network)
        for name, arrays in found.items()
        if "snapshots" in arrays
    ]
    middle = state.chosen[f"{PROBLEM}/{EXACT}"]["median"][0]
    i = kinds.index(EXACT)
    pictures = [
        Strip("code", strips.code(codes[middle]), "a code: a value a square"),
        Strip("its image", strips.grey(observed[i, middle : middle + 1]), "what it decodes to"),
        Strip("code found", strips.code(found[best]["estimate"][i, middle]), "the code found"),
    ]
    return pictures, [gallery, *steps]


def iterations(
    state: State, name: str, arrays: Any, observed: Any, *, position: int, network: torch.nn.Module
) -> Steps:
    """Test images, decoded from the codes after more and more iterations."""
    rows = []
    for i in range(min(WATCHED, arrays["snapshots"].shape[2])):
        output = decoder_inversion.decoded(network, arrays["snapshots"][:, position, i])
        picture = strips.grey(np.concatenate([observed[position, i : i + 1], output]))
        rows.append(Strip(f"{i + 1}", picture, f"test image {i + 1}, decoded step by step"))
    captions = ["image", *(str(step) for step in arrays["snapshot_steps"])]
    title = f"Along the iterations, test images: {short(name, PROBLEM)}"
    return Steps(title, captions, rows, "The numbers count steps.")
