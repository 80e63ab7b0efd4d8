"""Training data: which training images a classifier's weights give away."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from retrace.measures import identification
from retrace.measures.identification import THRESHOLDS
from retrace.networks.margin import Network as Margin
from retrace.pipeline.artifacts import checkpoint_path, load_checkpoint, read_split
from retrace.pipeline.command import Refusal
from retrace.report import charts, strips
from retrace.report.model import (
    EACH,
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
    number,
    score,
    short,
    total_seconds,
    trivial,
    words,
)
from retrace.report.sheets import null_size, threshold_curve

PROBLEM = "training_data"
TITLE = "Training data"
LEAD = (
    "The weights of a classifier, and nothing else. A training image counts as identified where a "
    "candidate is nearer to it than candidates come to 99 % of images never seen."
)
CURVES = 7  # runs in the charts of thresholds: the best, a control among them
FALSE_SHARES = (0.0, 0.05)  # of held-out images, on the axis of the curve
Curve = tuple[list[float], list[float]]


def section(state: State) -> Section:
    """Tables, identified images beside their originals, null control and threshold curves."""
    runs = state.scores(PROBLEM)
    if not runs:
        return Section(PROBLEM, TITLE, LEAD, None, [])
    coloured = {n: s for n, s in runs.items() if "colour_error" in s}
    digits = {n: s for n, s in runs.items() if n not in coloured}
    order = sorted(digits, key=lambda n: (control(state, digits[n]), -digits[n]["identified"], n))
    order += list(coloured)
    curves: dict[str, Curve] = {}
    groups: dict[str, list[Case]] = {}
    steps: list[Steps] = []
    truths: dict[str, identification.Truth] = {}
    for name in order:
        network = runs[name]["network"]
        try:
            if network not in truths:  # one at a time: the held-out images are many
                truths = {network: truth_of(state, network)}
            truth = truths[network]
        except Refusal as refusal:
            state.lacks(refusal)
            continue
        arrays = state.arrays(name)
        if arrays is None:
            continue
        label = short(name, PROBLEM)
        if not len(arrays["estimate"]):
            continue
        matchings = None
        if name in digits:
            matchings = identification.matchings(torch.from_numpy(arrays["estimate"]), truth)
            curves[name] = threshold_curve(*matchings)
        groups[label] = cases_of_run(state, name, runs[name], arrays, truth, matchings)
        if "snapshots" in arrays and runs[name]["method"] == "kkt":
            steps.append(replace(iterations(arrays, run=label), open=not steps))
    blocks: list[Block] = []
    if digits:
        blocks.append(digits_table(state, digits, order=[n for n in order if n in digits]))
    if coloured:
        blocks.append(colours_table(state, coloured))
    blocks += threshold_charts(state, digits, curves, order=order)
    if len(digits) > 1:
        blocks.append(tradeoff(state, digits))
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
    blocks += steps
    summary = summary_of(state, runs, groups, order=order)
    return Section(PROBLEM, TITLE, LEAD, summary, blocks)


def truth_of(state: State, network: str, *, null: bool = True) -> identification.Truth:
    return identification.truth_of(
        read_split("train"),
        state.networks[network]["training"],
        where=f"networks.{network}.training",
        null=null,
    )


def control(state: State, scores: Scores) -> bool:
    """Whether a run is a control: public images, or a network as it was drawn."""
    training = state.networks.get(scores["network"], {}).get("training", {})
    return trivial(scores) or training.get("steps") == 0


def digits_table(state: State, runs: dict[str, Scores], *, order: list[str]) -> Table:
    columns = [
        Column("method"),
        Column("network"),
        Column("n", "", "training images"),
        Column("identified", "higher", "training images above the threshold"),
        Column("share", "higher"),
        Column("null", "", "held-out images above the same threshold, of all of them"),
        Column("threshold", "", "correlation that at most 1 % of the held-out images exceed"),
        *(Column(f"NCC > {bar}", "higher", "training images / held-out") for bar in THRESHOLDS),
        Column(
            "precision at 100", "higher", "of the first 100 candidates as the attack ranks them"
        ),
        Column("median MSE", "lower", "of the identified images"),
        Column("seconds", "", "of the attack"),
    ]
    rows = []
    for name in order:
        s = runs[name]
        null = null_size(s)
        rows.append(
            Row(
                short(name, PROBLEM),
                [
                    *words(s["method"], s["network"]),
                    number(s["n"], "d"),
                    Cell(
                        f"{s['identified']}",
                        s["identified"],
                        f"{s['identified_low']:.0f} – {s['identified_high']:.0f}",
                    ),
                    number(s["identified"] / s["n"], ".0%"),
                    Cell(
                        f"{s['null_identified']} of {null:,}",
                        s["null_identified"] / null,
                        f"all such: below {s['null_bound']:.1%}" if "null_bound" in s else "",
                    ),
                    number(s["threshold"], ".3f"),
                    *(
                        Cell(
                            f"{s['matched'][bar]} / {s['null_matched'][bar] / null:.1%}",
                            s["matched"][bar],
                        )
                        for bar in THRESHOLDS
                    ),
                    number(s["precision_at"].get("100"), ".2f"),
                    number(s.get("median_mse"), ".1e"),
                    number(s["seconds"], ".1f"),
                ],
                trivial=control(state, s),
            )
        )
    note = (
        "Candidates are matched one to one with the n training images, and with the held-out "
        "images of the same classes, n at a time, near-duplicates of training images taken out. "
        "Grey rows are controls: they should identify nothing. Intervals are 95 % bootstrap "
        "intervals over training images; beside the null, what its size says of all images never "
        "seen, with a confidence of 95 %."
    )
    return Table("Attacks and controls", columns, rows, note)


def colours_table(state: State, runs: dict[str, Scores]) -> Table:
    columns = [
        Column("method"),
        Column("network"),
        Column("candidates"),
        Column("colours recovered", "higher", "mean colour within 0.02 in every channel"),
        Column("largest colour error", "lower"),
        Column("seconds"),
    ]
    rows = [
        Row(
            short(name, PROBLEM),
            [
                *words(s["method"], s["network"]),
                number(s["candidates"], "d"),
                Cell(f"{s['colours_recovered']} / {s['n']}", s["colours_recovered"]),
                number(s["colour_error"], ".3f"),
                number(s["seconds"], ".1f"),
            ],
            trivial=control(state, s),
        )
        for name, s in runs.items()
    ]
    return Table("Images of one colour", columns, rows)


def cases_of_run(
    state: State,
    name: str,
    scores: Scores,
    arrays: Arrays,
    truth: identification.Truth,
    matchings: tuple[identification.Matching, identification.Matching] | None,
) -> list[Case]:
    """Originals, candidates and errors of each case, and the null control, where images are told
    apart by `matchings` and not by their colour."""
    label, estimate = short(name, PROBLEM), arrays["estimate"]
    if matchings is None:
        distances = identification.colour_distances(torch.from_numpy(estimate), truth.images)
        errors = identification.colour_errors(distances).numpy()
        matched = distances.argmin(dim=0).numpy()
        found = errors <= identification.COLOUR_TOLERANCE
        shown = errors
    else:
        matching, null = matchings
        shown, matched = matching.values.numpy(), matching.candidates.numpy()
        found, errors = shown > scores["threshold"], 1 - shown
    among = np.flatnonzero(found if found.any() else matched >= 0)
    shape = estimate.shape[1:]
    originals = truth.images.numpy().reshape(-1, *shape)
    chosen = state.choose(name, errors, among=among)
    # Images that another state has chosen may have no candidate here.
    with_candidate = {c: [i for i in index if matched[i] >= 0] for c, index in chosen.items()}
    cases = [
        pair(
            case if found.any() else f"{case}: not identified",
            originals[index],
            estimate[matched[index]],
            f"{shown[index].mean():.3f}",
            kind="training image",
            run=label,
        )
        for case, index in with_candidate.items()
        if index
    ]
    if matchings is not None:
        best = null.values.argsort(descending=True, stable=True)[:EACH]
        index = best[null.candidates[best] >= 0].numpy()
        cases.append(
            pair(
                "null control",
                truth.held_out.numpy().reshape(-1, *shape)[index],
                estimate[null.candidates.numpy()[index]],
                f"{null.values.numpy()[index].mean():.3f}",
                kind="held-out image",
                run=label,
            )
        )
    return cases


def pair(case: str, originals: Any, found: Any, value: str, *, kind: str, run: str) -> Case:
    """A case of two strips: images and the candidates for them, with their errors."""
    error = abs(np.clip(found, 0, 1) - originals)
    error = error.mean(axis=1) if error.ndim == 4 else error
    rows = [
        Strip(kind, strips.grey(originals), f"{case}: {kind}s", given=True),
        Strip(
            "candidate",
            strips.grey(found),
            f"{case}: candidates of {run}",
            strips.heat(error),
            value,
        ),
    ]
    return Case(case, "", rows)


def threshold_charts(
    state: State, runs: dict[str, Scores], curves: dict[str, Curve], *, order: list[str]
) -> list[Chart]:
    """Identified against falsely identified images, and both against the threshold."""
    if not curves:
        return []
    controls = [name for name in order if name in curves and control(state, runs[name])]
    attacks = [name for name in order if name in curves and name not in controls]
    taken = [*attacks[: CURVES - 1], *controls[:1]]
    label = {name: f"{short(name, PROBLEM)} ({runs[name]['n']})" for name in taken}
    share = {label[n]: (curves[n][1], curves[n][0]) for n in taken}
    against = charts.lines(
        share,
        name=f"{PROBLEM}-false",
        x="share of held-out images matched (false identifications)",
        y="share of training images matched",
        at=identification.NULL_SHARE,
        x_limits=FALSE_SHARES,
    )
    grid = identification.GRID
    by_threshold = charts.lines(
        {label[n]: (grid, curves[n][0]) for n in taken},
        name=f"{PROBLEM}-thresholds",
        x="correlation (NCC) above",
        y="share of images matched one to one",
        dashed={label[n]: (grid, curves[n][1]) for n in taken},
    )
    text = "; ".join(
        f"{short(n, PROBLEM)} {runs[n]['identified']} of {runs[n]['n']}" for n in taken
    )
    return [
        Chart(
            "Identified against falsely identified",
            against,
            f"At the threshold where at most 1 % of held-out images are matched: {text}.",
            "Each curve runs over all thresholds; the dotted line is the 1 % that is allowed. A "
            "candidate list that knows nothing stays on the diagonal.",
        ),
        Chart(
            "Matches by threshold",
            by_threshold,
            "Share of training (solid) and held-out images (dashed) matched above a correlation.",
            "Solid: training images. Dashed: held-out images, the null control.",
        ),
    ]


def tradeoff(state: State, runs: dict[str, Scores]) -> Chart:
    points = [
        charts.Point(
            short(name, PROBLEM), s["seconds"], s["identified"] / s["n"], control(state, s)
        )
        for name, s in runs.items()
    ]
    return Chart(
        "Quality against seconds",
        charts.tradeoff(
            points,
            name=f"{PROBLEM}-seconds",
            label="share of training images identified",
            unit="seconds of the attack",
            log=False,
        ),
        "Share of training images identified against the attack’s seconds: "
        + "; ".join(f"{p.label} {p.value:.0%} in {p.seconds:.0f} s" for p in points),
        "Further up is more given away, further left is faster; grey: controls.",
    )


def iterations(arrays: Arrays, *, run: str) -> Steps:
    """The first candidates along the iterations, a candidate a line."""
    frames = arrays["snapshots"][:, 0, :3]
    rows = [
        Strip(f"{i + 1}", strips.grey(frames[:, i]), f"{run}, candidate {i + 1} step by step")
        for i in range(frames.shape[1])
    ]
    captions = [str(step) for step in arrays["snapshot_steps"]]
    title = f"Candidates along the iterations: {run}"
    return Steps(title, captions, rows, "The numbers count steps.")


def summary_of(
    state: State, runs: dict[str, Scores], groups: dict[str, list[Case]], *, order: list[str]
) -> Summary:
    best = order[0]
    s, label = runs[best], short(best, PROBLEM)
    pictures: list[Strip] = []
    digits = [name for name in order if "colour_error" not in runs[name]]
    controls = [name for name in digits if control(state, runs[name])]
    if label in groups and "colour_error" not in s:
        pictures = first_pair(state, best)
    most = max((runs[name]["identified"] for name in controls), default=None)
    return Summary(
        headline=f"{s['identified']} of {s['n']} training images",
        meaning=f"named from the weights alone; {s['null_identified']} of {null_size(s):,} "
        "held-out images",
        pictures=pictures,
        method=label,
        result=score(s, "identified", ".0f"),
        measure=f"training images identified of {s['n']}",
        better="higher",
        baseline="–" if most is None else f"{most} (the best of {len(controls)} controls)",
        runs=len(runs),
        seconds=total_seconds(runs.values()),
    )


def first_pair(state: State, name: str) -> list[Strip]:
    """A training image of the median case, weights of a unit, and the candidate."""
    network = str(state.runs[name]["network"])
    try:
        trained, _ = load_checkpoint(checkpoint_path(network))
        truth = truth_of(state, network, null=False)
    except Refusal as refusal:
        state.lacks(refusal)
        return []
    arrays = state.arrays(name, "estimate")
    if arrays is None or not isinstance(trained, Margin):
        return []
    weights = trained.get_parameter("layers.0.weight").detach()
    largest = weights[weights.norm(dim=1).argmax()].reshape(1, *trained.shape).numpy()
    estimate = arrays["estimate"]
    candidates = torch.from_numpy(estimate)
    similarity = identification.correlations(candidates, truth.images, mean=truth.mean)
    image = state.chosen[name]["median"][0]
    candidate = int(identification.match(similarity).candidates[image])
    if candidate == identification.UNMATCHED:
        return []
    original = truth.images.numpy()[image].reshape(1, *estimate.shape[1:])
    return [
        Strip("training image", strips.grey(original), "a training image"),
        Strip("weights", strips.signed(largest), "weights of one unit, which the attack reads"),
        Strip("found", strips.grey(estimate[candidate : candidate + 1]), "the candidate found"),
    ]
