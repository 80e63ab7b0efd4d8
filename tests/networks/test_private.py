"""Differential privacy: clipping, noise and the privacy spent, against definitions."""

import copy
import math
import sys
from typing import Any

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from retrace.networks.mlp import DELTA, Network, Private, sampled
from retrace.types import BadInput

pytest.importorskip("opacus", reason="opacus is missing: pip install '.[privacy]'")
pytestmark = pytest.mark.numerical


def private(network: Network, **changes: Any) -> Private:
    """Plain steps of rate 1, of 6 images."""
    optimiser = torch.optim.SGD(network.parameters(), lr=1.0)
    settings = {"clip": 0.5, "noise": 0.0, "share": 1.0, "size": 6, "seed": 0}
    return Private(network, optimiser, **{**settings, **changes})


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network(shape=[4, 5], widths=[8, 7], outputs=3)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(3, (6,), generator=generator)
    return torch.rand(6, 4, 5, generator=generator), labels


def change_of(before: nn.Module, after: nn.Module) -> Tensor:
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    return torch.cat([(b - a).detach().flatten() for a, b in pairs])


@pytest.mark.parametrize("clip", [0.5, 1e3])
def test_a_step_is_the_mean_of_the_cut_gradients(
    network: Network, batch: tuple[Tensor, Tensor], clip: float
) -> None:
    before = copy.deepcopy(network)
    total = torch.zeros(sum(p.numel() for p in network.parameters()))
    for image, label in zip(*batch, strict=True):
        loss = before.loss(image[None], label[None])
        gradients = torch.autograd.grad(loss, list(before.parameters()))
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        total += flat * min(1.0, clip / float(flat.norm()))
    private(network, clip=clip).step(*batch)
    torch.testing.assert_close(change_of(before, network), -total / 6, rtol=1e-4, atol=1e-6)


def test_a_step_without_images_adds_noise_alone(network: Network) -> None:
    before = copy.deepcopy(network)
    steps = private(network, noise=3.0)
    for _ in range(50):
        steps.step(torch.zeros(0, 4, 5), torch.zeros(0, dtype=torch.int64))
    change = change_of(before, network)
    assert float(change.std()) == pytest.approx(3.0 * 0.5 / 6 * math.sqrt(50), rel=0.15)
    assert abs(float(change.mean())) < 0.3


def test_the_privacy_spent_is_that_of_the_gaussian_mechanism(
    network: Network, batch: tuple[Tensor, Tensor]
) -> None:
    """All images in each step: the Rényi divergence of order a is steps a / (2 noise^2) (Mironov
    2017, arXiv 1702.07476), and epsilon follows as in Canonne et al. 2020 (arXiv 2004.00010)."""
    steps = private(network, noise=4.0)
    assert steps.spent() == 0
    for _ in range(3):
        steps.step(*batch)

    def epsilon(order: float) -> float:
        divergence = 3 * order / (2 * 4.0**2)
        rest = math.log((order - 1) / order) - (math.log(DELTA) + math.log(order)) / (order - 1)
        return divergence + rest

    best = minimize_scalar(epsilon, bounds=(1.01, 60), method="bounded").fun
    assert best <= steps.spent() * (1 + 1e-9) and steps.spent() == pytest.approx(best, rel=0.01)


def test_each_image_has_the_same_chance() -> None:
    batches = sampled(50, 0.2, torch.Generator().manual_seed(0))
    counts = torch.stack([torch.bincount(next(batches), minlength=50) for _ in range(2000)])
    assert counts.max() == 1
    assert counts.double().mean(dim=0).tolist() == pytest.approx([0.2] * 50, abs=0.04)
    assert len(set(counts.sum(dim=1).tolist())) > 5  # the number of images varies


def test_training_leaves_nothing_on_the_network(batch: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    network = Network(shape=[4, 5], widths=[8], outputs=3)
    images, labels = torch.cat([batch[0]] * 5), torch.arange(30) % 3
    settings: dict[str, Any] = {"per_class": 4, "batch_size": 3, "steps": 20, "report_every": 10}
    split = (images, labels)
    history = network.fit(split, split, clip=1.0, noise=2.0, **settings)
    assert 0 == history[0]["epsilon"] < history[1]["epsilon"] < history[2]["epsilon"]
    for part in (network, *network.modules(), *network.parameters()):
        assert not any(key.endswith("_hooks") and value for key, value in vars(part).items())
    assert all(not vars(parameter) for parameter in network.parameters())
    copy.deepcopy(network)
    history = network.fit(split, split, clip=1.0, **settings)
    assert "epsilon" not in history[-1]


def test_without_opacus_the_refusal_names_it(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with pytest.raises(BadInput, match=r"^clip = 0.5: needs the package opacus; `pip install"):
        private(network)
