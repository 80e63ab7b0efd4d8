"""Training data: which training images a classifier's weights give away."""

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from retrace.measures import identification
from retrace.measures.identification import THRESHOLDS
from retrace.pipeline.artifacts import history_path, metrics_path, read_json
from retrace.problems import Arrays, Ground, Run
from retrace.problems.training_data.score import truth_of
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
    Steps,
    Strip,
    Summary,
    Table,
    number,
    score,
    scored,
    steps_of,
    tabulated,
    total_seconds,
)
from retrace.report.pictures import TRACKED, mosaic, scale_of, split_rows

PROBLEM = "training_data"
TITLE = "Training data"
ORDER = 2
LEAD = (
    "The weights of a classifier, and nothing else. A training image counts as identified where a "
    "candidate is nearer to it than candidates come to 99 % of images never seen."
)
TRIVIAL = "public_images"  # the method that looks at no weights: a control
CURVES = 7  # runs in the charts of thresholds: the best, a control among them
FALSE_SHARES = (0.0, 0.05)  # of held-out images, on the axis of the curve
SECONDS = (
    scored("training_seconds", ".0f", "training, s"),
    scored("seconds", ".1f", "seconds", "", "of the attack"),
)
PAIRS, COLUMNS = 30, 10  # candidates and training images on a sheet, and in a row of it
Matchings = tuple[identification.Matching, identification.Matching]


def section(state: State) -> Section:
    """Tables, identified images beside their originals, null control and threshold curves."""
    runs, ground = state.scores(PROBLEM), Ground(PROBLEM)
    controls = {name for name, s in runs.items() if control(state, s)}
    order = sorted(runs, key=lambda n: (n in controls, -runs[n]["identified"], n))
    coloured = {name: s for name, s in runs.items() if "colour_error" in s}
    digits = {name: runs[name] for name in order if name not in coloured}
    runs = digits | coloured
    curves: dict[str, tuple[list[float], list[float]]] = {}
    groups: dict[str, list[Case]] = {}
    steps: dict[str, Steps] = {}
    sheets: list[Steps] = []
    pictures: list[Strip] = []
    truths: dict[str, identification.Truth] = {}
    for name, s in sorted(runs.items(), key=lambda item: str(item[1]["network"])):
        with state.noting():
            network = s["network"]
            if network not in truths:  # one at a time: the held-out images are many
                truths = {network: truth_of(ground, network)}
            truth, arrays = truths[network], state.arrays(PROBLEM, name)
            if not len(arrays["estimate"]):
                continue
            matchings = None
            if name in digits:
                matchings = identification.matchings(torch.from_numpy(arrays["estimate"]), truth)
                curves[name] = threshold_curve(*matchings)
            groups[name] = cases_of_run(state, name, s, arrays["estimate"], truth, matchings)
            sheets += pairs_sheet(arrays["estimate"], truth, s, run=name)
            if name == next(iter(runs)) and matchings is not None:
                trained = ground.network(network)
                image = state.chosen[f"{PROBLEM}/{name}"]["median"][0]
                pictures = first_pair(trained, arrays["estimate"], truth, matchings[0], image)
            if "snapshots" in arrays and s["method"] == "kkt":
                steps[name] = iterations(arrays, run=name)
    curves = {name: curves[name] for name in runs if name in curves}
    groups = {name: groups[name] for name in runs if name in groups}
    ordered = [steps[name] for name in runs if name in steps]
    blocks: list[Block] = []
    if digits:
        blocks.append(digits_table(digits, controls=controls))
    if coloured:
        blocks.append(colours_table(coloured, controls=controls))
    blocks += threshold_charts(digits, curves, controls=controls)
    blocks += charts.tradeoff(
        [
            charts.Point(name, s["seconds"], s["identified"] / s["n"], name in controls)
            for name, s in digits.items()
        ],
        label="share of training images identified",
        form=".0%",
        unit="seconds of the attack",
        caption="Further up is more given away, further left is faster; grey: controls.",
        log=False,
    )
    if groups:
        blocks.append(
            Gallery(
                "Identified images beside their originals",
                "Of each run, the identified training images in the order of their correlation "
                "with the candidate that is matched to them: around the highest 5 %, around the "
                "median, and the lowest; where none is identified, all of them. Null control: the "
                "held-out images that the candidates resemble most. Beside each candidate its "
                "mean correlation, of coloured images its error.",
                groups,
                "run",
                first=next(iter(groups)),
            )
        )
    blocks += [replace(one, open=i == 0) for i, one in enumerate(ordered)]
    summary = summary_of(runs, pictures, controls=controls & set(digits))
    rows = {"training_data.csv": flat_rows(runs)}
    return Section(PROBLEM, TITLE, LEAD, summary, blocks, sheets, rows)


