"""Which pixels of the test images are missing."""

import numpy as np
from numpy.typing import NDArray

from retrace.pipeline.params import EveryNthRow, Mask, Rectangle
from retrace.types import SIDE


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
