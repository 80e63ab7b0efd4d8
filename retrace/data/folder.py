"""A dataset of one's own: a folder with a subfolder of images for each label.

    pictures/            or    pictures/train/apple/1.jpg
      apple/1.jpg              pictures/train/pear/1.png
      apple/2.png              pictures/test/apple/9.jpg
      pear/1.webp              pictures/test/pear/9.png

The subfolders' names, sorted as text, become the labels 0, 1, ... Beside `train` there may be
`test`, `validation` (or `valid`, `val`, `dev`) or both. Every file is converted as
retrace/data/conversion.py says. Archives are not unpacked.
"""

import hashlib
import os
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from retrace.data.conversion import convert
from retrace.pipeline.command import Refusal, complain
from retrace.pipeline.params import NetworkEntry, bind, find

# What people call the parts, in small letters.
PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
SMALLEST = 10  # training images: fewer leave nothing to validate with
LABELS = 256  # that a byte tells apart
# What file managers, archives and storage devices leave, in small letters, beside hidden files.
LITTER = (
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "#recycle"),
    *("@recycle", "$recycle.bin", "system volume information", "lost+found"),
)


class Found(NamedTuple):
    """An image file, its part ("train", "validation" or "test") and its label."""

    part: str
    label: str
    file: Path


def read_folder(path: Path) -> dict[str, Any]:
    """Read and convert all images of a folder; say on stderr in a line if some are doubtful.
    Refused when it is missing, no folder, has fewer than 2 labels, a label without images, labels
    that ``train`` lacks, fewer than 10 images to train with, or a file that is no image (which is
    named).

    Parameters
    ----------
    path : Path
        Holds a subfolder for each label, or ``train`` and perhaps ``validation`` and ``test`` with
        such subfolders each.

    Returns
    -------
    dict
        ``images`` (n, 28, 28) uint8, ``labels`` (n,) uint8, ``part`` (n,) str ("train",
        "validation" or "test"), ``classes`` (k,) str, ``digest``: SHA-256 over all files, each
        with its place in the folder, in order. No path of this machine.
    """
    where = f"params.yaml: data.path = {str(path)!r}"
    if not path.exists():
        raise Refusal(f"{where}: there is no such folder")
    if not path.is_dir():
        raise Refusal(f"{where}: not a folder (archives are not unpacked: do that first)")
    found = find_images(path, where=where)
    classes = sorted({image.label for image in found if image.part == "train"})
    if len(classes) < 2:
        raise Refusal(
            f"{where}: {len(classes)} labels found; at least 2 are needed, a subfolder of images "
            "for each"
        )
    if len(classes) > LABELS:
        raise Refusal(f"{where}: {len(classes)} labels found; at most {LABELS} are possible")
    for image in found:
        if image.label not in classes:
            place = spelled(image.file.parent.relative_to(path))
            raise Refusal(f"{where}: {place} has no counterpart in train")
    training = sum(image.part == "train" for image in found)
    if training < SMALLEST:
        rest = f" beside {len(found) - training} others" if training < len(found) else ""
        raise Refusal(
            f"{where}: {training} images to train with found{rest}; at least {SMALLEST} are needed"
        )
    digest = hashlib.sha256()
    images = np.empty((len(found), 28, 28), np.uint8)
    doubtful = []
    for i, (_, _, file) in enumerate(tqdm(found, desc="images", unit="file", disable=None)):
        place = spelled(file.relative_to(path))
        if file.is_dir():
            raise Refusal(f"{where}: {place} is a folder within a label's folder")
        converted = convert(file)
        images[i] = converted.image
        if converted.doubts:
            doubtful.append(f"{place} ({', '.join(converted.doubts)})")
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"{place}\0{content}\n".encode())
    if doubtful:
        complain(
            f"{where}: {len(doubtful)} of {len(found)} images may not have been read as they are "
            f"meant; the first is {doubtful[0]}"
        )
    return {
        "images": images,
        "labels": np.array([classes.index(image.label) for image in found], np.uint8),
        "part": np.array([image.part for image in found]),
        "classes": np.array(classes),
        "digest": np.array(digest.hexdigest()),
        "dataset": np.array("folder"),
    }


def find_images(path: Path, *, where: str) -> list[Found]:
    """The files of a folder of images in order: by part, label and name; refused where a label has
    none, or `where` it lies has parts but none to train with."""
    folders = [entry for entry in entries(path) if entry.is_dir()]
    parts = [(PARTS.get(folder.name.lower(), ""), folder) for folder in folders]
    if not folders or not all(part for part, _ in parts):
        parts = [("train", path)]
    elif all(part != "train" for part, _ in parts):
        names = ", ".join(folder.name for folder in folders)
        raise Refusal(f"{where}: {names} found, but no train beside")
    found = []
    for part, place in sorted(parts, key=lambda pair: list(PARTS.values()).index(pair[0])):
        for folder in filter(Path.is_dir, entries(place)):
            files = entries(folder)
            if not files:
                raise Refusal(f"{where}: {spelled(folder.relative_to(path))} holds no image")
            found += [Found(part, spelled(Path(folder.name)), file) for file in files]
    return found


def entries(folder: Path) -> list[Path]:
    """What a folder holds, sorted, without hidden files and litter."""
    return sorted(
        (
            entry
            for entry in folder.iterdir()
            if not entry.name.startswith(".") and entry.name.lower() not in LITTER
        ),
        key=spelled,
    )


def spelled(path: Path) -> str:
    """A path as text that is the same on every machine and that UTF-8 can hold: with composed
    characters (macOS likes them apart), and with ``\\x`` codes for bytes that are no UTF-8."""
    text = os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")
    return unicodedata.normalize("NFC", text)


def check_classes(count: int, networks: Mapping[str, NetworkEntry]) -> None:
    """Refuse networks of params.yaml that have fewer outputs than there are labels, before they are
    trained."""
    for name, entry in networks.items():
        where = f"networks.{name}"
        module = find("networks", entry.architecture, where=f"{where}.architecture")
        arguments = bind(module.Network.__init__, entry.arguments, where=f"{where}.arguments")
        if (classes := arguments.get("classes", count)) < count:
            raise Refusal(
                f"params.yaml: {where}.arguments.classes = {classes}: the folder of data.path has "
                f"{count} labels; at least as many are needed"
            )
