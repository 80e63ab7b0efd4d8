"""What problems score and compare with: known errors, NumPy, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from decoders import SIZE, drawn_codes, random_vae
from inversions import AFFINE, NOTHING, fitted, scored
from torch import Tensor

from retrace.methods.network_inversion import affine
from retrace.methods.network_inversion._nearest import DISPROVED
from retrace.networks import dense, vae
from retrace.pipeline.command import Refusal
from retrace.problems.decoder_inversion import score as decoder_inversion

pytestmark = pytest.mark.numerical


def test_the_certificate_says_why() -> None:
    network, codes = random_vae(1.5), drawn_codes()
    layers = decoder_inversion.certificate(random_vae(1.5).double(), codes)
    assert [layer["rank"] for layer in layers.values()] == [SIZE, 24, 48]
    assert all(layer["rank"] == layer["columns"] for layer in layers.values())
    for layer, weight in zip(layers.values(), network.decoder_weights(), strict=True):
        assert layer["condition"] == pytest.approx(np.linalg.cond(weight.double().numpy()))
    assert 0 <= layers["layer_2"]["saturated"] < 0.2
    harder = decoder_inversion.certificate(random_vae(8.0).double(), codes)
    assert harder["layer_2"]["saturated"] > 0.5


def scores_of(estimate: Tensor, network: vae.Network, x: Tensor, codes: Tensor) -> dict[str, Any]:
    """Scores of an estimate (4, n, d) of images that are on the range in all groups but the
    last, where the best known objective is that of the true codes."""
    groups = [*decoder_inversion.ROUNDING, decoder_inversion.OFF_RANGE]
    return decoder_inversion.score(
        estimate,
        observations={"observed": x.expand(4, *x.shape).numpy(), "groups": np.array(groups)},
        codes=codes,
        optima={"penalties": np.array([0.0]), "objective": np.full((1, 2), 1e-9)},
        penalty=0.0,
        network=network,
        means=lambda values: {
            f"{key}{end}": float(value.mean())
            for key, value in values.items()
            for end in ("", "_low", "_high")
        },
    )


def test_scores_of_known_errors() -> None:
    codes = drawn_codes()
    network = random_vae(1.5).double()
    x = network.decode(codes)
    estimate = codes.repeat(4, 1, 1)
    scores = scores_of(estimate, network, x, codes)
    assert all(scores[group]["solved"] == 1 for group in scores)
    assert scores["on_range_float64"]["code_error_max"] == 0
    assert scores["on_range_uint8"]["ssim"] == pytest.approx(1)
    estimate[0, 0, 2] += 0.5
    estimate[3, 0, 2] += 0.5
    scores = scores_of(estimate, network, x, codes)
    assert scores["on_range_float64"]["code_error_max"] == pytest.approx(0.5)
    assert scores["on_range_float64"]["solved"] == pytest.approx(29 / 30)
    assert scores["off_range"]["solved"] == 0.5
    assert scores["on_range_float32"]["solved"] == 1
    encoded = (network.decode(network.encode(x)[0]) - x).square().mean()
    ratio = scores["off_range"]["mse"] / float(encoded)
    assert scores["off_range"]["mse_over_encoder"] == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("code", "true codes have 5 values"),
        ("shape", "shape"),
        ("nan", "not finite"),
        ("network", "no decoder"),
    ],
)
def test_scores_of_what_does_not_fit_are_refused(change: str, message: str) -> None:
    network, codes = random_vae(1.5), drawn_codes()
    estimate = np.zeros((4, len(codes), SIZE + (change == "shape")))
    if change == "nan":
        estimate[0, 0, 0] = np.nan
    truth = torch.zeros(len(codes), 5) if change == "code" else codes
    other = dense.Network(widths=[8], gain=1.0, dropout=0.0)
    with pytest.raises(Refusal, match=message):
        decoder_inversion.checked(
            {"estimate": estimate},
            {"groups": np.array(["a", "b", "c", "d"])},
            truth,
            other if change == "network" else network,
        )


def test_a_wrong_verdict_and_a_wrong_input_show_in_the_scores() -> None:
    network = fitted()
    settings = {**AFFINE, "more": 10, "wanted": [0.0, 100.0], "solver": "closed_form"}
    answer = affine.reconstruct(network, NOTHING, **settings)
    answer["feasible"][0] = DISPROVED
    answer["estimate"][1] += 1
    scores = scored(network, answer, "affine", settings)
    assert scores["contradicted"] == 1 and scores["reached"] == pytest.approx(10 / 11)
    assert scores["relative_error_max"] == pytest.approx(0.4 / 100)
