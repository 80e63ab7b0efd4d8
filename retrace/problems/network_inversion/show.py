"""Network inversion: inputs that give a wanted output, or a proof that there is none."""

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from numpy.typing import NDArray

from retrace.problems import Arrays, Ground, Run
from retrace.problems.network_inversion.score import Inversion, inversion_of
from retrace.report import charts
from retrace.report.model import (
    METHOD,
    NETWORK,
    Block,
    Case,
    Cell,
    Chart,
    Gallery,
    Scores,
    Section,
    State,
    Steps,
    Strip,
    Summary,
    Table,
    number,
    scored,
    tabulated,
    total_seconds,
)
from retrace.report.pictures import COLOURS, TRACKED, coloured, mosaic, shades

PROBLEM = "network_inversion"
TITLE = "Network inversion"
ORDER = 4
LEAD = (
    "A wanted output: a number, a class, an answer of one hidden unit, a gate that shuts. Which "
    "input gives it, or is there provably none?"
)
SMALLEST = 1e-17  # a relative error of 0 on a logarithmic scale
COLUMNS = 10  # gates in a picture
TASKS = ("maximise", "shut down")  # of hidden units, before the levels
RATE_SHARES = (0.05, 0.5, 0.9, 1.0, 1.02)  # of the learning rate's bound, in the picture


def section(state: State) -> Section:
    """Table, trajectories, grids of units, gates and classes, trade-off."""
    runs, ground = state.scores(PROBLEM), Ground(PROBLEM)
    loaded: dict[str, Inversion] = {}
    for name, s in runs.items():
        with state.noting():
            loaded[name] = inversion_of(Run(name, s, state.arrays(PROBLEM, name)), ground)
    points = [
        charts.Point(name, 1000 * s["seconds"] / s["n"], max(s["relative_error_max"], SMALLEST))
        for name, s in runs.items()
        if "relative_error_max" in s
    ]
    blocks: list[Block] = [table(runs), *trajectories(loaded)]
    blocks += charts.tradeoff(
        points,
        label="largest relative error",
        form=".0e",
        unit="seconds for 1,000 targets",
        caption="Further down is better, further left is faster.",
    )
    pictures: list[Strip] = []
    for label, run in loaded.items():
        if run.method == "hidden_unit":
            blocks.append(units(run, label=label))
            pictures = pictures or unit_pictures(run)
        elif run.method == "lstm_gate":
            blocks.append(gates(run, label=label))
        elif run.method == "class_target" and run.settings["goal"] == "nearest":
            gallery, pictures = nearest(state, run, label=label)
            blocks.append(gallery)
    blocks += preferred(loaded)
    return Section(PROBLEM, TITLE, LEAD, summary_of(runs, pictures), blocks)


def table(runs: dict[str, Scores]) -> Table:
    reached = "of the targets that are not proved infeasible, within 1e-6"
    columns = [
        METHOD,
        NETWORK,
        scored("n", "d", "targets"),
        scored("reached", ".1%", "reached", "", reached),
        scored("relative_error_max", ".1e", "largest relative error"),
        scored("infeasible", "d", "proved infeasible"),
        scored("unknown", "d", "undecided"),
        scored("distance_mean", ".2f", "distance", "", "from the start, of reached targets"),
        scored("iterations_mean", ".0f", "steps"),
        scored("seconds", ".2f", "seconds"),
    ]
    note = (
        "Outputs are computed again from the input, in float64. Reached: within 1e-6 of the wanted "
        "value, relative to it, as a share of the targets that are not proved infeasible. Distance "
        "is Euclidean. Runs seek different outputs of different networks, so that no best one is "
        "marked; those of one network are comparable."
    )
    return tabulated("Inputs for wanted outputs", runs, columns, note=note)


def trajectories(loaded: Mapping[str, Inversion]) -> list[Chart]:
    """Inputs by step, one chart for each network with one input."""
    networks: dict[str, dict[str, Inversion]] = {}
    for label, run in loaded.items():
        if run.method == "affine" and len(run.arrays["estimate"][0]) == 1:
            networks.setdefault(str(run.arrays["network"]), {})[label] = run
    return [chart for network, runs in networks.items() for chart in trajectories_of(network, runs)]


