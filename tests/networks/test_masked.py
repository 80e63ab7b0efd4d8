"""The network that is trained to fill in what random masks hide."""

import pytest
import torch
from hidden import RANDOM, hide
from torch import Tensor

from retrace.methods.imputation import masked as method
from retrace.networks import masked

pytestmark = pytest.mark.numerical


def test_masks_for_training_are_as_documented() -> None:
    missing = masked.random_masks(4000, torch.Generator().manual_seed(0))
    shares = missing.double().mean(dim=(1, 2))
    assert shares.min() > 0.05 and shares.max() <= 1
    # A rectangle is the product of its rows and columns.
    rows, columns = missing.any(dim=2), missing.any(dim=1)
    rectangle = (missing == rows.unsqueeze(2) & columns.unsqueeze(1)).all(dim=(1, 2))
    assert 0.45 < rectangle.double().mean() < 0.55
    sides = rows[rectangle].sum(dim=1)
    assert sides.min() == 7 and sides.max() == 28


def test_the_masked_network_never_sees_what_is_missing(images: Tensor) -> None:
    """Its layers see known pixels and which they are; its loss and measure count the others."""
    torch.manual_seed(0)
    network = masked.Network(widths=[16], dropout=0.0).eval().requires_grad_(False)
    network.mean.uniform_(0.2, 0.6)
    truth, labels = images[:50], torch.zeros(50)
    seen: list[Tensor] = []
    network.layers.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    loss = network.loss(truth, labels)
    measure, again = (network.evaluate(truth, labels)["missing_mse"] for _ in range(2))
    got = method.reconstruct(network, hide(truth, RANDOM))
    errors = []
    for inputs in seen[:3]:
        pixels, missing = inputs.unflatten(1, (2, 28, 28)).unbind(dim=1)
        assert 0.2 < missing.mean() < 0.9 and set(missing.unique().tolist()) == {0, 1}
        assert torch.equal(pixels, (truth - network.mean) * (1 - missing))
        output = network.layers(inputs).sigmoid().unflatten(1, (28, 28))
        errors.append(((output - truth).square() * missing, missing))
    squared, missing = errors[0]
    torch.testing.assert_close(loss, squared.sum() / missing.sum())
    squared, missing = errors[1]
    torch.testing.assert_close(measure, squared.sum(dim=(1, 2)) / missing.sum(dim=(1, 2)))
    assert torch.equal(measure, again)  # the same masks each time
    known = ~hide(truth, RANDOM).isnan()
    expected = torch.cat([(truth - network.mean) * known, (~known).float()], dim=1).flatten(1)
    torch.testing.assert_close(got.flatten(1), network.layers(expected).sigmoid())
