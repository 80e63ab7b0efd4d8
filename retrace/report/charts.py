"""Charts: as SVG that takes its colours from the page, in the dark too, and as PNG."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from retrace.report.model import Chart
from retrace.report.pictures import COLOURS

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.figure import Figure

INK, LINE, FAINT = "#010203", "#040506", "#777777"  # stand for the page's own colours
PAPER = {"ink": "#1d2328", "line": "#e0dfda", "paper": "white"}  # of a PNG
SIZE = (5.2, 3.7)  # inches; on a phone, 9 points stay legible
LONG = 16  # characters of a curve's name, from which on two stand in a row of the legend
MARKERS = "osD^vP*Xph<>"
LETTER = 5.4  # points that a letter of a name takes
SHIFTS = [0, 7, -7, *(sign * step for step in range(12, 80, 6) for sign in (1, -1))]  # points
Curve = tuple[Sequence[float], Sequence[float]]
"""Values of both axes."""


class Point(NamedTuple):
    """A run in a trade-off plot."""

    label: str
    seconds: float
    value: float
    trivial: bool = False


@contextmanager
def style(ink: str = INK, line: str = LINE, paper: str = "none") -> Iterator[None]:
    """Matplotlib in the colours of a page: those that `svg` exchanges, if no others are given."""
    settings: Any = {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": line,
        "grid.linewidth": 0.6,
        "axes.edgecolor": FAINT,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "lines.linewidth": 1.8,
        "figure.constrained_layout.use": True,
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), paper),
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), ink),
        **dict.fromkeys(("xtick.color", "ytick.color"), ink),
    }
    with matplotlib.rc_context(settings):
        yield


def svg(chart: Chart, *, name: str) -> Markup:
    """A chart as SVG for the middle of a page; the same chart gives the same text. The name salts
    its identifiers, which must not be those of another chart on the page."""
    stream = io.StringIO()
    with style(), matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure = chart.draw()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # not referred to, and the same in every chart
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = text.replace(INK, "currentColor")
    text = text.replace(LINE, "var(--line)").replace(FAINT, "var(--faint)")
    for i, colour in enumerate(COLOURS):
        text = text.replace(f": {colour}", f": var(--c{i}, {colour})")
    # No part of the chart is read aloud letter by letter: the page's figure has the text for it.
    return Markup(text.replace("<svg", '<svg aria-hidden="true"', 1))  # noqa: S704 (escaped)  # nosec B704


def png(target: Path | BinaryIO, chart: Chart, *, title: str = "") -> None:
    """Write a chart as a PNG; the same chart gives the same bytes."""
    with style(**PAPER):
        figure = chart.draw()
        if title:
            figure.suptitle(title, fontsize=11)
        # No date and no version in the file.
        figure.savefig(target, format="png", dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def pixels(chart: Chart) -> NDArray[np.uint8]:
    """A chart as a picture (H, W, 3)."""
    stream = io.BytesIO()
    png(stream, chart)
    return np.asarray(Image.open(stream).convert("RGB"))


def tradeoff(
    points: Sequence[Point], *, label: str, form: str, unit: str, caption: str, log: bool = True
) -> list[Chart]:
    """Quality against seconds, each run a named point, trivial ones grey; nothing of one run. The
    label says what the values are, the form how one is written, the unit what the seconds are of;
    the values have a logarithmic scale, if wanted, where all are positive."""

    def draw() -> Figure:
        figure, axes = pyplot.subplots(figsize=SIZE)
        shown = [p._replace(seconds=max(p.seconds, 1e-3)) for p in points]
        for i, point in enumerate(shown):
            colour = FAINT if point.trivial else COLOURS[i % len(COLOURS)]
            marker = MARKERS[i % len(MARKERS)]
            axes.plot(point.seconds, point.value, marker, color=colour, markersize=7)
        if log and all(point.value > 0 for point in shown):
            axes.set_yscale("log")
        axes.set(xscale="log", xlabel=unit, ylabel=label)
        axes.margins(x=0.12, y=0.1)
        _name_points(figure, axes, shown)
        return figure

    texts = "; ".join(f"{p.label} {p.value:{form}} in {p.seconds:.3g} s" for p in points)
    alt = f"{label[0].upper()}{label[1:]} against {unit}: {texts}"
    return [Chart("Quality against seconds", draw, alt, caption)] if len(points) > 1 else []


def _name_points(figure: Figure, axes: Any, points: Sequence[Point]) -> None:
    """Write each point's name near it, where it covers neither another name nor another point, with
    a line to it where that is not beside it."""
    figure.canvas.draw()
    scale = 72 / figure.dpi  # all lengths in points on paper
    frame = axes.get_window_extent()
    left_edge, right_edge = scale * frame.x0, scale * frame.x1 + 4
    bottom, top = scale * frame.y0, scale * frame.y1 + 6
    places = [scale * axes.transData.transform((p.seconds, p.value)) for p in points]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]

    def crossings(box: tuple[float, float, float, float]) -> float:
        inside = box[0] >= left_edge and box[2] <= right_edge and box[1] >= bottom and box[3] <= top
        covered = sum(
            box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
            for other in taken
        )
        return covered + 10 * (not inside)

    for (x, y), point in sorted(zip(places, points, strict=True), key=lambda pair: -pair[0][1]):
        length = LETTER * len(point.label)
        offsets = [(8 if right else -8 - length, dy) for dy in SHIFTS for right in (True, False)]
        offsets += [(-length / 2, dy) for dy in SHIFTS if abs(dy) > 10]
        boxes = [(x + dx, y + dy - 5, x + dx + length, y + dy + 5) for dx, dy in offsets]
        best = min(range(len(boxes)), key=lambda i: (crossings(boxes[i]), abs(offsets[i][1]), i))
        taken.append(boxes[best])
        dx, dy = offsets[best]
        axes.annotate(
            point.label,
            (point.seconds, point.value),
            xytext=(dx, dy),
            textcoords="offset points",
            va="center",
            fontsize=9,
            **({"color": FAINT} if point.trivial else {}),
            arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.6, "shrinkB": 4}
            if abs(dy) > 10
            else None,
        )


def lines(
    series: Mapping[str, Curve],
    *,
    x: str,
    y: str,
    dashed: Mapping[str, Curve] | None = None,
    bands: Mapping[str, Curve] | None = None,
    marks: bool = False,
    x_scale: str = "linear",
    y_scale: str = "linear",
    ticks: Sequence[str] = (),
    at: float | None = None,
    diagonal: bool = False,
    x_limits: tuple[float, float] | None = None,
) -> Figure:
    """Curves by name, some of them also dashed in the same colour, or between the lower and the
    upper ends of an interval; x and y say what the axes show.

    If asked for, every value has a marker (`marks`), the places 0, 1, ... of the horizontal axis
    have names (`ticks`), a vertical line stands `at` a value, and a diagonal where both axes are
    equal.
    """
    figure, axes = pyplot.subplots(figsize=SIZE)
    for i, (label, curve) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        marker = MARKERS[i % len(MARKERS)] if marks else None
        axes.plot(*curve, color=colour, marker=marker, markersize=6, label=label)
        if bands and label in bands:
            axes.fill_between(curve[0], *bands[label], color=colour, alpha=0.15, linewidth=0)
        if dashed and label in dashed:
            axes.plot(*dashed[label], color=colour, linestyle="dashed", marker=marker, markersize=4)
    axes.set(xlabel=x, ylabel=y, xscale=x_scale, yscale=y_scale)
    if ticks:
        axes.set_xticks(range(len(ticks)), ticks)
    if x_limits:
        axes.set_xlim(*x_limits)
    if at is not None:
        axes.axvline(at, color=FAINT, linestyle="dotted")
    if diagonal:
        axes.axline((1, 1), slope=1, color=FAINT, linewidth=1)
    # Three long names would not fit side by side.
    across = 2 if max(map(len, series), default=0) > LONG else 3
    figure.legend(loc="outside lower center", ncols=min(across, len(series)))
    return figure
