"""Network inversion: inputs that give a wanted output, or a proof that there is none."""

import math

import numpy as np

from retrace.pipeline.artifacts import checkpoint_path, load_checkpoint
from retrace.pipeline.command import Refusal
from retrace.problems.network_inversion import score as network_inversion
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
    number,
    score,
    short,
    total_seconds,
)

PROBLEM = network_inversion.PROBLEM
TITLE = "Network inversion"
LEAD = (
    "A wanted output: a number, a class, an answer of one hidden unit, a gate that shuts. Which "
    "input gives it, or is there provably none?"
)
SMALLEST = 1e-17  # a relative error of 0 on a logarithmic scale
TRACES = 10  # gates in a picture
Run = network_inversion.Run


def section(state: State) -> Section:
    """Table, trajectories, grids of units, gates and classes, trade-off."""
    runs = state.scores(PROBLEM)
    if not runs:
        return Section(PROBLEM, TITLE, LEAD, None, [])
    loaded: dict[str, Run] = {}
    for name, s in runs.items():
        try:
            network, _ = load_checkpoint(checkpoint_path(s["network"]))
        except Refusal as refusal:
            state.lacks(refusal)
            continue
        arrays = state.arrays(name)
        if arrays is not None:
            loaded[name] = network, arrays, s["method"], state.runs[name]["settings"]
    blocks: list[Block] = [table(runs), *trajectories(loaded)]
    blocks += [tradeoff(runs)] if len(runs) > 1 else []
    pictures: list[Strip] = []
    for name, run in loaded.items():
        _, answers, method, settings = run
        label = short(name, PROBLEM)
        if method == "hidden_unit":
            blocks.append(units(run, label=label))
            pictures = pictures or unit_pictures(run)
        elif method == "lstm_gate":
            blocks.append(gates(run, label=label))
        elif method == "class_target" and settings["goal"] == "nearest":
            gallery, pictures = nearest(state, name, run)
            blocks.append(gallery)
        elif method == "class_target":
            captions = [str(label) for label in answers["label"].tolist()]
            picture = strips.grey(answers["estimate"])
            strip = Strip("input", picture, f"{label}: the input that each class wants")
            blocks.append(
                Steps(f"What each class wants: {label}", captions, [strip], "One column a class.")
            )
    return Section(PROBLEM, TITLE, LEAD, summary_of(runs, pictures), blocks)


def table(runs: dict[str, Scores]) -> Table:
    columns = [
        Column("method"),
        Column("network"),
        Column("targets"),
        Column("reached", "", "of the targets that are not proved infeasible, within 1e-6"),
        Column("largest relative error"),
        Column("proved infeasible"),
        Column("undecided"),
        Column("distance", "", "Euclidean, from the start, of reached targets"),
        Column("steps"),
        Column("seconds"),
    ]
    rows = [
        Row(
            short(name, PROBLEM),
            [
                Cell(s["method"]),
                Cell(s["network"]),
                number(s["n"], "d"),
                score(s, "reached", ".1%"),
                number(s.get("relative_error_max"), ".1e"),
                number(s["infeasible"], "d"),
                number(s["unknown"], "d"),
                score(s, "distance_mean", ".2f"),
                number(s["iterations_mean"], ".0f"),
                number(s["seconds"], ".2f"),
            ],
        )
        for name, s in runs.items()
    ]
    note = (
        "Outputs are computed again from the input, in float64. Runs seek different outputs of "
        "different networks, so that no best one is marked; those of one network are comparable."
    )
    return Table("Inputs for wanted outputs", columns, rows, note)


def trajectories(loaded: dict[str, Run]) -> list[Chart]:
    """Inputs by step, one chart for each network with one input."""
    networks: dict[str, dict[str, Run]] = {}
    for name, run in loaded.items():
        _, arrays, method, _ = run
        if method == "affine" and len(arrays["estimate"][0]) == 1:
            networks.setdefault(str(arrays["network"]), {})[short(name, PROBLEM)] = run
    found = []
    for network, runs in networks.items():
        iterative = [name for name, run in runs.items() if "trajectory" in run[1]]
        if not iterative and runs[next(iter(runs))][0].activation != "identity":
            continue
        with charts.style():
            figure = network_inversion.affine_figure(runs)
        found.append(
            Chart(
                f"Trajectories: {network}",
                charts.svg(figure, name=f"{PROBLEM}-{network}"),
                f"The input of {network} by step towards each wanted output: "
                + (", ".join(iterative) or "no iterative run"),
                "Dashed: the input that gives the wanted output exactly.",
                wide=len(figure.axes) > 1,
            )
        )
    return found


def tradeoff(runs: dict[str, Scores]) -> Chart:
    points = [
        charts.Point(
            short(name, PROBLEM),
            1000 * s["seconds"] / s["n"],
            max(s["relative_error_max"], SMALLEST),
            False,
        )
        for name, s in runs.items()
        if "relative_error_max" in s
    ]
    return Chart(
        "Quality against seconds",
        charts.tradeoff(
            points,
            name=f"{PROBLEM}-seconds",
            label="largest relative error",
            unit="seconds for 1,000 targets",
        ),
        "Largest relative error against seconds for 1,000 targets: "
        + "; ".join(f"{p.label} {p.value:.0e} in {p.seconds:.2g} s" for p in points),
        "Further down is better, further left is faster.",
    )


