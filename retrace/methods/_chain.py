"""A decoder as a chain of matrices: G(z) = σ(W_L tanh(… tanh(W₁ z)))."""

from collections.abc import Sequence

from torch import Tensor


def activations(weights: Sequence[Tensor], codes: Tensor) -> list[Tensor]:
    """What each layer gives for codes (..., d): hidden values, and last the pixels (..., P). The
    weights (outputs, inputs) are in their order from the code to the pixels."""
    *hidden, last = weights
    values = [codes]
    for weight in hidden:
        values.append((values[-1] @ weight.T).tanh())
    return [*values[1:], (values[-1] @ last.T).sigmoid()]


def decode(weights: Sequence[Tensor], codes: Tensor) -> Tensor:
    """(..., d) codes to (..., P) pixels."""
    return activations(weights, codes)[-1]
