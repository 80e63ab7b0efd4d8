"""Membership: was an image one of those that a network was trained on?"""

from collections.abc import Iterator
from typing import Any

import torch

from retrace.measures import membership
from retrace.problems import Ground, Run
from retrace.problems.membership.score import Parts, parts_of
from retrace.report import charts
from retrace.report.model import (
    EACH,
    METHOD,
    NETWORK,
    Block,
    Case,
    Cell,
    Chart,
    Column,
    Gallery,
    Scores,
    Section,
    State,
    Strip,
    Summary,
    Table,
    score,
    scored,
    tabulated,
    total_seconds,
)
from retrace.report.pictures import TRACKED, mosaic

PROBLEM = "membership"
TITLE = "Membership"
ORDER = 3
LEAD = (
    "An image, and the weights of a network that people would train. Was the image in the training "
    "set? Found means: above the score that no, or hardly any, image never seen reaches."
)
TRIVIAL = "loss"  # the method that looks at the outputs alone: grey
LEAST = 1e-4  # false-positive rate where the curves begin
CURVES = 8


def section(state: State) -> Section:
    """Table, ROC curves, and images by how clearly they are told."""
    runs = state.scores(PROBLEM)
    runs = dict(sorted(runs.items(), key=lambda item: (item[1]["n"], -item[1]["tpr_0"])))
    greys = [name for name, s in runs.items() if s["method"] == TRIVIAL]
    # The best of those beside which the loss stands.
    beside = {runs[name]["network"] for name in greys}
    best = max(runs, key=lambda n: (n not in greys, runs[n]["network"] in beside, runs[n]["tpr_0"]))
    blocks: list[Block] = [table(runs, grey=greys)]
    ground = Ground(PROBLEM)
    curves: dict[str, tuple[list[float], list[float]]] = {}
    groups: dict[str, list[Case]] = {}
    pictures: list[Strip] = []
    for name, s in runs.items():
        with state.noting():
            estimate = state.arrays(PROBLEM, name)["estimate"]
            parts = parts_of(ground, s["network"])
            values = torch.from_numpy(estimate)
            false, true = membership.roc(values[parts.members], values[parts.held_out])
            curves[name] = [max(rate, LEAST) for rate in false], true
            groups[name] = cases_of(state, name, values, parts, ground)
            if name == best:
                told, *_, last, null = (case.strips[0] for case in groups[name])
                missed = "missed" if s["tpr_0"] < 1 else "told last"
                pictures = [
                    Strip("member told", told.images[:1], "a member with a high score"),
                    Strip(missed, last.images[-1:], "the member with the lowest score"),
                    Strip("not seen", null.images[:1], "the held-out image with the highest"),
                ]
    blocks.append(chart(runs, curves, grey=greys))
    if groups:
        blocks.append(
            Gallery(
                "Members and others, by how clearly they are told",
                "Of each run, members in the order of their score: around the highest 5 %, around "
                "the median, and the lowest; and the held-out images with the highest scores, "
                "which set the threshold. Above each its score.",
                groups,
                "run",
                first=best,
            )
        )
    found = runs[best]
    rival = [runs[name] for name in greys if runs[name]["network"] == found["network"]]
    summary = Summary(
        headline=f"{found['tpr_0']:.0%} of {found['n']:,} members told",
        meaning=f"from the weights alone, and none of {found['null_n']:,} images never seen",
        pictures=pictures,
        method=best,
        result=score(found, "tpr_0", ".1%"),
        measure=f"members found of {found['n']:,}, without a false positive",
        better="higher",
        baseline=f"{rival[0]['tpr_0']:.1%} (by the loss)" if rival else "–",
        runs=len(runs),
        seconds=total_seconds(runs.values()),
    )
    return Section(PROBLEM, TITLE, LEAD, summary, blocks)


def table(runs: dict[str, Scores], *, grey: list[str]) -> Table:
    def accuracy(s: Scores) -> Cell:
        return Cell(f"{1 - s['test_error']:.1%}", 1 - s["test_error"])

    def held_out(s: Scores) -> Cell:
        return Cell(f"{s['null_n']:,}", s["null_n"])

    rates = [
        scored(f"tpr_{name}", ".1%", f"found at {name} %", "higher", f"{name} % false positives")
        for name in membership.ALLOWED
    ]
    columns = [
        METHOD,
        NETWORK,
        scored("n", ",d", "members"),
        Column("held-out", "", "images that the network never saw", held_out),
        Column("test accuracy", "", "of the network", accuracy),
        *rates,
        scored("auc", ".3f", "AUC", "higher", "area under the ROC curve"),
        scored("seconds", ".1f", "seconds", "", "for all images"),
    ]
    note = (
        "Members of the training set and images never seen, near-duplicates of members taken out. "
        "Found are members above the score that at most the given share of the held-out images "
        "exceeds. Intervals are 95 % bootstrap intervals over members. Grey: the loss, which is "
        "told the labels and looks at no weights."
    )
    return tabulated("Members that are told", runs, columns, grey=grey, note=note)


def chart(
    runs: dict[str, Scores],
    curves: dict[str, tuple[list[float], list[float]]],
    *,
    grey: list[str],
) -> Chart:
    taken = [name for name in curves if name not in grey][:CURVES]
    label = {name: f"{name} ({runs[name]['n']:,})" for name in taken}
    bands = {label[name]: membership.interval(curves[name][1], runs[name]["n"]) for name in taken}
    text = "; ".join(f"{name}: {runs[name]['tpr_0.1']:.0%} at 0.1 %" for name in taken)
    return Chart(
        "Members found against images taken for members",
        lambda: charts.lines(
            {label[name]: curves[name] for name in taken},
            bands=bands,
            x="share of held-out images taken for members (false positives)",
            y="share of members found",
            x_scale="log",
            x_limits=(LEAST, 1.0),
        ),
        f"ROC curves; {text}.",
        "Each curve runs over all thresholds, within its 95 % interval over members (Clopper and "
        "Pearson). In brackets the number of members.",
        file="membership_roc",
    )


def cases_of(
    state: State, name: str, values: torch.Tensor, parts: Parts, ground: Ground
) -> list[Case]:
    """Members by their scores, and the held-out images with the highest."""
    observed = ground.given["observed"]
    members = values[parts.members].numpy()
    chosen = state.choose(f"{PROBLEM}/{name}", -members)

    def strip(case: str, kind: str, index: Any, scores: Any) -> Case:
        captions = [f"{value:.2f}" for value in scores]
        images = observed[index]
        return Case(
            case, "", [Strip(kind, images, f"{case}: {kind}s", captions=captions, given=True)]
        )

    cases = [
        strip(case, "member", parts.members[index].numpy(), members[index])
        for case, index in chosen.items()
    ]
    highest = values[parts.held_out].argsort(descending=True, stable=True)[:EACH]
    positions = parts.held_out[highest]
    return [
        *cases,
        strip("null control", "held-out image", positions.numpy(), values[positions].tolist()),
    ]


def pictures(run: Run, ground: Ground) -> Iterator[tuple[str, int, Any]]:
    """The members with the highest scores, those with the lowest, and the held-out images with the
    highest."""
    parts, values = (
        parts_of(ground, run.record["network"]),
        torch.from_numpy(run.arrays["estimate"]),
    )
    members = parts.members[values[parts.members].argsort(descending=True, stable=True)]
    others = parts.held_out[values[parts.held_out].argsort(descending=True, stable=True)]
    rows = [members[:TRACKED], members[-TRACKED:], others[:TRACKED]]
    yield "told", 0, mosaic([ground.given["observed"][row.numpy()] for row in rows])
