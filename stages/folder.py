"""A dataset of one's own: a folder with a subfolder of images for each label.

    pictures/            or    pictures/train/apple/1.jpg
      apple/1.jpg              pictures/train/pear/1.png
      apple/2.png              pictures/test/apple/9.jpg
      pear/1.webp              pictures/test/pear/9.png

The subfolders' names, sorted as text, become the labels 0, 1, ... Every file is converted as
stages/conversion.py says. Archives are not unpacked.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from stages.command import Refusal
from stages.conversion import convert

PARTS = ("train", "test")
SMALLEST = 10  # images: fewer leave nothing to validate with
LABELS = 256  # that a byte tells apart
LITTER = ("Thumbs.db", "desktop.ini")  # which file managers leave, beside hidden files


def read_folder(path: Path) -> dict[str, Any]:
    """Read and convert all images of a folder.

    Parameters
    ----------
    path : Path
        Holds a subfolder for each label, or ``train`` and ``test`` with such subfolders each.

    Returns
    -------
    dict
        ``images`` (n, 28, 28) uint8, ``labels`` (n,) uint8, ``test`` (n,) bool (nowhere True
        where there is no ``test``), ``classes`` (k,) str, ``digest``: SHA-256 over all files, each
        with its place in the folder, in order. No path of this machine.

    Raises
    ------
    Refusal
        When it is missing, no folder, has fewer than 2 labels, a label without images, labels that
        only ``test`` has, fewer than 10 images, or a file that is no image (which is named).
    """
    where = f"params.yaml: data.path = {str(path)!r}"
    if not path.exists():
        raise Refusal(f"{where}: there is no such folder")
    if not path.is_dir():
        raise Refusal(f"{where}: not a folder (archives are not unpacked: do that first)")
    parted = {entry.name for entry in entries(path) if entry.is_dir()} == set(PARTS)
    found: list[tuple[bool, str, Path]] = []  # (test, label, file)
    for part in PARTS if parted else ("",):
        labels = [entry for entry in entries(path / part) if entry.is_dir()]
        for folder in labels:
            files = entries(folder)
            if not files:
                raise Refusal(f"{where}: {folder.relative_to(path)} holds no image")
            found += [(part == "test", folder.name, file) for file in files]
    classes = sorted({label for test, label, _ in found if not test})
    if len(classes) < 2:
        raise Refusal(
            f"{where}: {len(classes)} labels found; at least 2 are needed, a subfolder of images "
            "for each"
        )
    if len(classes) > LABELS:
        raise Refusal(f"{where}: {len(classes)} labels found; at most {LABELS} are possible")
    strange = sorted({label for _, label, _ in found} - set(classes))
    if strange:
        raise Refusal(f"{where}: test/{strange[0]} has no counterpart in train")
    if len(found) < SMALLEST:
        raise Refusal(f"{where}: {len(found)} images found; at least {SMALLEST} are needed")
    digest = hashlib.sha256()
    images = np.empty((len(found), 28, 28), np.uint8)
    for i, (_, _, file) in enumerate(tqdm(found, desc="images", unit="file", disable=None)):
        if file.is_dir():
            raise Refusal(f"{where}: {file.relative_to(path)} is a folder within a label's folder")
        images[i] = convert(file).image
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"{file.relative_to(path).as_posix()}\0{content}\n".encode())
    return {
        "images": images,
        "labels": np.array([classes.index(label) for _, label, _ in found], np.uint8),
        "test": np.array([test for test, _, _ in found]),
        "classes": np.array(classes),
        "digest": np.array(digest.hexdigest()),
        "dataset": np.array("folder"),
    }


def entries(folder: Path) -> list[Path]:
    """What a folder holds, sorted, without hidden files and litter."""
    return sorted(
        entry
        for entry in folder.iterdir()
        if not entry.name.startswith(".") and entry.name not in LITTER
    )


def check_classes(count: int, arguments: dict[str, dict[str, Any]]) -> None:
    """Refuse networks that have fewer outputs than there are labels, before they are trained.

    Parameters
    ----------
    count : int
        Labels.
    arguments : dict
        Of every network of params.yaml.
    """
    for name, given in arguments.items():
        if given.get("classes", count) < count:
            raise Refusal(
                f"params.yaml: networks.{name}.arguments.classes = {given['classes']}: the folder "
                f"of data.path has {count} labels; at least as many are needed"
            )
