"""The loss of the VAE against PyTorch's divergence."""

import pytest
import torch
from decoders import random_vae
from torch import Tensor

from retrace.networks import vae
from retrace.types import BadInput

pytestmark = pytest.mark.numerical


def test_the_divergence_is_that_of_torch_and_the_averaged_loss_has_the_stated_beta(
    images: Tensor,
) -> None:
    torch.manual_seed(0)
    network = vae.Network(code_size=16, widths=[32], weighting="elbo", divergence_weight=1.0)
    mean, log_variance = network.encode(images[:5])
    posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = torch.distributions.kl_divergence(posterior, prior).sum(dim=1)
    entropy, divergence = network.terms(images[:5], torch.zeros_like(mean))
    torch.testing.assert_close(divergence, expected)
    decoded = network.decode(mean).flatten(1).double()
    x = images[:5].flatten(1).double()
    by_hand = -(x * decoded.log() + (1 - x) * (1 - decoded).log()).sum(dim=1)
    torch.testing.assert_close(entropy.double(), by_hand, rtol=1e-5, atol=1e-4)

    losses = {}
    for weighting, weight in (("averaged", 0.1), ("elbo", 4.9)):
        network.weighting, network.divergence_weight = weighting, weight  # type: ignore[assignment]
        torch.manual_seed(1)
        losses[weighting] = network.loss(images[:5], torch.zeros(5))
    torch.testing.assert_close(784 * losses["averaged"], losses["elbo"])


def test_an_epoch_is_judged_by_the_same_noise_each_time(images: Tensor) -> None:
    network = random_vae(1.5)
    first, second = (network.evaluate(images[:6], torch.zeros(6)) for _ in range(2))
    assert next(iter(first)) == "negative_elbo"
    assert all(torch.equal(first[key], second[key]) for key in first)
    total = first["cross_entropy"] + first["divergence"]
    torch.testing.assert_close(first["negative_elbo"], total)


def test_a_decoder_without_an_inverse_is_refused() -> None:
    with pytest.raises(BadInput, match=r"widths = \[16, 32\].*no inverse"):
        vae.Network(code_size=8, widths=[16, 32], weighting="elbo", divergence_weight=1.0)
