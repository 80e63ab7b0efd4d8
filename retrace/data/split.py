"""Split the raw dataset into train, validation and test, and record what it is."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrace.data.download import CLASSES, DIGITS, FOLDER
from retrace.pipeline.artifacts import RAW, read_arrays
from retrace.pipeline.command import WrongValue
from retrace.pipeline.params import Data

Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8]]
Parts = dict[str, dict[str, NDArray[np.uint8]]]
TEST_SHARE = 1 / 7  # of datasets that come without a test set; MNIST's is 10,000 of 70,000


class Raw(NamedTuple):
    """(images, labels) as they come; None where a dataset has no such part."""

    training: Arrays
    test: Arrays | None
    validation: Arrays | None = None


def read_raw(name: str) -> Raw:
    """The dataset in data/raw/."""
    if name == "digits":
        with np.load(RAW / DIGITS, allow_pickle=False) as file:
            return Raw((file["images"], file["labels"]), None)
    if name == "folder":
        arrays = read_arrays(RAW / FOLDER)
        parts = {
            part: (arrays["images"][chosen], arrays["labels"][chosen])
            for part in ("train", "test", "validation")
            if (chosen := arrays["part"] == part).any()
        }
        return Raw(parts["train"], parts.get("test"), parts.get("validation"))
    from retrace.data.vision import datasets

    dataset: Any = getattr(datasets, CLASSES[name])
    training, test = (
        (part.data.numpy(), part.targets.numpy().astype(np.uint8))
        for part in (dataset(RAW, train=train) for train in (True, False))
    )
    return Raw(training, test)


def split(training: Arrays, test: Arrays | None, *, validation: float | Arrays, seed: int) -> Parts:
    """Draw the validation set and the test set, where they do not come along, by a seeded
    permutation; given ones keep their order.

    Parameters
    ----------
    training, test : (images, labels)
        (n, 28, 28) and (n,) uint8.
    validation : float or (images, labels)
        A share of the training images, or a given validation set.
    """
    images, labels = training
    order = np.random.default_rng(seed).permutation(len(images))
    if test is None:
        held_out, order = np.split(order, [round(TEST_SHARE * len(order))])
        test = images[held_out], labels[held_out]
    if isinstance(validation, float):
        held_out, order = np.split(order, [round(validation * len(order))])
        validation = images[held_out], labels[held_out]
    parts = {"train": (images[order], labels[order]), "validation": validation, "test": test}
    return {part: {"images": given[0], "labels": given[1]} for part, given in parts.items()}


def split_raw(data: Data) -> Parts:
    """Split what lies in data/raw/ as params.yaml says; refused where a part would be empty."""
    raw = read_raw(data.name)
    validation = raw.validation or data.validation
    parts = split(raw.training, raw.test, validation=validation, seed=data.seed)
    for part, arrays in parts.items():
        if not len(arrays["images"]):
            raise WrongValue(
                f"params.yaml: data.validation = {data.validation}: of {len(raw.training[0])} "
                f"training images none is left for {part}"
            )
    return parts


def describe_source(name: str) -> dict[str, Any]:
    """Where the dataset is published and the sums it was verified with.

    Not the mirror that happened to deliver: the bytes are the same, and a path of one machine means
    nothing on another.
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
            "given": sorted(set(arrays["part"].tolist())),
            "classes": arrays["classes"].tolist(),
            "files": len(arrays["images"]),
            "sha256": str(arrays["digest"]),
        }
    from retrace.data.vision import datasets

    dataset: Any = getattr(datasets, CLASSES[name])
    return {"publisher": list(dataset.mirrors), "md5": dict(dataset.resources)}
