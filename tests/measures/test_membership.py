"""Intervals of the rates at which members are told."""

import pytest
from scipy.stats import binomtest

from retrace.measures.membership import interval

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize("count", [1, 7, 200])
def test_intervals_are_those_of_the_exact_binomial_test(count: int) -> None:
    hits = sorted({0, 1, count // 3, count - 1, count})
    lows, highs = interval([hit / count for hit in hits], count)
    for hit, low, high in zip(hits, lows, highs, strict=True):
        exact = binomtest(hit, count).proportion_ci(0.95, method="exact")
        assert (low, high) == (pytest.approx(exact.low), pytest.approx(exact.high))
