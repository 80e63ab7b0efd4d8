"""How steadily `sparse_span` finds training images, how it grows, and what drives it.

`sets`: two disjoint sets of 500 images, three initialisations of the network each.
`growth`: sets of 50 to 1,000 images: seconds and peak memory, at cheap settings: half the units,
few steps, a short attack. Its matches say little.
`drivers`: 50 images and a small network, one thing changed at a time: what makes images come out of
the weights.

Beside every count of matched training images stands the count of the held-out images (`null_n` of
them, which the network never saw) that are matched to the same candidates, as many at a time (see
`retrace.measures.identification`). Points measured by earlier code have as many as training images.

About an hour on two free cores (estimated): 40 minutes for `sets`, 5 each for `growth` and
`drivers`. Each point is written to benchmarks/results/identification.json when it is done. A
point that is there already is not measured again, unless params.yaml or the numbers here have
changed; after a change of the code of the training or the attack, delete that file. Every training
and every attack of `sets` and `growth` runs in a process of its own: the attack sees the weights
and nothing else, and its peak memory is its own.
"""

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray

from benchmarks.data import dataset_name, read_splits
from benchmarks.timing import RESULTS, peak_mebibytes, print_table, write_result
from retrace.measures.identification import (
    THRESHOLDS,
    Truth,
    correlations,
    counts_above,
    first_candidates,
    match,
    null_matching,
    null_threshold,
    truth_of,
)
from retrace.methods.training_data import sparse_span
from retrace.networks.margin import Network
from retrace.pipeline.artifacts import read_json, written_whole
from retrace.pipeline.command import INTERRUPTED, Refusal
from retrace.pipeline.params import GIVEN, SIDE, Params, bind, load
from retrace.report.pictures import COLOURS

NAME = "identification"
PICTURE = Path("docs/pictures/training_data_drivers.png")
STRICTEST = THRESHOLDS[-1]
FIRST = 100  # candidates whose precision is looked at

LARGE = ("margin_mlp", "training_data-sparse_span")  # network and run of params.yaml: 500 images
SMALL = ("margin_100", "training_data-sparse_span_100")  # 100 images
OFFSETS = (0, 250)  # of the sets, within each class: they share no image
SEEDS = (0, 1, 2)  # of the initial weights
GROWTH = (50, 100, 200, 500, 1000)  # images
GROWN: dict[str, Any] = {"widths": [500, 500]}
GROWN_TRAINING: dict[str, Any] = {"steps": 100, "learning_rate": 0.2, "decay": 0.5}
GROWN_ATTACK: dict[str, Any] = {"starts": 100, "objectives": 20, "rounds": 1}
# `drivers`: fewer images and units than `SMALL` has and a shorter attack: there are many points.
DRIVEN = 50
DRIVEN_WIDTH = 400
DRIVEN_ATTACK: dict[str, Any] = {"starts": 100, "objectives": 100, "rounds": 2}
# By panel of the figure; `SMALL` with so many images and units is a point of most.
STEPS = (0, 150, 400, 1500, 4000)
WEIGHT_DECAYS = (1e-2, 1e-3, 1e-4)
WIDTHS = (100, 200, 400)
IMAGES = (20, 50, 100)
DEVIATIONS = (1e-4, 1e-3, 1e-2, 1e-1)
LABELS = ("correct", "random")
# Plain steps on the logistic loss, at a constant rate. The initial weights fade as exp(-2 decay
# steps): fully at 1e-2, to a 50th at 1e-3, to two thirds at 1e-4.
DECAYED = {"method": "weight_decay", "learning_rate": 1.0, "decay": 1.0, "steps": 2000}
GROUPS = {
    "steps": "steps of training",
    "weight_decay": "weight decay, plain steps",
    "widths": "units in each hidden layer",
    "images": "training images",
    "first_deviation": "deviation of the first layer's\ninitial weights",
    "labels": "labels",
}

Inputs = dict[str, Any]
Result = dict[str, Any]
Stored = dict[str, dict[str, Result]]


