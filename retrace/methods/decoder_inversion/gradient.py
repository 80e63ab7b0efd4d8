"""Adam on the code with restarts: the usual choice."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from retrace.methods._chain import decode
from retrace.methods.decoder_inversion._decoder import Float, answer_of, problem_of
from retrace.types import Callback, Seed, ignore


def reconstruct(
    network: nn.Module,
    observed: Tensor,
    *,
    precision: Float = "float32",
    penalty: Annotated[float, Field(ge=0)] = 0.0,
    steps: Annotated[int, Field(ge=1)] = 100,
    learning_rate: Annotated[float, Field(gt=0)] = 0.1,
    restarts: Annotated[int, Field(ge=1)] = 2,
    seed: Seed = 0,
    callback: Callback = ignore,
) -> dict[str, Tensor]:
    """Lower ‖G(z) − x‖² + λ‖z‖² by Adam, all images and restarts at once.

    Parameters
    ----------
    network : Module
        Has ``decoder_weights()`` and ``encode``.
    observed : (B, 28, 28)
        In [0, 1].
    penalty : float
        λ.
    learning_rate : float
        Adam's.
    restarts : int
        The first starts at the encoder's mean, the others at codes drawn from the prior; the one
        with the lowest final objective is kept.
    seed : int
        Of the draws.

    Returns
    -------
    dict
        See `_decoder.answer_of`.
    """
    weights, images = problem_of(network, observed, precision=precision)
    with torch.no_grad():
        mean = network.encode(observed.float())[0].to(images.dtype)  # type: ignore[operator]
    generator = torch.Generator().manual_seed(seed)
    others = torch.randn(restarts - 1, *mean.shape, generator=generator).to(images.dtype)
    codes = torch.cat([mean.unsqueeze(0), others]).requires_grad_()  # (R, B, d)
    optimiser = torch.optim.Adam([codes], lr=learning_rate, fused=True)
    every = torch.arange(len(images))
    for step in range(steps + 1):
        misfit = (decode(weights, codes) - images).square().sum(dim=2)
        objective = misfit + penalty * codes.square().sum(dim=2)  # (R, B)
        loss, restart = objective.detach().min(dim=0)
        best = codes.detach()[restart, every]
        callback(step, loss, best)
        if step < steps:
            optimiser.zero_grad()
            objective.sum().backward()
            optimiser.step()
    return answer_of(weights, images, best)
