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
import torch
from conftest import ROOT, commit, execute
from numpy.typing import NDArray
from PIL import Image

from retrace.commands import compare
from retrace.commands.report import REPORT
from retrace.pipeline.artifacts import (
    metrics_path,
    reconstruction_path,
    write_arrays,
    write_json,
)
from retrace.pipeline.command import Refusal
from retrace.problems import names
from retrace.problems.imputation import show as imputation
from retrace.problems.sections import ordered, section_of
from retrace.report import charts, page, pictures
from retrace.report.model import (
    CASES,
    Case,
    Cell,
    Chart,
    Column,
    Gallery,
    Row,
    Section,
    State,
    Steps,
    Strip,
    Summary,
    Table,
    cases_of,
    number,
)
from retrace.report.pictures import MISSING

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
PIXEL = np.zeros((1, 28, 28))
pipeline = pytest.mark.xdist_group("pipeline")


def picture(address: str) -> Image.Image:
    head, _, content = address.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def section(text: str, *, value: float = 1.0, images: NDArray[Any] = PIXEL) -> Section:
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
    case = Case("good", text, [Strip(text, images, text, error=images, note=text)])
    gallery = Gallery(text, text, {text: [case], "b": []}, text, first=text)
    steps = Steps(text, [Strip(text, images, text, captions=[text])], text)
    chart = Chart(text, lambda: charts.lines({text: ([0, 1], [0, 1])}, x=text, y="y"), text, text)
    result = Cell(f"{value:.2f}", value, text)
    first = [Strip(text, images, text)]
    summary = Summary(text, text, first, text, result, text, "lower", text, 1, 2.0)
    return Section("imputation", text, text, summary, [table, gallery, steps, chart])


def tradeoff(points: list[charts.Point], *, label: str = "MSE") -> Chart:
    (chart,) = charts.tradeoff(points, label=label, form=".2f", unit="seconds", caption="")
    return chart


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
    points = [charts.Point(HOSTILE, 1.0, 1.0), charts.Point("b", 2.0, 2.0, True)]
    assert "<script" not in charts.svg(tradeoff(points, label=HOSTILE), name="x")


def test_the_page_loads_nothing() -> None:
    html = rendered([section("text")], "text")
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
    shown = np.asarray(picture(pictures.address(images)).convert("RGBA"))
    assert shown.shape == (28, 28 + pictures.PAGE_GAP + 28, 4)
    assert shown[3, 5, 0] >= 254 and abs(int(shown[4, 29 + 6, 0]) - 127) <= 1
    assert shown[0, 28, 3] == 0 and (np.delete(shown[..., 3], 28, axis=1) == 255).all()
    images[0, 10, 10] = np.nan
    holes = np.asarray(picture(pictures.address(images)).convert("RGB"))
    assert tuple(holes[10, 10]) == MISSING and holes[3, 5, 0] == 255
    hot = np.asarray(picture(pictures.address(images[1:], "heat")).convert("RGB")).sum(axis=2)
    assert hot[4, 6] > hot[0, 0] and hot[0, 0] < 10
    signed = np.asarray(picture(pictures.address(images[1:], "signed")).convert("RGB"))
    red, _, blue = signed[4, 6].tolist()
    assert red > blue + 50
    colours = np.asarray(picture(pictures.address(np.full((1, 3, 8, 8), 0.2))))
    assert colours.shape == (24, 24, 4) and (colours[..., 0] == 51).all()


def test_charts_are_the_same_each_time_and_take_the_pages_colours() -> None:
    chart = tradeoff([charts.Point("a", 1.0, 0.5), charts.Point("b", 10.0, 0.25, True)])
    first, second = (charts.svg(chart, name="one") for _ in range(2))
    assert first == second
    assert "currentColor" in first and charts.INK not in first and "var(--c0" in first
    other = charts.svg(chart, name="two")
    identifiers = [set(re.findall(r' id="([^"]+)"', text)) for text in (first, other)]
    assert identifiers[0] and not identifiers[0] & identifiers[1]


