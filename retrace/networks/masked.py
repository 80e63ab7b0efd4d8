"""A network trained to fill in what random masks hide: the reference for imputation."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from retrace.networks._training import EVALUATION_SEED, rectified
from retrace.types import PIXELS


def random_masks(count: int, generator: torch.Generator | None) -> Tensor:
    """Missing pixels of `count` images, (count, 28, 28) bool: half of them rectangles, half random.

    Rectangles have independent sides, uniform from 7 to 28 pixels, and lie anywhere; random pixels
    have a share that is uniform from 0.2 to 0.95. Neither is any of the masks of params.yaml, but
    both resemble them.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    inside = []
    for size in (28, 28):
        side = 7 + (22 * uniform(count)).floor()
        first = ((size + 1 - side) * uniform(count)).floor()
        position = torch.arange(size)
        inside.append((position >= first.unsqueeze(1)) & (position < (first + side).unsqueeze(1)))
    rectangle = inside[0].unsqueeze(2) & inside[1].unsqueeze(1)
    share = 0.2 + 0.75 * uniform(count, 1, 1)
    scattered = uniform(count, 28, 28) < share
    return torch.where(uniform(count, 1, 1) < 0.5, rectangle, scattered)


class Network(nn.Module):
    """Dense ReLU layers from an image and its mask to the image: f(x · known, known).

    The first layer also sees which pixels are known; the mean image stands where they are not. The
    output is a sigmoid of logits.

    Parameters
    ----------
    widths : sequence of int
        Units of the hidden layers.
    dropout : float
        Share of hidden units that are dropped in training.

    Attributes
    ----------
    mean : (28, 28)
        Of the training images, set by the training.
    """

    mean: Tensor

    def __init__(
        self,
        *,
        widths: Annotated[Sequence[Annotated[int, Field(ge=1, le=8192)]], Field(min_length=1)] = (
            1024,
            1024,
        ),
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    ) -> None:
        super().__init__()
        self.layers = rectified([2 * PIXELS, *widths, PIXELS], dropout=dropout)
        self.register_buffer("mean", torch.zeros(28, 28))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 28, 28) images, NaN where a pixel is missing, to (B, 28, 28) in (0, 1)."""
        missing = images.isnan()
        centred = torch.where(missing, 0.0, images - self.mean)
        inputs = torch.cat([centred.flatten(1), missing.flatten(1).to(centred.dtype)], dim=1)
        output: Tensor = self.layers(inputs).sigmoid().unflatten(1, (28, 28))
        return output

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Mean squared error over missing pixels, masks drawn anew."""
        missing = random_masks(len(images), None)
        squared = (self(images.masked_fill(missing, torch.nan)) - images).square() * missing
        return squared.sum() / missing.sum().clamp(min=1)

    def evaluate(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Squared error over missing pixels of each image, (B,), under fixed random masks.

        Not called ``mse``: it is no autoencoder, whose MSE after some epochs tells a collapse.
        """
        generator = torch.Generator().manual_seed(EVALUATION_SEED)
        missing = random_masks(len(images), generator)
        squared = (self(images.masked_fill(missing, torch.nan)) - images).square() * missing
        return {"missing_mse": squared.sum(dim=(1, 2)) / missing.sum(dim=(1, 2)).clamp(min=1)}
