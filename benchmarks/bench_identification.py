"""How steadily attacks find training images, how it grows, and what drives it: sweeps.

`sets`: two disjoint sets of 500 images, three trainings of the network each, three attacks.
`ordinary`: networks as people train them, three disjoint sets of images and seeds each.
`members`: networks of 500 and 5,000 images: which are told to be members, and that none is read.
`growth`: sets of 50 to 1,000 images: seconds, at cheap settings: half the units, few steps, a short
attack. Its matches say little.
`drivers`: 50 images and a small network, one thing changed at a time: what makes images come out of
the weights.

They run as `retrace.sweeps` does, so that nothing is measured twice, on as many processes as
RETRACE_WORKERS says: one for seconds that are to be compared. About two hours on two free cores
(estimated), half of them for `sets`. benchmarks/results/identification.json has each point; points
of parts that are not run stay as they were, also in the form that earlier code gave them.
"""

import argparse
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.timing import RESULTS, print_table, write_result
from retrace.measures.identification import THRESHOLDS
from retrace.pipeline.artifacts import read_json, written_whole
from retrace.pipeline.command import INTERRUPTED, Refusal
from retrace.pipeline.params import load
from retrace.report.pictures import COLOURS
from retrace.sweeps.results import short, written
from retrace.sweeps.running import Result, make
from retrace.sweeps.trials import expand

NAME = "identification"
PICTURE = Path("docs/pictures/training_data_drivers.png")
STRICTEST = THRESHOLDS[-1]
LARGE, SMALL = "networks.margin_mlp", "networks.margin_100"
ATTACK, SHORT = "training_data-sparse_span", "training_data-sparse_span_100"
GROWN = {"steps": 100, "learning_rate": 0.2, "decay": 0.5}
GROWN_ATTACK = {"starts": 100, "objectives": 20, "rounds": 1}
SHORT_ATTACK = {"starts": 100, "objectives": 100, "rounds": 2}
USUAL: dict[str, list[Any]] = {"training.per_class": [25], "arguments.widths": [[400, 400]]}
# Plain steps on the logistic loss, at a constant rate. The initial weights fade as exp(-2 decay
# steps): fully at 1e-2, to a 50th at 1e-3, to two thirds at 1e-4.
DECAYED: dict[str, list[Any]] = {
    "training.method": ["weight_decay"],
    "training.learning_rate": [1.0],
    "training.decay": [1.0],
    "training.steps": [2000],
}
# By panel of the figure: what is changed, key by key of the network's.
DRIVERS: dict[str, dict[str, list[Any]]] = {
    "steps of training": {"training.steps": [0, 150, 400, 1500, 4000]},
    "weight decay, plain steps": {"training.weight_decay": [1e-2, 1e-3, 1e-4], **DECAYED},
    "units in each hidden layer": {"arguments.widths": [[n, n] for n in (100, 200, 400)]},
    "training images of each class": {"training.per_class": [10, 25, 50]},
    "deviation of the first\nlayer's initial weights": {
        "arguments.first_deviation": [1e-4, 1e-3, 1e-2, 1e-1]
    },
    "labels": {"training.labels": ["correct", "random"]},
}
SETS = {
    "runs": [ATTACK, "training_data-row_differences", "training_data-kkt"],
    "vary": [{f"{LARGE}.training.seed": [0, 1, 2], f"{LARGE}.training.offset": [0, 250]}],
}
GROWTH = {
    "runs": [ATTACK],
    "vary": [{f"{LARGE}.training.per_class": [25, 50, 100, 250, 500]}],
    "fixed": {
        f"{LARGE}.arguments.widths": [500, 500],
        **{f"{LARGE}.training.{k}": v for k, v in GROWN.items()},
        **{f"runs.{ATTACK}.settings.{k}": v for k, v in GROWN_ATTACK.items()},
    },
}
DRIVEN = [
    {
        "runs": [SHORT],
        "vary": [{f"{SMALL}.{key}": values for key, values in {**USUAL, **changes}.items()}],
        "fixed": {f"runs.{SHORT}.settings.{k}": v for k, v in SHORT_ATTACK.items()},
    }
    for changes in DRIVERS.values()
]
ORDINARY = [
    {
        "runs": [f"training_data-{name}", f"membership-{name}"],
        "vary": [
            {f"networks.{name}.training.{key}": [value] for key, value in choice.items()}
            for choice in ({"offset": 100 * i, "seed": i} for i in range(3))
        ],
        "fixed": {"problems.membership.settings": {"per_class": 300}},  # so many are looked at
    }
    for name in ("ordinary_50", "ordinary_100", "ordinary_200", "fine_tuned_100")
]
MANY = "ordinary_1000"
MEMBERS = {
    "runs": [f"membership-{MANY}", "training_data-ordinary_100"],
    "vary": [{f"networks.{MANY}.training.per_class": [50, 500]}],
    "fixed": {
        "problems.membership.settings": {"per_class": 500},
        "runs.training_data-ordinary_100.network": MANY,
    },
}
PARTS = {
    "sets": [SETS],
    "ordinary": ORDINARY,
    "members": [MEMBERS],
    "growth": [GROWTH],
    "drivers": DRIVEN,
}
KEPT = (
    *("candidates", "identified", "matched", "n", "null_matched", "null_n", "precision_at"),
    *("threshold", "tpr_0", "tpr_0.1", "tpr_1", "auc", "test_error"),
)
Points = dict[str, dict[str, Any]]


