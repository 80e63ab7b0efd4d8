"""Masks hide what they say and no more."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrace.data.masks import missing_pixels
from retrace.pipeline.params import EveryNthRow, RandomPixels, Rectangle


def test_a_rectangle_includes_both_ends() -> None:
    band = Rectangle(kind="rectangle", rows=[10, 17], columns=[0, 27])
    missing = missing_pixels(band, count=3, seed=0)
    assert missing.shape == (3, 28, 28)
    assert missing[:, 10:18].all() and missing.sum() == 3 * 8 * 28


def test_every_second_row() -> None:
    missing = missing_pixels(EveryNthRow(kind="rows", first=1, step=2), count=2, seed=0)
    assert missing[:, 1::2].all() and not missing[:, ::2].any()


@given(share=st.floats(1 / 784, 783 / 784), seed=st.integers(0, 2**32 - 1))
def test_random_pixels_are_equally_many_in_every_image(share: float, seed: int) -> None:
    pattern = RandomPixels(kind="random", share=share)
    missing = missing_pixels(pattern, count=4, seed=seed)
    assert (missing.sum(axis=(1, 2)) == round(share * 784)).all()
    np.testing.assert_array_equal(missing, missing_pixels(pattern, count=4, seed=seed))


def test_random_pixels_differ_between_images_and_are_uniform() -> None:
    missing = missing_pixels(RandomPixels(kind="random", share=0.25), count=2000, seed=0)
    assert (missing[0] != missing[1]).any()
    assert missing.mean(axis=0) == pytest.approx(np.full((28, 28), 0.25), abs=0.06)
