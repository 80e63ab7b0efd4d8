"""A decoder drawn at random, and codes for it."""

import torch
from torch import Tensor

from retrace.networks import vae

SIZE = 4


def random_vae(gain: float) -> vae.Network:
    """A decoder drawn at random; a larger gain saturates more of its hidden units."""
    torch.manual_seed(0)
    network = vae.Network(code_size=SIZE, widths=[48, 24], weighting="elbo", divergence_weight=1.0)
    with torch.no_grad():
        for weight in network.decoder.parameters():
            weight.copy_(gain * torch.randn(weight.shape) / weight.shape[1] ** 0.5)
    return network.eval().requires_grad_(False)


def drawn_codes() -> Tensor:
    """(30, SIZE), float64."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(30, SIZE, generator=generator, dtype=torch.float64)
