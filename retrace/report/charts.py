"""Charts as SVG that takes its colours from the page, in the dark too."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib
from markupsafe import Markup

from retrace.report.pictures import COLOURS

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.figure import Figure

INK, LINE, FAINT = "#010203", "#040506", "#777777"  # stand for the page's own colours
SIZE = (5.2, 3.7)  # inches; on a phone, 9 points stay legible
MARKERS = "osD^vP*Xph<>"
LETTER = 5.4  # points that a letter of a name takes
SHIFTS = [0, 7, -7, *(sign * step for step in range(12, 80, 6) for sign in (1, -1))]  # points


class Point(NamedTuple):
    """A run in a trade-off plot."""

    label: str
    seconds: float
    value: float
    trivial: bool


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib with colours that `svg` exchanges for the page's."""
    settings: Any = {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": LINE,
        "grid.linewidth": 0.6,
        "axes.edgecolor": FAINT,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "lines.linewidth": 1.8,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), INK),
        **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    }
    with matplotlib.rc_context(settings):
        yield


def svg(figure: Figure, *, name: str) -> Markup:
    """A figure as SVG for the middle of a page, and closed; the same figure gives the same text.

    Parameters
    ----------
    figure : Figure
        Drawn within `style`.
    name : str
        Salts its identifiers, which must not be those of another chart on the page.
    """
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
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


def tradeoff(
    points: Sequence[Point], *, name: str, label: str, unit: str = "seconds", log: bool = True
) -> Markup:
    """Quality against seconds, each run a named point, trivial ones grey.

    Parameters
    ----------
    points : list of Point
    name : str
        Of the chart.
    label : str
        What the values are.
    unit : str
        What the seconds are of.
    log : bool
        Whether the values have a logarithmic scale, where all are positive.
    """
    with style():
        figure, axes = pyplot.subplots(figsize=SIZE, layout="constrained")
        shown = [p._replace(seconds=max(p.seconds, 1e-3)) for p in points]
        for i, point in enumerate(shown):
            axes.plot(
                point.seconds,
                point.value,
                MARKERS[i % len(MARKERS)],
                color=FAINT if point.trivial else COLOURS[i % len(COLOURS)],
                markersize=7,
            )
        if log and all(point.value > 0 for point in shown):
            axes.set_yscale("log")
        axes.set(xscale="log", xlabel=unit, ylabel=label)
        axes.margins(x=0.12, y=0.1)
        _name_points(figure, axes, shown)
        return svg(figure, name=name)


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
            color=FAINT if point.trivial else INK,
            arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.6, "shrinkB": 4}
            if abs(dy) > 10
            else None,
        )


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    name: str,
    x: str,
    y: str,
    dashed: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    marks: bool = False,
    y_scale: str = "linear",
    ticks: Sequence[str] = (),
    at: float | None = None,
    x_limits: tuple[float, float] | None = None,
) -> Markup:
    """Curves by name, some of them also dashed in the same colour.

    Parameters
    ----------
    series, dashed : dict of (x, y)
    name : str
        Of the chart.
    x, y : str
        What the axes show.
    marks : bool
        Whether every value has a marker.
    y_scale : str
        "linear" or "log".
    ticks : list of str
        Names of the places 0, 1, ... of the horizontal axis.
    at : float, optional
        Where a vertical line stands.
    x_limits : (float, float), optional
        Ends of the horizontal axis.
    """
    with style():
        figure, axes = pyplot.subplots(figsize=SIZE, layout="constrained")
        for i, (label, (places, values)) in enumerate(series.items()):
            colour = COLOURS[i % len(COLOURS)]
            marker = MARKERS[i % len(MARKERS)] if marks else None
            axes.plot(places, values, color=colour, marker=marker, markersize=6, label=label)
            if dashed and label in dashed:
                axes.plot(*dashed[label], color=colour, linestyle="dashed")
        axes.set(xlabel=x, ylabel=y, yscale=y_scale)
        if ticks:
            axes.set_xticks(range(len(ticks)), ticks)
        if x_limits:
            axes.set_xlim(*x_limits)
        if at is not None:
            axes.axvline(at, color=FAINT, linestyle="dotted")
        figure.legend(loc="outside lower center", ncols=min(3, len(series)))
        return svg(figure, name=name)
