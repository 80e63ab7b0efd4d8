"""The decoder as a chain of matrices: what its inversions share."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from retrace.methods._chain import decode
from retrace.types import SIDE, BadInput

Float = Literal["float32", "float64"]
FACTORED = 4  # images whose weighted matrices are factored together


class Problem(NamedTuple):
    """A decoder G(z) = σ(W_L tanh(… tanh(W₁ z))) and the images whose codes are wanted, in one
    precision."""

    weights: list[Tensor]  # (outputs, inputs), from the code to the pixels
    images: Tensor  # (B, P)


def problem_of(network: nn.Module, observed: Tensor, *, precision: Float) -> Problem:
    """Take the decoder's matrices and the flattened images, both checked.

    Raises
    ------
    BadInput
        When the network has no decoder of matrices, or an image is not 28 x 28, not finite or
        outside [0, 1].
    """
    if not hasattr(network, "decoder_weights"):
        raise BadInput(
            "network: no decoder that could be inverted; one of the architecture vae is expected"
        )
    if observed.dim() != 3 or observed.shape[1:] != (SIDE, SIDE):
        raise BadInput(
            f"observed has shape {tuple(observed.shape)}; (images, {SIDE}, {SIDE}) is expected"
        )
    if not bool(torch.isfinite(observed).all()):
        raise BadInput("observed: some pixels are NaN or infinite; a whole image is expected")
    if bool((observed < 0).any() or (observed > 1).any()):
        raise BadInput("observed: some pixels are outside [0, 1]; a decoder's output is inside")
    dtype = getattr(torch, precision)
    weights = [weight.to(dtype) for weight in network.decoder_weights()]  # type: ignore[operator]
    return Problem(weights, observed.to(dtype).flatten(1))


def slopes(values: list[Tensor]) -> list[Tensor]:
    """Derivatives of the activation functions by their arguments, at `activations` (B, units):
    tanh' = 1 − h², σ' = y (1 − y)."""
    *hidden, pixels = values
    return [*(1 - h.square() for h in hidden), pixels * (1 - pixels)]


def jacobian(weights: list[Tensor], slopes: list[Tensor]) -> Tensor:
    """∂ pixel / ∂ value of the code, (B, d, P), by layers: ∂h_l/∂z = diag(slope_l) W_l ∂h_{l−1}/∂z.

    Kept transposed, so that each layer of all images and all derivatives is one matrix product.
    """
    derivatives = slopes[0].unsqueeze(1) * weights[0].T  # (B, d, units)
    for weight, slope in zip(weights[1:], slopes[1:], strict=True):
        derivatives = (derivatives.flatten(0, 1) @ weight.T).unflatten(0, derivatives.shape[:2])
        derivatives.mul_(slope.unsqueeze(1))
    return derivatives


def pulled_back(weights: list[Tensor], slopes: list[Tensor], error: Tensor) -> Tensor:
    """Jᵀe, (B, d), of errors of the pixels (B, P): from the last layer to the first, which is a
    d-th of the work of `jacobian`."""
    for weight, slope in zip(reversed(weights), reversed(slopes), strict=True):
        error = (error * slope) @ weight
    return error


def inside(values: Tensor, *, clamp: float, lowest: float) -> Tensor:
    """Clamp to [lowest + c, 1 − c]; for c = 0 to the nearest numbers inside (lowest, 1).

    The logit or the inverse tanh of the result is finite.
    """
    numbers = torch.finfo(values.dtype)
    above = numbers.tiny if lowest == 0 else lowest + numbers.eps / 2
    return values.clamp(max(lowest + clamp, above), min(1 - clamp, 1 - numbers.eps / 2))


def reproduced(pixels: Tensor, images: Tensor) -> Tensor:
    """Whether decoded pixels (B, P) are the images (B, P) within what these were rounded to.

    An image of multiples of 1/255 may differ by one such step, one of float32 numbers by 2⁻¹⁷ (64
    of its steps below 1, since every layer rounds), any other by 2⁻²⁶, half of float64's digits.
    """
    levels = images.double() * 255
    eight_bit = ((levels - levels.round()).abs() < 1e-4).all(dim=1)
    single = (images.float().to(images.dtype) == images).all(dim=1)
    step = torch.where(eight_bit, 1 / 255, torch.where(single, 2.0**-17, 2.0**-26))
    return (pixels - images).abs().amax(dim=1) <= step


def answer_of(weights: list[Tensor], images: Tensor, codes: Tensor) -> dict[str, Tensor]:
    """What a method returns of codes (B, d): ``estimate`` (B, d) float64, ``residual`` (B,), the
    mean squared difference of decoded and observed pixels, and ``converged`` (B,) bool: whether
    the image is `reproduced`."""
    pixels = decode(weights, codes)
    return {
        "estimate": codes.double(),
        "residual": mean_square(pixels, images),
        "converged": reproduced(pixels, images),
    }


def mean_square(pixels: Tensor, images: Tensor) -> Tensor:
    """Mean squared difference of decoded pixels (B, P) and images (B, P): (B,) float64."""
    return (pixels - images).square().mean(dim=1).double()


def weighted_solutions(weight: Tensor, wanted: Tensor, rows: Tensor | None) -> Tensor:
    """argmin_h ‖diag(rows) (W h − wanted)‖ for each image: (B, n) of W (m, n), m at least n, of
    wanted values and weights (B, m). None weighs all rows alike, so that one factorisation serves
    all."""
    if rows is None:
        orthogonal, triangular = torch.linalg.qr(weight)
        return torch.linalg.solve_triangular(triangular, orthogonal.T @ wanted.T, upper=True).T
    parts = zip(wanted.split(FACTORED), rows.split(FACTORED), strict=True)
    return torch.cat([_weighted(weight, *part) for part in parts])


def _weighted(weight: Tensor, wanted: Tensor, rows: Tensor) -> Tensor:
    """`weighted_solutions` of a few images, by orthogonal triangles.

    The triangle of [W, wanted] with weighted rows holds that of W and, in its last column, what an
    orthogonal factor would make of the right-hand side, which is so not formed. Normal equations
    would square the condition, which saturated units make large.
    """
    size = weight.shape[1]
    columns = torch.cat([weight.expand(len(rows), -1, -1), wanted.unsqueeze(2)], dim=2)
    triangle = torch.linalg.qr(columns * rows.unsqueeze(2), mode="r").R
    left, right = triangle[:, :size, :size].clone(), triangle[:, :size, size:]
    # What rows without weight leave undetermined stays finite.
    diagonal = left.diagonal(dim1=1, dim2=2)
    numbers = torch.finfo(weight.dtype)
    least = numbers.eps * diagonal.abs().amax(dim=1, keepdim=True) + numbers.tiny
    diagonal.copy_(torch.where(diagonal.abs() < least, least, diagonal))
    return torch.linalg.solve_triangular(left, right, upper=True).squeeze(2)