def test_names_of_points_do_not_cover_each_other() -> None:
    points = [charts.Point(f"a long name {i}", 1.0 + i / 100, 0.5) for i in range(5)]
    text = charts.svg(tradeoff(points), name="names")
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
    white, faint = PIXEL + 1, PIXEL + 1e-9  # the last is no difference that anyone sees
    same = str(compare.joined([section("t")], [section("t", images=faint)]))
    assert "worse" not in same and "changed" not in same and "before=Strip" not in same
    (joined,) = compare.joined([section("t")], [section("t", value=1.5, images=white)])
    table, gallery, steps, chart = joined.blocks
    assert isinstance(table, Table) and isinstance(gallery, Gallery)
    assert isinstance(steps, Steps) and isinstance(chart, Chart)
    assert table.rows[0].cells[0].change == "worse" and table.rows[0].cells[0].amount == "+50.0 %"
    assert table.rows[1].cells[0].change == "same"
    strip = gallery.groups["t"][0].strips[0]
    assert strip.before is not None and strip.before.images is PIXEL
    assert steps.strips[0].before is not None and chart.before is None
    assert joined.summary is not None and joined.summary.result.change == "worse"
    html = page.rendered([joined], title="", dataset="", facts=[], seconds=[], states=("A", "B"))
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


def test_runs_whose_names_differ_by_the_problem_alone_are_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    called = ("known", "imputation-known", "imputation-mean")
    runs = {name: {"problem": "imputation"} for name in called}
    for i, name in enumerate(runs):
        write_json(metrics_path("imputation", name), {"mse": i})
        write_arrays(reconstruction_path("imputation", name), {"estimate": np.array(i)})
    state = State(runs, {}, {}, "digits")
    scores = state.scores("imputation")
    assert list(scores) == ["known", "imputation-known", "mean"]
    for name in scores:
        assert state.arrays("imputation", name)["estimate"] == scores[name]["mse"]