def control(state: State, scores: Scores) -> bool:
    """Whether a run is a control: public images, or a network as it was drawn."""
    if scores["method"] == TRIVIAL:
        return True
    with state.noting():
        return bool(read_json(history_path(scores["network"]))["training"].get("steps") == 0)
    return False


def flat_rows(runs: dict[str, Scores]) -> list[dict[str, Any]]:
    """Scores of each attack in one row, nested keys joined by an underscore."""
    flat = []
    for name, scores in runs.items():
        row: dict[str, Any] = {"run": name}
        for key, value in scores.items():
            nested = value if isinstance(value, dict) else {"": value}
            row |= {f"{key}_{part}".rstrip("_"): number for part, number in nested.items()}
        flat.append(row)
    return flat


def digits_table(runs: dict[str, Scores], *, controls: Collection[str]) -> Table:
    def null(s: Scores) -> Cell:
        text = f"{s['null_identified']} of {s['null_n']:,}"
        share = s["null_identified"] / s["null_n"]
        return Cell(text, share, f"all such: below {s['null_bound']:.1%}")

    def matched(bar: str) -> Column:
        def cell(s: Scores) -> Cell:
            found = s["matched"][bar]
            return Cell(f"{found} / {s['null_matched'][bar] / s['null_n']:.1%}", found)

        return Column(f"NCC > {bar}", "higher", "training images / held-out", cell)

    threshold = "correlation that at most 1 % of the held-out images exceed"
    precision = "of the first 100 candidates as the attack ranks them"
    columns = [
        METHOD,
        NETWORK,
        scored("n", "d", "n", "", "training images"),
        scored("identified", ".0f", "identified", "higher", "above the threshold"),
        Column("share", "higher", cell=lambda s: number(s["identified"] / s["n"], ".0%")),
        Column("null", "", "held-out images above the same threshold, of all of them", null),
        scored("threshold", ".3f", "threshold", "", threshold),
        *map(matched, THRESHOLDS),
        scored("precision_at/100", ".2f", "precision at 100", "higher", precision),
        scored("median_mse", ".1e", "median MSE", "lower", "of the identified images"),
        *SECONDS,
    ]
    note = (
        "Candidates are matched one to one with the n training images, and with the held-out "
        "images of the same classes, n at a time, near-duplicates of training images taken out, by "
        "normalised cross-correlation (NCC), the mean image subtracted. Grey rows are controls: "
        "they should identify nothing. Intervals are 95 % bootstrap intervals over training "
        "images; beside the null, what its size says of all images never seen, with a confidence "
        "of 95 %."
    )
    return tabulated("Attacks and controls", runs, columns, grey=controls, note=note)


def colours_table(runs: dict[str, Scores], *, controls: Collection[str]) -> Table:
    def recovered(s: Scores) -> Cell:
        return Cell(f"{s['colours_recovered']} / {s['n']}", s["colours_recovered"])

    hint = "candidates with some training image's colour"
    columns = [
        METHOD,
        NETWORK,
        scored("candidates", "d", "candidates"),
        Column("colours recovered", "higher", "within 0.02 in every channel", recovered),
        scored("colour_error", ".3f", "largest colour error", "lower"),
        scored("colour_precision", ".2f", "precision", "higher", hint),
        *SECONDS,
    ]
    note = "Images of one colour are copies of each other, of which the weights keep one."
    return tabulated("Images of one colour", runs, columns, grey=controls, note=note)


def threshold_curve(
    matched: identification.Matching, null: identification.Matching
) -> tuple[list[float], list[float]]:
    """The share of the training and of the held-out images that is matched above each threshold of
    `identification.GRID`."""
    shares = [
        [count / len(values) for count in identification.counts_above(values, identification.GRID)]
        for values in (matched.values, null.values)
    ]
    return shares[0], shares[1]


