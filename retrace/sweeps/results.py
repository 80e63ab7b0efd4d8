"""The table of a sweep, and its figure."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from retrace.pipeline.artifacts import written_whole
from retrace.pipeline.command import Refusal
from retrace.sweeps.running import Done
from retrace.sweeps.trials import Figure, Sweep, Trial

ABREAST = 3  # panels in a row
WIDE = 8  # ratio of the ends of an axis that is worth a logarithm
COUNTS, SHARE = ("identified", "matched_99"), "_share"  # of sets that differ in size

Row = dict[str, Any]


def row_of(trial: Trial, done: Done, *, runs: Sequence[str]) -> Row:
    """A trial's digest, the values that vary, the metrics of its runs, and why it was refused."""
    row: Row = {"trial": done.digest, **trial.values}
    for name in runs if done.result["refused"] is None else ():
        metrics = done.result["runs"][name]["metrics"]
        shares = {f"{key}{SHARE}": metrics[key] / metrics["n"] for key in COUNTS if key in metrics}
        prefix = f"{name}/" if len(runs) > 1 else ""
        row |= {f"{prefix}{key}": value for key, value in {**metrics, **shares}.items()}
    return row | {"refused": done.result["refused"] or ""}


def rows_of(sweep: Sweep, trials: Sequence[Done]) -> list[Row]:
    pairs = zip(sweep.trials, trials, strict=True)
    return [row_of(trial, done, runs=sweep.runs) for trial, done in pairs]


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows as CSV; lists as JSON."""
    # Of all rows: a refused trial lacks the metrics, and comes first as well as last.
    names = dict.fromkeys(key for row in rows for key in row if key != "refused")
    text = io.StringIO()
    writer = csv.DictWriter(text, [*names, "refused"], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: shown(value) for key, value in row.items()} for row in rows)
    with written_whole(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def shown(value: Any) -> Any:
    """A value of a table or a label."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value) if isinstance(value, list | dict) else value


class Panel(NamedTuple):
    """Rows against a key."""

    rows: list[Row]
    key: str
    caption: str


def draw(
    path: Path, rows: Sequence[Row], keys: Sequence[str], figure: Figure, *, title: str
) -> None:
    """Draw the metric of all trials that were not refused.

    Raises
    ------
    Refusal
        When no trial has that metric.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    metric = figure.metric
    rows = [row for row in rows if isinstance(row.get(metric), int | float)]
    if not rows:
        raise Refusal(f"sweep {title}: no trial has the metric {metric!r}; the table is written")
    grid = panels_of(rows, keys, figure)
    drawing, axes = pyplot.subplots(
        len(grid),
        len(grid[0]),
        figsize=(4.2 * len(grid[0]), 0.4 + 3.2 * len(grid)),
        layout="constrained",
        squeeze=False,
        sharex=figure.x is not None,
        sharey=True,
    )
    for one in axes.flat:
        one.set_axis_off()  # not every combination has to be in the sweep
    colours = {
        _label(figure.lines, value): f"C{i % 10}"
        for i, value in enumerate(_values(rows, figure.lines))
    }
    handles: dict[str, Any] = {}
    for i, line in enumerate(grid):
        for j, panel in enumerate(line):
            if panel.rows:
                axes[i, j].set_axis_on()
                axes[i, j].spines[["top", "right"]].set_visible(False)
                axes[i, j].set(xlabel=short(panel.key), title=panel.caption)
                handles |= _draw_panel(axes[i, j], panel, figure, of=rows, colours=colours)
        axes[i, 0].set_ylabel(metric)
    heights = [row[metric] for row in rows]
    if metric.endswith(SHARE):
        axes[0, 0].set_ylim(-0.04, 1.04)
    elif min(heights) > 0 and max(heights) / min(heights) >= WIDE:
        axes[0, 0].set_yscale("log")
    if figure.lines:
        drawing.legend(
            list(handles.values()),
            list(handles),
            loc="outside lower center",
            ncols=4,
            frameon=False,
        )
    drawing.suptitle(title)
    with written_whole(path) as temporary:
        drawing.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
    pyplot.close(drawing)


def panels_of(rows: Sequence[Row], keys: Sequence[str], figure: Figure) -> list[list[Panel]]:
    """Panels in their rows: one for each pair of values, or one for each key."""
    if figure.x is None:
        panels = [Panel(list(rows), key, "") for key in keys]
        return [panels[i : i + ABREAST] for i in range(0, len(panels), ABREAST)]
    down, across = figure.rows, figure.columns
    return [
        [
            Panel(
                [row for row in rows if _is(row, down, v) and _is(row, across, h)],
                figure.x,
                ", ".join(_label(key, value) for key, value in ((down, v), (across, h)) if key),
            )
            for h in _values(rows, across)
        ]
        for v in _values(rows, down)
    ]


def _draw_panel(
    axes: Any, panel: Panel, figure: Figure, *, of: Sequence[Row], colours: dict[str, str]
) -> dict[str, Any]:
    """Draw a panel, whose axis shows all values of rows `of` all; give its lines by their label."""
    values = _values(of, panel.key)
    numbers = all(isinstance(value, int | float) for value in values)
    # Numbers stand as such, others side by side.
    places = {_hashable(value): value if numbers else i for i, value in enumerate(values)}
    handles = {}
    for value in _values(panel.rows, figure.lines):
        label = _label(figure.lines, value)
        points = sorted(
            (places[_hashable(row[panel.key])], row[figure.metric])
            for row in panel.rows
            if _is(row, figure.lines, value)
        )
        style = {"color": colours[label], "linewidth": 1}
        (handles[label],) = axes.plot(*zip(*points, strict=True), "o", markersize=4, **style)
        if figure.x is not None:  # through the means of what does not tell trials apart
            heights = {x: [y for place, y in points if place == x] for x, _ in points}
            axes.plot(list(heights), [sum(ys) / len(ys) for ys in heights.values()], **style)
    if numbers and values[0] > 0 and values[-1] / values[0] >= WIDE:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter("")
    if len(values) <= WIDE:
        axes.set_xticks(list(places.values()), [str(shown(value)) for value in values])
        axes.minorticks_off()
    return handles


def short(key: str) -> str:
    """The end of a dotted path."""
    return key.rpartition(".")[2].replace("_", " ")


def _label(key: str | None, value: Any) -> str:
    return f"{short(key or '')} {shown(value)}"


def _is(row: Row, key: str | None, value: Any) -> bool:
    return key is None or row[key] == value


def _hashable(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _values(rows: Sequence[Row], key: str | None) -> list[Any]:
    """Values of a key, none twice: numbers by size, others as they come; without a key one None."""
    if key is None:
        return [None]
    values = list({_hashable(row[key]): row[key] for row in rows}.values())
    return sorted(values) if all(isinstance(v, int | float) for v in values) else values
