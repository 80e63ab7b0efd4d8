"""Rates of a score that tells members from others: against scikit-learn and by counting."""

import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score
from torch import Tensor

from retrace.measures.membership import ALLOWED, interval, roc, threshold, told


def drawn(kind: str, *, members: int = 40, held_out: int = 2100) -> tuple[Tensor, Tensor]:
    """Scores of members and others, float32; ties, where they are asked for."""
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(members, generator=generator) + 2
    others = torch.randn(held_out, generator=generator)
    if kind == "ties":
        return ours.round(), others.round()
    if kind == "equal":
        return torch.ones(members), torch.ones(held_out)
    return ours, others


def area(members: Tensor, held_out: Tensor) -> float:
    labels = [1] * len(members) + [0] * len(held_out)
    return float(roc_auc_score(labels, torch.cat([members, held_out]).tolist()))


@pytest.mark.parametrize("kind", ["apart", "ties", "equal"])
def test_the_area_is_that_of_scikit_learn(kind: str) -> None:
    members, held_out = drawn(kind)
    found = told(members, held_out)["auc"]
    assert found.dtype == torch.float64
    assert float(found.mean()) == pytest.approx(area(members, held_out), abs=1e-12)
    for value, score in zip(found.tolist(), members.tolist(), strict=True):
        below = sum(other < score for other in held_out.tolist())
        equal = sum(other == score for other in held_out.tolist())
        assert value == pytest.approx((below + equal / 2) / len(held_out))


@pytest.mark.parametrize("count", [1, 50, 100, 999, 1000, 2100])
@pytest.mark.parametrize("kind", ["apart", "ties", "equal"])
def test_rates_are_the_best_at_so_many_false_positives(kind: str, count: int) -> None:
    """Of all thresholds that exceed no more held-out images, the one that most members exceed."""
    members, held_out = drawn(kind, held_out=count)
    found = told(members, held_out)
    assert found.keys() == {"auc", "tpr_0", "tpr_0.1", "tpr_1"}
    for name, allowed in ALLOWED.items():
        bar = threshold(held_out, allowed)
        assert bar in held_out.double().tolist()
        assert int((held_out.double() > bar).sum()) <= allowed * count
        bars = [float(value) for value in torch.cat([members, held_out]).double().unique()]
        best = max(
            sum(score > other for score in members.tolist())
            for other in bars
            if sum(score > other for score in held_out.tolist()) <= allowed * count
        )
        rate = found[f"tpr_{name}"]
        assert set(rate.tolist()) <= {0.0, 1.0}
        assert int(rate.sum()) == sum(score > bar for score in members.tolist())
        # No bar between two scores of held-out images lets more of them through.
        assert int(rate.sum()) == best


def test_known_scores_are_told() -> None:
    held_out = torch.arange(1000.0)
    members = torch.tensor([1000.0, 999.0, 998.5, 990.0, 989.5, 988.0, -1.0])
    found = told(members, held_out)
    assert threshold(held_out, 0.0) == 999 and threshold(held_out, 0.001) == 998
    assert found["tpr_0"].tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert found["tpr_0.1"].tolist() == [1, 1, 1, 0, 0, 0, 0]
    assert found["tpr_1"].tolist() == [1, 1, 1, 1, 1, 0, 0]
    assert found["auc"].tolist() == [1.0, 0.9995, 0.999, 0.9905, 0.99, 0.9885, 0.0]


def test_scores_that_differ_in_float32_alone_are_no_ties() -> None:
    one = torch.tensor([1.0])
    above = torch.nextafter(one, torch.tensor(2.0))
    assert told(above, one)["tpr_0"].tolist() == [1.0]
    assert told(one, above)["auc"].tolist() == [0.0]


@pytest.mark.parametrize("kind", ["apart", "ties"])
def test_the_curve_has_that_area(kind: str) -> None:
    members, held_out = drawn(kind)
    false, true = roc(members, held_out)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    area_below = torch.trapezoid(torch.tensor(true).double(), torch.tensor(false).double())
    assert float(area_below) == pytest.approx(area(members, held_out), abs=1e-6)
    first = max(rate for at, rate in zip(false, true, strict=True) if at == 0)
    assert first == pytest.approx(float(told(members, held_out)["tpr_0"].mean()))


@pytest.mark.parametrize("count", [1, 7, 200])
def test_intervals_are_those_of_the_exact_binomial_test(count: int) -> None:
    hits = sorted({0, 1, count // 3, count - 1, count})
    lows, highs = interval([hit / count for hit in hits], count)
    for hit, low, high in zip(hits, lows, highs, strict=True):
        exact = binomtest(hit, count).proportion_ci(0.95, method="exact")
        assert low == pytest.approx(exact.low) and high == pytest.approx(exact.high)
