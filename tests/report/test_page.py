"""The report as one page: what it shows is right, escaped, the same each time, and small."""

import base64
import hashlib
import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import commit, execute
from markupsafe import Markup
from PIL import Image

from retrace.commands import compare
from retrace.pipeline.command import Refusal
from retrace.problems.imputation import show as imputation
from retrace.report import charts, page, strips
from retrace.report.model import (
    CASES,
    Case,
    Cell,
    Chart,
    Column,
    Gallery,
    Row,
    Section,
    Steps,
    Strip,
    Summary,
    Table,
    cases_of,
    number,
)
from retrace.report.pictures import MISSING

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
PIXEL = strips.grey(np.zeros((1, 28, 28)))
pipeline = pytest.mark.xdist_group("pipeline")


def picture(address: str) -> Image.Image:
    head, _, content = address.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def section(text: str, *, value: float = 1.0, strip: str = PIXEL) -> Section:
    """A section with a text wherever there is one."""
    columns = [Column(text, "lower", text), Column("other")]
    table = Table(
        text,
        columns,
        [
            Row("first", [Cell(f"{value:.2f}", value, text), Cell(text)]),
            Row("second", [number(2.0, ".2f"), Cell()], trivial=True),
        ],
        text,
    )
    gallery = Gallery(
        text,
        text,
        {text: [Case("good", text, [Strip(text, strip, text, strip, text)])], "b": []},
        text,
        first=text,
    )
    steps = Steps(text, [text], [Strip(text, strip, text)], text)
    chart = Chart(text, Markup("<svg></svg>"), text, text)
    result = Cell(f"{value:.2f}", value, text)
    summary = Summary(
        text, text, [Strip(text, strip, text)], text, result, text, "lower", text, 1, 2.0
    )
    return Section("imputation", text, text, summary, [table, gallery, steps, chart])


def rendered(sections: list[Section], text: str = "") -> str:
    return page.rendered(
        sections,
        title=text,
        dataset=text,
        facts=[(text, text)],
        seconds=[(text, 1.0)],
    )


def test_texts_that_hold_html_come_out_escaped() -> None:
    html = rendered([section(HOSTILE)], HOSTILE)
    assert "<script>alert" not in html and "<img src=x" not in html
    assert html.count("&lt;script&gt;alert(1)") > 20
    assert html.count("<script>") == 1  # the page's own
    stamped = page.stamped(html, [(HOSTILE, HOSTILE)])
    assert "<script>alert" not in stamped and len(stamped) > len(html)
    points = [charts.Point(HOSTILE, 1.0, 1.0, False), charts.Point("b", 2.0, 2.0, True)]
    assert "<script" not in charts.tradeoff(points, name="x", label=HOSTILE)


def test_the_page_loads_nothing() -> None:
    html = page.stamped(rendered([section("text")], "text"), [("a", "b")])
    addresses = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert addresses and all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(r"@import|url\((?!#)", html)


def test_cases_are_around_the_quantiles_of_the_errors() -> None:
    errors = np.random.default_rng(0).permutation(101) / 100  # ranks 0 ... 100 are the quantiles
    found = cases_of(errors)
    assert {case: [round(100 * errors[i]) for i in index] for case, index in found.items()} == {
        "good": [4, 5, 6],
        "median": [49, 50, 51],
        "worst": [98, 99, 100],
    }
    assert list(found) == list(CASES)
    assert cases_of(np.array([0.3, 0.1]))["worst"] == [1, 0]
    assert cases_of(np.zeros(9))["good"] == [0, 1, 2]


def test_a_strip_holds_the_pixels() -> None:
    images = np.zeros((2, 28, 28))
    images[0, 3, 5], images[1, 4, 6] = 1.0, 0.5
    shown = np.asarray(picture(strips.grey(images)).convert("RGBA"))
    assert shown.shape == (28, 28 + strips.GAP + 28, 4)
    assert shown[3, 5, 0] >= 254 and abs(int(shown[4, 29 + 6, 0]) - 127) <= 1
    assert shown[0, 28, 3] == 0 and (np.delete(shown[..., 3], 28, axis=1) == 255).all()
    images[0, 10, 10] = np.nan
    holes = np.asarray(picture(strips.grey(images)).convert("RGB"))
    assert tuple(holes[10, 10]) == MISSING and holes[3, 5, 0] == 255
    hot = np.asarray(picture(strips.heat(images[1:])).convert("RGB")).sum(axis=2)
    assert hot[4, 6] > hot[0, 0] and hot[0, 0] < 10
    red, _, blue = np.asarray(picture(strips.signed(images[1:])).convert("RGB"))[4, 6].tolist()
    assert red > blue + 50
    colours = np.asarray(picture(strips.grey(np.full((1, 3, 8, 8), 0.2))))
    assert colours.shape == (24, 24, 4) and (colours[..., 0] == 51).all()


