"""Inversions of a decoder against closed forms, torch.func, scipy, and what they refuse."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from decoders import SIZE, drawn_codes, random_vae
from scipy.optimize import least_squares, lsq_linear
from torch import Tensor

from retrace.methods._chain import activations, decode
from retrace.methods.decoder_inversion import (
    bounded,
    encoder,
    gauss_newton,
    gradient,
    layerwise,
)
from retrace.methods.decoder_inversion._decoder import (
    jacobian,
    pulled_back,
    slopes,
    weighted_solutions,
)
from retrace.networks import dense, vae
from retrace.types import BadInput

pytestmark = pytest.mark.numerical

LAYERWISE: dict[str, Any] = {"weights": "none"}
GAUSS_NEWTON: dict[str, Any] = {
    "penalty": 0.0,
    "starts": 4,
    "bank": 50,
    "screening": 5,
    "rounds": 3,
    "iterations": 40,
    "tolerance": 1e-6,
    "seed": 0,
}
GRADIENT: dict[str, Any] = {
    "precision": "float64",
    "penalty": 0.0,
    "steps": 60,
    "learning_rate": 0.1,
    "restarts": 2,
    "seed": 0,
}
METHODS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "layerwise": (layerwise.reconstruct, LAYERWISE),
    "bounded": (bounded.reconstruct, {}),
    "gauss_newton": (gauss_newton.reconstruct, GAUSS_NEWTON),
    "gradient": (gradient.reconstruct, GRADIENT),
    "encoder": (encoder.reconstruct, {}),
}


@pytest.fixture(scope="module")
def network() -> vae.Network:
    return random_vae(1.5)


@pytest.fixture(scope="module")
def weights(network: vae.Network) -> list[Tensor]:
    return [weight.double() for weight in network.decoder_weights()]


@pytest.fixture(scope="module")
def codes() -> Tensor:
    return drawn_codes()


@pytest.fixture(scope="module")
def on_range(weights: list[Tensor], codes: Tensor) -> Tensor:
    images: Tensor = decode(weights, codes).unflatten(1, (28, 28))
    return images


def worst(answer: dict[str, Tensor], codes: Tensor) -> float:
    return float((answer["estimate"] - codes).abs().max())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own
def test_the_jacobian_is_that_of_torch(weights: list[Tensor], codes: Tensor) -> None:
    by_layer = slopes(activations(weights, codes))
    expected = torch.func.vmap(torch.func.jacfwd(lambda z: decode(weights, z)))(codes)
    torch.testing.assert_close(jacobian(weights, by_layer).mT, expected)
    error = torch.randn(len(codes), 784, generator=torch.Generator().manual_seed(0)).double()
    gradient = (expected.mT @ error.unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(pulled_back(weights, by_layer, error), gradient)


def test_the_normal_equations_are_those_of_the_jacobian(
    weights: list[Tensor], codes: Tensor, on_range: Tensor
) -> None:
    """In float64, but for the rounding of the Jacobian to float32; the gradient is exact."""
    layers, images = activations(weights, codes), on_range.flatten(1).flip(0)
    j = jacobian(weights, slopes(layers))
    found = gauss_newton.normal_equations(weights, layers, images, codes, penalty=0.1)
    expected = j @ j.mT + 0.1 * torch.eye(SIZE, dtype=torch.float64)
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-5)
    gradient = (j @ (layers[-1] - images).unsqueeze(2)).squeeze(2) + 0.1 * codes
    torch.testing.assert_close(found[1], gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_works_with_its_defaults(name: str, network: vae.Network) -> None:
    codes = torch.randn(6, SIZE, generator=torch.Generator().manual_seed(5))
    images = network.decode(codes).double()
    answer = METHODS[name][0](network, images)
    assert answer["estimate"].shape == (6, SIZE) and answer["estimate"].isfinite().all()
    if name in ("layerwise", "gauss_newton"):
        assert worst(answer, codes) < 0.1


def test_the_decoder_of_the_methods_is_that_of_the_network(
    network: vae.Network, weights: list[Tensor], codes: Tensor
) -> None:
    expected = network.decode(codes.float()).flatten(1)
    torch.testing.assert_close(decode(weights, codes).float(), expected)


@pytest.mark.parametrize("rows", ["none", "relative", "absolute"])
def test_without_clamps_the_layerwise_inverse_is_exact_on_the_range(
    rows: str, network: vae.Network, on_range: Tensor, codes: Tensor
) -> None:
    settings = {**LAYERWISE, "weights": rows}
    answer = layerwise.reconstruct(network, on_range, **settings)
    assert worst(answer, codes) < 1e-8
    assert answer["converged"].all()


def test_clamps_destroy_what_saturated_units_hold() -> None:
    network = random_vae(4.0)
    codes = torch.randn(20, SIZE, generator=torch.Generator().manual_seed(4)).double()
    x = network.double().decode(codes)
    network.float()
    clamped = {**LAYERWISE, "output_clamp": 0.001, "hidden_clamp": 0.001}
    errors = [
        worst(layerwise.reconstruct(network, x, **settings), codes)
        for settings in (clamped, {**LAYERWISE, "weights": "relative"})
    ]
    assert errors[1] < 1e-3 * errors[0]


def test_weighted_least_squares_is_that_of_numpy(weights: list[Tensor]) -> None:
    generator = torch.Generator().manual_seed(1)
    wanted = torch.randn(20, len(weights[1]), generator=generator, dtype=torch.float64)
    rows = torch.rand(wanted.shape, generator=generator, dtype=torch.float64)
    rows[:, ::3] *= 1e-9
    got = weighted_solutions(weights[1], wanted, rows)
    for h, b, row in zip(got, wanted, rows, strict=True):
        scaled = (row.unsqueeze(1) * weights[1]).numpy()
        expected = np.linalg.lstsq(scaled, (row * b).numpy(), rcond=None)[0]
        np.testing.assert_allclose(h, expected, rtol=1e-7, atol=1e-9)


def test_bounded_least_squares_is_that_of_scipy(weights: list[Tensor]) -> None:
    generator = torch.Generator().manual_seed(1)
    wanted = 6 * torch.randn(12, len(weights[2]), generator=generator, dtype=torch.float64)
    got = bounded.box_solutions(weights[2], wanted, bound=0.9, iterations=200)
    active = 0
    for h, b in zip(got, wanted, strict=True):
        expected = lsq_linear(weights[2].numpy(), b.numpy(), bounds=(-0.9, 0.9), tol=1e-12)
        np.testing.assert_allclose(h, expected.x, atol=1e-5)
        cost = float((weights[2] @ h - b).square().sum()) / 2
        assert cost <= expected.cost * (1 + 1e-8)
        active += int((h.abs() > 0.9 - 1e-9).sum())
    assert got.abs().max() <= 0.9
    assert active > 20


def test_gauss_newton_finds_every_code_on_the_range(
    network: vae.Network, on_range: Tensor, codes: Tensor
) -> None:
    answer = gauss_newton.reconstruct(network, on_range, **GAUSS_NEWTON)
    assert worst(answer, codes) <= 1e-10
    assert answer["converged"].all()
    assert answer["residual"].max() < 1e-25
    assert (answer["iterations"] < GAUSS_NEWTON["iterations"]).all()


@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_gauss_newton_is_least_squares_of_scipy(
    penalty: float, weights: list[Tensor], images: Tensor
) -> None:
    x = images[:4].double().flatten(1)
    start = torch.zeros(len(x), SIZE, dtype=torch.float64)
    fit = gauss_newton.levenberg_marquardt(
        weights, x, start, penalty=penalty, iterations=500, tolerance=1e-13
    )
    for objective, code, image in zip(fit.objective, fit.codes, x, strict=True):

        def residuals(z: Any, image: Tensor = image) -> Any:
            code = torch.from_numpy(z)
            misfit = decode(weights, code[None])[0] - image
            return torch.cat([misfit, penalty**0.5 * code]).numpy()

        expected = least_squares(residuals, np.zeros(SIZE), method="lm", xtol=1e-14, ftol=1e-14)
        if penalty:
            np.testing.assert_allclose(code, expected.x, atol=1e-4)
            assert code.norm() <= (residuals(np.zeros(SIZE)) ** 2).sum() ** 0.5 / penalty**0.5
        assert float(objective) <= 2 * expected.cost * (1 + 1e-4)


def test_a_failure_is_told_for_its_image_and_more_rounds_never_make_it_worse(
    network: vae.Network, on_range: Tensor, images: Tensor
) -> None:
    x = torch.cat([on_range[:5], images[:5].double()])
    residuals = []
    for rounds in (1, 3):
        settings = {**GAUSS_NEWTON, "rounds": rounds, "iterations": 15, "tolerance": 1e-14}
        answer = gauss_newton.reconstruct(network, x, **settings)
        assert answer["converged"][:5].all()
        assert (answer["residual"][5:] > 1e-3).all()
        residuals.append(answer["residual"])
    assert (residuals[1] <= residuals[0] * (1 + 1e-12) + 1e-30).all()
    settings = {**GAUSS_NEWTON, "rounds": 1, "iterations": 1}
    answer = gauss_newton.reconstruct(network, x, **settings)
    assert not answer["converged"][5:].any()


def test_gradient_lowers_what_the_encoder_starts_from_and_loses_to_gauss_newton(
    network: vae.Network, images: Tensor
) -> None:
    x = images[:10].double()
    residuals = {
        name: METHODS[name][0](network, x, **METHODS[name][1])["residual"].mean()
        for name in ("encoder", "gradient", "gauss_newton")
    }
    assert residuals["gauss_newton"] <= residuals["gradient"] < residuals["encoder"]


def test_the_callback_sees_every_step(network: vae.Network, on_range: Tensor) -> None:
    seen: list[tuple[int, Tensor]] = []
    gradient.reconstruct(
        network, on_range, **GRADIENT, callback=lambda step, loss, z: seen.append((step, loss))
    )
    assert [step for step, _ in seen] == list(range(GRADIENT["steps"] + 1))
    assert (seen[-1][1] < seen[0][1]).all()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_the_same_twice_and_estimates_in_float64(
    name: str, network: vae.Network, on_range: Tensor
) -> None:
    method, settings = METHODS[name]
    first, second = (method(network, on_range[:4], **settings) for _ in range(2))
    assert first["estimate"].dtype == torch.float64
    assert first["estimate"].shape == (4, SIZE)
    assert first["converged"].dtype == torch.bool
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", METHODS)
def test_what_no_decoder_put_out_is_refused(
    name: str, network: vae.Network, on_range: Tensor
) -> None:
    method, settings = METHODS[name]
    holed = on_range.clone()
    holed[0, 3, 3] = torch.nan
    wrong = {
        "NaN": holed,
        r"\(30, 784\)": on_range.flatten(1),
        r"\(30, 14, 28\)": on_range[:, :14],
        r"outside \[0, 1\]": 2 * on_range,
    }
    for message, x in wrong.items():
        with pytest.raises(BadInput, match=message):
            method(network, x, **settings)
    other = dense.Network(widths=[8], gain=1.0, dropout=0.0)
    with pytest.raises(BadInput, match="no decoder"):
        method(other, on_range, **settings)