def trajectories_of(network: str, runs: Mapping[str, Inversion]) -> list[Chart]:
    """Inputs by step of each iterative run, the answer dashed; of a linear network also which
    learning rates converge."""
    iterative = {label: run for label, run in runs.items() if "trajectory" in run.arrays}
    some = next(iter(runs.values()))
    trained: Any = some.network
    linear = trained.activation == "identity"
    weight, bias = float(trained.weight), float(trained.bias)
    panels = len(iterative) + linear
    if not panels:
        return []

    def draw() -> Figure:
        figure, grid = pyplot.subplots(1, panels, figsize=(4.4 * panels, 3.4), squeeze=False)
        for axes, (label, run) in zip(grid[0], iterative.items(), strict=False):
            path, wanted = run.arrays["trajectory"][:, :, 0], run.arrays["wanted"][:, 0]
            for i in range(min(len(run.settings["wanted"]), path.shape[1])):
                colour = COLOURS[i % len(COLOURS)]
                level = wanted[i] if linear else math.log(wanted[i] / (1 - wanted[i]))
                answer, end = (level - bias) / weight, len(path) - 1
                axes.axhline(answer, color=colour, linestyle="dashed", linewidth=0.8)
                axes.plot(path[:, i], color=colour)
                text = f"output {wanted[i]:g}"
                axes.text(end, answer, text, color=colour, ha="right", va="bottom", fontsize=8)
            axes.set(title=label, xlabel="step", ylabel="input")
        if linear:
            axes = grid[0, -1]
            first = float(some.arrays["wanted"][0, 0])
            for share, colour in zip(RATE_SHARES, COLOURS, strict=False):
                x = [some.settings["start"]]
                for _ in range(40):
                    # Gradient descent on (weight x + bias - first)², at a share of its bound.
                    x.append(x[-1] - 2 * share / weight * (weight * x[-1] + bias - first))
                axes.plot(x, color=colour, label=f"{share:g} / w²")
            answer = (first - bias) / weight
            axes.axhline(answer, color=charts.FAINT, linestyle="dashed", linewidth=0.8)
            axes.set(title="learning rates, bound 1 / w²", xlabel="step", ylabel="input")
            axes.legend(fontsize=8)
        return figure

    return [
        Chart(
            f"Trajectories: {network}",
            draw,
            f"The input of {network} by step towards each wanted output: "
            + (", ".join(iterative) or "no iterative run"),
            "Dashed: the input that gives the wanted output exactly.",
            file=f"{PROBLEM}_{network}",
            wide=panels > 1,
        )
    ]


def units(run: Inversion, *, label: str) -> Steps:
    """Units in rows: the image that moved most to shut the unit down, and the answer to each task,
    white where it is proved that there is none. Beside each the unit's sensitivity there, or once
    at the end where it is the same everywhere: of a unit that is affine in the image."""
    arrays, settings = run.arrays, run.settings
    index = shown_units(run)  # (units, tasks)
    estimate, gradient = arrays["estimate"][index], run.sensitivity().numpy()[index]
    affine = bool(np.isclose(gradient, gradient[:, :1], rtol=1e-9, atol=1e-12).all())
    estimate[arrays["feasible"][index] == 0] = 1
    captions = ["image"]
    for task in [*TASKS, *(f"= {level:g}" for level in settings["levels"])]:
        captions += [task] if affine else [task, "gradient"]
    captions += ["gradient"] if affine else []
    rows = []
    for i, unit in enumerate(settings["units"]):
        cells = [arrays["start"][index[i, 0]]]
        for found, slope in zip(estimate[i], shades(gradient[i]), strict=True):
            cells += [found] if affine else [found, slope]
        cells += [shades(gradient[i, :1])[0]] if affine else []
        name = f"unit {unit}"
        rows.append(Strip(name, np.stack(cells), f"{label}, {name}", captions=captions))
        captions = []
    note = (
        "For each unit the image that had to change most to shut it down, then the nearest image "
        "for each task; white: proved that there is none. Gradient: where the unit looks."
    )
    return Steps(f"Units: {label}", rows, note, file=f"{PROBLEM}_{label}")


