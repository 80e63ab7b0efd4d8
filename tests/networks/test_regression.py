"""The regression against NumPy's."""

import numpy as np
import pytest
import torch

from retrace.networks import regression

pytestmark = pytest.mark.numerical

NOTHING = torch.empty(0)


def test_the_fit_is_that_of_numpy() -> None:
    network = regression.Network()
    kept: list[dict[str, float]] = []
    network.fit((NOTHING, NOTHING), (NOTHING, NOTHING), kept.append)
    generator = torch.Generator().manual_seed(0)
    x = 1000 * torch.rand(100, 1, generator=generator, dtype=torch.float64)
    u = torch.rand(100, 1, generator=generator, dtype=torch.float64)
    slope, offset = np.polyfit(x[:, 0].numpy(), (0.4 * x - 50 * u)[:, 0].numpy(), 1)
    assert network.weight.item() == pytest.approx(slope, rel=1e-10)
    assert network.bias.item() == pytest.approx(offset, rel=1e-10)
    assert kept[0]["residual"] == pytest.approx(50 / 12**0.5, rel=0.2)
