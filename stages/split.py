"""Split the dataset."""

import hashlib

import numpy as np

from retrace.data.split import describe_source, split_raw
from retrace.pipeline.artifacts import DATASET, split_path, write_arrays, write_json
from retrace.pipeline.command import run
from retrace.pipeline.params import load


def main() -> None:
    """Split data/raw/ into data/train.npz, validation.npz and test.npz; write data/dataset.json."""
    data = load().data
    parts = split_raw(data)
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
