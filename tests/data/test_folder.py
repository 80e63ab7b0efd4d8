"""A dataset of one's own: from image files in folders to scores, and what is refused."""

import copy
import json
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import yaml
from conftest import ROOT, TINY, execute, write_params
from PIL import Image

from retrace.data.conversion import convert
from retrace.data.folder import check_classes, read_folder
from retrace.pipeline.artifacts import DATASET, read_arrays, read_json, read_split, split_path
from retrace.pipeline.command import Refusal
from retrace.pipeline.params import NetworkEntry
from stages import download, masks, observe, reconstruct, score, split, train

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
    params["runs"] = {"imputation-mean": params["runs"]["imputation-mean"]}
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
    observe.main("imputation")
    reconstruct.main("imputation-mean")
    score.main("imputation")
    scores = read_json(Path("metrics/imputation/imputation-mean.json"))
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


@pytest.mark.parametrize(
    ("train", "valid"),
    [("train", "valid"), ("Train", "val"), ("training", "Validation"), ("train", "dev")],
)
def test_a_validation_folder_becomes_the_validation_set(
    train: str, valid: str, workspace: Path, digit_splits: dict[str, Any]
) -> None:
    """As it is: none of it is trained on, and nothing more is drawn for it."""
    for name, each, start in ((train, 12, 0), (valid, 4, 30), ("test", 3, 20)):
        make(workspace / "pictures" / name, digit_splits, each=each, start=start)
    download.main()
    split.main()
    description = read_json(DATASET)
    assert description["sizes"] == {"train": 36, "validation": 12, "test": 9}
    assert description["source"]["given"] == ["test", "train", "validation"]
    given = [convert(path).image for path in sorted((workspace / "pictures" / valid).glob("*/*"))]
    arrays = read_arrays(split_path("validation"))
    order = [NAMES.index(name) for name in sorted(NAMES) for _ in range(4)]
    assert sorted(image.tobytes() for image in arrays["images"]) == sorted(
        image.tobytes() for image in given
    )
    assert sorted(arrays["labels"].tolist()) == sorted(order)
    assert not {image.tobytes() for image in given} & {
        image.tobytes() for image in read_arrays(split_path("train"))["images"]
    }


def test_a_train_folder_may_stand_alone(workspace: Path, digit_splits: dict[str, Any]) -> None:
    make(workspace / "pictures" / "train", digit_splits)
    download.main()
    split.main()
    assert read_json(DATASET)["sizes"] == {"train": 25, "validation": 6, "test": 5}


def test_litter_of_other_systems_is_no_image(tmp_path: Path, digit_splits: dict[str, Any]) -> None:
    folder = make(tmp_path / "pictures" / "train", digit_splits, each=4).parent
    make(folder / "test", digit_splits, each=1, start=20)
    digest = str(read_folder(folder)["digest"])
    for place in (folder, folder / "train", folder / "train" / "one"):
        for name in ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", ".Trashes"):
            (place / name / "one").mkdir(parents=True)
            (place / name / "one" / "0.png").write_text("litter")
        for name in ("thumbs.db", "Thumbs.db", "Desktop.ini", "ehthumbs.db", ".DS_Store", "._0"):
            (place / name).write_text("litter")
    arrays = read_folder(folder)
    assert arrays["classes"].tolist() == sorted(NAMES) and len(arrays["images"]) == 15
    assert str(arrays["digest"]) == digest


FORMS: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")


def renamed(folder: Path, form: Literal["NFC", "NFD"]) -> None:
    """A label with an accent, as this or that system writes it."""
    (folder / "two").rename(folder / unicodedata.normalize(form, "zwölf"))


