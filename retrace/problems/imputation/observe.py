"""Test images, some pixels of which are missing."""

import numpy as np

from retrace.pipeline.artifacts import MASKS
from retrace.problems import Ground, Observations


def observe(ground: Ground) -> Observations:
    """The first test images under each mask (masks, n, 28, 28), NaN where a pixel is missing; the
    truth is the whole images and their labels."""
    masks = ground.read(MASKS)
    missing = masks["missing"]
    images, labels = (part[: missing.shape[1]].numpy() for part in ground.split("test"))
    given = {
        "observed": np.where(missing, np.float32(np.nan), images),
        "masks": masks["masks"],
        "dataset": np.array(ground.dataset),
        "each": np.array(True),
    }
    return Observations(given, {"images": images, "labels": labels})
