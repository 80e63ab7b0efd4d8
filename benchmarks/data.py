"""The images and networks that the benchmarks run on: the pipeline's own where it has made them."""

import torch
from torch import Tensor, nn

from retrace.data.download import digits
from retrace.pipeline.artifacts import (
    checkpoint_path,
    dataset_of,
    load_checkpoint,
    read_split,
    split_path,
)
from retrace.pipeline.params import find, load


def read_images(split: str) -> tuple[str, Tensor]:
    """Dataset's name and images (n, 28, 28) of a split, or all of scikit-learn's digits."""
    if split_path(split).exists():
        return dataset_of(split_path(split)), read_split(split)[0]
    return "digits", torch.from_numpy(digits()["images"]).to(torch.float32) / 255


def dataset_name() -> str:
    """Of the splits that `read_splits` gives, without reading them."""
    return dataset_of(split_path("train")) if split_path("train").exists() else "digits"


def read_splits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and validation split, each images (n, 28, 28) and labels (n,); of scikit-learn's
    digits a fifth is held out."""
    if split_path("train").exists():  # one stage writes all splits
        return read_split("train"), read_split("validation")
    arrays = digits()
    images = torch.from_numpy(arrays["images"]).to(torch.float32) / 255
    labels = torch.from_numpy(arrays["labels"]).to(torch.int64)
    held_out = len(images) // 5
    return (images[held_out:], labels[held_out:]), (images[:held_out], labels[:held_out])


def read_network(name: str, *, mean: Tensor) -> tuple[nn.Module, str]:
    """A network of params.yaml, its weights fixed, and whether these are "trained" or "random".

    Parameters
    ----------
    name : str
    mean : (28, 28)
        What a random network takes for the training images' mean.
    """
    if checkpoint_path(name).exists():
        return load_checkpoint(checkpoint_path(name))[0], "trained"
    torch.manual_seed(0)
    entry = load().networks[name]
    architecture = find("networks", entry.architecture, where=f"networks.{name}.architecture")
    network: nn.Module = architecture.Network(**entry.arguments)
    network.mean.copy_(mean)  # type: ignore[operator]
    return network.eval().requires_grad_(False), "random"