def test_a_label_has_one_name_however_its_accents_are_written(
    tmp_path: Path, digit_splits: dict[str, Any]
) -> None:
    digests = set()
    for forms in product(FORMS, repeat=2):
        folder = tmp_path / "".join(forms)
        for part, form, start in zip(("train", "test"), forms, (0, 20), strict=True):
            renamed(make(folder / part, digit_splits, each=4, start=start), form)
        arrays = read_folder(folder)
        assert arrays["classes"].tolist() == ["nought", "one", "zwölf"]
        assert arrays["labels"].tolist() == 2 * ([0] * 4 + [1] * 4 + [2] * 4)
        digests.add(str(arrays["digest"]))
    assert len(digests) == 1  # it is one dataset


def test_names_that_are_no_utf_8_are_read_and_shown(
    workspace: Path, digit_splits: dict[str, Any]
) -> None:
    folder = make(workspace / "pictures", digit_splits)
    try:
        (folder / "one" / "0.png").rename(folder / "one" / os.fsdecode(b"caf\xe9.png"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (folder / "two").rename(folder / os.fsdecode(b"zw\xf6lf"))
    download.main()
    split.main()
    assert read_json(DATASET)["source"]["classes"] == ["nought", "one", r"zw\xf6lf"]
    (folder / "one" / os.fsdecode(b"caf\xe9.png")).write_text("no image")
    shown = execute(
        sys.executable, "-m", "stages.download", cwd=workspace, check=False, PYTHONPATH=str(ROOT)
    )
    assert shown.returncode == 2 and "Traceback" not in shown.stderr
    assert "caf\\udce9.png is not an image" in shown.stderr


def test_doubtful_images_are_counted_in_a_line(
    tmp_path: Path, digit_splits: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path / "pictures", digit_splits, each=6)
    assert read_folder(folder)["images"].shape == (18, 28, 28)
    assert capsys.readouterr().err == ""
    for name in ("0.png", "3.png"):
        pixels = np.asarray(Image.open(folder / "one" / name)).copy()
        pixels[2:5] = 0  # a line of a form
        Image.fromarray(pixels).save(folder / "one" / name)
    read_folder(folder)
    (line,) = capsys.readouterr().err.splitlines()
    assert "2 of 18 images" in line
    assert "the first is one/0.png (a line along its edge is left out)" in line


def test_the_images_to_train_with_are_counted(
    workspace: Path, digit_splits: dict[str, Any]
) -> None:
    """Not those to test with: many of these do not help."""
    make(workspace / "pictures" / "train", digit_splits, each=3)
    make(workspace / "pictures" / "test", digit_splits, each=12)
    with pytest.raises(Refusal, match="9 images to train with found beside 36 others; at least 10"):
        download.main()


def test_a_share_that_leaves_no_validation_image_is_refused(
    workspace: Path, digit_splits: dict[str, Any]
) -> None:
    make(workspace / "pictures", digit_splits)
    download.main()
    write_params(workspace, {**TINY, "data": {**OWN, "validation": 0.01}})
    with pytest.raises(Refusal, match=r"data\.validation = 0\.01: of 36 .* none .* validation"):
        split.main()
    assert not DATASET.exists()


def pack(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"PK")


def keep(folder: Path, count: int) -> None:
    for name in NAMES[count:]:
        shutil.rmtree(folder / name)


def thin(folder: Path) -> None:
    for path in folder.glob("*/[2-9]*"):
        path.unlink()


def split_up(folder: Path) -> None:
    parts = {name: folder.with_name(name) for name in ("test", "valid")}
    for part in parts.values():
        shutil.copytree(folder, part)
    shutil.rmtree(folder)
    folder.mkdir()
    for name, part in parts.items():
        part.rename(folder / name)


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
    "no train": (split_up, "test, valid found, but no train beside"),
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
    networks = {
        "classifier": NetworkEntry(architecture="classifier", arguments={"classes": 11}),
        "lstm": NetworkEntry(architecture="lstm"),  # 10 by default
        "ffnn": NetworkEntry(architecture="dense"),
    }
    check_classes(10, networks)
    with pytest.raises(Refusal, match=r"networks\.lstm\.arguments\.classes = 10: .* 11 labels"):
        check_classes(11, networks)


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
