"""What a report shows, as data, and the state of a pipeline that it is drawn from.

Each table, gallery and chart is built once, by a problem's ``show``; `retrace.report.page` renders
it as HTML, `retrace.report.files` as Markdown, CSV and PNG.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from retrace.measures.quality import bootstrap
from retrace.pipeline.artifacts import metrics_path, read_arrays, read_json, reconstruction_path
from retrace.pipeline.command import Refusal
from retrace.report.pictures import Colours
from retrace.types import BadInput

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Better = Literal["lower", "higher", ""]
Scores = dict[str, Any]
Arrays = dict[str, NDArray[Any]]
# The middle of each case lies at this quantile of the error that the rule names.
CASES = {"good": 0.05, "median": 0.5, "worst": 1.0}
EACH = 3  # images of a case


@dataclass(frozen=True)
class Cell:
    """A value of a table: its text, its place in an order, the interval, and what was there before
    in a comparison."""

    text: str = ""
    value: float | None = None
    interval: str = ""
    before: "Cell | None" = None
    change: str = ""  # "", "same", "changed", "better" or "worse"
    amount: str = ""


@dataclass(frozen=True)
class Column:
    """A column, and how its cell follows from the scores of a run."""

    label: str
    better: Better = ""
    hint: str = ""
    cell: Callable[[Scores], Cell] = lambda scores: Cell()


@dataclass(frozen=True)
class Row:
    label: str
    cells: Sequence[Cell]
    trivial: bool = False
    only: str = ""  # in a comparison, the one state that has it


@dataclass(frozen=True)
class Table:
    """Rows of named cells; the best of a column is marked where one direction is better.

    Raises
    ------
    ValueError
        When two columns have one name: a comparison could not tell them apart.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    note: str = ""

    def __post_init__(self) -> None:
        labels = [column.label for column in self.columns]
        if len(set(labels)) < len(labels):
            raise ValueError(f"{self.title}: columns of the same name: {labels}")

    def best(self, position: int) -> float | None:
        """The best value of a column, or None where no direction is better or all are alike."""
        better = self.columns[position].better
        values = [row.cells[position].value for row in self.rows]
        known = [value for value in values if value is not None]
        if not better or len(set(known)) < 2:
            return None
        return min(known) if better == "lower" else max(known)


@dataclass(frozen=True)
class Strip:
    """A row of images (n, h, w) or (n, 3, h, w), and beside it their errors; see
    `retrace.report.pictures` for the colours. Captions, where there are some, are of the images
    below them."""

    label: str
    images: NDArray[Any]
    alt: str
    colours: Colours = "grey"
    error: NDArray[Any] | None = None
    note: str = ""
    captions: Sequence[str] = ()
    first: bool = True  # whether it is shown before someone asks for all methods
    given: bool = False  # the truth and what was observed, which no filter hides
    before: "Strip | None" = None  # in a comparison, where it differs


@dataclass(frozen=True)
class Case:
    """Images that show how well it goes, and their positions."""

    name: str
    note: str
    strips: list[Strip]
    index: Sequence[int] = ()

    def add(
        self,
        label: str,
        images: NDArray[Any],
        truth: NDArray[Any],
        alt: str,
        note: str,
        *,
        first: bool = True,
    ) -> None:
        """What a method makes of the images, and its errors, of coloured ones their mean."""
        error = abs(images - truth)
        error = error.mean(axis=1) if error.ndim == 4 else error
        strip = Strip(label, images, f"{self.name}: {alt}", error=error, note=note, first=first)
        self.strips.append(strip)


@dataclass(frozen=True)
class Gallery:
    """Strips by group (a mask, a precision, a run) and case.

    `sheets` names the groups that stand side by side in a file, and `errors` the colours of the
    strips' errors."""

    title: str
    rule: str
    groups: Mapping[str, Sequence[Case]]
    group_label: str = ""
    first: str = ""
    errors: Colours = "heat"
    sheets: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Chart:
    """A figure, drawn when it is asked for, with a text that says the same."""

    title: str
    draw: Callable[[], "Figure"]
    alt: str
    caption: str = ""
    file: str = ""
    wide: bool = False
    before: "Chart | None" = None  # in a comparison, where it differs


@dataclass(frozen=True)
class Steps:
    """Images in columns, a strip a line: along iterations, or unit by task."""

    title: str
    strips: Sequence[Strip]
    caption: str = ""
    file: str = ""
    open: bool = True  # whether it is shown before someone asks for it

    @property
    def columns(self) -> int:
        return max((len(strip.images) for strip in self.strips), default=0)


Block = Table | Gallery | Chart | Steps


@dataclass(frozen=True)
class Summary:
    """The problem on the first screen: a card with pictures, and a line of the table."""

    headline: str
    meaning: str
    pictures: Sequence[Strip]
    method: str
    result: Cell
    measure: str
    better: Better
    baseline: str
    runs: int
    seconds: float


@dataclass(frozen=True)
class Section:
    """All of a problem: blocks are on the page, and in files where they name one; sheets are in
    files alone. `rows` are tables for machines, by the name of their file."""

    problem: str
    title: str
    lead: str
    summary: Summary | None = None
    blocks: Sequence[Block] = ()
    sheets: Sequence[Steps] = ()
    rows: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)


