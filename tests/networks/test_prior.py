"""The mixture of a prior against scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from retrace.networks import prior
from retrace.types import BadInput

pytestmark = pytest.mark.numerical


def test_a_mixture_is_fitted_as_scikit_learn_fits_it(images: Tensor) -> None:
    points = images[:600, ::4, ::4].flatten(1).double()
    points = points + 0.01 * torch.randn(points.shape, generator=torch.Generator().manual_seed(0))
    expected = GaussianMixture(
        **{"n_components": 5, "max_iter": 40, "reg_covar": prior.FLOOR},
        **{"init_params": "k-means++", "random_state": 3},
    ).fit(points.numpy())
    got = prior.fit_mixture(points, 5, 40, seed=3)
    for ours, theirs in zip(
        got, (expected.weights_, expected.means_, expected.covariances_), strict=True
    ):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-8)
    score = prior.log_densities(points, got).logsumexp(dim=1).mean().item()
    assert score == pytest.approx(expected.score(points.numpy()), abs=1e-8)


def test_more_components_than_images_are_refused(images: Tensor) -> None:
    network = prior.Network(code_size=2, widths=[4], components=20, axes=3)
    with pytest.raises(BadInput, match=r"^components = 20: 10 training images"):
        network.fit((images[:10], torch.zeros(10)), (images[:10], torch.zeros(10)))