def shown_units(run: Inversion) -> NDArray[Any]:
    """Positions (units, tasks) of the answers that are shown: for each unit the image that had to
    change most to shut it down, which the unit therefore answers to."""
    settings = run.settings
    count = len(settings["units"]), len(TASKS) + len(settings["levels"]), settings["images"]
    index = np.arange(math.prod(count)).reshape(count)
    change = run.arrays["estimate"] - run.arrays["start"]
    moved = np.abs(change).sum(axis=(1, 2)).reshape(count)
    return np.stack(
        [of_unit[:, i] for of_unit, i in zip(index, moved[:, 1].argmax(1), strict=True)]
    )


def unit_pictures(run: Inversion) -> list[Strip]:
    """Image, nearest image that shuts the first unit down, and their difference."""
    index = shown_units(run)[0, 1:2]
    start, answer = run.arrays["start"][index], run.arrays["estimate"][index]
    return [
        Strip("image", start, "an image that a hidden unit answers to"),
        Strip("unit shut", answer, "the nearest image that shuts the unit down"),
        Strip("change", answer - start, "their difference", colours="signed"),
    ]


def gates(run: Inversion, *, label: str, count: int = COLUMNS) -> Steps:
    """Images, changed images, differences, and the forget gates before and after, as images whose
    row t is the gate at that row: white is open."""
    settings, index = run.settings, shown_gates(run.arrays, count=count)
    start, estimate = run.arrays["start"][index], run.arrays["estimate"][index]
    network: Any = copy.deepcopy(run.network).double()
    unit = torch.from_numpy(run.arrays["unit"][index])

    def gate(images: NDArray[Any]) -> NDArray[Any]:
        found = network.forget_logits(torch.from_numpy(images)).sigmoid()
        rows = found.shape[1]
        of_unit: torch.Tensor = found.gather(2, unit[:, None, None].expand(-1, rows, 1))
        return of_unit.expand(-1, -1, rows).numpy()

    captions = [f"unit {number}" for number in unit.tolist()]
    rows = [
        Strip("image", start, f"{label}: images", captions=captions),
        Strip("changed", estimate, f"{label}: changed images"),
        Strip("difference", estimate - start, f"{label}: differences", colours="signed"),
        Strip("gate before", gate(start), f"{label}: the gates before"),
        Strip("gate after", gate(estimate), f"{label}: the gates after"),
    ]
    kind = "at row" if settings["change"] == "row" else "from row"
    note = (
        f"The forget gate of an LSTM that reads the image row by row shall be at most "
        f"{settings['gate']:g} {kind} {settings['row']}. Gate: white is open, a row a step."
    )
    return Steps(f"Gates: {label}", rows, note, file=f"{PROBLEM}_{label}")


def shown_gates(arrays: Arrays, *, count: int) -> NDArray[Any]:
    """Positions of the changed images that are shown: those that moved, a unit after the other."""
    moved = np.abs(arrays["estimate"] - arrays["start"]).max(axis=(1, 2)) > 0
    possible = np.flatnonzero(moved & (arrays["feasible"] == 1))
    if not len(possible):
        return np.arange(min(count, len(moved)))
    of = arrays["unit"][possible]
    # The first of each unit, then the second, ...
    rank = np.array([int((of[:i] == unit).sum()) for i, unit in enumerate(of)])
    return possible[np.lexsort((of, rank))][:count]


def nearest_of(run: Inversion) -> tuple[NDArray[Any], NDArray[Any], list[str]]:
    """For each image the position of the nearest answer with another label, how far it is, and both
    labels."""
    arrays = run.arrays
    classes = int(arrays["label"].max()) + 1
    probability = run.outputs(torch.from_numpy(arrays["start"])).numpy()
    own = probability.reshape(-1, classes).argmax(axis=1)  # (images,)
    moved = np.sqrt(((arrays["estimate"] - arrays["start"]) ** 2).sum(axis=(1, 2)))
    moved = np.where(arrays["feasible"] == 1, moved, np.inf).reshape(-1, classes)
    images = np.arange(len(own))
    moved[images, own] = np.inf
    other = moved.argmin(axis=1)
    labels = [f"{before} to {after}" for before, after in zip(own, other, strict=True)]
    return images * classes + other, moved[images, other], labels


