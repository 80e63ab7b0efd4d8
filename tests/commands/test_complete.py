"""`retrace complete`: one's own image, completed, or one line that says why not."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, execute, write_params
from PIL import Image, ImageDraw

from retrace.commands import complete
from retrace.data.conversion import convert
from retrace.methods.imputation import ridge
from retrace.networks.gaussian import Network
from retrace.pipeline.artifacts import load_checkpoint, save_checkpoint
from retrace.pipeline.command import Refusal, run
from retrace.pipeline.params import load

ROW = complete.PANEL + complete.MARGIN
RUNS = TINY["runs"]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: torch.Tensor) -> Path:
    """A folder with params.yaml, the statistics of the digits and a drawing."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    monkeypatch.chdir(folder)
    write_params(folder, {**TINY, "runs": RUNS})
    network = Network()
    network.mean.copy_(images.flatten(1).double().mean(dim=0))
    network.covariance.copy_(images.flatten(1).double().T.cov())
    save_checkpoint(
        network, name="gaussian", architecture="gaussian", arguments={}, dataset="digits"
    )
    drawing = Image.new("RGB", (200, 120), "white")
    ImageDraw.Draw(drawing).line((60, 20, 110, 20, 80, 100), fill=(20, 20, 90), width=12)
    drawing.save("seven.png")
    return folder


def called(image: str = "seven.png", **options: Any) -> None:
    given = {"mask": "bottom", "method": None, "out": Path("sheet.png"), **options}
    complete.main(image=Path(image), **given)


def pixels(name: str) -> "np.ndarray[Any, Any]":
    with Image.open(name) as picture:
        return np.asarray(picture)


def stochastic(monkeypatch: pytest.MonkeyPatch, **answers: Any) -> None:
    """Let every imputation method answer so; each value is made from the observation."""

    def reconstruct(network: Any, observed: torch.Tensor) -> Any:
        assert observed.shape == (1, 28, 28) and bool(observed.isnan().any())
        return {key: make(observed) for key, make in answers.items()}

    monkeypatch.setattr(complete, "find", lambda *_, **__: SimpleNamespace(reconstruct=reconstruct))


