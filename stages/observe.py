"""Make the observations of the problems whose observation is not a masked image."""

from typing import Any

import numpy as np
import torch

from stages.artifacts import (
    CODES,
    checkpoint_path,
    dataset_of,
    load_checkpoint,
    observed_path,
    read_split,
    split_path,
    write_arrays,
)
from stages.command import Refusal, run
from stages.params import load

STARTS = 1000  # test images that an input may start from
DRAW = 20  # sets the draw of the codes apart from the starts that a method draws with the same seed
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


@torch.no_grad()
def network_inversion() -> None:
    """Test images to start from, without their labels, and the matrices of the decoder whose range
    may be a prior, with the images' mean code; what is wanted is a setting of each run."""
    images, _ = read_split("test")
    vae = _with_decoder(load_checkpoint(checkpoint_path("vae"))[0])
    write_arrays(
        observed_path("network_inversion"),
        {
            "observed": images[:STARTS].numpy(),
            "dataset": np.array(dataset_of(split_path("test"))),
            "code": vae.encode(images[:STARTS])[0].mean(dim=0).numpy(),
            **{f"decoder_{i}": w.numpy() for i, w in enumerate(vae.decoder_weights())},
        },
    )


def _with_decoder(network: Any) -> Any:
    if not hasattr(network, "decoder_weights"):
        raise Refusal("networks.vae.architecture: no decoder there; vae is expected")
    return network


@torch.no_grad()
def decoder_inversion() -> None:
    """Outputs of the decoder in three precisions, and as many test images that no code produced.

    The codes are drawn from the prior and rounded to float32, so that all precisions start from
    the same; they go into a file of their own.
    """
    params = load()
    path = checkpoint_path("vae")
    (single, header), (double, _) = load_checkpoint(path), load_checkpoint(path)
    count = params.masks.images
    images = read_split("test")[0][:count].double()
    code_size = _with_decoder(single).code_size
    size = (len(images), code_size)
    drawn = np.random.default_rng([params.data.seed, DRAW]).standard_normal(size)
    codes = torch.from_numpy(drawn.astype(np.float32))
    exact = double.double().decode(codes.double())  # type: ignore[operator]
    groups = {
        "on_range_float64": exact,
        "on_range_float32": single.decode(codes).double(),  # type: ignore[operator]
        "on_range_uint8": (exact * 255).round() / 255,
        "off_range": images,
    }
    dataset = np.array(header["dataset"])
    observed = {"observed": torch.stack(list(groups.values())).numpy(), "groups": list(groups)}
    arrays = {key: np.array(value) for key, value in observed.items()}
    write_arrays(observed_path("decoder_inversion"), {**arrays, "dataset": dataset})
    write_arrays(CODES, {"codes": codes.numpy(), "dataset": dataset})


PROBLEMS = {
    "autoencoding": autoencoding,
    "decoder_inversion": decoder_inversion,
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
