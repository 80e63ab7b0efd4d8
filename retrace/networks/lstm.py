"""LSTM that reads an image row by row and classifies it."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from retrace.networks._training import Classifier
from retrace.types import SIDE


class Network(Classifier):
    """One LSTM layer over the rows, and a dense layer on its last hidden state.

    Parameters
    ----------
    hidden : int
        Units of the LSTM.
    classes : int
        Number of classes.
    """

    def __init__(
        self, *, hidden: Annotated[int, Field(ge=1)] = 64, classes: Annotated[int, Field(ge=2)] = 10
    ) -> None:
        super().__init__()
        self.lstm = nn.LSTM(SIDE, hidden, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def train(self, mode: bool = True) -> "Network":
        """As of any module; but a GPU's LSTM gives no gradients outside the training mode, in which
        a single layer, which has no dropout, computes the same."""
        super().train(mode)
        self.lstm.train()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """(B, 28, 28) images to (B, classes) logits."""
        return self.head(self.lstm(images)[0][:, -1])

    def forget_parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights (H, 28) on the row, weights (H, H) on the hidden state and bias (H,) of the
        forget gates: the second of four blocks in PyTorch's layout."""
        named = dict(self.lstm.named_parameters())
        block = slice(self.lstm.hidden_size, 2 * self.lstm.hidden_size)
        bias = named["bias_ih_l0"][block] + named["bias_hh_l0"][block]
        return named["weight_ih_l0"][block], named["weight_hh_l0"][block], bias

    def before(self, images: Tensor) -> Tensor:
        """Hidden states (B, 28, H) before each row of (B, 28, 28) images; the first is 0."""
        after = self.lstm(images)[0]
        return torch.cat([torch.zeros_like(after[:, :1]), after[:, :-1]], dim=1)

    def forget_logits(self, images: Tensor) -> Tensor:
        """What goes into the forget gates' sigmoid at each row: (B, 28, 28) to (B, 28, H)."""
        on_row, on_hidden, bias = self.forget_parts()
        return images @ on_row.T + self.before(images) @ on_hidden.T + bias