def test_the_completion_is_the_methods(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    called()
    printed = capsys.readouterr().out
    assert "method ridge" in printed and "inverted" in printed and "no further" in printed
    small = pixels("sheet_28x28.png")
    seen = convert(Path("seven.png")).image
    np.testing.assert_array_equal(small[:14], seen[:14])
    observed = torch.from_numpy(seen.astype(np.float32) / 255)
    observed[14:] = torch.nan
    network, _ = load_checkpoint(Path("models/gaussian.safetensors"))
    expected = ridge.reconstruct(network, observed[None], penalty=0.01, callback=lambda *_: None)
    np.testing.assert_array_equal(small, (expected[0] * 255).round().byte().numpy())
    assert small[14:].any()
    assert pixels("sheet.png").shape[1] == 4 * ROW + complete.MARGIN
    assert sorted(path.name for path in workspace.iterdir()) == [
        *("models", "params.yaml", "seven.png", "sheet.png", "sheet_28x28.png")
    ]


def test_a_mask_file_hides_its_white_pixels(workspace: Path) -> None:
    mask = np.zeros((56, 56), np.uint8)
    mask[20:40, 20:40] = 255  # of the network's 28 x 28 pixels, 10 to 19
    Image.fromarray(mask).save("mask.png")
    expected = np.zeros((28, 28), bool)
    expected[10:20, 10:20] = True
    hidden = complete.mask_of("mask.png", load())
    np.testing.assert_array_equal(hidden, expected)
    called(mask="mask.png", method="mean")
    seen = convert(Path("seven.png")).image
    small = pixels("sheet_28x28.png")
    np.testing.assert_array_equal(small[~expected], seen[~expected])
    assert (small[expected] != seen[expected]).any()


def test_plausible_completions_and_uncertainty_are_drawn(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Samples as bytes; known pixels stay as they are in every one of them."""
    stochastic(
        monkeypatch,
        estimate=lambda seen: torch.full_like(seen, 0.5),
        deviation=lambda seen: torch.full_like(seen, 0.25),
        samples=lambda seen: (
            torch.arange(0, 256, 32, dtype=torch.uint8).reshape(1, 8, 1, 1).expand(1, 8, 28, 28)
        ),
    )
    called(method="mean")
    assert "no further" not in capsys.readouterr().out
    height, width, _ = pixels("sheet.png").shape
    assert width == 6 * ROW + complete.MARGIN  # the first six samples
    assert height > 2 * ROW
    observed = np.full((28, 28), np.nan)
    observed[:14] = 0.25
    found = complete.completed_by("mean", observed, load())
    assert found.samples is not None and found.samples.shape == (8, 28, 28)
    np.testing.assert_array_equal(found.samples[:, :14], 0.25)
    np.testing.assert_allclose(found.samples[:, 20, 20], np.arange(0, 256, 32) / 255)
    assert found.deviation is not None
    assert found.deviation[:14].max() == 0 and found.deviation[14:].min() == 0.25


@pytest.mark.parametrize("key", ["deviation", "samples"])
def test_either_may_be_absent(key: str, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"deviation": (1, 28, 28), "samples": (1, 3, 28, 28)}[key]
    answers = {"estimate": lambda seen: torch.zeros(1, 28, 28), key: lambda _: torch.ones(shape)}
    stochastic(monkeypatch, **answers)
    called(method="mean")
    height, width, _ = pixels("sheet.png").shape
    assert (width > 5 * ROW, height > 2 * ROW) == (key == "deviation", key == "samples")


def test_the_default_is_combined_where_there_is_such_a_run(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {**RUNS, "imputation-combined": RUNS["imputation-mean"]}
    write_params(workspace, {**TINY, "runs": runs})
    called()
    assert "method combined" in capsys.readouterr().out


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "mask": ({"mask": "botom"}, "allowed are bottom, random_50, or an image file"),
    "method": ({"method": "magic"}, "allowed are mean, ridge, known"),
    "checkpoint": ({"method": "known"}, "`dvc repro train@ffnn` makes it"),
    "image": ({"image": "params.yaml"}, "not an image"),
    "no image": ({"image": "six.png"}, "is missing"),
    "mask is no image": ({"mask": "params.yaml"}, "not an image"),
    "nothing masked": ({"mask": "black.png"}, "nothing is hidden"),
    "all masked": ({"mask": "white.png"}, "leave at least one known"),
    "oblong mask": ({"mask": "seven.png"}, "a square is needed"),
    "no folder": ({"out": Path("nowhere/sheet.png")}, "make it first"),
    "not a picture": ({"out": Path("sheet.txt")}, "ends in .png"),
    "no name": ({"out": Path()}, "ends in .png"),
    "no method": ({"method": ""}, "--method : allowed are mean, ridge, known"),
    "a folder": ({"out": Path("folder.png")}, "is a folder"),
    "itself": ({"out": Path("seven.png")}, "overwrite what is read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(case: str, workspace: Path) -> None:
    Image.new("L", (28, 28)).save("black.png")
    Image.new("L", (28, 28), 255).save("white.png")
    Path("folder.png").mkdir()
    before = {path: path.stat().st_mtime_ns for path in workspace.rglob("*")}
    options, said = REFUSED[case]
    with pytest.raises(Refusal) as refusal:
        called(**options)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)
    assert {path: path.stat().st_mtime_ns for path in workspace.rglob("*")} == before


def test_a_folder_that_may_not_be_written_is_refused(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(Refusal, match="not writable"):
        called()


def test_an_estimate_that_is_not_finite_is_refused(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stochastic(monkeypatch, estimate=lambda seen: seen)
    with pytest.raises(Refusal, match="not finite"):
        called(method="mean")
    assert not Path("sheet.png").exists()


def test_the_command_line(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["complete", "seven.png", "--mask", "nonsense"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stopped:
        run(complete.main, arguments=complete.arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("retrace: --mask nonsense: allowed are bottom")
    monkeypatch.setattr(sys, "argv", [*command[:3], "random_50", "--out", "other.png"])
    run(complete.main, arguments=complete.arguments)
    assert Path("other.png").exists() and Path("other_28x28.png").exists()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("name", ["sieben-schön-七.png", os.fsdecode(b"caf\xe9.png")])
def test_a_name_that_cannot_be_printed_loses_nothing(
    name: str, encoding: str, workspace: Path
) -> None:
    """As an image, a mask and the sheet; the names that are printed have escapes in them."""
    try:
        Path("seven.png").rename(name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    mask = np.zeros((28, 28), np.uint8)
    mask[14:] = 255
    Image.fromarray(mask).save("mask-" + name)
    command = (sys.executable, "-m", "retrace", "complete", name, "--mask", "mask-" + name)
    sheet = "sheet-" + name
    done = execute(
        *command, "--out", sheet, cwd=workspace, PYTHONIOENCODING=encoding, PYTHONPATH=str(ROOT)
    )
    assert "Traceback" not in done.stderr and "mean squared error" in done.stdout
    assert Path(sheet).exists() and Path(sheet).with_name(f"{Path(sheet).stem}_28x28.png").exists()
    failed = execute(
        *command[:4],
        "no-" + name,
        cwd=workspace,
        check=False,
        PYTHONIOENCODING=encoding,
        PYTHONPATH=str(ROOT),
    )
    assert failed.returncode == 2 and "is missing" in failed.stderr
    assert len(failed.stderr.splitlines()) == 1


def test_doubts_are_said_in_a_line(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    called()
    assert capsys.readouterr().err == ""
    pixels_ = pixels("seven.png").copy()
    pixels_[:3] = 0
    Image.fromarray(pixels_).save("form.png")
    called("form.png")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("retrace: form.png: ") and "a line along its edge is left out" in line
    Image.fromarray(np.full((90, 90), 230, np.uint8)).save("blank.png")
    with pytest.raises(Refusal, match=r"blank\.png is blank"):
        called("blank.png", out=Path("other.png"))
    assert not Path("other.png").exists()
