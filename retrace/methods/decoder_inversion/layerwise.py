"""Pseudo-inverse of each linear layer and inverse activation, from the pixels back to the code."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from retrace.methods._chain import decode
from retrace.methods.decoder_inversion._decoder import (
    Float,
    inside,
    problem_of,
    reproduced,
    weighted_solutions,
)
from retrace.types import Callback, ignore

Clamp = Annotated[float, Field(ge=0, lt=0.5)]


def reconstruct(
    network: nn.Module,
    observed: Tensor,
    *,
    precision: Float = "float64",
    output_clamp: Clamp = 0.0,
    hidden_clamp: Clamp = 0.0,
    weights: Literal["none", "relative", "absolute"] = "relative",
    callback: Callback = ignore,
) -> dict[str, Tensor]:
    """Invert G(z) = σ(W₃ tanh(W₂ tanh(W₁ z))) from its end: ẑ = W₁⁺ tanh⁻¹(W₂⁺ tanh⁻¹(W₃⁺ σ⁻¹(x))).

    W⁺ solves a layer's least squares. Each W has more rows than columns; where its columns are
    independent, W⁺ W = I, and in exact arithmetic the answer is the code itself for every output
    of the decoder. Of any other image it is what it is: no least squares in the image, and the
    values that a layer asks for may lie outside the range of the activation before it.

    Parameters
    ----------
    network : Module
        Has ``decoder_weights()``.
    observed : (B, 28, 28)
        In [0, 1].
    output_clamp : float
        Pixels are clamped to [c, 1 − c] before σ⁻¹. 0 clamps at what the precision can represent
        inside (0, 1), which changes no output of the decoder but a rounded 0 or 1.
    hidden_clamp : float
        Hidden values are clamped to [−1 + c, 1 − c] before tanh⁻¹; 0 likewise.
    weights : "none", "relative" or "absolute"
        Weigh each row of the least squares by the inverse of the error that the inverse activation
        amplifies. For tanh⁻¹ that is 1 − h². For σ⁻¹ and an absolute error of the pixel (8-bit
        images) it is x (1 − x); for a relative one (floating point) 1 − x. "none" is W⁺ itself.

    Returns
    -------
    dict
        ``estimate`` (B, d) float64 and ``converged`` (B,) bool: whether the code decodes to the
        image within the rounding errors of the precision.
    """
    matrices, images = problem_of(network, observed, precision=precision)
    first, *hidden = matrices
    x = inside(images, clamp=output_clamp, lowest=0.0)
    wanted = x.logit()
    rows = {"none": None, "relative": 1 - x, "absolute": x * (1 - x)}[weights]
    for weight in reversed(hidden):
        h = inside(weighted_solutions(weight, wanted, rows), clamp=hidden_clamp, lowest=-1.0)
        wanted = h.atanh()
        rows = None if weights == "none" else (1 - h) * (1 + h)
    codes = weighted_solutions(first, wanted, rows)
    return {"estimate": codes.double(), "converged": reproduced(decode(matrices, codes), images)}
