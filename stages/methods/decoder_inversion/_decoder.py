"""The decoder as a chain of matrices: what its inversions share."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from stages.command import Refusal

Precision = Literal["float32", "float64"]
DTYPES = {"float32": torch.float32, "float64": torch.float64}
SIDE = 28


class Problem(NamedTuple):
    """A decoder and the images whose codes are wanted, in one precision.

    Attributes
    ----------
    weights : list of (outputs, inputs)
        From the code to the pixels: G(z) = σ(W_L tanh(… tanh(W₁ z))).
    images : (B, P)
    """

    weights: list[Tensor]
    images: Tensor


def problem_of(network: nn.Module, observed: Tensor, *, precision: Precision) -> Problem:
    """Take the decoder's matrices and the flattened images, both checked.

    Raises
    ------
    Refusal
        When the network has no decoder of matrices, or an image is not 28 x 28, not finite or
        outside [0, 1].
    """
    if not hasattr(network, "decoder_weights"):
        raise Refusal(
            "this network has no decoder that could be inverted; decoder_inversion wants one of "
            "the architecture vae"
        )
    if observed.dim() != 3 or observed.shape[1:] != (SIDE, SIDE):
        raise Refusal(
            f"observed has shape {tuple(observed.shape)}; (images, {SIDE}, {SIDE}) is expected"
        )
    if not bool(torch.isfinite(observed).all()):
        raise Refusal("observed: some pixels are NaN or infinite; a whole image is expected")
    if bool((observed < 0).any() or (observed > 1).any()):
        raise Refusal("observed: some pixels are outside [0, 1]; a decoder's output is inside")
    dtype = DTYPES[precision]
    weights = [weight.to(dtype) for weight in network.decoder_weights()]  # type: ignore[operator]
    return Problem(weights, observed.to(dtype).flatten(1))


def decode(weights: list[Tensor], codes: Tensor) -> Tensor:
    """(B, d) codes to (B, P) pixels."""
    values = codes
    for weight in weights[:-1]:
        values = (values @ weight.T).tanh()
    return (values @ weights[-1].T).sigmoid()


def jacobian(weights: list[Tensor], codes: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels and their derivatives, layer by layer.

    With h_l = tanh(W_l h_{l-1}), ∂h_l/∂z = diag(1 − h_l²) W_l ∂h_{l-1}/∂z, and σ' = y (1 − y) in the
    place of 1 − h² for the last layer. Kept transposed, so that each layer of all images and all
    derivatives is one matrix product.

    Parameters
    ----------
    weights : list of (outputs, inputs)
    codes : (B, d)

    Returns
    -------
    pixels : (B, P)
    derivatives : (B, d, P)
        ∂ pixel / ∂ value of the code.
    """
    batch, size = codes.shape
    values = (codes @ weights[0].T).tanh()
    slopes = (1 - values.square()).unsqueeze(1) * weights[0].T  # (B, d, units)
    for weight in weights[1:]:
        last = weight is weights[-1]
        values = values @ weight.T
        values = values.sigmoid() if last else values.tanh()
        slope = values * (1 - values) if last else 1 - values.square()
        slopes = (slopes.flatten(0, 1) @ weight.T).unflatten(0, (batch, size))
        slopes = slopes.mul_(slope.unsqueeze(1))
    return values, slopes
