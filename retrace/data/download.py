"""Fetch the raw files of the dataset into data/raw/, verified by their MD5 sums.

Where the files come from, the first that works:

1. the environment variable RETRACE_DATA_MIRROR (a folder or a URL, such as ``file:///data``), which
   wins over
2. `data.mirror` in params.yaml (likewise);
3. torchvision's own mirrors.

The digits of scikit-learn come with that package and need no network. A folder of one's own images
is read from `data.path`, see retrace/data/folder.py.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

import numpy as np

from retrace.pipeline.command import DISK_FULL, Refusal, one_line

CLASSES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
DIGITS = "digits.npz"
FOLDER = "folder.npz"
TIMEOUT = 30  # seconds without a byte, after which the next mirror is tried
MIRROR_VARIABLE = "RETRACE_DATA_MIRROR"


def fetch(name: str, folder: Path, *, mirrors: Sequence[str]) -> str:
    """Bring a dataset of torchvision into `folder`, which becomes its ``root``, from folders or
    URLs (`mirrors`) or else from torchvision's mirrors; give the source that delivered. Refused
    when none has all four files with the right MD5 sums; names each and its reason."""

    from retrace.data.vision import datasets

    dataset: Any = getattr(datasets, CLASSES[name])
    raw = folder / dataset.__name__ / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    tried = []
    for source in [*mirrors, *dataset.mirrors]:
        try:
            for file, md5 in dataset.resources:
                bring(source, file, md5=md5, folder=raw)
            return source
        except Exception as error:  # URLs, servers, proxies and disks fail each in a way of its own
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise
            words = " ".join(str(error).split()) or type(error).__name__
            reason = words if file in words else f"{file}: {words}"
        print(one_line(f"{source}: {reason}; trying the next source"))
        tried.append(f"{source} ({reason})")
    raise Refusal(
        f"no source has {name}: tried {'; '.join(tried)}. Two ways out: set {MIRROR_VARIABLE} (or "
        "data.mirror in params.yaml) to a folder or URL that holds "
        f"{', '.join(file for file, _ in dataset.resources)}; or set data.name to digits, which "
        "needs no network"
    )


def bring(source: str, file: str, *, md5: str, folder: Path) -> None:
    """Bring one file with the right sum from a folder or a URL, and unpack it.

    Raises
    ------
    Exception
        Of any kind: what the source failed with.
    """
    from retrace.data.vision import datasets

    own = folder_of(source)
    if own is not None:
        candidate = own / file
        if not candidate.is_file():
            raise ValueError(f"{file} is {'no file' if candidate.exists() else 'missing'}")
        if not datasets.utils.check_integrity(candidate, md5):
            raise ValueError(f"{file} is corrupt: its MD5 sum differs")
        shutil.copyfile(candidate, folder / file)
    # What lies here with the right sum is not fetched.
    url = f"{source.rstrip('/')}/{file}"
    datasets.utils.download_and_extract_archive(url, folder, filename=file, md5=md5)


def folder_of(source: str) -> Path | None:
    """The folder that a path or a ``file:`` URL names; None where it is another URL.

    Raises
    ------
    ValueError, RuntimeError
        When a ``file:`` URL names another machine, or ``~`` a user that there is not.
    """
    if not source.lower().startswith("file:"):
        return None if "://" in source else Path(source).expanduser()
    parts = urlsplit(source)
    if parts.netloc not in ("", "localhost"):
        raise ValueError(f"a file: URL names a folder of this machine, not of {parts.netloc}")
    return Path(os.fsdecode(unquote_to_bytes(parts.path)))


def digits() -> dict[str, Any]:
    """scikit-learn's 1,797 digits of 8 x 8, resized to 20 x 20 and centred in 28 x 28.

    The same frame as MNIST's, so that every network and mask works on them unchanged.
    """
    from skimage.transform import resize
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = bunch.images / 16  # (1797, 8, 8) in [0, 1]
    large = np.clip(resize(small, (len(small), 20, 20), order=3), 0, 1)
    framed = np.pad(large, ((0, 0), (4, 4), (4, 4)))
    return {
        "images": np.rint(framed * 255).astype(np.uint8),
        "labels": bunch.target.astype(np.uint8),
        "dataset": np.array("digits"),
    }


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` that is gone afterwards; those that killed ones left are removed: no
    process holds a lock on them any more."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*.part"):
        with suppress(OSError), locked(left, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(left)
    prefix = f".{path.name}."
    with (
        tempfile.TemporaryDirectory(prefix=prefix, suffix=".part", dir=path.parent) as name,
        locked(Path(name), fcntl.LOCK_SH),
    ):
        yield Path(name)


@contextmanager
def locked(folder: Path, operation: int) -> Iterator[None]:
    """Hold a lock on a folder, which ends with the process at the latest."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, operation)
        yield
    finally:
        os.close(handle)
