"""The table of a sweep, and its figure."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retrace.pipeline.artifacts import write_rows, written_whole
from retrace.pipeline.command import Refusal
from retrace.sweeps.running import Result
from retrace.sweeps.trials import Figure, Sweep

ABREAST = 3  # panels in a row
WIDE = 8  # ratio of the ends of an axis that is worth a logarithm
COUNTS, SHARE = ("identified", "matched_99"), "_share"  # of sets that differ in size

Row = dict[Any, Any]


def rows_of(sweep: Sweep, results: Sequence[Result]) -> list[Row]:
    """By trial its digest, what varies, the metrics of the sweep's runs, and why it was refused."""
    rows = []
    for trial, result in zip(sweep.trials, results, strict=True):
        row: Row = {"trial": result["trial"], **trial.values}
        for name in sweep.runs if result["refused"] is None else ():
            metrics = result["runs"][name]["metrics"]
            for key in COUNTS:
                if key in metrics:
                    metrics[f"{key}{SHARE}"] = metrics[key] / metrics["n"]
            prefix = f"{name}/" if len(sweep.runs) > 1 else ""
            row |= {f"{prefix}{key}": value for key, value in metrics.items()}
        rows.append(row | {"refused": result["refused"] or ""})
    return rows


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows as CSV; lists as JSON."""
    # Of all rows: a refused trial lacks the metrics, and comes first as well as last.
    names = [*dict.fromkeys(key for row in rows for key in row if key != "refused"), "refused"]
    write_rows(path, [{name: written(row.get(name, "")) for name in names} for row in rows])


def written(value: Any) -> Any:
    """A value of a table or a label."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value) if isinstance(value, list | dict) else value


class Values:
    """Rows as a figure takes them: by each key numbers, or texts where one is none."""

    def __init__(self, rows: Sequence[Row], keys: Sequence[str]) -> None:
        # With a value of the key None, which tells no trials apart: a figure may lack keys.
        self.rows = [{**row, None: ""} for row in rows]
        self.numbers = {k for k in keys if all(isinstance(row[k], int | float) for row in rows)}
        for row in self.rows:
            row |= {key: str(written(row[key])) for key in keys if key not in self.numbers}

    def __getitem__(self, key: str | None) -> list[Any]:
        """Values of a key, none twice: numbers by size, others as they come."""
        found = list(dict.fromkeys(row[key] for row in self.rows))
        return sorted(found) if key in self.numbers else found


def draw(
    path: Path, rows: Sequence[Row], keys: Sequence[str], figure: Figure, *, title: str
) -> None:
    """Draw the metric of all trials that were not refused; refused where no trial has it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    metric, down, across = figure.metric, figure.rows, figure.columns
    rows = [row for row in rows if isinstance(row.get(metric), int | float)]
    if not rows:
        raise Refusal(f"sweep {title}: no trial has the metric {metric!r}; the table is written")
    values = Values(rows, keys)
    # Panels by their place: the key that they are against, a caption, and the rows.
    panels = {divmod(i, ABREAST): (key, "", values.rows) for i, key in enumerate(keys)}
    if figure.x is not None:
        panels = {
            (i, j): (
                figure.x,
                ", ".join(label(key, value) for key, value in ((down, v), (across, h)) if key),
                [row for row in values.rows if (row[down], row[across]) == (v, h)],
            )
            for i, v in enumerate(values[down])
            for j, h in enumerate(values[across])
        }
    height, width = (1 + max(place) for place in zip(*panels, strict=True))
    drawing, grid = pyplot.subplots(
        height,
        width,
        figsize=(4.2 * width, 0.4 + 3.2 * height),
        layout="constrained",
        squeeze=False,
        sharex=figure.x is not None,
        sharey=True,
    )
    lines: dict[str, Any] = {}
    for axes in grid.flat:
        axes.set_axis_off()  # not every combination has to be in the sweep
    for place, (key, caption, of_panel) in panels.items():
        if of_panel:
            grid[place].set_axis_on()
            grid[place].set(xlabel=short(key), title=caption)
            lines |= _draw_panel(grid[place], of_panel, key, figure, values)
    lowest, *_, highest = sorted([row[metric] for row in rows] * 2)
    if metric.endswith(SHARE):
        grid[0, 0].set_ylim(-0.04, 1.04)
    elif lowest > 0 and highest / lowest >= WIDE:
        grid[0, 0].set_yscale("log")
    for axes in grid[:, 0]:
        axes.set_ylabel(metric)
    if figure.lines:
        bottom: dict[str, Any] = {"loc": "outside lower center", "ncols": 4, "frameon": False}
        drawing.legend(list(lines.values()), list(lines), **bottom)
    drawing.suptitle(title)
    with written_whole(path) as temporary:
        drawing.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
    pyplot.close(drawing)


def _draw_panel(
    axes: Any, rows: Sequence[Row], key: str, figure: Figure, values: Values
) -> dict[str, Any]:
    """Draw some rows against a key, whose axis shows all its values; give the lines."""
    axes.spines[["top", "right"]].set_visible(False)
    order = values[key]
    axes.plot(order, [math.nan] * len(order))  # in their order, texts too
    lines: dict[str, Any] = {}
    for number, line in enumerate(values[figure.lines]):
        heights: dict[Any, list[float]] = {x: [] for x in order}
        for row in rows:
            if row[figure.lines] == line:
                heights[row[key]].append(row[figure.metric])
        points = [(x, y) for x, ys in heights.items() for y in ys]
        if not points:
            continue
        style: dict[str, Any] = {"color": f"C{number % 10}", "linewidth": 1}
        drawn = axes.plot(*zip(*points, strict=True), "o", markersize=4, **style)
        lines[label(figure.lines or "", line)] = drawn[0]
        if figure.x is not None:  # through the means of what does not tell trials apart
            means = {x: sum(ys) / len(ys) for x, ys in heights.items() if ys}
            axes.plot(list(means), list(means.values()), **style)
    if key in values.numbers:
        if order[0] > 0 and order[-1] / order[0] >= WIDE:
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter("")
        if len(order) <= WIDE:
            axes.set_xticks(order, [str(written(value)) for value in order])
            axes.minorticks_off()
    return lines


def short(key: str) -> str:
    """The end of a dotted path."""
    return key.rpartition(".")[2].replace("_", " ")


def label(key: str, value: Any) -> str:
    return f"{short(key)} {written(value)}"