def nearest(state: State, run: Inversion, *, label: str) -> tuple[Gallery, list[Strip]]:
    """Images and the nearest ones with another label, by how far they are."""
    index, distance, labels = nearest_of(run)
    start, answer = run.arrays["start"][index], run.arrays["estimate"][index]
    gradient = run.sensitivity().numpy()[index]
    cases = []
    chosen = state.choose(f"{PROBLEM}/{label}", distance)
    for case, i in chosen.items():
        texts = ", ".join(labels[j] for j in i)
        rows = [
            Strip(
                "image",
                start[i],
                f"{case}: images",
                given=True,
                captions=[f"{labels[j]}: {distance[j]:.1f}" for j in i],
            ),
            Strip(
                "nearest",
                answer[i],
                f"{case}: the nearest images with another label ({texts})",
                error=answer[i] - start[i],
                note=texts,
            ),
            Strip(
                "gradient",
                gradient[i],
                f"{case}: where the class looks",
                colours="signed",
                given=True,
            ),
        ]
        low, high = distance[i].min(), distance[i].max()
        cases.append(Case(case, f"distance {low:.1f} to {high:.1f}", rows))
    gallery = Gallery(
        f"The nearest image of another class: {label}",
        f"Nearest images that the classifier takes for another digit with a probability of "
        f"{run.settings['probability']:g}, in the order of their distance: around the nearest "
        "5 %, around the median, and the farthest. Beside them what was changed: red is brighter, "
        "blue darker.",
        {"": cases},
        errors="signed",
        sheets={f"{PROBLEM}_{label}": [""]},
    )
    middle = chosen["median"][:1]
    before, _, after = labels[middle[0]].partition(" to ")
    pictures = [
        Strip(f"read as {before}", start[middle], f"a digit, read as {before}"),
        Strip(f"wanted: {after}", answer[middle], f"nearest, read as {after}"),
        Strip("change", answer[middle] - start[middle], "their difference", colours="signed"),
    ]
    return gallery, pictures


def preferred(loaded: Mapping[str, Inversion]) -> list[Steps]:
    """What each class wants, a prior a row."""
    rows = []
    captions: list[str] = []
    for label, run in loaded.items():
        settings = run.settings
        if run.method != "class_target" or settings["goal"] == "nearest":
            continue
        prior = f"prior {settings['prior']:g}" if settings["prior"] else "no prior"
        name = f"decoder, {prior}" if settings["goal"] == "range" else prior
        alt = f"{label}: the input that each class wants"
        own = [] if captions else [str(digit) for digit in run.arrays["label"].tolist()]
        captions = captions or own
        rows.append(Strip(name, run.arrays["estimate"], alt, captions=own))
    note = "A column a class: the image that the classifier takes for it most readily."
    return [Steps("What each class wants", rows, note, f"{PROBLEM}_preferred")] if rows else []


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


def pictures(run: Run, ground: Ground) -> Iterator[tuple[str, int, Any]]:
    """For images the rows start, answer, difference and sensitivity (of LSTM gates: the gate
    after), for regressions the path of the input."""
    shown = inversion_of(run, ground)
    if shown.method == "affine":
        if "trajectory" in run.arrays:
            for chart in trajectories({"inputs by step": shown}):
                yield "inputs", 0, charts.pixels(chart)
        return
    if shown.method == "lstm_gate":
        start, changed, difference, _, after = gates(shown, label="", count=TRACKED).strips
        strips = (start, changed, difference, after)
        yield "inputs", 0, mosaic([coloured(strip.images, strip.colours) for strip in strips])
        return
    if shown.method == "hidden_unit":  # the tasks of the first unit
        index = shown_units(shown)[0]
    elif shown.settings.get("goal") == "nearest":
        index = nearest_of(shown)[0]
    else:
        index = np.arange(len(run.arrays["estimate"]))
    index = index[:TRACKED]
    start, answer = run.arrays["start"][index], run.arrays["estimate"][index]
    signed = [coloured(x, "signed") for x in (answer - start, shown.sensitivity().numpy()[index])]
    yield "inputs", 0, mosaic([start, answer, *signed])