def cases_of_run(
    state: State,
    name: str,
    scores: Scores,
    estimate: NDArray[Any],
    truth: identification.Truth,
    matchings: Matchings | None,
) -> list[Case]:
    """Originals, candidates and errors of each case, and the null control, where images are told
    apart by `matchings` and not by their colour."""
    if matchings is None:
        distances = identification.colour_distances(torch.from_numpy(estimate), truth.images)
        errors = identification.colour_errors(distances).numpy()
        matched = distances.argmin(dim=0).numpy()
        found = errors <= identification.COLOUR_TOLERANCE
        values = errors
    else:
        matching, null = matchings
        values, matched = matching.values.numpy(), matching.candidates.numpy()
        found, errors = values > scores["threshold"], 1 - values
    among = np.flatnonzero(found if found.any() else matched >= 0)
    shape = estimate.shape[1:]

    def pair(case: str, kind: str, originals: Any, candidates: Any, value: float) -> Case:
        found = Case(case, "", [Strip(kind, originals, f"{case}: {kind}s", given=True)])
        shown = np.clip(candidates, 0, 1)
        found.add("candidate", shown, originals, f"candidates of {name}", f"{value:.3f}")
        return found

    originals = truth.images.numpy().reshape(-1, *shape)
    # Images that another state has chosen may have no candidate here.
    chosen = {
        case if found.any() else f"{case}: not identified": [i for i in index if matched[i] >= 0]
        for case, index in state.choose(f"{PROBLEM}/{name}", errors, among=among).items()
    }
    cases = [
        pair(
            case, "training image", originals[index], estimate[matched[index]], values[index].mean()
        )
        for case, index in chosen.items()
        if index
    ]
    if matchings is not None:
        best = null.values.argsort(descending=True, stable=True)[:EACH]
        best = best[null.candidates[best] >= 0]
        held_out = truth.held_out[best].numpy().reshape(-1, *shape)
        candidates = estimate[null.candidates[best].numpy()]
        value = float(null.values[best].mean())
        cases.append(pair("null control", "held-out image", held_out, candidates, value))
    return cases


def threshold_charts(
    runs: dict[str, Scores],
    curves: dict[str, tuple[list[float], list[float]]],
    *,
    controls: Collection[str],
) -> list[Chart]:
    """Identified against falsely identified images, and both against the threshold."""
    if not curves:
        return []
    taken = [name for name in curves if name not in controls][: CURVES - 1]
    taken += [name for name in curves if name in controls][:1]
    label = {name: f"{name} ({runs[name]['n']})" for name in taken}
    grid = identification.GRID
    text = "; ".join(f"{n} {runs[n]['identified']} of {runs[n]['n']}" for n in taken)
    return [
        Chart(
            "Identified against falsely identified",
            lambda: charts.lines(
                {label[n]: (curves[n][1], curves[n][0]) for n in taken},
                x="share of held-out images matched (false identifications)",
                y="share of training images matched",
                at=identification.NULL_SHARE,
                x_limits=FALSE_SHARES,
            ),
            f"At the threshold where at most 1 % of held-out images are matched: {text}.",
            "Each curve runs over all thresholds; the dotted line is the 1 % that is allowed. A "
            "candidate list that knows nothing stays on the diagonal.",
        ),
        Chart(
            "Matches by threshold",
            lambda: charts.lines(
                {label[n]: (grid, curves[n][0]) for n in taken},
                x="correlation (NCC) above",
                y="share of images matched one to one",
                dashed={label[n]: (grid, curves[n][1]) for n in taken},
            ),
            "Share of training (solid) and held-out images (dashed) matched above a correlation.",
            "Solid: training images. Dashed: held-out images, the null control.",
            file="training_data_curve",
        ),
    ]


def iterations(arrays: Arrays, *, run: str) -> Steps:
    """The first candidates along the iterations, a candidate a line."""
    frames = arrays["snapshots"][:, 0, :3].swapaxes(0, 1)
    captions = [str(step) for step in arrays["snapshot_steps"]]
    alt = f"{run}, candidate {{}} step by step"
    return steps_of(f"Candidates along the iterations: {run}", frames, captions, alt=alt)


