"""Pictures of pages for the README, taken by a browser: the report, and the MLflow UI on its runs.

It needs playwright (`pip install -e '.[browser]'`), Chromium, a report and published runs.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from retrace.pipeline.command import Refusal, run

PICTURES = Path("docs/pictures")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
COLOURS = 256  # of a picture's palette: small files, and no difference to the eye
LARGEST = 200_000  # bytes of a picture
WAIT = 180_000  # milliseconds
PATIENCE = 120  # seconds until the server answers
COMPARED = 4  # runs


@contextmanager
def browser() -> Iterator[Any]:
    """Chromium without a window.

    Raises
    ------
    Refusal
        Where playwright or Chromium is missing.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        raise Refusal("playwright is missing: pip install -e '.[browser]'") from None
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        raise Refusal(f"no browser: {', '.join(BROWSERS)} are not on the PATH")
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=as_root)
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def mlflow_ui(store: Path) -> Iterator[str]:
    """The MLflow UI on the runs of a folder, as `make ui` starts it; gives its address.

    Raises
    ------
    Refusal
        When there are no runs, or the server does not answer.
    """
    if not (store / "mlflow.db").exists():
        raise Refusal(f"{store}/mlflow.db is missing; `make track` makes it")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", "sqlite:///mlflow.db"]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen(
        command,
        cwd=store,
        env={**os.environ, **quiet},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # its workers end with it
    )
    try:
        ends = time.monotonic() + PATIENCE
        while not _answers(f"{address}/health"):
            if server.poll() is not None or time.monotonic() > ends:
                raise Refusal("the MLflow server did not start; `make ui` shows why")
            time.sleep(0.2)
        yield address
    finally:
        os.killpg(server.pid, 15)
        server.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:  # noqa: S310 (our own server)
            return bool(answer.status == 200)
    except OSError:
        return False


def ask(address: str, path: str, **content: Any) -> Any:
    """An answer of MLflow's programming interface."""
    request = urllib.request.Request(  # noqa: S310 (our own server)
        f"{address}/api/2.0/mlflow/{path}",
        data=json.dumps(content).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        return json.load(answer)


def runs_of(address: str, experiment: str, **query: Any) -> tuple[str, dict[str, str]]:
    """Identifier of an experiment, and those of its runs by name, best first where that is asked.

    Raises
    ------
    Refusal
        When there is no such experiment.
    """
    found = ask(address, "experiments/search", max_results=100).get("experiments", [])
    known = {entry["name"]: entry["experiment_id"] for entry in found}
    if experiment not in known:
        raise Refusal(f"no experiment {experiment!r} is published; there are {', '.join(known)}")
    runs = ask(address, "runs/search", experiment_ids=[known[experiment]], **query).get("runs", [])
    return known[experiment], {r["info"]["run_name"]: r["info"]["run_id"] for r in runs}


def open_comparison(page: Any, address: str, experiment: str, **query: Any) -> list[str]:
    """Open MLflow's comparison of some runs; gives their names."""
    number, runs = runs_of(address, experiment, **query)
    chosen = dict(list(runs.items())[:COMPARED])
    identifiers = json.dumps(list(chosen.values()))
    page.goto(f"{address}/#/compare-runs?runs={identifiers}&experiments={json.dumps([number])}")
    page.get_by_text(f"Comparing {len(chosen)} Runs").wait_for(timeout=WAIT)
    page.get_by_text("Run details").wait_for(timeout=WAIT)
    close_assistant(page)
    return list(chosen)


def open_charts(page: Any, address: str, experiment: str, *, search: str) -> None:
    """Open MLflow's charts of an experiment, those whose names contain a text, and wait until a
    picture of a run is there."""
    number, _ = runs_of(address, experiment)
    page.goto(f"{address}/#/experiments/{number}/runs?compareRunsMode=CHART")
    box = page.get_by_placeholder("Search metric charts")
    box.wait_for(timeout=WAIT)
    close_assistant(page)
    box.fill(search)
    loaded = "[...document.images].some(i => i.src.includes('get-artifact') && i.naturalWidth > 0)"
    page.wait_for_function(loaded, timeout=WAIT)


def enlarge(page: Any, chart: str) -> None:
    """Show one of MLflow's charts alone, over the whole page, without the parameters under each
    run's name, which would make its column as wide as they are long."""
    cards = "[...document.querySelectorAll('[data-testid=experiment-view-compare-runs-card]')]"
    card = f"{cards}.find(e => e.innerText.trim().startsWith({json.dumps(chart)}))"
    page.wait_for_function(f"Boolean({card})", timeout=WAIT)
    page.evaluate(f"{card}.querySelector('button').click()")
    page.wait_for_function(
        "[...document.querySelectorAll('[role=dialog] img')].some(i => i.naturalWidth > 0)",
        timeout=WAIT,
    )
    page.evaluate(
        "[...document.querySelectorAll('[role=dialog] *')].forEach(e => {"
        " if (!e.children.length && e.textContent.startsWith('problem='))"
        " e.style.display = 'none' })"
    )


def close_assistant(page: Any) -> None:
    """Close the column that covers a part of MLflow's pages, where it is open."""
    # At once, by the page itself: on a busy machine the button never rests for a mouse.
    page.evaluate(
        "document.querySelectorAll('[data-component-id=\"mlflow.assistant.chat_panel.close\"]')"
        ".forEach(button => button.click())"
    )


def take(page: Any, name: str) -> None:
    """Keep what a page shows as docs/pictures/<name>.png, in few colours.

    Raises
    ------
    Refusal
        When the file would be too large for the repository.
    """
    page.wait_for_timeout(1500)  # charts move into their places
    PICTURES.mkdir(parents=True, exist_ok=True)
    path = PICTURES / f"{name}.png"
    page.screenshot(path=path, animations="disabled")
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(path, optimize=True)
    if path.stat().st_size > LARGEST:
        raise Refusal(f"{path}: {path.stat().st_size:,} bytes; at most {LARGEST:,} are allowed")
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def main(store: Path) -> None:
    """Take the pictures of the README: the report, and MLflow's comparison and image grid."""
    report = (store / "metrics/report.html").resolve()
    if not report.exists():
        raise Refusal(f"{report} is missing; `make report` makes it")
    with browser() as opened:
        page = opened.new_page(viewport={"width": 1280, "height": 860})
        page.set_default_timeout(WAIT)  # a page of a hundred charts is long in coming to rest
        page.goto(report.as_uri())
        take(page, "report")
        page.locator("#imputation .gallery").first.evaluate("e => e.scrollIntoView()")
        take(page, "report_gallery")
        with mlflow_ui(store) as address:
            page.set_viewport_size({"width": 1500, "height": 1000})
            open_comparison(page, address, "imputation", order_by=["metrics.`bottom/mse` ASC"])
            take(page, "mlflow_comparison")
            page.set_viewport_size({"width": 1500, "height": 3200})  # charts are made when in view
            open_charts(page, address, "imputation", search="bottom/mse$")
            enlarge(page, "bottom/completed")
            page.set_viewport_size({"width": 1500, "height": 1000})
            take(page, "mlflow_imputation")


def options(parser: argparse.ArgumentParser) -> None:
    text = "the folder with the report and mlflow.db (demo for the demo's)"
    parser.add_argument("--store", type=Path, default=Path(), help=text)


if __name__ == "__main__":
    run(main, arguments=options)
