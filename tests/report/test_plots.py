"""`dvc plots` makes a page that shows the report's numbers and loads nothing from the network."""

import hashlib
import html.parser
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, commit, execute
from PIL import Image

from retrace.pipeline.artifacts import write_rows

TRAINING = "metrics/report/training.csv"
IMPUTATION = "metrics/report/imputation.csv"
# Digests of the scripts, written here too: those in the page come and go with what they are of.
PUBLISHED = {
    "vega@5.33.1": "135831f62920743d4467bec0df2d78eedd16fa3444077419f1dfc9aa0d55e6da",
    "vega-lite@5.23.0": "9525bc3368d62c580e8fcbf5db63c4a95c04052fe32ced063817c677cc98801c",
    "vega-embed@6.29.0": "16512fd17119051ee3f859467e174fe1503ff86c0a4743aaf8b7c10da3dd83e0",
}


class Page(html.parser.HTMLParser):
    """What an HTML page loads, and the scripts that it carries."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag == "script":
            self.scripts.append((attributes, ""))
        if tag != "a":
            self.sources += [v for k in ("src", "href") if (v := attributes.get(k)) is not None]

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            attributes, text = self.scripts.pop()
            self.scripts.append((attributes, text + data))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plots of dvc.yaml over a made report, committed and then changed."""
    folder = tmp_path_factory.mktemp("plots")
    (folder / ".dvc").mkdir()
    shutil.copyfile(ROOT / ".dvc" / "config", folder / ".dvc" / "config")
    shutil.copytree(ROOT / ".dvc" / "plots", folder / ".dvc" / "plots")
    plots = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["plots"]
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"plots": plots}), encoding="utf-8")

    for name in filter(lambda p: isinstance(p, str), plots):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(folder / name)
    write_rows(
        folder / TRAINING,
        [
            {"network": "ffnn", "epoch": 1, "validation_mse": 0.0625},
            {"network": "ffnn", "epoch": 2, "validation_mse": 0.03125},
            {"network": "deep", "epoch": 1, "validation_mse": 0.0625},
        ],
    )
    names = ("mse", "mse_low", "mse_high", "mse_over_ridge", "psnr", "ssim", "agreement")
    rows: list[dict[str, object]] = [
        {"run": run, "mask": mask, **dict.fromkeys(names, 0.5), "mse_over_ridge": 1.40625}
        for run in ("ridge", "known")
        for mask in ("bottom", "left")
    ]
    write_rows(folder / IMPUTATION, rows)

    execute("git", "init", "--quiet", "--initial-branch=main", cwd=folder)
    commit(folder, "Start")
    rows[0]["mse_over_ridge"] = 1.15625
    write_rows(folder / IMPUTATION, rows)
    return folder


@pytest.mark.parametrize("command", ["show", "diff"])
def test_the_page_holds_its_data_and_its_scripts(repository: Path, command: str) -> None:
    # As a page of its own: it does not lean on files beside it, but for the pictures.
    done = execute("dvc", "plots", command, "-o", f"page_{command}", cwd=repository)
    assert "WARNING" not in done.stderr
    index = repository / f"page_{command}" / "index.html"
    text = index.read_text(encoding="utf-8")
    page = Page(text)
    assert not re.search(r"<script[^>]*\ssrc=", text)
    assert page.sources
    for source in page.sources:
        assert (index.parent / source).is_file(), source
    values = ["0.0625", "0.03125", "1.40625", "1.15625"]
    assert all(f'"{value}"' in text for value in values)
    assert ("HEAD" in text) is (command == "diff")
    placeholders = r"<DVC_METRIC_\w+>|\{(?:plot_divs|scripts|refresh_tag)\}"
    assert re.findall(placeholders, text) == []


def test_every_plot_of_dvc_yaml_is_on_the_page(repository: Path) -> None:
    plots = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["plots"]
    shown = json.loads(execute("dvc", "plots", "show", "--json", cwd=repository).stdout)
    assert "errors" not in shown
    assert set(shown["data"]) == {p if isinstance(p, str) else next(iter(p)) for p in plots}
    assert all(shown["data"].values())


def test_the_scripts_are_the_published_ones() -> None:
    page = Page((ROOT / ".dvc" / "plots" / "page.html").read_text(encoding="utf-8"))
    found = {}
    for attributes, text in page.scripts[:3]:
        digest = hashlib.sha256(text.encode()).hexdigest()
        assert attributes["data-sha256"] == digest
        found[attributes["data-package"]] = digest
    assert found == PUBLISHED
