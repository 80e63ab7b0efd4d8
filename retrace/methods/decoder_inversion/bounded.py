"""Least squares of each layer with the range of the activation before it as bounds."""

from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from retrace.methods._admm import admm
from retrace.methods.decoder_inversion._decoder import (
    Float,
    answer_of,
    inside,
    problem_of,
    weighted_solutions,
)
from retrace.types import Callback, ignore


def reconstruct(
    network: nn.Module,
    observed: Tensor,
    *,
    precision: Float = "float64",
    output_clamp: Annotated[float, Field(gt=0, lt=0.5)] = 0.001,
    hidden_clamp: Annotated[float, Field(gt=0, lt=0.5)] = 0.001,
    iterations: Annotated[int, Field(ge=1)] = 60,
    callback: Callback = ignore,
) -> dict[str, Tensor]:
    """Go back through the layers as `layerwise` does, but ask no layer for what it cannot give.

    From the last layer to the second, h = argmin ‖W h − b‖ over |h| ≤ 1 − c, with b the inverse
    activation of what the layer after it wants; the code itself has no bounds. Each layer is
    solved to its optimum; the chain of the optima is not the optimum of the whole.

    Parameters
    ----------
    network : Module
        Has ``decoder_weights()``.
    observed : (B, 28, 28)
        In [0, 1].
    output_clamp : float
        Pixels are clamped to [c, 1 − c] before σ⁻¹.
    hidden_clamp : float
        c: hidden values are bounded by 1 − c.
    iterations : int
        Of each layer's solver.

    Returns
    -------
    dict
        See `_decoder.answer_of`.
    """
    matrices, images = problem_of(network, observed, precision=precision)
    first, *hidden = matrices
    wanted = inside(images, clamp=output_clamp, lowest=0.0).logit()
    for weight in reversed(hidden):
        h = box_solutions(weight, wanted, bound=1 - hidden_clamp, iterations=iterations)
        wanted = h.atanh()
    return answer_of(matrices, images, weighted_solutions(first, wanted, None))


def box_solutions(weight: Tensor, wanted: Tensor, *, bound: float, iterations: int) -> Tensor:
    """argmin_h ‖W h − b‖ over |h| ≤ bound: (B, n) of W (m, n), m at least n, for many b (B, m) at
    once.

    Alternating directions (Boyd et al. 2011, section 5.2): the step without bounds is one product
    with a matrix that all b share, (WᵀW + ρI)⁻¹; ρ is the geometric mean of the extreme
    eigenvalues of WᵀW (Ghadimi et al. 2015, arXiv 1306.2454), and steps are over-relaxed. The
    answer is always within the bounds; how near to the optimum depends on the iterations.
    """
    gram = weight.T @ weight
    eigenvalues = torch.linalg.eigvalsh(gram)
    largest = eigenvalues[-1]
    rho = (eigenvalues[0].clamp(min=largest * torch.finfo(weight.dtype).eps) * largest).sqrt()
    identity = torch.eye(len(gram), dtype=weight.dtype)
    inverse = torch.linalg.inv(gram + rho * identity)
    shared = wanted @ weight @ inverse  # (B, n)

    def free(v: Tensor) -> Tensor:
        return torch.addmm(shared, v, inverse, alpha=float(rho))

    within = partial(torch.clamp, min=-bound, max=bound)
    return admm(free, within, within(shared), iterations=iterations)[1]
