"""Fully connected autoencoder: `ffnn` with one layer each way, `deep` with several."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from retrace.networks._training import Autoencoder, rectified
from retrace.types import PIXELS

DEEP = (512, 256, 128, 16)  # widths of `deep`


class Network(Autoencoder):
    """Autoencoder of dense layers with ReLU between them and a sigmoid at the end.

    Parameters
    ----------
    widths : sequence of int
        Widths of the encoder's layers, the code last; the decoder mirrors them. The code itself
        is linear: with ``[32]`` the encoder is one matrix.
    gain : float
        Weights are drawn from a normal distribution with standard deviation gain/√n, n the
        layer's inputs; biases start at 0. 1 keeps the variance of linear layers, √2 that of ReLU
        layers (He et al. 2015, arXiv 1502.01852, equation 10).
    dropout : float
        Share of hidden units dropped while training; never while reconstructing.
    """

    def __init__(
        self,
        *,
        widths: Annotated[Sequence[Annotated[int, Field(ge=1)]], Field(min_length=1)] = DEEP,
        gain: Annotated[float, Field(gt=0)] = 1.4142,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        self.code_size = widths[-1]
        self.encoder = rectified([PIXELS, *widths], dropout=dropout or None)
        self.decoder = rectified([*reversed(widths), PIXELS], dropout=dropout or None)
        # The training images' mean, set by training: where a reconstruction may start.
        self.register_buffer("mean", torch.zeros(28, 28))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=gain / module.in_features**0.5)
                nn.init.zeros_(module.bias)

    def encode(self, images: Tensor) -> Tensor:
        """(B, 28, 28) images to (B, code_size) codes."""
        return self.encoder(images.flatten(1))

    def decode(self, codes: Tensor) -> Tensor:
        """(B, code_size) codes to (B, 28, 28) images in [0, 1]."""
        return torch.sigmoid(self.decoder(codes)).unflatten(1, (28, 28))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 28, 28) images to (B, 28, 28) images after the bottleneck."""
        return self.decode(self.encode(images))
