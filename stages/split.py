"""Split the raw dataset into train, validation and test, and record what it is."""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.artifacts import DATASET, RAW, read_arrays, split_path, write_arrays, write_json
from stages.command import run
from stages.download import CLASSES, DIGITS, FOLDER
from stages.params import load

Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8]]
TEST_SHARE = 1 / 7  # of datasets that come without a test set; MNIST's is 10,000 of 70,000


def read_raw(name: str) -> tuple[Arrays, Arrays | None]:
    """Training and test (images, labels) as they come; the test set is None if there is none."""
    if name == "digits":
        with np.load(RAW / DIGITS, allow_pickle=False) as file:
            return (file["images"], file["labels"]), None
    if name == "folder":
        arrays = read_arrays(RAW / FOLDER)
        training, test = (
            (arrays["images"][part], arrays["labels"][part])
            for part in (~arrays["test"], arrays["test"])
        )
        return training, test if len(test[0]) else None
    from stages.vision import datasets

    dataset: Any = getattr(datasets, CLASSES[name])
    parts = [dataset(RAW, train=train) for train in (True, False)]
    training, test = ((p.data.numpy(), p.targets.numpy().astype(np.uint8)) for p in parts)
    return training, test


def split(
    training: Arrays, test: Arrays | None, *, validation: float, seed: int
) -> dict[str, dict[str, NDArray[np.uint8]]]:
    """Draw the validation set (and the test set, where none comes along) by a seeded permutation.

    Parameters
    ----------
    training, test : (images, labels)
        (n, 28, 28) and (n,) uint8. A given test set keeps its order.
    validation : float
        Share of the training images that are held out for validation.
    seed : int

    Returns
    -------
    dict
        ``train``, ``validation`` and ``test``, each with ``images`` and ``labels``.
    """
    images, labels = training
    order = np.random.default_rng(seed).permutation(len(images))
    if test is None:
        held_out, order = np.split(order, [round(TEST_SHARE * len(order))])
        test = images[held_out], labels[held_out]
    held_out, order = np.split(order, [round(validation * len(order))])
    return {
        "train": {"images": images[order], "labels": labels[order]},
        "validation": {"images": images[held_out], "labels": labels[held_out]},
        "test": {"images": test[0], "labels": test[1]},
    }


def describe_source(name: str) -> dict[str, Any]:
    """Where the dataset is published and the sums it was verified with.

    Not the mirror that happened to deliver: the bytes are the same, and a machine's own path has
    no place in Git.
    """
    if name == "digits":
        return {
            "publisher": "scikit-learn, load_digits (UCI optical recognition of digits)",
            "changed": "resized from 8 x 8 to 20 x 20, centred in 28 x 28: this is not MNIST",
        }
    if name == "folder":
        arrays = read_arrays(RAW / FOLDER)
        return {
            "publisher": "a folder of one's own images",
            "changed": "scaled to 20 x 20, centred by mass in 28 x 28, white on black",
            "classes": arrays["classes"].tolist(),
            "files": len(arrays["images"]),
            "sha256": str(arrays["digest"]),
        }
    from stages.vision import datasets

    dataset: Any = getattr(datasets, CLASSES[name])
    return {"publisher": list(dataset.mirrors), "md5": dict(dataset.resources)}


def main() -> None:
    """Split data/raw/ into data/train.npz, validation.npz and test.npz; write data/dataset.json."""
    data = load().data
    training, test = read_raw(data.name)
    parts = split(training, test, validation=data.validation, seed=data.seed)
    sums: dict[str, str] = {}
    for part, arrays in parts.items():
        write_arrays(split_path(part), {**arrays, "dataset": np.array(data.name)})
        for key, array in arrays.items():
            digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
            sums[f"{part}/{key}"] = digest
    description = {
        "name": data.name,
        "sizes": {part: len(arrays["images"]) for part, arrays in parts.items()},
        "sha256": sums,
        "source": describe_source(data.name),
        "seed": data.seed,
    }
    write_json(DATASET, description)
    print(f"{data.name}: {description['sizes']}")


if __name__ == "__main__":
    run(main)