@dataclass
class State:
    """Parameters and files of a pipeline; paths are relative to the working folder."""

    runs: Mapping[str, Mapping[str, Any]]  # of params.yaml, of which the ``problem`` is read
    networks: Mapping[str, Any]  # of which the names are read
    scoring: Mapping[str, Any]  # ``resamples`` and ``seed`` of the bootstrap
    dataset: str
    forgiving: bool = False  # whether a missing file leaves a note in `missing`, else is refused
    # Which images a gallery shows, once chosen: a second state shows the same.
    chosen: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Where a missing file is forgiven, leave out the rest of the block and note the file."""
        try:
            yield
        except (Refusal, BadInput) as refusal:
            if not self.forgiving:
                raise
            text = str(refusal).split(";")[0]
            if text not in self.missing:
                self.missing.append(text)

    def scores(self, problem: str) -> dict[str, Scores]:
        """Metrics of all runs of a problem, by short name."""
        found = {}
        for name, entry in self.runs.items():
            if entry["problem"] == problem:
                with self.noting():
                    found[short(name, problem)] = read_json(metrics_path(problem, name))
        return found

    def arrays(self, problem: str, name: str, *only: str) -> Arrays:
        """Arrays of a run's reconstruction, by its short name."""
        (whole,) = (run for run in self.runs if run in (name, f"{problem}-{name}"))
        return read_arrays(reconstruction_path(problem, whole), only=only)

    def choose(
        self, key: str, errors: NDArray[Any], *, among: NDArray[Any] | None = None
    ) -> dict[str, list[int]]:
        """Positions of the images of each case, by the quantiles of `CASES` of their errors (n,),
        all of them or those at some positions; as before, where this was asked before."""
        known = self.chosen.get(key)
        if known is None or any(i >= len(errors) for index in known.values() for i in index):
            places = np.arange(len(errors)) if among is None else among
            found = cases_of(errors[places])
            self.chosen[key] = {c: [int(places[i]) for i in index] for c, index in found.items()}
        return self.chosen[key]

    def cases(
        self, key: str, errors: NDArray[Any], given: Mapping[str, NDArray[Any]], *, note: str
    ) -> list[Case]:
        """The cases of images by their errors (n,), with what is given of each (n, ...) by its
        label. The note says whose errors they are, and by a format how they are written."""
        return [
            Case(
                case,
                note.format(errors[index].min(), errors[index].max()),
                [Strip(k, x[index], f"{case}: {k}", given=True) for k, x in given.items()],
                index,
            )
            for case, index in self.choose(key, errors).items()
        ]

    def interval(self, values: NDArray[Any]) -> tuple[float, float]:
        """95 % bootstrap interval of the mean of (n,) values."""
        low, high = bootstrap(
            np.asarray(values, np.float64),
            resamples=self.scoring["resamples"],
            seed=self.scoring["seed"],
        )
        return float(low), float(high)


def cases_of(errors: NDArray[Any]) -> dict[str, list[int]]:
    """Positions of `EACH` images around every quantile of `CASES` of their errors (n,).

    Ranks are as near to the quantile as fits into the list; of equal errors the first image comes
    first. With few images cases may share some.
    """
    order = np.argsort(errors, kind="stable")
    n, each = len(order), min(EACH, len(order))
    found = {}
    for name, quantile in CASES.items():
        middle = round(quantile * (n - 1))
        first = min(max(middle - each // 2, 0), n - each)
        found[name] = [int(i) for i in order[first : first + each]]
    return found


def short(name: str, problem: str) -> str:
    return name.removeprefix(f"{problem}-")


def number(
    value: float | None, form: str, low: float | None = None, high: float | None = None
) -> Cell:
    """A cell with a number and, where it is known, its interval; empty without a number."""
    if value is None:
        return Cell()
    interval = "" if low is None or high is None else f"{low:{form}} – {high:{form}}"
    return Cell(f"{value:{form}}", float(value), interval)


def score(scores: Mapping[str, Any], key: str, form: str) -> Cell:
    """A cell for a score, with the interval that the metrics file has beside it."""
    return number(scores.get(key), form, scores.get(f"{key}_low"), scores.get(f"{key}_high"))


def scored(key: str, form: str, label: str, better: Better = "", hint: str = "") -> Column:
    """A column of a score, whose key may be of a part: ``masks/bottom/mse``."""
    *parts, last = key.split("/")

    def cell(scores: Scores) -> Cell:
        for part in parts:
            scores = scores[part]
        return score(scores, last, form)

    return Column(label, better, hint, cell)


METHOD, NETWORK = (
    Column("method", cell=lambda scores: Cell(scores["method"])),
    Column("network", cell=lambda scores: Cell(scores["network"])),
)


def tabulated(
    title: str,
    runs: Mapping[str, Scores],
    columns: Sequence[Column],
    *,
    grey: Collection[str] = (),
    note: str = "",
) -> Table:
    """A table of runs in their order, those that are named in grey."""
    rows = [
        Row(name, [column.cell(scores) for column in columns], name in grey)
        for name, scores in runs.items()
    ]
    return Table(title, columns, rows, note)


def steps_of(
    title: str, frames: Iterable[NDArray[Any]], captions: Sequence[str], *, alt: str
) -> Steps:
    """Images (S, ...) along the iterations, a line each, whose text counts them."""
    rows = [
        Strip(f"{i}", images, alt.format(i), captions=captions if i == 1 else ())
        for i, images in enumerate(frames, start=1)
    ]
    return Steps(title, rows, "The numbers count steps.")


def best_of(values: Mapping[str, float], *, better: Better, grey: Collection[str] = ()) -> str:
    """The run with the best value, a grey one only where there is no other."""
    sign = 1 if better == "lower" else -1
    return min(values, key=lambda name: (name in grey, sign * values[name]))


def total_seconds(runs: Iterable[Scores]) -> float:
    return float(sum(scores["seconds"] for scores in runs))