def test_charts_are_the_same_each_time_and_take_the_pages_colours() -> None:
    points = [charts.Point("a", 1.0, 0.5, False), charts.Point("b", 10.0, 0.25, True)]
    first, second = (charts.tradeoff(points, name="one", label="MSE") for _ in range(2))
    assert first == second
    assert "currentColor" in first and charts.INK not in first and "var(--c0" in first
    other = charts.tradeoff(points, name="two", label="MSE")
    identifiers = [set(re.findall(r' id="([^"]+)"', text)) for text in (first, other)]
    assert identifiers[0] and not identifiers[0] & identifiers[1]


def test_names_of_points_do_not_cover_each_other() -> None:
    points = [charts.Point(f"a long name {i}", 1.0 + i / 100, 0.5, False) for i in range(5)]
    text = charts.tradeoff(points, name="names", label="MSE")
    heights = re.findall(r"<text [^>]*translate\(([\d.]+) ([\d.]+)\)[^>]*>a long", text)
    heights = heights or re.findall(r'<text [^>]*x="([\d.]+)" y="([\d.]+)"[^>]*>a long', text)
    assert len(heights) == 5
    places = [(float(x), float(y)) for x, y in heights]
    for i, (x, y) in enumerate(places):
        for u, v in places[:i]:
            assert abs(y - v) > 5 or abs(x - u) > 60


def test_the_best_of_a_column_is_marked_where_one_direction_is_better() -> None:
    rows = [Row(str(v), [number(v, ".1f"), number(v, ".1f"), number(v, ".1f")]) for v in (1.0, 3.0)]
    table = Table("t", [Column("x", "lower"), Column("y", "higher"), Column("z")], rows)
    assert [table.best(i) for i in range(3)] == [1.0, 3.0, None]
    same = Table("t", [Column("x", "lower")], [rows[0], rows[0]])
    assert same.best(0) is None  # nothing stands out
    with pytest.raises(ValueError, match="same name"):
        Table("t", [Column("x"), Column("x")], [])


@pytest.mark.parametrize(
    ("before", "after", "better", "change"),
    [
        (2.0, 1.0, "lower", "better"),
        (1.0, 2.0, "lower", "worse"),
        (1.0, 2.0, "higher", "better"),
        (1.0, 2.0, "", "changed"),
        (1.0, 1.0, "lower", "same"),
        (1.0, 1.001, "lower", "same"),  # the same text
        (None, 1.0, "lower", "changed"),
    ],
)
def test_what_has_become_of_a_value(
    before: float | None, after: float, better: str, change: str
) -> None:
    column = Column("x", better)  # type: ignore[arg-type]
    cell = compare.change_of(number(before, ".1f"), number(after, ".1f"), column)
    assert cell.change == change and cell.text == f"{after:.1f}"


def test_a_comparison_marks_what_differs_and_nothing_else() -> None:
    white = strips.grey(np.ones((1, 28, 28)))
    same = str(compare.joined([section("t")], [section("t")]))
    assert "worse" not in same and "changed" not in same and "before=Strip" not in same
    (joined,) = compare.joined([section("t")], [section("t", value=1.5, strip=white)])
    table, gallery, steps, chart = joined.blocks
    assert isinstance(table, Table) and isinstance(gallery, Gallery)
    assert isinstance(steps, Steps) and isinstance(chart, Chart)
    assert table.rows[0].cells[0].change == "worse" and table.rows[0].cells[0].amount == "+50.0 %"
    assert table.rows[1].cells[0].change == "same"
    strip = gallery.groups["t"][0].strips[0]
    assert strip.before is not None and strip.before.picture == PIXEL
    assert steps.strips[0].before is not None and chart.before is None
    assert joined.summary is not None and joined.summary.result.change == "worse"
    html = page.rendered(
        [joined], title="", dataset="", facts=[], seconds=[], states=("A", "B"), stamp=False
    )
    assert "▼ worse +50.0 %" in html


def test_parameters_that_differ() -> None:
    before = {"a": {"b": 1, "c": [1]}, "gone": 2}
    after = {"a": {"b": 1, "c": [2]}, "new": "<b>"}
    assert compare.differences(before, after) == [
        ("a.c", "[1]", "[2]"),
        ("gone", "2", ""),
        ("new", "", "'<b>'"),
    ]
    assert compare.differences(before, before) == []


def test_a_page_that_is_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="at most 10,000,000"):
        page.write_page(tmp_path / "page.html", "x" * 10_000_001)
    assert not list(tmp_path.iterdir())


