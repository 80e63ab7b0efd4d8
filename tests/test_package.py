"""The wheel: what `pip install` puts somewhere works there, without the repository."""

import json
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, execute, write_params
from PIL import Image, ImageDraw

from retrace import __version__
from retrace.pipeline.artifacts import DATASET, history_path, save_checkpoint, write_json
from retrace.pipeline.params import load
from retrace.training import train_network

PIPELINE = ("dvc", "filelock", "mlflow", "torchvision", "yaml")  # what the library does without
RIDGE = {"problem": "imputation", "method": "ridge", "network": "gaussian"}
LIBRARY = """
import json, sys, numpy, retrace
assert "torch" not in sys.modules and "complete" in dir(retrace)
image = numpy.full((28, 28), 0.25, numpy.float32)
image[14:] = numpy.nan
found = retrace.complete(image, method="ridge", network="gaussian", penalty=0.1)
print(json.dumps([retrace.__file__, found.image.tolist()]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since a build leaves folders in its source."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "retrace", source / "retrace", ignore=ignored)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    execute(sys.executable, "-m", "pip", "wheel", *options, ".", cwd=source)
    (built,) = source.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which nothing is installed but the wheel, and of what the pipeline needs beside
    it nothing can be imported."""
    folder = tmp_path_factory.mktemp("site")
    options = ("--quiet", "--no-deps", "--no-index", "--no-compile", "--target", str(folder))
    execute(sys.executable, "-m", "pip", "install", *options, str(wheel), cwd=folder)
    for name in PIPELINE:
        (folder / f"{name}.py").write_text("raise ModuleNotFoundError(name=__name__)", "utf-8")
    return folder


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: torch.Tensor) -> Path:
    """A folder with params.yaml, and one network and its record as a stage writes them."""
    monkeypatch.chdir(tmp_path)
    networks = {"gaussian": TINY["networks"]["gaussian"]}
    run = {**RIDGE, "settings": {"penalty": 0.1}}
    write_params(tmp_path, {**TINY, "networks": networks, "runs": {"imputation-ridge": run}})
    split = images, torch.zeros(len(images), dtype=torch.int64)
    network, record = train_network(
        "gaussian",
        load().networks["gaussian"],
        split,
        split,
        device=torch.device("cpu"),
        dataset="digits",
    )
    save_checkpoint(
        network, name="gaussian", architecture="gaussian", arguments={}, dataset="digits"
    )
    write_json(history_path("gaussian"), record)
    return tmp_path


def test_the_wheel_holds_the_library_and_nothing_else(wheel: Path) -> None:
    assert wheel.name == f"retrace_networks-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    listed = execute("git", "ls-files", "-co", "--exclude-standard", "retrace", cwd=ROOT).stdout
    assert held == {name for name in listed.splitlines() if (ROOT / name).exists()}
    assert "retrace/py.typed" in held and any(name.endswith(".html") for name in held)


def test_the_library_works_where_it_is_installed(site: Path, workspace: Path) -> None:
    done = execute(sys.executable, "-c", LIBRARY, cwd=workspace, PYTHONPATH=str(site))
    file, completed = json.loads(done.stdout)
    assert Path(file).parent == site / "retrace"
    assert torch.tensor(completed[:14]).eq(0.25).all()


def test_the_command_works_where_it_is_installed(site: Path, workspace: Path) -> None:
    drawing = Image.new("L", (100, 100), "white")
    ImageDraw.Draw(drawing).line((20, 20, 70, 20, 40, 90), fill=20, width=9)
    drawing.save("seven.png")
    command = (str(site / "bin" / "retrace"), "complete", "seven.png")
    done = execute(*command, cwd=workspace, PYTHONPATH=str(site))
    assert "method ridge" in done.stdout and Path("completed.png").exists()
    failed = execute(command[0], "mend", cwd=workspace, PYTHONPATH=str(site), check=False)
    assert failed.returncode == 2 and "retrace-networks[pipeline]" in failed.stderr


def test_the_report_is_drawn_where_it_is_installed(site: Path, workspace: Path) -> None:
    """Of what there is: the pipeline's network, and no reconstruction."""
    networks = {"gaussian": TINY["networks"]["gaussian"]}
    write_params(workspace, {**TINY, "networks": networks, "runs": {}})
    facts = {"name": "digits", "sizes": {"train": 1}, "sha256": {}, "seed": 0, "source": "none"}
    write_json(DATASET, facts)
    done = execute(str(site / "bin/retrace"), "report", cwd=workspace, PYTHONPATH=str(site))
    page = Path("metrics/report.html").read_text(encoding="utf-8")
    assert "metrics/report.html" in done.stdout
    assert page.startswith("<!doctype html>") and "train@gaussian" in page
