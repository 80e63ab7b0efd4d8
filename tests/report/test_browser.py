"""The report and the MLflow UI in a real browser: Chromium, driven by playwright."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, commit, execute

pytestmark = pytest.mark.xdist_group("pipeline")

specification = importlib.util.spec_from_file_location("shots", ROOT / "docs/screenshots.py")
assert specification is not None and specification.loader is not None
shots: Any = importlib.util.module_from_spec(specification)
specification.loader.exec_module(shots)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    pytest.importorskip("playwright", reason="playwright is missing: pip install '.[browser]'")
    if not any(map(shutil.which, shots.BROWSERS)):
        pytest.skip(f"no browser: {', '.join(shots.BROWSERS)} are not on the PATH")
    with shots.browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def report(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the tiny pipeline, alone in a folder: as one gets it by e-mail."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("report") / "c", symlinks=True)
    execute(sys.executable, "-m", "retrace.commands.report", cwd=folder)
    alone = tmp_path_factory.mktemp("mail") / "report.html"
    return Path(shutil.copyfile(folder / "metrics/report.html", alone))


@pytest.fixture(scope="module")
def page(browser: Any, report: Path) -> Iterator[Any]:
    """The open report; what it said and asked for is in `page.said` and `page.asked`."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    opened = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(report.as_uri())
    opened.said, opened.asked = said, asked
    yield opened
    context.close()


def test_the_report_opens_offline_and_asks_for_nothing(page: Any, report: Path) -> None:
    # Pictures that are hidden or far down load when they are shown.
    page.evaluate("for (const e of document.querySelectorAll('[hidden]')) e.hidden = false")
    page.evaluate("for (const i of document.images) i.loading = 'eager'")
    page.wait_for_function("[...document.images].every(i => i.complete)")
    broken = page.evaluate(
        "[...document.images].filter(i => !i.naturalWidth || !i.alt).map(i => i.outerHTML)"
    )
    assert broken == []
    assert page.evaluate("document.images.length") > 50
    assert [url for url in page.asked if not url.startswith("data:")] == [report.as_uri()]
    assert page.said == []
    page.reload()


def test_every_chart_has_a_text(page: Any) -> None:
    charts = page.locator("svg")
    assert charts.count() >= 5
    texts = page.evaluate(
        "[...document.querySelectorAll('svg')].map(s => s.closest('[role=img]').ariaLabel)"
    )
    assert all(len(text) > 20 for text in texts)


def column(page: Any, table: Any, number: int) -> list[str]:
    cells = table.locator(f"tbody tr > :nth-child({number})")
    return [cell.evaluate("e => e.dataset.value || e.textContent.trim()") for cell in cells.all()]


def test_tables_sort_by_a_click(page: Any) -> None:
    table = page.locator("#imputation table").first
    head = table.locator("thead th", has_text="MSE")
    place = 1 + head.evaluate("e => e.cellIndex")
    before = [float(value) for value in column(page, table, place)]
    assert len(before) == 2 and before == sorted(before)  # the best method comes first
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert [float(value) for value in column(page, table, place)] == before
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert [float(value) for value in column(page, table, place)] == before[::-1]
    names = table.locator("thead th").first
    names.locator("button").focus()
    page.keyboard.press("Enter")  # and without a mouse
    assert head.get_attribute("aria-sort") == "none"
    assert column(page, table, 1) == sorted(column(page, table, 1))


def shown(gallery: Any, part: str) -> list[str]:
    visible = [one for one in gallery.locator(f".{part}").all() if one.is_visible()]
    key = {"group": "group", "case": "case", "line": "method"}[part]
    return [one.evaluate(f"e => e.dataset.{key}") for one in visible]


def test_the_gallery_shows_what_is_chosen(page: Any) -> None:
    gallery = page.locator("#imputation .gallery").first
    assert shown(gallery, "group") == ["bottom"]
    assert set(shown(gallery, "case")) == {"good", "median", "worst"}
    gallery.locator("select[name=group]").select_option("random_50")
    assert shown(gallery, "group") == ["random_50"]
    gallery.locator("select[name=case]").select_option("worst")
    assert shown(gallery, "case") == ["worst"]
    assert {"known", "mean"} <= set(shown(gallery, "line"))
    gallery.locator("select[name=method]").select_option("known")
    assert sorted(shown(gallery, "line")) == ["", "", "known"]  # original and given stay
    gallery.locator("select[name=group]").select_option("all")
    assert len(shown(gallery, "group")) == 2
    assert not gallery.locator(".empty").is_visible()


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_screen(
    page: Any, tmp_path: Path, width: int, height: int, scheme: str
) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": height})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    path = folder / f"report_{width}_{scheme}.png"
    page.screenshot(path=path)
    assert path.stat().st_size > 10_000
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    lightness = sum(map(int, paper.removeprefix("rgb(").removesuffix(")").split(",")))
    assert (lightness > 600) == (scheme == "light")


def test_the_comparison_opens_in_the_browser(browser: Any, finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "copy", symlinks=True)
    commit(folder)
    execute(sys.executable, "-m", "retrace.commands.compare", "HEAD", "HEAD", cwd=folder)
    opened = browser.new_page()
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.goto((folder / "metrics/compare.html").as_uri())
    assert opened.locator("h1").inner_text() == "What has changed?"
    assert opened.locator("em.worse, em.better, .line.changed").count() == 0
    assert said == []
    opened.close()


def test_the_mlflow_ui_compares_runs_and_shows_their_pictures(
    browser: Any, finished: Path, tmp_path: Path
) -> None:
    # A copy of the database: opening it may write. Its runs point to their pictures.
    for name in ("mlflow.db", "mlflow.db-wal"):
        if (finished / name).exists():
            shutil.copyfile(finished / name, tmp_path / name)
    page = browser.new_page(viewport={"width": 1500, "height": 1000})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with shots.mlflow_ui(tmp_path) as address:
        names = shots.open_comparison(page, address, "imputation")
        assert sorted(names) == ["known", "mean"]
        body = page.inner_text("body")
        assert all(text in body for text in ("known", "mean", "bottom/mse", "settings.steps"))
        shots.open_charts(page, address, "imputation", search="completed")
        loaded = page.evaluate(
            "[...document.images].filter(i => i.src.includes('get-artifact'))"
            ".map(i => i.naturalWidth)"
        )
        assert loaded and all(loaded)
        outside = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
        assert outside == []
    page.close()
