"""Hide pixels of the first test images: the observations of the imputation problem."""

import numpy as np
from numpy.typing import NDArray

from stages.artifacts import dataset_of, observed_path, read_split, split_path, write_arrays
from stages.command import Refusal, run
from stages.params import SIDE, EveryNthRow, Mask, Rectangle, load


def missing_pixels(pattern: Mask, *, count: int, seed: int) -> NDArray[np.bool_]:
    """Which pixels of `count` images are missing.

    Parameters
    ----------
    pattern : Rectangle, EveryNthRow or RandomPixels
    count : int
    seed : int
        Of random pixels, which are drawn for each image anew; every image misses equally many.

    Returns
    -------
    (count, 28, 28) bool
    """
    missing = np.zeros((count, SIDE, SIDE), dtype=bool)
    if isinstance(pattern, Rectangle):
        (top, bottom), (left, right) = pattern.rows, pattern.columns
        missing[:, top : bottom + 1, left : right + 1] = True
    elif isinstance(pattern, EveryNthRow):
        missing[:, pattern.first :: pattern.step] = True
    else:
        ranks = np.random.default_rng(seed).random((count, SIDE**2)).argsort(axis=1)
        missing = (ranks < round(pattern.share * SIDE**2)).reshape(count, SIDE, SIDE)
    return missing


def main() -> None:
    """Write data/observed/imputation.npz: the first test images, NaN where a mask hides them."""
    params = load().masks
    images, _ = read_split("test")
    if params.images > len(images):
        raise Refusal(
            f"params.yaml: masks.images = {params.images}: allowed are 1 to {len(images)}, "
            "the number of test images"
        )
    truth = images[: params.images].numpy()
    observed = np.stack(
        [
            np.where(missing_pixels(pattern, count=len(truth), seed=params.seed + i), np.nan, truth)
            for i, pattern in enumerate(params.patterns.values())
        ]
    )  # (masks, images, 28, 28)
    arrays = {"observed": observed, "masks": np.array(list(params.patterns))}
    arrays["dataset"] = np.array(dataset_of(split_path("test")))
    write_arrays(observed_path("imputation"), arrays)
    print(f"{len(params.patterns)} masks on {len(truth)} images")


if __name__ == "__main__":
    run(main)