class Point(NamedTuple):
    """One network and one attack on it.

    Attributes
    ----------
    name : str
        In the results' file, unique within its part.
    group, label : str
        Of `drivers`: the panel of the figure and the place on its axis.
    inputs : dict
        ``dataset``, ``arguments``, ``training`` and ``attack``: all that the result depends on.
    """

    name: str
    group: str
    label: str
    inputs: Inputs


class Forgetful:
    """The attack's memory for interruptions: keeps nothing."""

    def load(self) -> dict[str, Any]:
        return {}

    def save(self, arrays: dict[str, Any]) -> None:
        pass


@cache
def parameters() -> Params:
    """params.yaml, read once."""
    return load()


def inputs_of(
    entries: tuple[str, str],
    *,
    arguments: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    attack: Mapping[str, Any] | None = None,
) -> Inputs:
    """Sections of params.yaml with some settings changed, checked.

    Parameters
    ----------
    entries : (str, str)
        Names of a network and of a run.
    arguments, training, attack : dict, optional
        Changes of the network's sections and of the run's settings.
    """
    params = parameters()
    network, run = entries
    where, of_run = f"networks.{network}", f"runs.{run}.settings"
    entry = params.networks[network]
    settings = bind(
        sparse_span.reconstruct,
        {**params.runs[run].settings, **(attack or {})},
        where=of_run,
        given=GIVEN,
    )
    if settings["public_starts"]:
        raise Refusal(f"{of_run}.public_starts = {settings['public_starts']}: 0 is needed here")
    return {
        "arguments": bind(
            Network.__init__,
            {**entry.arguments, **(arguments or {})},
            where=f"{where}.arguments",
        ),
        "attack": settings,
        "dataset": dataset_name(),
        "training": bind(
            Network.fit, {**entry.training, **(training or {})}, where=f"{where}.training"
        ),
    }


def sets() -> list[Point]:
    """As params.yaml says, but for the offset and the seed of the initial weights."""
    return [
        Point(
            f"offset = {offset}, seed = {seed}",
            "",
            "",
            inputs_of(LARGE, training={"offset": offset, "seed": seed}),
        )
        for seed in SEEDS
        for offset in OFFSETS
    ]


def unreported(changes: Mapping[str, Any], *, steps: int) -> dict[str, Any]:
    """With measures at the start and the end only: their seconds are not the training's."""
    return {**changes, "report_every": max(steps, 1)}