def test_a_state_that_todays_code_cannot_read_leaves_notes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once runs did not say of which problem they are."""
    state = State({"known": {"method": "ridge"}}, {}, {}, "digits", forgiving=True)
    parts, _, seconds = compare.drawn(tmp_path, state)
    assert [part.problem for part in parts] == ordered() and not seconds
    assert sum("today's code cannot read" in line for line in state.missing) == len(parts) + 1


def test_a_lock_whose_paths_lead_elsewhere_writes_nothing_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outs = [str(tmp_path / "absolute"), "../up", "data/../../upper", "data/inside"]
    lock = {"stages": {"x": {"outs": [{"path": path, "md5": "abc"} for path in outs]}}}
    files = {"dvc.lock": lock, "params.yaml": {"runs": {}, "networks": {}, "scoring": {}}}
    monkeypatch.setattr(compare, "shown_at", lambda _, path: json.dumps(files[path]).encode())
    monkeypatch.setattr(compare, "git", lambda *_: b"")
    (tmp_path / "cache/ab").mkdir(parents=True)
    (tmp_path / "cache/ab/c").write_text("content")
    compare.laid_out("HEAD", tmp_path / "A", tmp_path / "cache")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["A", "cache"]
    assert (tmp_path / "A/data/inside").read_text() == "content"


def test_a_page_that_is_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="at most 10,000,000"):
        page.write_page(tmp_path / "page.html", "x" * 10_000_001)
    assert not list(tmp_path.iterdir())


@pipeline
def test_the_page_of_a_pipeline(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "copy", symlinks=True)
    said = execute(sys.executable, "-m", "retrace.commands.report", cwd=folder).stdout
    assert (folder / REPORT).as_uri() in said
    first = (folder / REPORT).read_bytes()
    assert len(first) < 5_000_000
    text = first.decode()
    found = [text.index(f'<section id="{problem}">') for problem in ordered()]
    assert found == sorted(found) and len(found) == len(names()) == 6
    for name in ("known", "mean", "kkt", "sparse_span", "linear", "gauss_newton", "ffnn"):
        assert f'<th scope="row">{name}</th>' in text
    commit = execute("git", "rev-parse", "HEAD", cwd=folder).stdout.strip()
    lock = hashlib.sha256((folder / "dvc.lock").read_bytes()).hexdigest()
    assert commit in text and lock in text and "torch" in text
    assert "reconstruct@imputation-known" in text
    execute(sys.executable, "-m", "retrace.commands.report", cwd=folder)
    assert (folder / REPORT).read_bytes() == first


def test_pages_are_no_part_of_the_repository() -> None:
    pages = (str(REPORT), str(compare.COMPARISON))
    ignored = execute("git", "check-ignore", *pages, cwd=ROOT).stdout
    assert ignored.split() == list(pages)


@pipeline
def test_two_states_of_a_pipeline(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "copy", symlinks=True)
    commit(folder, "First")
    # The second state: other numbers in Git, and a reconstruction that the cache does not have.
    path = folder / "metrics/imputation/imputation-known.json"
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
    command = (sys.executable, "-m", "retrace.commands.compare")
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


def test_a_score_that_some_runs_lack_leaves_its_cell_empty() -> None:
    def scores(**more: float) -> dict[str, Any]:
        mask = {"mse": 0.1, "psnr": 10.0, "ssim": 0.5, "agreement": 0.9, **more}
        rest = {"method": "posterior", "network": "vae", "n": 4, "seconds": 1.0}
        return {**rest, "mse": 0.1, "masks": {"bottom": mask}}

    runs = {"one": scores(), "other": scores(mse_over_ridge=0.875)}
    table = imputation.summary_table(runs, grey=[], note="one mask")
    place = [column.label for column in table.columns].index("÷ ridge")
    assert [row.cells[place].text for row in table.rows] == ["", "0.88"]


def test_samples_are_shown_of_the_images_that_they_leave_open() -> None:
    truth, observed = np.zeros((12, 28, 28)), np.full((12, 28, 28), np.nan)
    samples = np.zeros((12, 9, 28, 28), np.uint8)
    samples[7, ::2] = 255  # of one image every other sample is white
    arrays = {"samples": samples, "deviation": np.full((12, 28, 28), 0.25), "estimate": truth}

    class Brightness(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            bright = images.mean(dim=(1, 2))
            return torch.stack([1 - bright, bright], dim=1)

    steps = imputation.samples(arrays, truth, observed, Brightness(), where="here")
    assert steps.columns == 10 and [strip.label for strip in steps.strips[:4]] == [
        *("original", "given", "mean", "deviation")
    ]
    assert len(steps.strips) == 4 + imputation.SAMPLES
    assert steps.strips[0].captions[0] == "101010" and steps.strips[0].captions[1] == "000000"
    assert [strip.images[0].mean() for strip in steps.strips[4:]] == [1, 0, 1, 0, 1, 0]
    assert (steps.strips[3].images == 0.5).all()  # twice the deviation


def test_a_problem_without_pictures_has_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    state = State({}, {}, {}, "digits")
    scores = {"method": "m", "network": "n", "n": 3, "mse": 0.5, "mse_low": 0.4, "mse_high": 0.6}
    monkeypatch.setattr(state, "scores", lambda problem: {"run": scores})
    found = section_of("another_problem", state)
    (table,) = found.blocks
    assert isinstance(table, Table) and found.title == "Another problem"
    assert [column.label for column in table.columns] == ["method", "network", "n", "mse"]
    assert [cell.text for cell in table.rows[0].cells] == ["m", "n", "3", "0.5000"]
    html = rendered([found])
    assert "0.4000 – 0.6000" in html and "see below" in html and "no run" not in html
    monkeypatch.setattr(state, "scores", lambda problem: {})
    assert section_of("imputation", state).blocks == ()
