"""Backpropagation to the missing pixels through an autoencoder with fixed weights."""

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from retrace.types import Callback, Seed, ignore

CHUNK = 1000  # images that go through each step together: their arrays stay in the cache

Objective = Literal["known", "whole", "masked_target"]


def reconstruct(
    network: nn.Module,
    observed: Tensor,
    *,
    objective: Objective = "known",
    start: Literal["zero", "mean", "noise"] = "mean",
    answer: Literal["input", "output"] = "output",
    steps: Annotated[int, Field(ge=1)] = 100,
    learning_rate: Annotated[float, Field(gt=0)] = 0.05,
    restarts: Annotated[int, Field(ge=1)] = 1,
    seed: Seed = 0,
    callback: Callback = ignore,
) -> Tensor:
    """Optimise the missing pixels of all images at once (Roche et al. 2023, arXiv 2308.10496).

    With x the image whose missing pixels m are free and whose known pixels k are fixed, and f the
    autoencoder, Adam on x_m in [0, 1] lowers one of

    - ``known``: mean (f(x)_k − x_k)², the error that can be observed;
    - ``whole``: mean (f(x) − x)² over all pixels: x should be a fixed point of f;
    - ``masked_target``: mean f(x)_m², what the first public implementation computes: it pastes the
      known pixels into the output and takes the masked sample, 0 where missing, for the target,
      so that it pulls the prediction to black. Here to show what it does.

    Parameters
    ----------
    network : Module
        An autoencoder: (B, 28, 28) to (B, 28, 28), with the training images' ``mean``.
    observed : (B, 28, 28)
        NaN where a pixel is missing.
    start : "zero", "mean" or "noise"
        Initial missing pixels; noise is uniform in [0, 1].
    answer : "input" or "output"
        The optimised x, or f(x).
    learning_rate : float
        Adam's, in pixel units.
    restarts : int
        Starts of each image; the one with the lowest final objective is kept. More than one makes
        sense with noise only.
    seed : int
        Of the noise.

    Returns
    -------
    (B, 28, 28)
    """
    generator = torch.Generator().manual_seed(seed)
    missing = observed.isnan().repeat(restarts, 1, 1)  # (R·B, 28, 28), restarts outermost
    x = observed.nan_to_num(0.0).repeat(restarts, 1, 1)
    if start == "mean":
        x = torch.where(missing, network.mean, x)  # type: ignore[arg-type]
    elif start == "noise":
        x = torch.where(missing, torch.rand(x.shape, generator=generator), x)
    output = torch.empty_like(x)
    descents = [
        _descend(network, *chunk, objective=objective, steps=steps, learning_rate=learning_rate)
        for chunk in zip(x.split(CHUNK), output.split(CHUNK), missing.split(CHUNK), strict=True)
    ]
    candidates = (x if answer == "input" else output).unflatten(0, (restarts, -1))
    for step, losses in enumerate(zip(*descents, strict=True)):
        loss, restart = torch.cat(losses).unflatten(0, (restarts, -1)).min(dim=0)
        images = torch.arange(len(restart))
        estimate = candidates[restart, images] if restarts > 1 else candidates[0]
        callback(step, loss, estimate)
    return estimate


def _descend(
    network: nn.Module,
    x: Tensor,
    output: Tensor,
    missing: Tensor,
    *,
    objective: Objective,
    steps: int,
    learning_rate: float,
) -> Iterator[Tensor]:
    """Yield the losses (C,) of a chunk before each step and after the last.

    `x` is optimised in place, and f(x) is left in `output`; both (C, 28, 28).
    """
    counted = {"known": ~missing, "whole": torch.ones_like(missing), "masked_target": missing}
    # Each image's own mean: the weight of a counted pixel is one over their number.
    weight = counted[objective] / counted[objective].sum(dim=(1, 2), keepdim=True)
    twice_free = 2 * missing.to(x.dtype)
    variable = x.detach().requires_grad_()  # shares the memory of x
    optimiser = torch.optim.Adam([variable], lr=learning_rate, fused=True)
    for step in range(steps + 1):
        result = network(variable)
        output.copy_(result.detach())
        residual = output if objective == "masked_target" else output - x
        weighted = residual * weight
        if step < steps:
            # Half the gradient is Jᵀ weighted, less weighted where x is the target too; written
            # out, since autograd goes over all pixels four times more.
            (gradient,) = torch.autograd.grad(result, variable, weighted)
            if objective == "whole":  # for "known", weighted is 0 where pixels are missing
                gradient = gradient - weighted
            # Known pixels have no gradient, so that Adam leaves them where they are.
            variable.grad = gradient * twice_free
        yield (weighted * residual).sum(dim=(1, 2))
        if step < steps:
            optimiser.step()
            x.clamp_(0, 1)
