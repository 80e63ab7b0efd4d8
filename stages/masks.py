"""Choose the pixels that are missing."""

import numpy as np

from retrace.data.masks import missing_pixels
from retrace.pipeline.artifacts import MASKS, dataset_of, read_split, split_path, write_arrays
from retrace.pipeline.command import Refusal, run
from retrace.pipeline.params import load


def main() -> None:
    """Write data/masks.npz: by pattern and image, which pixels are missing."""
    params = load().masks
    available = len(read_split("test")[0])
    if params.images > available:
        raise Refusal(
            f"params.yaml: masks.images = {params.images}: allowed are 1 to {available}, the "
            "number of test images"
        )
    missing = [
        missing_pixels(pattern, count=params.images, seed=params.seed + i)
        for i, pattern in enumerate(params.patterns.values())
    ]
    arrays = {"missing": np.stack(missing), "masks": np.array(list(params.patterns))}
    write_arrays(MASKS, {**arrays, "dataset": np.array(dataset_of(split_path("test")))})
    print(f"{len(params.patterns)} masks on {params.images} images")


if __name__ == "__main__":
    run(main)