def growth() -> list[Point]:
    """The settings for 500 images made cheaper, with other numbers of images."""
    points = []
    for images in GROWTH:
        changes = {"per_class": images // 2, **GROWN_TRAINING}
        training = unreported(changes, steps=changes["steps"])
        inputs = inputs_of(LARGE, arguments=GROWN, training=training, attack=GROWN_ATTACK)
        points.append(Point(f"n = {images}", "", "", inputs))
    return points


def drivers() -> list[Point]:
    """The settings for 100 images, smaller, with one of them changed."""
    steps: int = parameters().networks[SMALL[0]].training["steps"]
    points = []

    def add(
        group: str, label: str, *, training: dict[str, Any] | None = None, **arguments: Any
    ) -> None:
        changes = {"per_class": DRIVEN // 2, **(training or {})}
        changes = unreported(changes, steps=changes.get("steps", steps))
        arguments = {"widths": [DRIVEN_WIDTH] * 2, **arguments}
        inputs = inputs_of(SMALL, arguments=arguments, training=changes, attack=DRIVEN_ATTACK)
        points.append(Point(f"{group} = {label}", group, label, inputs))

    for value in STEPS:
        add("steps", f"{value}", training={"steps": value})
    for decay in WEIGHT_DECAYS:
        add("weight_decay", f"{decay:g}", training={**DECAYED, "weight_decay": decay})
    for width in WIDTHS:
        add("widths", f"{width}", widths=[width, width])
    for images in IMAGES:
        add("images", f"{images}", training={"per_class": images // 2})
    for deviation in DEVIATIONS:
        add("first_deviation", f"{deviation:g}", first_deviation=deviation)
    for labels in LABELS:
        add("labels", labels, training={"labels": labels})
    return points


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new process, which starts without anything of this one."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def trained(inputs: Inputs) -> tuple[dict[str, NDArray[Any]], list[NDArray[Any]], Result]:
    """Train a network.

    Returns
    -------
    state : dict of array
        Its weights.
    truth : list of array
        ``images``, ``held_out`` and ``mean`` of `Truth`.
    result : dict
    """
    training, validation = read_splits()
    settings = inputs["training"]
    truth = truth_of(training, settings, where="training")
    start_mib = peak_mebibytes()
    torch.manual_seed(settings["seed"])
    network = Network(**inputs["arguments"])
    started = time.perf_counter()
    history = network.fit(training, validation, lambda entry: None, **settings)
    seconds = time.perf_counter() - started
    last = history[-1]
    measures = ("stationarity_residual", "smallest_margin", "training_error", "test_error", "norm")
    return (
        {key: value.numpy() for key, value in network.state_dict().items()},
        [truth.images.numpy(), truth.held_out.numpy(), truth.mean.numpy()],
        {
            "memory_mib": {"start": start_mib, "peak": peak_mebibytes()},
            "seconds": seconds,
            "threads": torch.get_num_threads(),
            **{key: last[key] for key in measures},
        },
    )


def attacked(inputs: Inputs, state: dict[str, NDArray[Any]]) -> tuple[NDArray[Any], Result]:
    """Attack a network: its weights are all that this process sees.

    Returns
    -------
    candidates : (K, 28, 28)
    result : dict
    """
    network = Network(**inputs["arguments"])
    network.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    network.eval().requires_grad_(False)
    start_mib = peak_mebibytes()
    started = time.perf_counter()
    candidates = sparse_span.reconstruct(
        network,
        torch.zeros(0, SIDE, SIDE),  # no public images
        **inputs["attack"],
        callback=lambda step, residual, pool: None,
        memory=Forgetful(),
    )
    seconds = time.perf_counter() - started
    return candidates.numpy(), {
        "memory_mib": {"start": start_mib, "peak": peak_mebibytes()},
        "seconds": seconds,
        "threads": torch.get_num_threads(),
    }


def scored(candidates: NDArray[Any], truth: Truth) -> Result:
    """Matches of the candidates (K, 28, 28) with the training images, and with held-out ones."""
    found = torch.from_numpy(candidates).flatten(1)
    similarity = correlations(found, truth.images, mean=truth.mean)
    values = match(similarity).values
    null_values = null_matching(found, truth, mean=truth.mean).values
    bars = [float(threshold) for threshold in THRESHOLDS]
    threshold = null_threshold(null_values)
    first = min(FIRST, len(found))
    return {
        "candidates": len(found),
        "identified": counts_above(values, [threshold])[0],
        "matched": dict(zip(THRESHOLDS, counts_above(values, bars), strict=True)),
        "n": len(truth.images),
        "null_matched": dict(zip(THRESHOLDS, counts_above(null_values, bars), strict=True)),
        "null_n": len(null_values),
        "precision_first": (
            first_candidates(similarity, first=first, threshold=threshold)[0] if first else None
        ),
        "threshold": threshold,
    }


def measured(inputs: Inputs, *, apart: bool) -> Result:
    """Train, attack and score, in processes of their own or in this one. What fails is a result
    too: it must not cost the other points."""
    call = alone if apart else lambda function, *arguments: function(*arguments)
    result: Result = {"inputs": inputs, "n": 2 * inputs["training"]["per_class"]}
    try:
        state, truth, result["training"] = call(trained, inputs)
        candidates, result["attack"] = call(attacked, inputs, state)
    except BrokenExecutor:
        raise  # a process that was killed says nothing about the attack
    except (Refusal, RuntimeError, ValueError, IndexError) as error:
        return {**result, "failed": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    if not apart:
        for half in ("training", "attack"):
            del result[half]["memory_mib"]  # of this process, whatever else it did
    images, held_out, mean = map(torch.from_numpy, truth)
    return {**result, **scored(candidates, Truth(images, held_out, mean, coloured=False))}


PARTS: dict[str, Callable[[], list[Point]]] = {"sets": sets, "growth": growth, "drivers": drivers}


def read_stored() -> Stored:
    """Points that were measured before, by part and name."""
    path = RESULTS / f"{NAME}.json"
    stored: Stored = read_json(path)["points"] if path.exists() else {}
    return {part: stored.get(part, {}) for part in PARTS}


def known(point: Point, stored: Stored) -> Result | None:
    """The result of a point's inputs, under whatever name it was measured."""
    results = (result for part in stored.values() for result in part.values())
    return next((result for result in results if result["inputs"] == point.inputs), None)


def line_of(result: Result) -> str:
    """A result in a few words."""
    if "failed" in result:
        return f"failed ({result['failed']})"
    null_n = result.get("null_n", result["n"])
    return (
        f"{result['matched'][STRICTEST]} of {result['n']} above {STRICTEST}, null "
        f"{result['null_matched'][STRICTEST]} of {null_n}; {result['training']['seconds']:.0f} s + "
        f"{result['attack']['seconds']:.0f} s"
    )


def measure(parts: Iterable[str], *, limit: int | None) -> Stored:
    """Measure the points of some parts that are not known yet, and write each when it is done.

    Parameters
    ----------
    parts : list of str
    limit : int, optional
        Measure at most so many.

    Returns
    -------
    dict
        All points that are known, by part and name.
    """
    stored = read_stored()
    count = 0
    for part in parts:
        for point in PARTS[part]():
            result = known(point, stored)
            fresh = result is None
            if result is None:
                if limit is not None and count >= limit:
                    continue  # later points may be known
                print(f"{part}, {point.name} …", end=" ", flush=True)
                result = measured(point.inputs, apart=part != "drivers")
                count += 1
                print(line_of(result), flush=True)
            if fresh or stored[part].get(point.name) != result:
                stored[part][point.name] = result
                write_result(NAME, {"points": stored, **summaries(stored)})
    return stored


def spread(values: list[float]) -> dict[str, float]:
    """Mean and range."""
    return {"mean": statistics.fmean(values), "smallest": min(values), "largest": max(values)}


def numbers_of(result: Result) -> dict[str, float]:
    """What `sets` is summed up by."""
    return {
        **{f"matched_{bar}": result["matched"][bar] for bar in THRESHOLDS},
        **{f"null_matched_{bar}": result["null_matched"][bar] for bar in THRESHOLDS},
        "precision_first": result["precision_first"] or 0.0,
        "training_seconds": result["training"]["seconds"],
        "attack_seconds": result["attack"]["seconds"],
    }


def present(part: str, stored: Stored) -> list[tuple[Point, Result]]:
    """The points of a part that are known with their present inputs."""
    pairs = ((point, stored[part].get(point.name)) for point in PARTS[part]())
    return [(p, result) for p, result in pairs if result and result["inputs"] == p.inputs]


def summaries(stored: Stored) -> dict[str, Any]:
    """Mean and range over the sets."""
    rows = [numbers_of(r) for _, r in present("sets", stored) if "failed" not in r]
    if not rows:
        return {}
    return {"summary_of_sets": {key: spread([row[key] for row in rows]) for key in rows[0]}}


def show_sets(stored: Stored) -> None:
    """Print a row for each run, then mean and range."""
    rows = {
        point.name: numbers_of(result)
        for point, result in present("sets", stored)
        if "failed" not in result
    }
    if not rows:
        return
    table: dict[str, Mapping[str, float]] = {**rows}
    for statistic in ("mean", "smallest", "largest"):
        table[statistic] = {
            key: spread([row[key] for row in rows.values()])[statistic]
            for key in next(iter(rows.values()))
        }
    print_table(
        f"{LARGE[1]} on {LARGE[0]}: training images matched / held-out images matched",
        ["", *(f"NCC > {bar}" for bar in THRESHOLDS), f"first {FIRST}", "training, s", "attack, s"],
        [
            [
                name,
                *(
                    f"{row[f'matched_{bar}']:.4g} / {row[f'null_matched_{bar}']:.3g}"
                    for bar in THRESHOLDS
                ),
                f"{row['precision_first']:.2f}",
                f"{row['training_seconds']:.0f}",
                f"{row['attack_seconds']:.0f}",
            ]
            for name, row in table.items()
        ],
    )


def show_points(part: str, stored: Stored) -> None:
    """Print a row for each point of `growth` or `drivers`."""
    rows = []
    for point, result in present(part, stored):
        if "failed" in result:
            rows.append([point.name, *[""] * 8, result["failed"][:60]])
            continue
        training, attack = result["training"], result["attack"]
        memory = [half.get("memory_mib") for half in (training, attack)]
        rows.append(
            [
                point.name,
                result["n"],
                f"{result['matched'][STRICTEST]} / {result['null_matched'][STRICTEST]}",
                f"{training['stationarity_residual']:.3f}",
                f"{training['training_error']:.2f}",
                f"{training['seconds']:.0f}",
                f"{attack['seconds']:.0f}",
                *(f"{m['peak']:.0f} ({m['start']:.0f})" if m else "" for m in memory),
                "",
            ]
        )
    if rows:
        print_table(
            f"{part}: matched above {STRICTEST} / held-out; peak memory (and before the start)",
            [
                *("", "n", "matched", "residual", "training error", "training, s", "attack, s"),
                *("training, MiB", "attack, MiB", "failed"),
            ],
            rows,
        )


def draw(stored: Stored) -> None:
    """Draw the drivers as small multiples; nothing where no point is known."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pairs = present("drivers", stored)
    if not pairs:
        return
    figure, grid = pyplot.subplots(
        2, 3, figsize=(9, 5.2), layout="constrained", sharey=True, squeeze=False
    )
    reference = next((p.inputs for p in drivers() if p.label == LABELS[0]), None)
    for axes, (group, title) in zip(grid.flat, GROUPS.items(), strict=True):
        shown = [(p, result) for p, result in pairs if p.group == group]
        places = range(len(shown))
        above, null = (
            [r[key][STRICTEST] / r.get(of, r["n"]) if "failed" not in r else 0.0 for _, r in shown]
            for key, of in (("matched", "n"), ("null_matched", "null_n"))
        )
        axes.plot(places, null, color="#999999", marker="s", markersize=4, label="held-out images")
        axes.plot(places, above, color=COLOURS[0], marker="o", label="training images")
        usual = [i for i in places if shown[i][0].inputs == reference]
        ring = {"linestyle": "", "marker": "o", "markersize": 12, "markerfacecolor": "none"}
        axes.plot(usual, [above[i] for i in usual], color=COLOURS[4], label="usual setting", **ring)
        failed = [i for i in places if "failed" in shown[i][1]]
        axes.plot(failed, [0] * len(failed), "x", color=COLOURS[8], markersize=9, label="failed")
        axes.set_xticks(places, [p.label for p, _ in shown])
        axes.set_title(title, fontsize=10)
        axes.margins(x=0.12)
        axes.set_ylim(-0.04, 1.04)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel(f"share with NCC > {STRICTEST}")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    anywhere = any("failed" in result for _, result in pairs)
    kept = [i for i, label in enumerate(labels) if label != "failed" or anywhere]
    figure.legend(
        [handles[i] for i in kept],
        [labels[i] for i in kept],
        frameon=False,
        loc="outside lower center",
        ncols=4,
    )
    dataset = pairs[0][0].inputs["dataset"]
    figure.suptitle(
        f"Which share of the training images comes out? ({dataset}, usually {DRIVEN} images, "
        f"{DRIVEN_WIDTH} units)"
    )
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(PICTURE) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    print(f"written: {PICTURE}")


def main(part: str | None, *, limit: int | None) -> None:
    """Measure one part or all, then show what is known of it."""
    parts = [part] if part else list(PARTS)
    stored = measure(parts, limit=limit)
    if "sets" in parts:
        show_sets(stored)
    for each in ("growth", "drivers"):
        if each in parts:
            show_points(each, stored)
    if "drivers" in parts:
        draw(stored)


def command_line() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_identification",
        description="Measure how many training images sparse_span finds: over sets and seeds, "
        "over the number of images, and with one thing changed at a time. Points that were "
        "measured before are kept.",
    )
    parser.add_argument("part", nargs="?", choices=list(PARTS), help="default: all of them")
    parser.add_argument("--limit", type=int, metavar="N", help="measure at most N new points")
    arguments = parser.parse_args()
    try:
        main(arguments.part, limit=arguments.limit)
    except Refusal as refusal:
        sys.exit(f"retrace: {refusal}")
    except KeyboardInterrupt:
        print("\nretrace: interrupted; what was measured is kept", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    command_line()
