"""Variational autoencoder of bias-free tanh layers, whose decoder is to be inverted."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from retrace.networks._training import Variational
from retrace.types import PIXELS, SIDE, BadInput


class Network(Variational):
    """Encoder to the mean and log-variance of a code, decoder from a code to an image.

    The decoder is G(z) = σ(W₃ tanh(W₂ tanh(W₁ z))) for two widths, without biases, and each of its
    matrices has at least as many rows as columns: what makes a layer-by-layer inverse possible.

    Parameters
    ----------
    code_size : int
        d, the values in a code.
    widths : sequence of int
        Units of the encoder's hidden layers, not increasing; the decoder mirrors them.
    weighting : "elbo" or "averaged"
        With R the cross-entropy of an image summed over its P = 784 pixels, and D the divergence
        KL(q(z|x) ‖ N(0, I)) summed over the d values of its code, both in nats and averaged over
        images, "elbo" is R + w D, and "averaged", which takes means where the bound has sums, is
        R/P + w D/d.
    divergence_weight : float
        w. The effective β (Higgins et al. 2017) is what stands before D where R has no factor: w
        for "elbo", so that 1 is the evidence lower bound (Kingma & Welling 2014, arXiv 1312.6114);
        w P/d for "averaged", since P (R/P + w D/d) = R + (w P/d) D. With w = 0.1 that is 4.9 for
        d = 16 and 2.45 for d = 32, which presses most of the image out of the code.

    Raises
    ------
    BadInput
        When a layer of the decoder would have more columns than rows.
    """

    def __init__(
        self,
        *,
        code_size: Annotated[int, Field(ge=1)] = 16,
        widths: Annotated[Sequence[Annotated[int, Field(ge=1, le=PIXELS)]], Field(min_length=1)] = (
            512,
            256,
        ),
        weighting: Literal["elbo", "averaged"] = "elbo",
        divergence_weight: Annotated[float, Field(gt=0)] = 1.0,
    ) -> None:
        super().__init__()
        if any(later > earlier for earlier, later in pairwise([*widths, code_size])):
            raise BadInput(
                f"widths = {list(widths)} and code_size = {code_size} increase somewhere: a layer "
                "of the decoder would have more columns than rows, and no inverse"
            )
        self.code_size = code_size
        self.weighting = weighting
        self.divergence_weight = divergence_weight
        self.encoder = _layers([PIXELS, *widths, 2 * code_size])
        self.decoder = _layers([code_size, *reversed(widths), PIXELS])

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 28, 28) images to means and log-variances (B, d) of their codes."""
        mean, log_variance = _through(self.encoder, images.flatten(1)).chunk(2, dim=1)
        return mean, log_variance

    def logits(self, codes: Tensor) -> Tensor:
        return _through(self.decoder, codes)

    def decode(self, codes: Tensor) -> Tensor:
        """(B, d) codes to (B, 28, 28) images in (0, 1)."""
        return self.logits(codes).sigmoid().unflatten(1, (SIDE, SIDE))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 28, 28) images to the decoded means of their codes."""
        return self.decode(self.encode(images)[0])

    def decoder_weights(self) -> list[Tensor]:
        """The decoder's matrices (outputs, inputs), from the code to the pixels, not copied."""
        return [weight.detach() for weight in self.decoder.parameters()]

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The training objective, with one sample of each code."""
        noise = torch.randn(len(images), self.code_size, dtype=images.dtype)
        entropy, divergence = (term.mean() for term in self.terms(images, noise))
        if self.weighting == "averaged":
            entropy, divergence = entropy / PIXELS, divergence / self.code_size
        return entropy + self.divergence_weight * divergence


def _layers(sizes: list[int]) -> nn.ModuleList:
    return nn.ModuleList(
        nn.Linear(inputs, outputs, bias=False) for inputs, outputs in pairwise(sizes)
    )


def _through(layers: nn.ModuleList, values: Tensor) -> Tensor:
    """Apply linear layers with tanh between them, none after the last."""
    *hidden, last = layers
    for layer in hidden:
        values = layer(values).tanh()
    return last(values)
