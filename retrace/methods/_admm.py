"""The alternating direction method of multipliers, of methods of more than one problem."""

from collections.abc import Callable

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]
RELAXATION = 1.6  # over-relaxation (Boyd et al. 2011, section 3.4.3)


def admm(
    project: Map, prox: Map, b: Tensor, *, iterations: int, relaxation: float = RELAXATION
) -> tuple[Tensor, Tensor]:
    """Minimise the sum of two functions by their proximal maps (Boyd et al. 2011, section 3.1),
    scaled, with over-relaxation α (section 3.4.3):

        x ← P(b − u),   w = αx + (1 − α)b + u,   b ← prox(w),   u ← w − b,

    P being the proximal map of the first function, `prox` that of the second, which gives a new
    tensor. b starts as it is given, (m, d), u from 0. The last x and b are what is given: x is what
    `project` gives, b what `prox` gives; the two are equal in the limit alone.
    """
    x, dual = b, torch.zeros_like(b)
    for _ in range(iterations):
        x = project(b - dual)
        wished = torch.lerp(b, x, relaxation).add_(dual)
        b = prox(wished)
        dual = wished.sub_(b)
    return x, b
