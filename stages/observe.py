"""Make the observations of the problems whose observation is not a masked image."""

import numpy as np

from stages.artifacts import dataset_of, observed_path, read_split, split_path, write_arrays
from stages.command import Refusal, run

STARTS = 1000  # test images that an input may start from
PUBLIC = 2000  # public images for the attacks that may use some, and for the controls


def autoencoding() -> None:
    """All test images, without their labels."""
    images, _ = read_split("test")
    dataset = np.array(dataset_of(split_path("test")))
    write_arrays(observed_path("autoencoding"), {"observed": images.numpy(), "dataset": dataset})


def training_data() -> None:
    """What is public beside the checkpoint: images of the same kind, outside every training set."""
    images, _ = read_split("validation")
    dataset = np.array(dataset_of(split_path("validation")))
    write_arrays(
        observed_path("training_data"), {"observed": images[:PUBLIC].numpy(), "dataset": dataset}
    )


def network_inversion() -> None:
    """Test images to start from, without their labels; what is wanted is a setting of each run."""
    images, _ = read_split("test")
    dataset = np.array(dataset_of(split_path("test")))
    write_arrays(
        observed_path("network_inversion"),
        {"observed": images[:STARTS].numpy(), "dataset": dataset},
    )


PROBLEMS = {
    "autoencoding": autoencoding,
    "network_inversion": network_inversion,
    "training_data": training_data,
}


def main(name: str) -> None:
    """Write data/observed/<problem>.npz."""
    if name not in PROBLEMS:
        raise Refusal(f"problem {name!r}: allowed are {', '.join(PROBLEMS)}")
    PROBLEMS[name]()


if __name__ == "__main__":
    run(main, name="problem")
