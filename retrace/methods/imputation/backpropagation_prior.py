"""Backpropagation to the missing pixels through a VAE, whose prior says what a digit is."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from retrace.methods.imputation import _latent
from retrace.methods.imputation.ridge import completed
from retrace.types import Callback, ignore


def reconstruct(
    network: _latent.Prior,
    observed: Tensor,
    *,
    likelihood_blocks: Annotated[float, Field(gt=0)] = 1.0,
    likelihood_scattered: Annotated[float, Field(gt=0)] = 5.0,
    start_penalty: Annotated[float, Field(gt=0)] = 0.0003,
    residual_penalty: Annotated[float, Field(gt=0)] = 0.003,
    answer: Literal["output", "corrected"] = "corrected",
    steps: Annotated[int, Field(ge=1)] = 50,
    learning_rate: Annotated[float, Field(gt=0)] = 0.02,
    callback: Callback = ignore,
) -> Tensor:
    """Optimise the missing pixels x_u as `backpropagation` does, for a loss with few false zeros.

    With E the mean of the VAE's encoder and G its decoder, Adam on x_u in [0, 1] lowers

        β Σ_k BCE(x_i, G_i(E(x))) + ‖E(x)‖²/2,

    what `latent_search` lowers over codes: the known pixels, and the prior of the code, which the
    published objective lacks (Roche et al. 2023, arXiv 2308.10496). The start is ridge's answer.

    Parameters
    ----------
    network : Module
        See `retrace.networks.prior`.
    observed : (B, 28, 28)
        NaN where a pixel is missing.
    likelihood_blocks, likelihood_scattered : float
        β, by whether known pixels lie among the missing ones (see `_latent.scattered`).
    start_penalty : float
        λ of the start's ridge regression, in squared pixel units.
    residual_penalty : float
        λ of the residual's regression, likewise.
    answer : "output" or "corrected"
        G(E(x)); or that plus a Gaussian regression of its residual from known to missing pixels.
    learning_rate : float
        Adam's, in pixel units.

    Returns
    -------
    (B, 28, 28)
    """
    missing = observed.isnan()
    start = _latent.ridge_completion(network, observed, penalty=start_penalty)
    x = completed(observed, start).requires_grad_()
    likelihood = _latent.by_kind(observed, likelihood_blocks, likelihood_scattered)
    energy = _latent.Energy.of(network.decoder, observed, likelihood=likelihood)
    optimiser = torch.optim.Adam([x], lr=learning_rate, fused=True)
    for step in range(steps + 1):
        code, _ = network.encode(x)
        logits = network.decoder(code)
        energies = energy.at(code, logits[:, energy.seen])
        estimate = logits.detach().sigmoid()
        callback(step, energies.detach(), estimate.unflatten(1, (28, 28)))
        if step < steps:
            (gradient,) = torch.autograd.grad(energies.sum(), x)
            x.grad = gradient * missing  # Adam leaves pixels without gradient where they are
            optimiser.step()
            with torch.no_grad():
                x.clamp_(0, 1)
    if answer == "corrected":
        estimate = _latent.with_residual(network, observed, estimate, penalty=residual_penalty)
    return estimate.clamp(0, 1).unflatten(1, (28, 28))
