"""Coverage, CRPS and ambiguity against a known distribution and their definitions."""

import pytest
import torch
from torch import Tensor, nn

from retrace.measures import uncertainty
from retrace.methods.imputation import posterior

pytestmark = pytest.mark.numerical


class Brightness(nn.Module):
    """Reads a 1 in bright images and a 0 in dark ones."""

    def forward(self, images: Tensor) -> Tensor:
        bright = images.flatten(1).mean(dim=1) - 0.5
        return torch.stack([-bright, bright], dim=1)


def test_coverage_of_a_known_distribution() -> None:
    """Truth and samples from one uniform distribution: intervals cover what they say."""
    generator = torch.Generator().manual_seed(0)
    n, samples = 40, 200
    drawn = torch.rand(n, samples, 28, 28, generator=generator)
    truth = torch.rand(n, 28, 28, generator=generator)
    ordered = list(
        posterior._quantiles(drawn.transpose(0, 1).flatten(2), torch.tensor(posterior.LEVELS))
    )
    quantiles = (torch.stack(ordered, dim=1) * 255).round().to(torch.uint8).unflatten(2, (28, 28))
    observed = torch.full_like(truth, torch.nan)
    observed[:, :2] = truth[:, :2]
    scores = uncertainty.score(
        (drawn[:, :20] * 255).round().to(torch.uint8),
        quantiles,
        drawn.std(dim=1),
        truth=truth,
        observed=observed,
        labels=torch.zeros(n, dtype=torch.int64),
        classifier=Brightness(),
        means=lambda values: {key: value.mean().item() for key, value in values.items()},
    )
    for interval in (50, 80, 95):
        assert scores[f"coverage_{interval}"] == pytest.approx(interval / 100, abs=0.02)
        assert scores[f"open_coverage_{interval}"] == pytest.approx(interval / 100, abs=0.02)
    assert scores["open_share"] == 1.0
    # Of uniform draws: E|X − y| = 1/3, of which E|X − X'|/2 = 1/6 is no fault; E(X − y)² = 1/6.
    assert scores["crps"] == pytest.approx(1 / 6, abs=0.005)
    assert scores["sample_mse"] == pytest.approx(1 / 6, abs=0.005)
    assert scores["best_mse"] < scores["sample_mse"]
    assert scores["deviation"] == pytest.approx(12**-0.5, abs=0.005)


def test_crps_by_its_definition() -> None:
    samples = torch.rand(2, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    truth = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(1))
    error = (samples - truth.unsqueeze(1)).abs().mean(dim=1)
    pairs = (samples.unsqueeze(1) - samples.unsqueeze(2)).abs().sum(dim=(1, 2)) / (5 * 4)
    torch.testing.assert_close(uncertainty.crps(samples, truth), (error - pairs / 2).double())


def test_entropy_and_the_most_ambiguous_images() -> None:
    labels = torch.tensor([[4, 4, 4, 4], [4, 9, 4, 9], [1, 2, 3, 4]])
    torch.testing.assert_close(
        uncertainty.entropy(labels), torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    )
    assert uncertainty.ambiguous(labels).tolist() == [2, 1, 0]
