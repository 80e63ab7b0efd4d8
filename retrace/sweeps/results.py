"""The table of a sweep, and its figure."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from retrace.pipeline.artifacts import write_rows, written_whole
from retrace.pipeline.command import Refusal
from retrace.sweeps.running import Result
from retrace.sweeps.trials import Figure, Sweep

ABREAST = 3  # panels in a row
LONG = 40  # letters of an axis's labels, which then are small
WIDE = 8  # ratio of the ends of an axis that is worth a logarithm
COUNTS, SHARE = ("identified", "matched_99"), "_share"  # of sets that differ in size
ABOUT = ("about",)  # of a row, the keys that it says something of: no text, as metrics are
Spaces = Iterable[tuple[str, ...]]  # of a row, the keys of each space that it is in

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
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value


class Values:
    """Rows as a figure takes them: by each key numbers, or texts where one is none."""

    def __init__(self, rows: Sequence[Row], keys: Sequence[str]) -> None:
        # With a value of the key None, which tells no trials apart: a figure may lack keys.
        self.rows = [{**row, None: ""} for row in rows]
        self.numbers = {k for k in keys if all(isinstance(row[k], int | float) for row in rows)}
        self.lists = {k for k in keys if all(isinstance(row[k], list | tuple) for row in rows)}
        # In the order of an axis: numbers and lists of them by size, others as they come.
        self.order: dict[str | None, list[Any]] = {None: [""]}
        for key in keys:
            found = [row[key] for row in self.rows]
            if key in self.numbers or key in self.lists:
                found = sorted(found)
            if key not in self.numbers:
                found = [str(written(value)) for value in found]
            self.order[key] = list(dict.fromkeys(found))
        for row in self.rows:
            row |= {key: str(written(row[key])) for key in keys if key not in self.numbers}

    def __getitem__(self, key: str | None) -> list[Any]:
        """Values of a key, none twice."""
        return self.order[key]


def draw(
    path: Path,
    rows: Sequence[Row],
    keys: Sequence[str],
    figure: Figure,
    *,
    title: str,
    spaces: Sequence[Spaces] = (),
) -> None:
    """Draw the metrics of all trials that were not refused; refused where no trial has one.

    `spaces` are those that each row is in; without them each is in one of all keys.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    wanted, down, across = figure.metrics, figure.rows, figure.columns
    several = isinstance(figure.x, dict)
    rows = [
        {**row, ABOUT: {key for space in of for key in (space[:1] if several else space)}}
        for row, of in zip(rows, spaces or [[tuple(keys)]] * len(rows), strict=True)
    ]
    for metric in wanted:
        if not any(isinstance(row.get(metric), int | float) for row in rows):
            raise Refusal(
                f"sweep {title}: no trial has the metric {metric!r}; the table is written"
            )
    rows = [row for row in rows if isinstance(row.get(next(iter(wanted))), int | float)]
    values = Values(rows, keys)
    # Panels by their place: the key that they are against, captions, and the rows.
    if isinstance(figure.x, str):
        panels = {
            (i, j): (
                figure.x,
                short(figure.x),
                ", ".join(label(key, value) for key, value in ((down, v), (across, h)) if key),
                [row for row in values.rows if (row[down], row[across]) == (v, h)],
            )
            for i, v in enumerate(values[down])
            for j, h in enumerate(values[across])
        }
    else:
        captions = figure.x or {key: short(key) for key in keys}
        panels = {
            divmod(i, ABREAST): (key, caption, "", [r for r in values.rows if key in r[ABOUT]])
            for i, (key, caption) in enumerate(captions.items())
        }
    height, width = (1 + max(place) for place in zip(*panels, strict=True))
    drawing, grid = pyplot.subplots(
        height,
        width,
        figsize=(4.2 * width, 0.4 + 3.2 * height),
        layout="constrained",
        squeeze=False,
        sharex=isinstance(figure.x, str),
        sharey=True,
    )
    lines: dict[str, Any] = {}
    for axes in grid.flat:
        axes.set_axis_off()  # not every combination has to be in the sweep
    for place, (key, caption, heading, of_panel) in panels.items():
        if of_panel:
            grid[place].set_axis_on()
            grid[place].set(xlabel=caption, title=heading)
            lines |= _draw_panel(grid[place], of_panel, key, figure, values)
    drawn = [row[key] for row in rows for key in wanted if isinstance(row.get(key), int | float)]
    lowest, highest = min(drawn), max(drawn)
    if all(key.endswith(SHARE) for key in wanted) or (
        len(wanted) > 1 and 0 <= lowest <= highest <= 1
    ):
        grid[0, 0].set_ylim(-0.04, 1.04)
    elif lowest > 0 and highest / lowest >= WIDE:
        grid[0, 0].set_yscale("log")
    for axes in grid[:, 0]:
        axes.set_ylabel(next(iter(wanted.values())) if len(wanted) == 1 else "")
    if lines:
        bottom: dict[str, Any] = {"loc": "outside lower center", "ncols": 4, "frameon": False}
        drawing.legend(list(lines.values()), list(lines), **bottom)
    drawing.suptitle(title)
    with written_whole(path) as temporary:
        drawing.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
    pyplot.close(drawing)


def _draw_panel(
    axes: Any, rows: Sequence[Row], key: str, figure: Figure, values: Values
) -> dict[str, Any]:
    """Draw some rows against a key, whose axis shows all its values; give the lines that have a
    name."""
    axes.spines[["top", "right"]].set_visible(False)
    present = {row[key] for row in rows}
    order = [value for value in values[key] if figure.x == key or value in present]
    even = key not in values.numbers
    logarithmic = not even and order[0] > 0 and order[-1] / order[0] >= WIDE
    # A 0 has no logarithm: such values stand one after the other.
    even = even or (order[0] == 0 and order[-1] >= WIDE * order[len(order) > 1])
    place = {value: i if even else value for i, value in enumerate(order)}
    axes.plot(place.values(), [math.nan] * len(order))  # in their order
    lines: dict[str, Any] = {}
    series = [
        (metric, line, caption if len(figure.metrics) > 1 else label(figure.lines or "", line))
        for metric, caption in figure.metrics.items()
        for line in values[figure.lines]
    ]
    through = figure.x is not None  # what does not tell trials apart is averaged
    for number, (metric, line, caption) in enumerate(series):
        heights: dict[Any, list[float]] = {x: [] for x in order}
        for row in rows:
            if row[figure.lines] == line and isinstance(row.get(metric), int | float):
                heights[row[key]].append(row[metric])
        points = [(place[x], y) for x, ys in heights.items() for y in ys]
        if not points:
            continue
        style: dict[str, Any] = {"color": f"C{number % 10}", "linewidth": 1}
        drawn = axes.plot(*zip(*points, strict=True), "o", markersize=4, **style)
        if figure.lines or len(figure.metrics) > 1:
            lines[caption] = drawn[0]
        if through:
            means = {place[x]: sum(ys) / len(ys) for x, ys in heights.items() if ys}
            axes.plot(list(means), list(means.values()), **style)
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter("")
    if even or len(order) <= WIDE:
        labels = [str(written(value)) for value in order]
        small = sum(map(len, labels)) > LONG
        axes.set_xticks(list(place.values()), labels, fontsize="small" if small else None)
        axes.minorticks_off()
    return lines


def short(key: str) -> str:
    """The end of a dotted path."""
    return key.rpartition(".")[2].replace("_", " ")


def label(key: str, value: Any) -> str:
    return f"{short(key)} {written(value)}"
