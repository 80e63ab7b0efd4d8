"""Autoencoders beside PCA of the same size, and where there is none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from retrace.measures.quality import means_with_intervals
from retrace.networks import gaussian
from retrace.pipeline.artifacts import metrics_path, write_json
from retrace.problems import Ground, Run
from retrace.problems.autoencoding.score import Scorer, pca_curve
from retrace.problems.autoencoding.show import section
from retrace.report.model import State, Table


@pytest.mark.numerical
def test_pca_from_the_covariance_agrees_with_scikit_learn(images: torch.Tensor) -> None:
    network = gaussian.Network()
    network.fit((images[:600], torch.empty(0)), (images[:10], torch.zeros(10)))
    test = images[600:700]
    curve = pca_curve(test, mean=network.mean, covariance=network.covariance)
    assert len(curve) == 785
    flat = test.flatten(1).double().numpy()
    for size in (1, 16, 64):
        pca = PCA(size, svd_solver="full").fit(images[:600].flatten(1).double().numpy())
        expected = ((pca.inverse_transform(pca.transform(flat)) - flat) ** 2).mean()
        assert curve[size] == pytest.approx(expected, rel=1e-6)
    assert curve[784] == pytest.approx(0, abs=1e-12)


def test_a_code_as_large_as_an_image_has_no_ratio_to_pca(
    digit_splits: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images = torch.from_numpy(digit_splits["train"]["images"][:20].astype(np.float32) / 255)
    network = gaussian.Network()
    network.fit((images, torch.empty(0)), (images, torch.zeros(20)))
    ground = Ground(
        "autoencoding",
        load=lambda name: (network, {}),
        read=lambda path: {"images": images.numpy()},
    )
    scorer = Scorer(ground, {}, means_with_intervals)
    record = {"method": "one_pass", "network": "n", "seconds": 1.0}
    found = {}
    for size in (16, 783, 784, 1000):
        arrays = {"estimate": images.numpy() / 2, "code_size": np.array(size)}
        scores, headline = scorer(Run(f"{size}", record, arrays))
        found[size] = scores
        write_json(metrics_path("autoencoding", f"{size}"), record | scores)
        assert ("mse_over_pca" in scores) == ("mse_over_pca" in headline) == (size < 784)
    assert found[16]["mse_over_pca"] == found[16]["mse"] / found[16]["pca_mse"]
    assert found[784]["pca_mse"] == found[1000]["pca_mse"] == 0
    for sizes, words in (((16, 784, 1000), "× PCA’s error"), ((784, 1000), "MSE")):
        runs = {f"{size}": {"problem": "autoencoding"} for size in sizes}
        shown = section(State(runs, {}, {}, "digits", forgiving=True))
        assert shown.summary and words in shown.summary.headline
        (table,) = (block for block in shown.blocks if isinstance(block, Table))
        assert [row.label for row in table.rows if row.trivial] == ["PCA, 16"] * (16 in sizes)
