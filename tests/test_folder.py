"""A dataset of one's own: from image files in folders to scores, and what is refused."""

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import TINY, execute, write_params
from PIL import Image

from stages import baselines, download, masks, reconstruct, score, split, train
from stages.artifacts import DATASET, read_arrays, read_json, read_split, split_path
from stages.command import Refusal
from stages.conversion import convert
from stages.folder import check_classes, read_folder

OWN = {**TINY["data"], "name": "folder", "path": "pictures"}
NAMES = ("nought", "one", "two")  # sorted as the digits are


def make(folder: Path, digit_splits: dict[str, Any], *, each: int = 12, start: int = 0) -> Path:
    """Digits 0, 1 and 2 as files of three formats, dark on light, of various sizes."""
    digits = digit_splits["train"]
    for label, name in enumerate(NAMES):
        (folder / name).mkdir(parents=True)
        for i, index in enumerate(np.flatnonzero(digits["labels"] == label)[start : start + each]):
            side = 100 + 7 * i
            picture = Image.fromarray(255 - digits["images"][index]).resize((side, side))
            suffix = (".png", ".jpg", ".webp")[i % 3]
            picture.convert("RGB").save(folder / name / f"{i}{suffix}", quality=95)
    return folder


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    params = copy.deepcopy({**TINY, "data": OWN})
    params["masks"]["images"] = 5
    params["networks"]["classifier"]["arguments"]["classes"] = 3
    write_params(tmp_path, params)
    return tmp_path


def test_from_files_to_scores(workspace: Path, digit_splits: dict[str, Any]) -> None:
    make(workspace / "pictures", digit_splits)
    (workspace / "pictures" / "nought" / ".hidden").write_text("litter")
    (workspace / "pictures" / "nought" / "Thumbs.db").write_text("litter")
    download.main()
    split.main()
    description = read_json(DATASET)
    assert description["name"] == "folder"
    assert description["sizes"] == {"train": 25, "validation": 6, "test": 5}
    assert description["source"]["classes"] == list(NAMES)
    assert description["source"]["files"] == 36
    assert re.fullmatch("[0-9a-f]{64}", description["source"]["sha256"])
    assert str(workspace) not in json.dumps(description)
    # Every split image is one of the files, converted as `complete` does it, under its label.
    expected = {
        (convert(path).image.tobytes(), NAMES.index(path.parent.name))
        for path in (workspace / "pictures").rglob("[0-9]*")
    }
    parts = [read_arrays(split_path(part)) for part in ("train", "validation", "test")]
    found = {
        (image.tobytes(), int(label))
        for part in parts
        for image, label in zip(part["images"], part["labels"], strict=True)
    }
    assert found == expected
    for network in ("gaussian", "classifier"):
        train.main(network)
    masks.main()
    baselines.main()
    # Of another problem, but a file that the score of every run may open.
    reconstruct.main("imputation-mean")
    score.main("imputation-mean")
    scores = read_json(Path("metrics/imputation-mean.json"))
    assert scores["dataset"] == "folder" and scores["n"] == 5
    images, _ = read_split("test")
    known = read_split("train")[0].mean(dim=0)
    error = ((images[:5] - known) ** 2)[:, 14:].mean()
    assert scores["masks"]["bottom"]["mse"] == pytest.approx(float(error), rel=1e-4)


def test_a_test_folder_becomes_the_test_set(workspace: Path, digit_splits: dict[str, Any]) -> None:
    make(workspace / "pictures" / "train", digit_splits)
    make(workspace / "pictures" / "test", digit_splits, each=3, start=20)
    download.main()
    split.main()
    assert read_json(DATASET)["sizes"] == {"train": 29, "validation": 7, "test": 9}
    labels = read_arrays(split_path("test"))["labels"]
    assert labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    first = sorted((workspace / "pictures/test/nought").iterdir())[0]
    np.testing.assert_array_equal(
        read_arrays(split_path("test"))["images"][0], convert(first).image
    )


