"""Membership: what is observed, who counts as a member and who as never seen, scores and pictures;
and the training images of a multilayer perceptron as the truth of the attacks."""

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, write_params
from numpy.typing import NDArray
from torch import Tensor, nn

from retrace.measures.quality import means_with_intervals
from retrace.networks.mlp import Network, training_set
from retrace.pipeline.artifacts import read_arrays, save_checkpoint, write_arrays, write_json
from retrace.pipeline.command import Refusal, WrongValue
from retrace.problems import Ground, Run
from retrace.problems.membership import show
from retrace.problems.membership.observe import observe
from retrace.problems.membership.score import Scorer, parts_of
from retrace.problems.sections import present_state, section_of
from retrace.problems.training_data.score import truth_in, truth_of
from retrace.report.model import Chart, Gallery, Table
from retrace.types import BadInput, Split
from stages import observe as observing
from stages import report, score

COUNT = 300
TRAINING: dict[str, Any] = {"per_class": 4, "offset": 2, "others": 12}


@pytest.fixture(scope="module")
def split() -> Split:
    """Images of noise, of which no two are alike, of ten classes in no order."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(COUNT, 6, 6, generator=generator)
    return images, torch.randint(10, (COUNT,), generator=generator)


def ground_of(split: Split, *, fine_tuned: bool = False, **training: Any) -> Ground:
    """A ground whose one network was trained on `TRAINING`, but for some changes."""
    record = {
        "architecture": "mlp",
        "arguments": {"fine_tuned": fine_tuned},
        "training": {**TRAINING, **training},
        "epochs": [{"test_error": 0.9}, {"test_error": 0.25}],
    }
    ground = Ground(
        "membership", split=lambda name: split, load=lambda name: (nn.Identity(), record)
    )
    ground.__dict__["dataset"] = "noise"
    return ground


def observed(ground: Ground, **settings: int) -> Ground:
    """The same, with what is observed of it and the truth."""
    given, truth = observe(ground, **{"per_class": 8, "held_out": 120, "public": 20, **settings})
    ground.__dict__ |= {"given": given, "truth": truth}
    return ground


def places(images: NDArray[Any], split: Split) -> list[int]:
    """Positions of images in the split."""
    same = (torch.from_numpy(images)[:, None] == split[0][None]).flatten(2).all(dim=2)
    assert same.any(dim=1).all()
    return [int(position) for position in same.int().argmax(dim=1)]


def ranks_of(split: Split) -> list[int]:
    """How many images of its class come before each."""
    labels = split[1].tolist()
    return [labels[:position].count(label) for position, label in enumerate(labels)]


def test_the_first_images_of_each_class_are_observed_and_the_last_of_all(split: Split) -> None:
    given, truth = observe(ground_of(split), per_class=8, held_out=120, public=20)
    ranks = ranks_of(split)
    first = [position for position in range(COUNT) if ranks[position] < 8]
    last = list(range(COUNT - 120, COUNT))
    assert len(first) == 80 and max(first) < min(last)
    assert places(given["observed"], split) == first + last
    assert places(given["public"], split) == list(range(COUNT - 140, COUNT - 120))
    assert truth["ranks"].tolist() == [ranks[position] for position in first + last]
    assert truth["held_out"].tolist() == [False] * 80 + [True] * 120
    assert given["labels"].tolist() == split[1][first + last].tolist()
    assert given["labels"].dtype == np.float32  # what a method may be told are floats
    assert not given["each"] and given["dataset"] == "noise"
    assert set(given) == {"observed", "public", "labels", "dataset", "each"}


@pytest.mark.parametrize(
    ("per_class", "held_out"), [(8, COUNT - 50), (8, COUNT), (8, 9999), (25, 120)]
)
def test_images_that_would_be_both_are_refused(per_class: int, held_out: int, split: Split) -> None:
    message = (
        rf"^params\.yaml: problems\.membership\.settings: held_out \+ public = {held_out + 20}: of "
        rf"the training split's {COUNT} images, \d+ come after the first {per_class} of each class"
    )
    with pytest.raises(WrongValue, match=message):
        observe(ground_of(split), per_class=per_class, held_out=held_out, public=20)


def test_all_images_that_are_left_may_be_used_and_no_more(split: Split) -> None:
    spare = COUNT - 1 - max(p for p, rank in enumerate(ranks_of(split)) if rank < 8)
    given, _ = observe(ground_of(split), per_class=8, held_out=spare - 5, public=5)
    assert len(given["public"]) == 5 and len(given["observed"]) == 80 + spare - 5
    with pytest.raises(WrongValue, match=f"held_out .* = {spare + 1}: .* {spare} come after"):
        observe(ground_of(split), per_class=8, held_out=spare - 5, public=6)


@pytest.mark.parametrize("offset", [0, 2, 4])
def test_members_are_the_training_set(offset: int, split: Split) -> None:
    ground = observed(ground_of(split, offset=offset))
    members, held_out, duplicates = parts_of(ground, "own")
    images, _, _ = training_set(split, per_class=4, offset=offset)
    shown = ground.given["observed"]
    assert sorted(places(shown[members.numpy()], split)) == sorted(
        places(images.unflatten(1, (6, 6)).numpy(), split)
    )
    assert held_out.tolist() == list(range(80, 200)) and duplicates == 0


def test_what_a_network_was_trained_on_before_is_not_held_out(split: Split) -> None:
    ranks = ranks_of(split)
    for others in (12, 20):
        ground = observed(ground_of(split, fine_tuned=True, others=others))
        _, held_out, _ = parts_of(ground, "own")
        wanted = [
            80 + place
            for place, position in enumerate(range(COUNT - 120, COUNT))
            if ranks[position] >= 2 + 4 + others
        ]
        assert held_out.tolist() == wanted and 0 < len(wanted) < 120
    # Of a network that is not fine-tuned, the setting says nothing.
    assert len(parts_of(observed(ground_of(split, others=9999)), "own").held_out) == 120


def test_held_out_images_that_nearly_equal_a_member_are_taken_out(split: Split) -> None:
    images, labels = split[0].clone(), split[1]
    member = next(p for p, (r, y) in enumerate(zip(ranks_of(split), labels, strict=True)) if r == 3)
    outsider = next(p for p, rank in enumerate(ranks_of(split)) if rank == 0)
    images[-5], images[-9] = 0.9 * images[member], images[member]
    images[-7] = images[outsider]  # no member
    _, held_out, duplicates = parts_of(observed(ground_of((images, labels))), "own")
    assert duplicates == 2 and len(held_out) == 118
    assert not {200 - 5, 200 - 9} & set(held_out.tolist()) and 200 - 7 in held_out.tolist()


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"per_class": 7}, r"offset \+ per_class = 9: the first 8 images of each class"),
        ({"others": 9999}, "no observed image is left that the network never saw"),
        ({"others": None}, "no training set is chosen there; an mlp has one"),
    ],
)
def test_networks_whose_members_are_not_known_are_refused(
    training: dict[str, Any], message: str, split: Split
) -> None:
    ground = observed(ground_of(split, fine_tuned=True, **training))
    record = ground.load("own")[1]["training"]
    if record["others"] is None:
        del record["others"]
    with pytest.raises(WrongValue, match=rf"^params\.yaml: networks\.own\.training: {message}"):
        parts_of(ground, "own")


MEANS = partial(means_with_intervals, resamples=50, seed=0)


def run_of(estimate: NDArray[Any], name: str = "run") -> Run:
    return Run(name, {"network": "own"}, {"estimate": estimate.astype(np.float32)})


def test_scores_of_known_members(split: Split) -> None:
    ground = observed(ground_of(split))
    members, held_out, _ = parts_of(ground, "own")
    estimate = np.zeros(200)
    estimate[held_out.numpy()] = np.arange(120)
    estimate[members.numpy()] = [500] * 30 + [118.5] * 4 + [-1] * 6
    scores, headline = Scorer(ground, {}, MEANS)(run_of(estimate))
    rates = ("tpr_0", "tpr_0.1", "tpr_1", "auc")
    assert set(scores) == {"n", "null_n", "null_duplicates", "test_error"} | {
        f"{rate}{end}" for rate in rates for end in ("", "_low", "_high")
    }
    assert scores["n"] == 40 and scores["null_n"] == 120 and scores["null_duplicates"] == 0
    assert scores["test_error"] == 0.25  # of the last entry
    assert scores["tpr_0"] == scores["tpr_0.1"] == 0.75 and scores["tpr_1"] == 0.85
    assert scores["auc"] == pytest.approx((30 + 4 * 119 / 120) / 40)
    for rate in rates:
        assert scores[f"{rate}_low"] <= scores[rate] <= scores[f"{rate}_high"]
    assert headline == {key: scores[key] for key in ("tpr_0", "tpr_1", "auc")}
    # What is said of images that are neither counts for nothing.
    estimate[[p for p in range(80) if p not in members.tolist()]] = 9999
    assert Scorer(ground, {}, MEANS)(run_of(estimate))[0] == scores


@pytest.mark.parametrize("shape", [(199,), (200, 1)])
def test_an_estimate_of_another_shape_is_refused(shape: tuple[int, ...], split: Split) -> None:
    with pytest.raises(Refusal, match=r"^run: estimate has shape .*; \(200,\) is expected"):
        Scorer(observed(ground_of(split)), {}, MEANS)(run_of(np.zeros(shape)))


# As files: two methods on one network of scikit-learn's digits


@pytest.fixture
def workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digit_splits: dict[str, dict[str, Any]]
) -> Path:
    """Observed by the stage; one run tells all members, one the first half, one tells none."""
    monkeypatch.chdir(tmp_path)
    training = {"per_class": 5, "offset": 0, "others": 2000}
    arguments: dict[str, Any] = {"widths": [4], "fine_tuned": False}
    record = {
        **{"architecture": "mlp", "arguments": arguments, "training": training, "seconds": 1.0},
        "epochs": [{"epoch": 0.0, "test_error": 0.125}],
    }
    write_json(Path("models/own.json"), record)
    save_checkpoint(
        Network(**arguments), name="own", architecture="mlp", arguments=arguments, dataset="digits"
    )
    dataset = np.array("digits")
    for name in ("train", "test"):
        write_arrays(Path(f"data/{name}.npz"), {**digit_splits[name], "dataset": dataset})
    write_json(Path("data/dataset.json"), {"name": "digits"})
    params = copy.deepcopy(TINY)
    params["networks"] = {"own": {"architecture": "mlp", "arguments": {"widths": [4]}}}
    settings = {"per_class": 8, "held_out": 400, "public": 100}
    params["problems"] = {"membership": {"source": "data/train.npz", "settings": settings}}
    identity = {"problem": "membership", "network": "own"}
    runs = {
        "membership-all": {**identity, "method": "stationarity"},
        "membership-half": {**identity, "method": "stationarity"},
        "membership-loss": {**identity, "method": "loss"},
    }
    write_params(tmp_path, {**params, "runs": runs})
    observing.main("membership")
    with np.load("data/truth/membership.npz") as truth:
        ranks, held_out = truth["ranks"], truth["held_out"]
    generator = np.random.default_rng(0)
    noise = generator.random(len(ranks))
    member = ~held_out & (ranks < 5)
    for name, estimate in {
        "membership-all": noise + 2 * member,
        "membership-half": noise + np.where(np.cumsum(member) <= 25, 2, -2) * member,
        "membership-loss": noise - 2 * member,
    }.items():
        place = Path("data/reconstructions/membership")
        arrays = {"estimate": estimate.astype(np.float32), "dataset": dataset}
        write_arrays(place / f"{name}.npz", arrays)
        record = {**runs[name], "settings": {}, "dataset": "digits", "seconds": 2.0}
        write_json(place / f"{name}.json", {**record, "started": 0.0})
    return tmp_path


def metrics(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        Path(f"metrics/membership/membership-{name}.json").read_text()
    )
    return found


def test_scores_and_report_of_files(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score.main("membership")
    assert "membership-all: tpr_0 1.0000, tpr_1 1.0000, auc 1.0000" in capsys.readouterr().out
    found = {name: metrics(name) for name in ("all", "half", "loss")}
    for scores in found.values():
        assert {"dataset", "problem", "method", "network", "n", "seed", "seconds"} <= set(scores)
        assert scores["n"] == 50 and scores["test_error"] == 0.125
        assert scores["null_n"] + scores["null_duplicates"] == 400
    assert [scores["tpr_0"] for scores in found.values()] == [1, 0.5, 0]
    assert found["loss"]["auc"] == 0
    section = section_of("membership", present_state())
    summary = section.summary
    assert summary is not None
    assert summary.headline == "100% of 50 members told" and summary.method == "all"
    assert f"none of {found['all']['null_n']} images" in summary.meaning
    assert summary.baseline == "0.0% (by the loss)" and summary.runs == 3
    assert [strip.images.shape for strip in summary.pictures] == [(1, 28, 28)] * 3
    table, chart, gallery = section.blocks
    assert isinstance(table, Table) and isinstance(chart, Chart) and isinstance(gallery, Gallery)
    assert list(gallery.groups) == ["all", "half", "loss"] and gallery.first == "all"
    report.main()
    text = Path("metrics/report/table.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith(("| `all`", "| `half`"))]
    assert len(rows) == 2 and "| 87.5% |" in rows[0] and "50.0%" in rows[1]
    (axes,) = chart.draw().axes
    # All but the loss.
    assert axes.get_legend_handles_labels()[1] == ["all (50)", "half (50)"]
    assert axes.get_xscale() == "log"


def test_the_gallery_shows_members_by_their_scores_and_the_highest_of_the_others(
    workspace: Path,
) -> None:
    score.main("membership")
    section = section_of("membership", present_state())
    (gallery,) = [block for block in section.blocks if isinstance(block, Gallery)]
    observed = read_arrays(Path("data/observed/membership.npz"))["observed"]
    with np.load("data/truth/membership.npz") as truth:
        member = ~truth["held_out"] & (truth["ranks"] < 5)
    for name in ("all", "half"):
        path = Path(f"data/reconstructions/membership/membership-{name}.npz")
        estimate = read_arrays(path)["estimate"]
        *cases, control = gallery.groups[name]
        for case in cases:
            (strip,) = case.strips
            assert np.isin(strip.captions, [f"{value:.2f}" for value in estimate[member]]).all()
            for image in strip.images:
                assert (observed[member] == image).all(axis=(1, 2)).any()
        (strip,) = control.strips
        assert (np.diff([float(caption) for caption in strip.captions]) <= 0).all()
        for image in strip.images:
            assert not (observed[member] == image).all(axis=(1, 2)).any()
        means = [np.mean([float(c) for c in case.strips[0].captions]) for case in cases]
        assert means == sorted(means, reverse=True)


def test_pictures_for_the_store_are_three_rows(workspace: Path) -> None:
    ground = Ground("membership")
    arrays = read_arrays(Path("data/reconstructions/membership/membership-half.npz"))
    ((key, step, picture),) = show.pictures(Run("half", {"network": "own"}, arrays), ground)
    assert (key, step) == ("told", 0) and picture.dtype == np.uint8
    height, width = picture.shape[:2]
    assert height % 3 == 0 and width > height


def test_a_run_whose_files_are_missing_is_noted_where_that_is_forgiven(workspace: Path) -> None:
    score.main("membership")
    Path("data/reconstructions/membership/membership-half.npz").unlink()
    state = present_state()
    with pytest.raises(Refusal, match=r"membership-half\.npz is missing"):
        section_of("membership", state)
    state.forgiving = True
    section = section_of("membership", state)
    assert len(state.missing) == 1
    (gallery,) = [block for block in section.blocks if isinstance(block, Gallery)]
    assert list(gallery.groups) == ["all", "loss"]


# Training images as the truth of the attacks that look for them


def test_the_truth_of_a_perceptron_is_its_training_set(split: Split) -> None:
    images, _, mean = training_set(split, per_class=4, offset=2)
    ground = ground_of(split)
    truth = truth_of(ground, "own")
    assert torch.equal(truth.images, images) and torch.equal(truth.mean, mean)
    assert not truth.coloured and truth.null_duplicates == 0
    assert len(truth.held_out) == COUNT - 40
    both = torch.cat([images, truth.held_out])
    assert len(both.unique(dim=0)) == COUNT  # each image is in one of both
    none = truth_of(ground, "own", null=False)
    assert torch.equal(none.images, images) and none.held_out.shape == (0, 36)


def test_near_duplicates_are_taken_out_of_the_null_and_counted(split: Split) -> None:
    images = split[0].clone()
    member = next(position for position, rank in enumerate(ranks_of(split)) if rank == 2)
    images[-1] = 0.9 * images[member]
    truth = truth_in((images, split[1]), TRAINING, where="here", choose=training_set)
    assert truth.null_duplicates == 1 and len(truth.held_out) == COUNT - 41


def missing(record: dict[str, Any]) -> None:
    del record["training"]["offset"]


def without_a_set(record: dict[str, Any]) -> None:
    record["architecture"] = "gaussian"


def unknown(record: dict[str, Any]) -> None:
    record["architecture"] = "perceptron"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing, r"^networks\.own\.training\.offset is missing"),
        (without_a_set, r"^networks\.own: no training images can be attacked there"),
        (unknown, r"networks\.own\.architecture = 'perceptron'"),
    ],
)
def test_networks_without_training_images_are_refused(
    spoil: Callable[[dict[str, Any]], None], message: str, split: Split
) -> None:
    ground = ground_of(split)
    spoil(ground.load("own")[1])
    with pytest.raises((BadInput, Refusal), match=message):
        truth_of(ground, "own")


def test_a_split_of_training_images_alone_has_no_null() -> None:
    images: Tensor = torch.rand(20, 6, 6, generator=torch.Generator().manual_seed(0))
    settings = {"per_class": 10, "offset": 0}
    with pytest.raises(BadInput, match=r"^here\.per_class = 10: all 20 images"):
        truth_in((images, torch.arange(20) % 2), settings, where="here", choose=training_set)
