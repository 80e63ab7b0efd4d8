"""What the problems show: tables, galleries and pictures of files whose content is known."""

import csv
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from conftest import TINY, write_params
from torch import Tensor, nn

from retrace.networks.margin import Network as Margin
from retrace.networks.regression import Network as Regression
from retrace.pipeline.artifacts import save_checkpoint, write_arrays, write_json
from retrace.pipeline.command import Refusal
from retrace.problems import Ground, Run
from retrace.problems.imputation import show as imputation
from retrace.problems.network_inversion import show as network_inversion
from retrace.problems.network_inversion.score import Inversion
from retrace.problems.sections import present_state, section_of
from retrace.problems.training_data import show as training_data
from retrace.problems.training_data.score import truth_in
from retrace.report.files import markdown, steps_sheet
from retrace.report.model import Table
from stages import report, score

PARITY: dict[str, Any] = {
    **{"examples": "parity", "labels": "correct", "per_class": 20, "offset": 0, "seed": 0},
    "steps": 9,
}
COLOURS = {**PARITY, "examples": "colours", "per_class": 6}
SHAPES = {"parity": (28, 28), "colours": (3, 8, 8)}


@pytest.fixture(scope="module")
def split(digit_splits: dict[str, dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """The training split as `read_split` gives it."""
    train = digit_splits["train"]
    images = torch.from_numpy(train["images"].astype(np.float32) / 255)
    return images, torch.from_numpy(train["labels"].astype(np.int64))


@pytest.mark.parametrize("training", [PARITY, COLOURS], ids=["parity", "colours"])
@pytest.mark.parametrize("count", [0, 3, 40])
def test_pictures_of_candidates_have_the_same_size_whatever_was_found(
    split: tuple[Tensor, Tensor],
    training: dict[str, Any],
    count: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    truth = truth_in(split, training, where="here")
    images = truth.images.unflatten(1, SHAPES[training["examples"]]).numpy()
    estimate = images[:count]
    scores = {"n": len(images), "identified": count, "colours_recovered": count, "threshold": 0.9}
    steps = training_data.pairs_sheet(estimate, truth, scores, run="run")
    snapshots = np.stack([estimate[None, :8]] * 2)  # (S, 1, <= 8, ...)
    arrays = {"estimate": estimate, "snapshots": snapshots, "snapshot_steps": np.array([0, 9])}
    write_json(Path("metrics/training_data/run.json"), scores)
    ground = Ground(
        "training_data",
        split=lambda name: split,
        load=lambda name: (nn.Identity(), {"architecture": "margin", "training": training}),
    )
    shown = list(training_data.pictures(Run("run", {"network": "x"}, arrays), ground))
    if count == 0:
        assert steps == [] and shown == []
        return
    picture = steps_sheet(steps[0], title="title")
    rows = -(-min(len(estimate), 30) // 10)
    assert len(steps[0].strips) == 2 * rows
    assert picture.width > 10 * 58 and picture.height > rows * 2 * 58
    assert [(key, step) for key, step, _ in shown] == [
        ("identified", 0),
        ("candidates", 0),
        ("candidates", 9),
    ]
    assert shown[0][2].shape == ((2 if count == 3 else 4) * 58, 4 * 58, 3)


@pytest.fixture
def workspace(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    digit_splits: dict[str, dict[str, Any]],
    split: tuple[Tensor, Tensor],
) -> Path:
    """Three attacks on two networks, reconstructed: exact copies, nothing, and colours."""
    monkeypatch.chdir(tmp_path)
    networks = {}
    for network, training in (("parity", PARITY), ("colours", COLOURS)):
        arguments: dict[str, Any] = {
            "shape": SHAPES[network],
            "widths": [3],
            "first_deviation": 0.1,
        }
        networks[network] = {"architecture": "margin", "arguments": {}, "training": training}
        record = {"seconds": 3.0, "epochs": [{"smallest_margin": 1.0}]}
        record |= {"architecture": "margin", "training": training}
        write_json(Path(f"models/{network}.json"), record)
        save_checkpoint(
            Margin(**arguments),
            name=network,
            architecture="margin",
            arguments=arguments,
            dataset="digits",
        )
    dataset = np.array("digits")
    write_arrays(Path("data/train.npz"), {**digit_splits["train"], "dataset": dataset})
    write_json(Path("data/dataset.json"), {"name": "digits"})
    truth = truth_in(split, PARITY, where="here")
    toy = truth_in(split, COLOURS, where="here")
    runs = {}
    for name, network, estimate in (
        ("copies", "parity", truth.images.flip(0).unflatten(1, (28, 28))),
        ("nothing", "parity", torch.zeros(0, 28, 28)),
        ("toy", "colours", toy.images.unflatten(1, (3, 8, 8))),
    ):
        identity = {"problem": "training_data", "method": "kkt", "network": network}
        runs[name] = {**identity, "settings": {"seed": 5}}
        record = {**runs[name], "dataset": "digits", "started": 0.0, "seconds": 2.0}
        place = Path("data/reconstructions/training_data")
        write_arrays(place / f"{name}.npz", {"estimate": estimate.numpy(), "dataset": dataset})
        write_json(place / f"{name}.json", record)
    write_params(tmp_path, {**TINY, "networks": networks, "runs": runs})
    return tmp_path


def test_scores_and_report_of_files(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score.main("training_data")
    assert "copies: identified 40" in capsys.readouterr().out
    copies = json.loads(Path("metrics/training_data/copies.json").read_text())
    assert {"dataset", "problem", "method", "network", "n", "seed", "seconds"} <= set(copies)
    assert copies["dataset"] == "digits" and copies["n"] == 40 and copies["seed"] == 5
    assert copies["training_seconds"] == 3 and copies["seconds"] == 2
    headlines = Path("metrics/headline/training_data").glob("*.json")
    assert all("matched_99" in json.loads(path.read_text()) for path in headlines)

    report.main()
    folder = Path("metrics/report")
    assert sorted(path.name for path in folder.iterdir()) == [
        *("summary.md", "table.md", "training.csv", "training_data.csv"),
        *("training_data_copies.png", "training_data_curve.png", "training_data_toy.png"),
    ]
    text = (folder / "table.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| `copies`"))
    null, count = copies["null_matched"], copies["null_n"]
    assert count > 1000 and copies["null_duplicates"] >= 0
    cells = [f"**40 / {null[bar] / count:.1%}**" for bar in ("0.90", "0.95", "0.99")]
    assert f" | {' | '.join(cells)} |" in row and "| **40** (40 – 40) | **100%** |" in row
    held_out = f"{copies['null_identified']} of {count:,} (all such: below "
    assert f"{held_out}{copies['null_bound']:.1%})" in row
    assert row.endswith("| 0.0e+00 | 3 | 2.0 |")
    assert "| `toy` | kkt | colours | 12 | 12 / 12 | 0.000 | 1.00 | 3 | 2.0 |" in text
    assert "| Training data | copies | **40** (40 – 40) |" in (folder / "summary.md").read_text()
    with (folder / "training_data.csv").open(encoding="utf-8") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert rows["copies"]["matched_0.99"] == "40" and rows["nothing"]["median_mse"] == ""
    assert rows["toy"]["colours_recovered"] == "12"
    # Histories without a validation error are no learning curves.
    assert (folder / "training.csv").read_text() == "\n"


def test_what_is_missing_is_left_out_and_noted_where_that_is_forgiven(workspace: Path) -> None:
    score.main("training_data")
    Path("data/reconstructions/training_data/copies.npz").unlink()
    state = present_state()
    with pytest.raises(Refusal, match=r"copies\.npz is missing"):
        section_of("training_data", state)
    state.forgiving = True
    section = section_of("training_data", state)
    assert state.missing == ["data/reconstructions/training_data/copies.npz is missing"]
    (table,) = [b for b in section.blocks if isinstance(b, Table) and b.title.startswith("Attacks")]
    assert "| `copies` |" in markdown(table)
    assert [steps.file for steps in section.sheets] == ["training_data_toy"]


def test_an_estimate_of_another_shape_is_refused(workspace: Path) -> None:
    path = Path("data/reconstructions/training_data/copies.npz")
    dataset = np.array("digits")
    write_arrays(path, {"estimate": np.zeros((2, 5, 5), np.float32), "dataset": dataset})
    with pytest.raises(Refusal, match=r"\(5, 5\); 784 values are expected"):
        score.main("training_data")
    wrong = np.full((2, 28, 28), np.nan, np.float32)
    write_arrays(path, {"estimate": wrong, "dataset": dataset})
    with pytest.raises(Refusal, match="not finite"):
        score.main("training_data")


def test_false_minima_are_losses_below_the_truths(images: Tensor) -> None:
    """A network that returns bright images whole and halves the others: one is made bright."""

    class Halved(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            bright = x.mean(dim=(1, 2), keepdim=True) >= 0.5
            return torch.where(bright, x, x / 2)

    truth = images[:4].numpy()
    observed = truth.copy()
    observed[:, 14:] = np.nan
    optimised = truth.copy()
    optimised[1, 14:] = 1.0  # bright enough to be returned whole: no loss at all
    with_one = imputation.false_minima(Halved(), optimised, truth, observed, where="")
    assert "25.0% of 4" in with_one.title and with_one.columns == 1
    loss = 1000 * float(((truth[1, :14] / 2) ** 2).mean())
    assert with_one.strips[0].captions == [f"{loss:.1f}/0.0"]
    assert np.array_equal(with_one.strips[3].images[0, 14:], optimised[1, 14:])
    # Without a false minimum the first images are shown, all four.
    without = imputation.false_minima(Halved(), truth, truth, observed, where="")
    assert "0.0% of 4" in without.title and without.columns == 4


def test_the_pictures_of_completions_are_original_given_completed_and_error() -> None:
    truth = np.full((4, 28, 28), 0.75, np.float32)
    observed = np.stack([truth, truth])
    observed[1, :, 14:] = np.nan
    ground = Ground("imputation")
    ground.__dict__ |= {
        "truth": {"images": truth},
        "given": {"observed": observed, "masks": np.array(["none", "bottom"])},
    }
    estimate = np.full((2, 4, 28, 28), 0.25, np.float32)
    arrays = {
        **{"estimate": estimate, "snapshots": np.stack([estimate, 2 * estimate])},
        "snapshot_steps": np.array([1, 10]),
    }
    shown = {(key, step): x for key, step, x in imputation.pictures(Run("r", {}, arrays), ground)}
    keys = [("none/completed", 0), ("bottom/completed", 0)]
    assert list(shown) == [*keys, ("bottom/iterations", 1), ("bottom/iterations", 10)]
    below = [50 + 58 * row for row in range(4)]  # in each row a missing pixel
    assert shown[keys[0]][below, 0, 0].tolist() == [191, 191, 191, 0]
    assert shown[keys[1]][below, 0, 0].tolist() == [191, 86, 64, 128]
    assert shown["bottom/iterations", 10][below, 0, 0].tolist() == [191, 86, 128, 64]


@pytest.mark.parametrize(("activation", "panels"), [("identity", 2), ("sigmoid", 1)])
def test_trajectories_of_an_affine_network(
    activation: Literal["identity", "sigmoid"], panels: int
) -> None:
    network = Regression(inputs=1, outputs=1, activation=activation).requires_grad_(False)
    arrays = {
        "estimate": np.array([[2.0]]),
        "network": np.array("line"),
        "wanted": np.array([[0.5]]),
        "trajectory": np.array([[[1.0]], [[1.5]], [[2.0]]]),
    }
    settings = {"wanted": [0.5], "start": 1.0}
    run = Inversion(network, arrays, "affine", settings)
    network.weight.fill_(2.0)
    network.bias.fill_(-3.0)
    (chart,) = network_inversion.trajectories({"run": run})
    assert chart.file == "network_inversion_line" and chart.wide == (panels > 1)
    figure = chart.draw()
    assert len(figure.axes) == panels
    dashed, path = figure.axes[0].get_lines()
    answer = 1.75 if activation == "identity" else 1.5  # 2 x - 3 is 0.5, or the logit of 0.5
    assert dashed.get_ydata() == pytest.approx([answer, answer])
    assert np.array_equal(path.get_ydata(), [1.0, 1.5, 2.0])
    if panels > 1:  # at half the bound, the first step arrives
        halfway = np.asarray(figure.axes[1].get_lines()[1].get_ydata())
        assert halfway[1:] == pytest.approx([1.75] * 40)
    closed = {key: value for key, value in arrays.items() if key != "trajectory"}
    run = Inversion(network, closed, "affine", settings)
    assert len(network_inversion.trajectories({"run": run})) == (activation == "identity")