def point_of(result: Result, run: str, values: dict[str, Any]) -> dict[str, Any]:
    """What came of a run of a trial."""
    if result["refused"]:
        return {"values": values, "failed": result["refused"]}
    found = result["runs"][run]
    return {
        **{key: found["scores"][key] for key in KEPT if key in found["scores"]},
        "attack": {key: found["record"][key] for key in ("seconds", "peak_memory")},
        "training": {"seconds": found["metrics"]["training_seconds"]},
        "values": values,
    }


def measure(name: str, section: dict[str, Any], *, limit: int | None) -> Points:
    """The points of a sweep, or of its first trials, by run and by what varies."""
    params = load()
    metric = f"{section['runs'][0]}/n"  # a sweep has a figure, which is not drawn here
    whole = {"search": "grid", "figure": {"metric": metric}, **section}
    sweep = expand(params, f"benchmark.{name}", **whole)
    sweep = sweep._replace(trials=sweep.trials[:limit])
    points = {}
    for trial, result in zip(sweep.trials, make(sweep, params, name=name)[0], strict=True):
        label = ", ".join(f"{short(key)} = {written(value)}" for key, value in trial.values.items())
        for run in sweep.runs:
            points[f"{run}: {label}"] = point_of(result, run, trial.values)
    return points


def spread_of(points: Points) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and range of the matches, by run and threshold, or of the members told."""
    counts: dict[str, dict[str, list[float]]] = {}
    for name, point in points.items():
        told = {key: value for key, value in point.items() if key.startswith("tpr_")}
        for bar, count in point.get("matched", told).items():
            counts.setdefault(name.partition(":")[0], {}).setdefault(bar, []).append(count)
    return {
        run: {
            bar: {"mean": fmean(found), "smallest": min(found), "largest": max(found)}
            for bar, found in by_bar.items()
        }
        for run, by_bar in counts.items()
    }


def show(part: str, points: Points) -> None:
    """Print a row for each point."""
    seconds = ["training, s", "attack, s"]
    found = {name: p for name, p in points.items() if "failed" not in p}
    read = [
        [
            name,
            *(f"{p['matched'][bar]} / {p['null_matched'][bar]}" for bar in THRESHOLDS),
            f"{p['identified']} of {p['n']}",
            *(f"{p[half]['seconds']:.0f}" for half in ("training", "attack")),
        ]
        for name, p in found.items()
        if "matched" in p
    ]
    told = [
        [
            name,
            *(f"{p[key]:.1%}" for key in ("tpr_0", "tpr_0.1", "tpr_1")),
            f"{1 - p['test_error']:.1%}",
            *(f"{p[half]['seconds']:.0f}" for half in ("training", "attack")),
        ]
        for name, p in found.items()
        if "tpr_1" in p
    ]
    if read:
        columns = ["", *(f"NCC > {bar}" for bar in THRESHOLDS), "identified", *seconds]
        print_table(f"{part}: training images matched / held-out images", columns, read)
    if told:
        columns = ["", "at 0", "at 0.1 %", "at 1 %", "test accuracy", *seconds]
        print_table(f"{part}: members told, by false positives", columns, told)


def draw(panels: list[Points]) -> None:
    """Draw the drivers, each beside the share of held-out images."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(2, 3, figsize=(9, 5.2), layout="constrained", sharey=True)
    for axes, (title, changes), points in zip(grid.flat, DRIVERS.items(), panels, strict=True):
        found = [point for point in points.values() if "failed" not in point]
        labels = [
            str(written(point["values"][f"{SMALL}.{next(iter(changes))}"])) for point in found
        ]
        for count, of, colour, label in (
            ("null_matched", "null_n", "#999999", "held-out images"),
            ("matched", "n", COLOURS[0], "training images"),
        ):
            shares = [point[count][STRICTEST] / point[of] for point in found]
            axes.plot(labels, shares, "o-", color=colour, label=label)
        axes.set_title(title, fontsize=10)
        axes.set_ylim(-0.04, 1.04)
    figure.supylabel(f"share with NCC > {STRICTEST}")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    with written_whole(PICTURE) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def main(part: str | None, *, limit: int | None) -> None:
    """Measure one part or all, and show what came of it."""
    file = RESULTS / f"{NAME}.json"
    stored = read_json(file) if file.exists() else {"points": {}}
    for name in [part] if part else PARTS:
        panels = [measure(name, section, limit=limit) for section in PARTS[name]]
        points = {key: point for panel in panels for key, point in panel.items()}
        stored["points"][name] = points
        if name in ("sets", "ordinary", "members"):
            stored[f"summary_of_{name}"] = spread_of(points)
        write_result(NAME, stored)
        show(name, points)
        if name == "drivers":
            draw(panels)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_identification")
    parser.add_argument("part", nargs="?", choices=list(PARTS), help="default: all of them")
    parser.add_argument("--limit", type=int, metavar="N", help="only its first N trials")
    arguments = parser.parse_args()
    try:
        main(arguments.part, limit=arguments.limit)
    except Refusal as refusal:
        sys.exit(f"retrace: {refusal}")
    except KeyboardInterrupt:
        print("\nretrace: interrupted; what was measured is kept", file=sys.stderr)
        sys.exit(INTERRUPTED)
