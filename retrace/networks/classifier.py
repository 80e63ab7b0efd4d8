"""Small convolutional classifier of digits: the independent judge of completed images."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from retrace.networks._training import Classifier


class Network(Classifier):
    """Two convolutions, each pooled to half the size, and two dense layers.

    Parameters
    ----------
    channels : two int
        Channels of the two convolutions.
    hidden : int
        Width of the hidden dense layer.
    dropout : float
        Share of hidden units dropped while training.
    classes : int
        Number of classes.
    """

    def __init__(
        self,
        *,
        channels: Annotated[
            Sequence[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)
        ] = (16, 32),
        hidden: Annotated[int, Field(ge=1)] = 64,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3,
        classes: Annotated[int, Field(ge=2)] = 10,
    ) -> None:
        super().__init__()
        first, second = channels
        self.layers = nn.Sequential(
            nn.Conv2d(1, first, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),  # (B, first, 14, 14)
            nn.Conv2d(first, second, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),  # (B, second, 7, 7)
            nn.Flatten(),
            nn.Linear(second * 7 * 7, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, 28, 28) images to (B, classes) logits."""
        return self.layers(images.unsqueeze(1))