@pipeline
def test_the_page_of_a_pipeline(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "copy", symlinks=True)
    first = (folder / page.PAGE).read_bytes()
    assert len(first) < 5_000_000
    text = first.decode()
    for problem in page.PROBLEMS:
        assert f'<section id="{problem.PROBLEM}">' in text
    for name in ("known", "mean", "kkt", "sparse_span", "linear", "gauss_newton", "ffnn"):
        assert f'<th scope="row">{name}</th>' in text
    commit = execute("git", "rev-parse", "HEAD", cwd=folder).stdout.strip()
    assert commit not in text  # it would change the bytes, and could not be the right one
    (folder / page.PAGE).unlink()
    execute(sys.executable, "-m", "stages.page", cwd=folder)
    assert (folder / page.PAGE).read_bytes() == first
    said = execute(sys.executable, "-m", "stages.page", "--stamp", cwd=folder).stdout
    assert str(folder / page.REPORT) in said
    report = (folder / page.REPORT).read_text()
    lock = hashlib.sha256((folder / "dvc.lock").read_bytes()).hexdigest()
    assert commit in report and lock in report and "torch" in report
    assert "reconstruct@imputation-known" in report
    status = execute("git", "status", "--short", "--untracked-files=all", cwd=folder).stdout
    assert "page.html" not in status


@pipeline
def test_two_states_of_a_pipeline(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "copy", symlinks=True)
    commit(folder, "First")
    # The second state: other numbers in Git, and a reconstruction that the cache does not have.
    path = folder / "metrics/imputation-known.json"
    scores = json.loads(path.read_text())
    for mask in scores["masks"].values():
        mask["mse"] *= 0.5
    path.write_text(json.dumps(scores))
    lock = (folder / "dvc.lock").read_text()
    reconstruction = "data/reconstructions/training_data/training_data-kkt.npz"
    (digest,) = set(
        re.findall(rf"path: {re.escape(reconstruction)}\n\s+hash: md5\n\s+md5: (\w+)", lock)
    )
    (folder / "dvc.lock").write_text(lock.replace(digest, "0" * 32))
    commit(folder, "Second")
    shutil.rmtree(folder / "data")  # from Git and the cache alone
    shutil.rmtree(folder / "models")
    command = (sys.executable, "-m", "stages.compare")
    execute(*command, "HEAD~1", "HEAD", cwd=folder)
    text = (folder / compare.COMPARISON).read_text()
    assert "▲ better -50.0 %" in text
    assert f"{reconstruction} is missing" in text
    assert "Parameters that differ" in text and "None: params.yaml is the same" in text
    for wrong in ("nonsense", "--help-me", "HEAD~99"):
        refused = execute(*command, "HEAD", "--", wrong, cwd=folder, check=False)
        assert refused.returncode == 2
        assert "not a commit, branch or tag" in refused.stderr, refused.stderr
        assert refused.stderr.count("\n") == 1
    (folder / "params.yaml").write_text("runs: [")
    commit(folder, "Third")
    refused = execute(*command, "HEAD~1", "HEAD", cwd=folder, check=False)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr
    assert "dvc.lock or params.yaml cannot be read" in refused.stderr


def test_runs_with_and_without_samples_stand_side_by_side() -> None:
    def scores(**more: float) -> dict[str, Any]:
        mask = {"mse": 0.1, "mse_over_ridge": 1.0, "psnr": 10.0, "ssim": 0.5, "agreement": 0.9}
        rest = {"method": "posterior", "network": "vae", "n": 4, "seconds": 1.0}
        return {**rest, "masks": {"bottom": {**mask, **more}}}

    runs = {
        "imputation-one": scores(),
        "imputation-many": scores(coverage_90=0.875, coverage_90_low=0.8, coverage_90_high=0.9),
    }
    table = imputation.summary_table(runs, ["bottom"], order=list(runs), intervals={})
    place = [column.label for column in table.columns].index("within 90 %")
    assert [row.cells[place].text for row in table.rows] == ["", "87.5%"]

    truth = np.zeros((2, 28, 28))
    observed = np.full((1, 2, 28, 28), np.nan)
    samples = np.full((1, 2, 9, 28, 28), 255, np.uint8)
    samples[0, :, 0] = 0
    steps = imputation.samples(
        {"samples": samples}, truth, observed, position=0, mask="bottom", run="many"
    )
    assert len(steps.captions) == 2 + imputation.SAMPLES + 1
    shown = np.asarray(picture(steps.strips[0].picture).convert("L"))
    columns = [shown[14, 29 * i + 14] for i in range(2, 2 + imputation.SAMPLES)]
    assert columns[0] == 0 and all(value >= 254 for value in columns[1:])
    assert picture(steps.strips[0].error).size == (28, 28)