def pairs_of(
    estimate: NDArray[Any], truth: identification.Truth, *, threshold: float, count: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Candidates, the training images that they match, and how well; see `shown_pairs`."""
    found = identification.shown_pairs(
        torch.from_numpy(estimate), truth, threshold=threshold, count=count
    )
    candidates = estimate[found.candidates.numpy()]
    originals = truth.images.numpy()[found.images.numpy()].reshape(candidates.shape)
    return candidates, originals, found.values.numpy()


def pairs_sheet(
    estimate: NDArray[Any], truth: identification.Truth, scores: Scores, *, run: str
) -> list[Steps]:
    """Candidates above the training images that they match, as the attack ranks them.

    Above each its NCC, of coloured images the difference in colour. The identified ones, or the
    first candidates and what each resembles most, where there are none.
    """
    *images, values = pairs_of(estimate, truth, threshold=scores["threshold"], count=PAIRS)
    rows = []
    for i, (found, original) in enumerate(
        zip(*(split_rows(x, columns=COLUMNS) for x in images), strict=True)
    ):
        captions = [f"{value:.3f}" for value in values[i * COLUMNS : (i + 1) * COLUMNS]]
        captions += [""] * (COLUMNS - len(captions))
        rows.append(Strip("candidate", found, f"candidates of {run}", captions=captions))
        rows.append(Strip("training image", original, "the training images"))
    number, verb = scores["identified"], "identified"
    if truth.coloured:
        number, verb = scores["colours_recovered"], "recovered"
    title = f"{run}: {number} of {scores['n']} {verb}"
    title += "" if number else "; the first candidates and what each resembles most"
    return [Steps(title, rows, file=f"{PROBLEM}_{run}")] if rows else []


def summary_of(
    runs: dict[str, Scores], pictures: list[Strip], *, controls: Collection[str]
) -> Summary:
    name, best = next(iter(runs.items()))
    n = best["n"]
    by_chance = [runs[control]["identified"] for control in controls]
    most = max(by_chance, default=None)
    return Summary(
        headline=f"{best['identified']} of {n} training images",
        meaning=f"named from the weights alone; {best['null_identified']} of {best['null_n']:,} "
        "held-out images",
        pictures=pictures,
        method=name,
        result=score(best, "identified", ".0f"),
        measure=f"training images identified of {n}",
        better="higher",
        baseline="–" if most is None else f"{most} (the best of {len(by_chance)} controls)",
        runs=len(runs),
        seconds=total_seconds(runs.values()),
    )


def first_pair(
    network: Any,
    estimate: NDArray[Any],
    truth: identification.Truth,
    matching: identification.Matching,
    image: int,
) -> list[Strip]:
    """A training image, weights of a unit, and the candidate."""
    candidate = int(matching.candidates[image])
    if candidate == identification.UNMATCHED or not hasattr(network, "shape"):
        return []
    weights = network.get_parameter("layers.0.weight").detach()
    largest = weights[weights.norm(dim=1).argmax()].reshape(1, *network.shape).numpy()
    original = truth.images[image].numpy().reshape(1, *estimate.shape[1:])
    read = "weights of one unit, which the attack reads"
    return [
        Strip("training image", original, "a training image"),
        Strip("weights", largest, read, colours="signed"),
        Strip("found", estimate[candidate : candidate + 1], "the candidate found"),
    ]


def pictures(run: Run, ground: Ground) -> Iterator[tuple[str, int, Any]]:
    """Four candidates and below them the training images that they match, and the next four; along
    the iterations, some candidates alone. Nothing where an attack found no candidate."""
    truth = truth_of(ground, run.record["network"], null=False)
    threshold = read_json(metrics_path(ground.problem, run.name))["threshold"]
    estimate = run.arrays["estimate"]
    scale = scale_of(estimate)
    *images, _ = pairs_of(estimate, truth, threshold=threshold, count=2 * TRACKED)
    strips = list(zip(*(split_rows(x, columns=TRACKED) for x in images), strict=True))
    if strips:
        yield "identified", 0, mosaic([row for strip in strips for row in strip], scale=scale)
    for step, snapshot in run.snapshots():
        if len(snapshot[0]):
            rows = split_rows(snapshot[0], columns=TRACKED)
            yield "candidates", step, mosaic(rows, scale=scale)
