"""The LSTM against its cell, computed step by step."""

import pytest
import torch
from torch import Tensor

from retrace.networks import lstm

pytestmark = pytest.mark.numerical


def test_gates_are_those_of_the_cell_computed_step_by_step(images: Tensor) -> None:
    """PyTorch's layout: input, forget, cell, output."""
    torch.manual_seed(0)
    network, x = lstm.Network(hidden=8).double(), images[:5].double()
    named = dict(network.lstm.named_parameters())
    h = c = torch.zeros(5, 8, dtype=torch.float64)
    forget = []
    for row in x.unbind(dim=1):
        parts = row @ named["weight_ih_l0"].T + named["bias_ih_l0"]
        parts = parts + h @ named["weight_hh_l0"].T + named["bias_hh_l0"]
        i, f, g, o = parts.split(8, dim=1)
        forget.append(f)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    torch.testing.assert_close(network.forget_logits(x), torch.stack(forget, dim=1))
    torch.testing.assert_close(network(x), network.head(h))
