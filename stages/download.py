"""Fetch the raw files of the dataset into data/raw/, verified by their MD5 sums.

Where the files come from, the first that works:

1. the environment variable RETRACE_DATA_MIRROR (a folder or a URL), which wins over
2. `data.mirror` in params.yaml (likewise);
3. torchvision's own mirrors.

The digits of scikit-learn come with that package and need no network. A folder of one's own images
is read from `data.path`, see stages/folder.py.
"""

import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from stages.artifacts import RAW
from stages.command import Refusal, run
from stages.folder import check_classes, read_folder
from stages.params import load

CLASSES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
DIGITS = "digits.npz"
FOLDER = "folder.npz"
TIMEOUT = 30  # seconds without a byte, after which the next mirror is tried
MIRROR_VARIABLE = "RETRACE_DATA_MIRROR"


def fetch(name: str, folder: Path, *, mirrors: Sequence[str]) -> str:
    """Bring a dataset of torchvision into `folder`, in torchvision's own layout.

    Parameters
    ----------
    name : "mnist", "fashion-mnist" or "kmnist"
    folder : Path
        Becomes torchvision's ``root``.
    mirrors : sequence of str
        Folders or URLs that come before torchvision's mirrors.

    Returns
    -------
    str
        The source that delivered.

    Raises
    ------
    Refusal
        When no source has all four files with the right MD5 sums; names each and its reason.
    """

    from stages.vision import datasets

    dataset: Any = getattr(datasets, CLASSES[name])
    raw = folder / dataset.__name__ / "raw"
    tried = []
    for source in [*mirrors, *dataset.mirrors]:
        raw.mkdir(parents=True, exist_ok=True)
        if "://" not in source:
            reasons = []
            for file, md5 in dataset.resources:
                candidate = Path(source).expanduser() / file
                if datasets.utils.check_integrity(candidate, md5):
                    shutil.copyfile(candidate, raw / file)
                else:
                    state = "corrupt: its MD5 sum differs" if candidate.is_file() else "missing"
                    reasons.append(f"{file} is {state}")
            if reasons:
                print(f"{source}: {'; '.join(reasons)}; trying the next source")
                tried.append(f"{source} ({'; '.join(reasons)})")
                continue
        # torchvision takes files that already lie here with the right sum and fetches the others.
        one_mirror = {"mirrors": [source.rstrip("/") + "/"]}
        try:
            type(dataset.__name__, (dataset,), one_mirror)(folder, download=True)
            return source
        except (RuntimeError, OSError, ValueError) as error:
            tried.append(f"{source} ({str(error).strip().splitlines()[-1]})")
    raise Refusal(
        f"no source has {name}: tried {'; '.join(tried)}. Two ways out: set {MIRROR_VARIABLE} (or "
        "data.mirror in params.yaml) to a folder or URL that holds "
        f"{', '.join(file for file, _ in dataset.resources)}; or set data.name to digits, which "
        "needs no network"
    )


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


def main() -> None:
    """Fetch the dataset that data.name names into data/raw/ (RETRACE_DATA_MIRROR, a folder or a
    URL, comes first, then data.mirror, then torchvision's mirrors); a folder of one's own images is
    converted into it."""
    params = load()
    data = params.data
    socket.setdefaulttimeout(TIMEOUT)
    with temporary_folder(RAW) as name:
        folder = name / "raw"
        folder.mkdir()
        if data.name == "digits":
            np.savez_compressed(folder / DIGITS, allow_pickle=False, **digits())
            source = "scikit-learn"
        elif data.path is not None:
            arrays = read_folder(Path(data.path).expanduser())
            networks = {key: network.arguments for key, network in params.networks.items()}
            check_classes(len(arrays["classes"]), networks)
            np.savez_compressed(folder / FOLDER, allow_pickle=False, **arrays)
            source = f"{data.path}, {len(arrays['images'])} images"
        else:
            mirrors = [m for m in (os.environ.get(MIRROR_VARIABLE), data.mirror) if m]
            source = fetch(data.name, folder, mirrors=mirrors)
        shutil.rmtree(RAW, ignore_errors=True)
        folder.replace(RAW)
    print(f"{data.name}: from {source}")


if __name__ == "__main__":
    run(main)
