"""Which pixels of the test images are missing."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrace.pipeline.command import WrongValue
from retrace.pipeline.params import EveryNthRow, Mask, Masks, Rectangle
from retrace.types import SIDE


def drawn(masks: Masks, *, available: int) -> dict[str, NDArray[Any]]:
    """All masks of params.yaml, as data/masks.npz holds them: ``missing`` (masks, n, 28, 28) bool
    and ``masks``, their names. Refused where there are not as many test images available."""
    if masks.images > available:
        raise WrongValue(
            f"params.yaml: masks.images = {masks.images}: allowed are 1 to {available}, the "
            "number of test images"
        )
    missing = [
        missing_pixels(pattern, count=masks.images, seed=masks.seed + i)
        for i, pattern in enumerate(masks.patterns.values())
    ]
    return {"missing": np.stack(missing), "masks": np.array(list(masks.patterns))}


def missing_pixels(pattern: Mask, *, count: int, seed: int) -> NDArray[np.bool_]:
    """Which pixels of `count` images are missing, (count, 28, 28). Random pixels are drawn for each
    image anew; every image misses equally many."""
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
