"""Tables as Markdown and CSV, galleries, steps and charts as PNG."""

from pathlib import Path

import numpy as np
from PIL import Image

from retrace.report import charts, files
from retrace.report.model import (
    METHOD,
    Case,
    Chart,
    Gallery,
    Section,
    Steps,
    Strip,
    Table,
    best_of,
    scored,
    tabulated,
)
from retrace.report.pictures import GAP, MISSING

RUNS = {
    "one": {"method": "fill", "part": {"mse": 0.25, "mse_low": 0.2, "mse_high": 0.3}},
    "two": {"method": "knn", "part": {"mse": 0.125}},
    "three": {"method": "knn", "part": {}},
}


def table() -> Table:
    columns = [METHOD, scored("part/mse", ".2f", "MSE", "lower")]
    return tabulated("Title", RUNS, columns, grey=["two"], note="N.")


def test_a_table_in_markdown() -> None:
    assert files.markdown(table()).splitlines() == [
        "### Title",
        "",
        "N.",
        "",
        "| run | method | MSE |",
        "| --- | ---: | ---: |",
        "| `one` | fill | 0.25 (0.20 – 0.30) |",
        "| `two` | knn | **0.12** |",
        "| `three` | knn |  |",
    ]


def test_runs_that_are_named_are_grey_and_the_best_one_only_where_there_is_no_other() -> None:
    assert [row.trivial for row in table().rows] == [False, True, False]
    values = {"one": 2.0, "two": 1.0, "three": 3.0}
    assert best_of(values, better="lower") == "two"
    assert best_of(values, better="lower", grey=["two"]) == "one"
    assert best_of(values, better="higher", grey=["two"]) == "three"
    assert best_of(values, better="higher", grey=list(values)) == "three"


def strip(label: str, *values: float, **options: object) -> Strip:
    images = np.stack([np.full((28, 28), value) for value in values])
    return Strip(label, images, label, **options)  # type: ignore[arg-type]


def shades(picture: Image.Image, *, scale: int) -> list[list[int]]:
    """The red of the middle of each image on a sheet, from below, by row."""
    pixels = np.asarray(picture)
    side = 28 * scale
    across = range(picture.width - GAP - side // 2, side // 2, -(side + GAP))
    down = range(picture.height - GAP - side // 2, side // 2, -(side + GAP))
    found = [[int(pixels[y, x, 0]) for x in across][::-1] for y in down]
    return [[shade for shade in row if shade != 255] for row in found]


def test_steps_are_rows_of_a_sheet_and_captions_begin_a_band() -> None:
    rows = [strip("a", 0.0, 0.2, captions=["x", "y"]), strip("b", 0.4, np.nan)]
    one = files.steps_sheet(Steps("", rows), title="")
    found = shades(one, scale=3)
    assert found[:2] == [[102, MISSING[0]], [0, 51]]
    two = files.steps_sheet(Steps("", [*rows, *rows]), title="")
    assert two.width == one.width and two.height == 2 * one.height
    assert np.array_equal(np.asarray(two)[: one.height], np.asarray(two)[one.height :])


def test_cases_and_groups_of_a_gallery_stand_side_by_side() -> None:
    def case(name: str, value: float) -> Case:
        return Case(
            name,
            "",
            [
                strip("given", value, given=True),
                strip("method", value / 2, error=np.full((1, 28, 28), value)),
                *([strip("elsewhere", 0.1)] if name == "good" else []),
            ],
        )

    groups = {"p": [case("good", 0.2), case("worst", 0.4)], "q": [case("good", 0.6)]}
    gallery = Gallery("", "", groups)
    found = shades(files.gallery_sheet(gallery, ["p", "q"], title=""), scale=3)
    assert found[:2] == [[26, 51, 76], [51, 102, 153]]  # without what only some cases have
    changes = Gallery("", "", groups, errors="signed")
    grown = files.gallery_sheet(changes, ["p", "q"], title="")
    plain = files.gallery_sheet(gallery, ["p", "q"], title="")
    assert grown.height == plain.height + 3 * 28 + GAP  # a row of differences


def test_a_section_writes_its_files_the_same_each_time(tmp_path: Path) -> None:
    chart = Chart(
        "C", lambda: charts.lines({"a": ([0, 1], [0, 1])}, x="x", y="y"), "alt", file="chart"
    )
    gallery = Gallery("G", "", {"": [Case("good", "", [strip("a", 0.5)])]}, sheets={"cases": [""]})
    shown, hidden = Steps("S", [strip("a", 0.5)], file="steps"), Steps("T", [strip("a", 0.5)])
    section = Section(
        "p",
        "P",
        "",
        blocks=[table(), chart, gallery, hidden],
        sheets=[shown],
        rows={"rows.csv": [{"run": "a", "x": 1}, {"run": "b", "y": 2.5}]},
    )
    for folder in ("first", "second"):
        files.write_section(tmp_path / folder, section, dataset="digits")
    names = ["cases.png", "chart.png", "rows.csv", "steps.png"]
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == names
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert (tmp_path / "first/rows.csv").read_text() == "run,x,y\na,1,\nb,,2.5\n"