def units(run: Run, *, label: str) -> Steps:
    rows, captions = network_inversion.units_rows(*run)
    lines = [Strip(name, strips.grey(row), f"{label}, {name}") for name, row in rows.items()]
    note = (
        "For each unit the image that had to change most to shut it down, then the nearest image "
        "for each task; white: proved that there is none. Gradient: where the unit looks."
    )
    return Steps(f"Units: {label}", captions, lines, note)


def unit_pictures(run: Run) -> list[Strip]:
    """Image, nearest image that shuts the first unit down, and their difference."""
    _, arrays, _, settings = run
    index = network_inversion.shown_units(arrays, settings)[0, 1:2]
    start, answer = arrays["start"][index], arrays["estimate"][index]
    return [
        Strip("image", strips.grey(start), "an image that a hidden unit answers to"),
        Strip("unit shut", strips.grey(answer), "the nearest image that shuts the unit down"),
        Strip("change", strips.signed(answer - start), "their difference"),
    ]


def gates(run: Run, *, label: str) -> Steps:
    network, arrays, _, settings = run
    index = network_inversion.shown_gates(arrays, count=TRACES)
    rows = network_inversion.gate_strips(network, arrays, index)
    names = ("image", "changed", "difference", "gate before", "gate after")
    lines = [
        Strip(name, strips.grey(row), f"{label}: {name}")
        for name, row in zip(names, rows, strict=True)
    ]
    captions = [f"unit {arrays['unit'][i]}" for i in index]
    kind = "at row" if settings["change"] == "row" else "from row"
    note = (
        f"The forget gate of an LSTM that reads the image row by row shall be at most "
        f"{settings['gate']:g} {kind} {settings['row']}. Gate: white is open, a row a step."
    )
    return Steps(f"Gates: {label}", captions, lines, note)


def nearest(state: State, name: str, run: Run) -> tuple[Gallery, list[Strip]]:
    """Images and the nearest ones with another label, by how far they are."""
    network, arrays, method, settings = run
    classes = int(arrays["label"].max()) + 1
    count = len(arrays["estimate"]) // classes
    start, answer, _, gradient, captions = network_inversion.nearest_strips(
        network, arrays, method, settings, count=count
    )
    distance = np.sqrt(((answer - start) ** 2).sum(axis=(1, 2)))
    cases = []
    chosen = state.choose(name, distance)
    for case, index in chosen.items():
        labels = ", ".join(captions[i].split(":")[0] for i in index)
        rows = [
            Strip("image", strips.grey(start[index]), f"{case}: images", given=True),
            Strip(
                "nearest",
                strips.grey(answer[index]),
                f"{case}: the nearest images with another label ({labels})",
                strips.signed(answer[index] - start[index]),
                labels,
            ),
            Strip(
                "gradient",
                strips.grey(gradient[index]),
                f"{case}: where the class looks",
                given=True,
            ),
        ]
        low, high = distance[index].min(), distance[index].max()
        cases.append(Case(case, f"distance {low:.1f} to {high:.1f}", rows))
    probability = settings["probability"]
    gallery = Gallery(
        f"The nearest image of another class: {short(name, PROBLEM)}",
        f"Nearest images that the classifier takes for another digit with a probability of "
        f"{probability:g}, in the order of their distance: around the nearest 5 %, around the "
        "median, and the farthest. Beside them what was changed: red is brighter, blue darker.",
        {"all": cases},
        "",
        error_label="change",
    )
    middle = chosen["median"][:1]
    before, _, after = captions[middle[0]].split(":")[0].partition(" to ")
    pictures = [
        Strip(f"read as {before}", strips.grey(start[middle]), f"a digit, read as {before}"),
        Strip(f"wanted: {after}", strips.grey(answer[middle]), f"nearest, read as {after}"),
        Strip("change", strips.signed(answer[middle] - start[middle]), "their difference"),
    ]
    return gallery, pictures


def summary_of(runs: dict[str, Scores], pictures: list[Strip]) -> Summary:
    """Of each network and method, the run that reached most counts."""
    best: dict[tuple[str, str], Scores] = {}
    for s in runs.values():
        key = s["network"], s["method"]
        if "reached" in s and s["reached"] > best.get(key, {"reached": -1.0})["reached"]:
            best[key] = s
    sought = sum(s["n"] - s["infeasible"] for s in best.values())
    reached = sum(round(s["reached"] * (s["n"] - s["infeasible"])) for s in best.values())
    proved = sum(s["infeasible"] for s in best.values())
    share = reached / sought if sought else math.nan
    naive = min((s["reached"] for s in runs.values() if "reached" in s), default=None)
    return Summary(
        headline=f"{reached:,} of {sought:,} wanted outputs",
        meaning=f"reached within 1e-6; {proved:,} more are proved impossible",
        pictures=pictures,
        method=f"the best of each of {len(best)} networks and methods",
        result=number(share, ".2%") if sought else Cell("–"),
        measure="wanted outputs reached within 1e-6",
        better="higher",
        baseline="–" if naive is None or naive > 0.5 else f"{naive:.0%} (the worst run)",
        runs=len(runs),
        seconds=total_seconds(runs.values()),
    )