def test_the_digest_is_of_names_and_contents(tmp_path: Path, digit_splits: dict[str, Any]) -> None:
    folder = make(tmp_path / "pictures", digit_splits, each=4)
    digest = str(read_folder(folder)["digest"])
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert str(read_folder(moved)["digest"]) == digest
    (moved / "one" / "0.png").rename(moved / "one" / "00.png")
    assert str(read_folder(moved)["digest"]) != digest
    Image.new("L", (9, 9)).save(folder / "one" / "0.png")
    with pytest.raises(Refusal, match=r"one/0\.png is blank"):
        read_folder(folder)


def pack(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"PK")


def keep(folder: Path, count: int) -> None:
    for name in NAMES[count:]:
        shutil.rmtree(folder / name)


def thin(folder: Path) -> None:
    for path in folder.glob("*/[2-9]*"):
        path.unlink()


Damage = Callable[[Path], object]
REFUSED: dict[str, tuple[Damage, str]] = {
    "missing": (shutil.rmtree, "there is no such folder"),
    "an archive": (pack, "archives are not unpacked"),
    "no labels": (lambda folder: keep(folder, 0), "0 labels found; at least 2"),
    "one label": (lambda folder: keep(folder, 1), "1 labels found; at least 2"),
    "an empty label": (lambda folder: (folder / "three").mkdir(), "three holds no image"),
    "no image": (
        lambda folder: (folder / "two" / "notes.txt").write_text("apples"),
        "two/notes.txt is not an image",
    ),
    "a folder within": (
        lambda folder: (folder / "two" / "more").mkdir(),
        "two/more is a folder within",
    ),
    "too few": (thin, "6 images to train with found; at least 10"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_dataset_is_one_line(
    case: str, workspace: Path, digit_splits: dict[str, Any]
) -> None:
    damage, said = REFUSED[case]
    damage(make(workspace / "pictures", digit_splits, each=4))
    with pytest.raises(Refusal) as refusal:
        download.main()
    assert said in str(refusal.value) and "\n" not in str(refusal.value)
    assert "pictures" in str(refusal.value)
    assert not list((workspace / "data").iterdir())


def test_labels_that_only_the_test_has_are_refused(
    workspace: Path, digit_splits: dict[str, Any]
) -> None:
    make(workspace / "pictures" / "train", digit_splits, each=4)
    make(workspace / "pictures" / "test", digit_splits, each=2)
    shutil.rmtree(workspace / "pictures" / "train" / "two")
    with pytest.raises(Refusal, match="test/two has no counterpart in train"):
        download.main()


def test_a_network_with_too_few_outputs_is_refused_before_it_is_trained() -> None:
    check_classes(10, {"classifier": {"classes": 10}, "ffnn": {"widths": [2]}})
    with pytest.raises(Refusal, match=r"networks\.lstm\.arguments\.classes = 10: .* 11 labels"):
        check_classes(11, {"lstm": {"classes": 10}})


def test_a_changed_folder_is_noticed_as_the_documents_say(
    make_workspace: Callable[[Path], Path], tmp_path: Path, digit_splits: dict[str, Any]
) -> None:
    """By force, or by itself where dvc.yaml names the folder; then only what follows runs."""
    folder = make_workspace(tmp_path / "clone")
    write_params(folder, {**TINY, "data": OWN})
    make(folder / "pictures", digit_splits, each=4)
    pipeline = yaml.safe_load((folder / "dvc.yaml").read_text())
    stages = {name: pipeline["stages"][name] for name in ("download", "split")}
    stages["download"]["deps"].remove("data/checked")

    def write() -> None:
        (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))

    def repro(*options: str) -> list[str]:
        output = execute("dvc", "repro", *options, "split", cwd=folder).stdout
        return re.findall(r"Running stage '([^']+)'", output)

    write()
    assert repro() == ["download", "split"]
    shutil.copyfile(folder / "pictures/one/0.png", folder / "pictures/two/copy.png")
    execute("dvc", "repro", "--force", "--single-item", "download", cwd=folder)
    assert repro() == ["split"]
    assert json.loads((folder / "data/dataset.json").read_text())["source"]["files"] == 13
    stages["download"]["deps"].append("pictures")
    write()
    (folder / "pictures/two/copy.png").unlink()
    assert repro() == ["download"]  # the split of these images comes from the cache
    assert json.loads((folder / "data/dataset.json").read_text())["source"]["files"] == 12
