"""Choose the pixels that are missing."""

import numpy as np

from retrace.data.masks import drawn
from retrace.pipeline.artifacts import MASKS, dataset_of, read_split, split_path, write_arrays
from retrace.pipeline.command import run
from retrace.pipeline.params import load


def main() -> None:
    """Write data/masks.npz: by pattern and image, which pixels are missing."""
    masks = drawn(load().masks, available=len(read_split("test")[0]))
    write_arrays(MASKS, {**masks, "dataset": np.array(dataset_of(split_path("test")))})
    print(f"{len(masks['masks'])} masks on {masks['missing'].shape[1]} images")


if __name__ == "__main__":
    run(main)
