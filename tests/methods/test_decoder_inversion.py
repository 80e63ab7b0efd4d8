"""Inversions of a decoder against closed forms, torch.func, scipy, and what they refuse."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares, lsq_linear
from torch import Tensor

from retrace.checks import check_runs
from retrace.methods.decoder_inversion import (
    bounded,
    encoder,
    gauss_newton,
    gradient,
    layerwise,
)
from retrace.methods.decoder_inversion._decoder import (
    activations,
    decode,
    jacobian,
    pulled_back,
    slopes,
    weighted_solutions,
)
from retrace.networks import dense, vae
from retrace.pipeline.command import Refusal
from retrace.pipeline.params import load
from retrace.problems.decoder_inversion import score as decoder_inversion
from retrace.problems.decoder_inversion.observe import PENALTIES, best_objectives
from retrace.types import BadInput

pytestmark = pytest.mark.numerical

SIZE = 4
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


def network_of(gain: float) -> vae.Network:
    """A decoder drawn at random; a larger gain saturates more of its hidden units."""
    torch.manual_seed(0)
    network = vae.Network(code_size=SIZE, widths=[48, 24], weighting="elbo", divergence_weight=1.0)
    with torch.no_grad():
        for weight in network.decoder.parameters():
            weight.copy_(gain * torch.randn(weight.shape) / weight.shape[1] ** 0.5)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def network() -> vae.Network:
    return network_of(1.5)


@pytest.fixture(scope="module")
def weights(network: vae.Network) -> list[Tensor]:
    return [weight.double() for weight in network.decoder_weights()]


@pytest.fixture(scope="module")
def codes() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(30, SIZE, generator=generator, dtype=torch.float64)


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


def test_the_divergence_is_that_of_torch_and_the_averaged_loss_has_the_stated_beta(
    images: Tensor,
) -> None:
    torch.manual_seed(0)
    network = vae.Network(code_size=16, widths=[32], weighting="elbo", divergence_weight=1.0)
    mean, log_variance = network.encode(images[:5])
    posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = torch.distributions.kl_divergence(posterior, prior).sum(dim=1)
    entropy, divergence = network.terms(images[:5], torch.zeros_like(mean))
    torch.testing.assert_close(divergence, expected)
    decoded = network.decode(mean).flatten(1).double()
    x = images[:5].flatten(1).double()
    by_hand = -(x * decoded.log() + (1 - x) * (1 - decoded).log()).sum(dim=1)
    torch.testing.assert_close(entropy.double(), by_hand, rtol=1e-5, atol=1e-4)

    losses = {}
    for weighting, weight in (("averaged", 0.1), ("elbo", 4.9)):
        network.weighting, network.divergence_weight = weighting, weight  # type: ignore[assignment]
        torch.manual_seed(1)
        losses[weighting] = network.loss(images[:5], torch.zeros(5))
    torch.testing.assert_close(784 * losses["averaged"], losses["elbo"])


def test_an_epoch_is_judged_by_the_same_noise_each_time(
    network: vae.Network, images: Tensor
) -> None:
    first, second = (network.evaluate(images[:6], torch.zeros(6)) for _ in range(2))
    assert next(iter(first)) == "negative_elbo"
    assert all(torch.equal(first[key], second[key]) for key in first)
    total = first["cross_entropy"] + first["divergence"]
    torch.testing.assert_close(first["negative_elbo"], total)


@pytest.mark.parametrize("rows", ["none", "relative", "absolute"])
def test_without_clamps_the_layerwise_inverse_is_exact_on_the_range(
    rows: str, network: vae.Network, on_range: Tensor, codes: Tensor
) -> None:
    settings = {**LAYERWISE, "weights": rows}
    answer = layerwise.reconstruct(network, on_range, **settings)
    assert worst(answer, codes) < 1e-8
    assert answer["converged"].all()


def test_the_certificate_says_why(network: vae.Network, codes: Tensor) -> None:
    layers = decoder_inversion.certificate(network_of(1.5).double(), codes)
    assert [layer["rank"] for layer in layers.values()] == [SIZE, 24, 48]
    assert all(layer["rank"] == layer["columns"] for layer in layers.values())
    for layer, weight in zip(layers.values(), network.decoder_weights(), strict=True):
        assert layer["condition"] == pytest.approx(np.linalg.cond(weight.double().numpy()))
    assert 0 <= layers["layer_2"]["saturated"] < 0.2
    harder = decoder_inversion.certificate(network_of(8.0).double(), codes)
    assert harder["layer_2"]["saturated"] > 0.5


def test_clamps_destroy_what_saturated_units_hold() -> None:
    network = network_of(4.0)
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


def test_a_decoder_without_an_inverse_is_refused() -> None:
    with pytest.raises(BadInput, match=r"widths = \[16, 32\].*no inverse"):
        vae.Network(code_size=8, widths=[16, 32], weighting="elbo", divergence_weight=1.0)


def scored(estimate: Tensor, network: vae.Network, x: Tensor, codes: Tensor) -> dict[str, Any]:
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


def test_scores_of_known_errors(codes: Tensor) -> None:
    network = network_of(1.5).double()
    x = network.decode(codes)
    estimate = codes.repeat(4, 1, 1)
    scores = scored(estimate, network, x, codes)
    assert all(scores[group]["solved"] == 1 for group in scores)
    assert scores["on_range_float64"]["code_error_max"] == 0
    assert scores["on_range_uint8"]["ssim"] == pytest.approx(1)
    estimate[0, 0, 2] += 0.5
    estimate[3, 0, 2] += 0.5
    scores = scored(estimate, network, x, codes)
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
def test_scores_of_what_does_not_fit_are_refused(
    change: str, message: str, network: vae.Network, codes: Tensor
) -> None:
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


def test_the_best_objective_is_none_that_a_run_could_beat(
    network: vae.Network, images: Tensor
) -> None:
    x = images[:3].double()
    best = best_objectives(network, x)
    assert best.shape == (len(PENALTIES), 3)
    for penalty, objective in zip(PENALTIES, best, strict=True):
        settings = {**GAUSS_NEWTON, "penalty": penalty}
        answer = gauss_newton.reconstruct(network, x, **settings)
        reached = 784 * answer["residual"] + penalty * answer["estimate"].square().sum(dim=1)
        assert (objective <= 1.001 * reached).all()


def test_the_optima_are_known_for_the_penalties_of_the_runs() -> None:
    runs = [run for run in check_runs(load()).values() if run.problem == "decoder_inversion"]
    used = {run.settings["penalty"] for run in runs if "penalty" in run.settings}
    assert used == set(PENALTIES)
