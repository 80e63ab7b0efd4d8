"""Networks trained to the maximum margin: gradients against autograd, measures, training."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.optimize import nnls
from torch import Tensor

from retrace.networks.margin import (
    Network,
    descent_step,
    gradient_factors,
    kkt_measures,
    normalised_step,
    training_set,
)
from retrace.pipeline.artifacts import load_checkpoint, save_checkpoint
from retrace.pipeline.command import Refusal
from retrace.pipeline.params import bind
from retrace.types import BadInput, Split

pytestmark = pytest.mark.numerical

METHODS = ("normalised", "gradient_descent", "weight_decay")
CHOICE: dict[str, Any] = {
    "examples": "parity",
    "labels": "correct",
    "per_class": 5,
    "offset": 0,
    "seed": 0,
}
TRAINING: dict[str, Any] = {
    **CHOICE,
    "method": "normalised",
    "steps": 300,
    "learning_rate": 0.05,
    "decay": 0.05,
    "margin": 5.0,
    "sharpening": 2.0,
    "weight_decay": 0.0,
    "report_every": 100,
}
# Each method's own rate, and a weight decay that does not keep it from the classes.
OF_METHOD: dict[str, dict[str, Any]] = {
    "normalised": {},
    "gradient_descent": {"learning_rate": 0.3, "decay": 1.0},
    "weight_decay": {"learning_rate": 0.3, "decay": 1.0, "weight_decay": 1e-3},
}


@pytest.fixture(scope="module")
def splits(digit_splits: dict[str, dict[str, Any]]) -> dict[str, Split]:
    """Training and validation as `read_split` gives them."""
    return {
        name: (
            torch.from_numpy(digit_splits[name]["images"].astype(np.float32) / 255),
            torch.from_numpy(digit_splits[name]["labels"].astype(np.int64)),
        )
        for name in ("train", "validation")
    }


def silent(entry: dict[str, float]) -> None:
    pass


def drawn(*widths: int, shape: tuple[int, ...] = (28, 28), deviation: float = 1e-3) -> Network:
    torch.manual_seed(0)
    return Network(shape=list(shape), widths=list(widths), first_deviation=deviation)


def fitted(
    splits: dict[str, Split], *widths: int, **changes: Any
) -> tuple[Network, list[dict[str, float]]]:
    network = drawn(*widths or (32, 32))
    settings = {**TRAINING, **changes}
    return network, network.fit(splits["train"], splits["validation"], silent, **settings)


def random_problem(*widths: int) -> tuple[Network, Tensor, Tensor]:
    """A network of 4 x 4 images in float64, seven images and their signs."""
    network = drawn(*widths, shape=(4, 4), deviation=0.4).double()
    network.mean.uniform_(0.2, 0.6)
    images = torch.randn(7, 4, 4, dtype=torch.float64)
    return network, images, torch.tensor([1, -1, 1, 1, -1, -1, 1], dtype=torch.float64)


def gradient_matrix(network: Network, images: Tensor) -> Tensor:
    """Gradients of f(x_i) with respect to all parameters by autograd: (n, parameters)."""
    parameters = list(network.parameters())
    return torch.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(f, parameters, retain_graph=True)])
            for f in network(images)
        ]
    )


def flat(network: Network) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def stationarity_by_nnls(network: Network, images: Tensor, signs: Tensor) -> float:
    """Relative distance of the weights from the cone of y_i grad f(x_i), all of it explicit."""
    theta = flat(network)
    columns = (signs[:, None] * gradient_matrix(network, images)).T
    _, distance = nnls(columns.numpy(), theta.numpy())
    return float(distance) / float(theta.norm())


@pytest.mark.parametrize("widths", [(12,), (12, 9), (12, 9, 7)])
def test_factors_of_the_gradients_agree_with_autograd(widths: tuple[int, ...]) -> None:
    network, images, signs = random_problem(*widths)
    margins, activations, deltas = gradient_factors(network, images, signs)
    torch.testing.assert_close(margins, signs * network(images).detach())
    torch.testing.assert_close(activations[0], images.flatten(1) - network.mean)
    of_weights = [
        (delta[:, :, None] * activation[:, None, :]).flatten(1)
        for delta, activation in zip(deltas, activations, strict=True)
    ]
    explicit = torch.cat([of_weights[0], deltas[0], *of_weights[1:]], dim=1)
    expected = signs[:, None] * gradient_matrix(network, images)
    torch.testing.assert_close(explicit, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("widths", [(12,), (12, 9)])
def test_steps_follow_their_formulas(widths: tuple[int, ...]) -> None:
    rate, depth = 0.1, len(widths) + 1
    network, images, signs = random_problem(*widths)
    signs = signs.where(signs * network(images).detach() > 0, -signs)  # all classified
    margins, theta = signs * network(images), flat(network)
    gradients = signs[:, None] * gradient_matrix(network, images)
    wanted = float(margins.detach().min()) * 1.1**depth
    normalised_step(list(network.parameters()), margins, rate=rate, wanted=wanted)
    ascent = (-margins.detach() * 1.1**depth).softmax(dim=0) @ gradients
    expected = 1.1 * ((1 - rate) * theta + rate * theta.norm() * ascent / ascent.norm())
    torch.testing.assert_close(flat(network), expected, rtol=1e-10, atol=1e-12)

    network, _, _ = random_problem(*widths)
    margins = signs * network(images)
    loss = torch.nn.functional.softplus(-margins).mean() + 0.02 * sum(
        parameter.square().sum() for parameter in network.parameters()
    )
    gradient = torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))]
    )
    margins = signs * network(images)
    descent_step(list(network.parameters()), margins, rate=rate, weight_decay=0.02)
    torch.testing.assert_close(flat(network), theta - rate * gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("widths", [(12,), (12, 9), (12, 9, 7)])
def test_the_network_is_homogeneous_and_fulfils_eulers_identity(widths: tuple[int, ...]) -> None:
    network, images, _ = random_problem(*widths)
    logits, depth = network(images).detach(), len(widths) + 1
    torch.testing.assert_close(gradient_matrix(network, images) @ flat(network), depth * logits)
    for parameter in network.parameters():
        parameter.data.mul_(2)
    torch.testing.assert_close(network(images).detach(), 2**depth * logits)


@pytest.mark.parametrize("widths", [(12,), (12, 9)])
def test_stationarity_agrees_with_the_explicit_gradients_of_a_random_network(
    widths: tuple[int, ...],
) -> None:
    network, images, signs = random_problem(*widths)
    measures = kkt_measures(network, images, signs)
    expected = stationarity_by_nnls(network, images, signs)
    assert measures["stationarity_residual"] == pytest.approx(expected, rel=1e-6)
    assert 0.3 < expected < 1  # some of it is explained, most of it is not


@pytest.mark.parametrize("method", METHODS)
def test_stationarity_and_the_other_measures_agree_on_a_trained_network(
    method: str, splits: dict[str, Split]
) -> None:
    network, history = fitted(splits, 10, 8, method=method, **OF_METHOD[method])
    images, signs, _ = training_set(splits["train"], **CHOICE)
    images, signs = images.double(), signs.double()
    network.double()
    last = history[-1]
    expected = stationarity_by_nnls(network, images, signs)
    assert last["stationarity_residual"] == pytest.approx(expected, rel=1e-4)
    assert expected < 0.9
    margins = signs * network(images).detach()
    theta = flat(network)
    assert last["smallest_margin"] == pytest.approx(float(margins.min()), rel=1e-4)
    assert last["norm"] == pytest.approx(float(theta.norm()), rel=1e-6)
    normalised = float(margins.min() / theta.norm() ** 3)
    assert last["normalised_margin"] == pytest.approx(normalised, rel=1e-4)
    assert last["training_error"] == float((margins <= 0).double().mean()) == 0
    assert 1 <= last["support_vectors"] <= 10
    validation, digits = splits["validation"]
    wrong = (network(validation.double()) > 0) != (digits % 2 == 1)
    assert last["test_error"] == pytest.approx(float(wrong.double().mean()), abs=0.01)
    spectrum = np.linalg.svd(network.layers[1].weight.detach().numpy(), compute_uv=False)  # type: ignore[operator]
    assert last["rank_2"] == (spectrum > 1e-4 * spectrum[0]).sum()


def test_measures_of_a_network_that_classifies_nothing_are_finite() -> None:
    network, images, _ = random_problem(12, 9)
    measures = kkt_measures(network, images, -network(images).detach().sign())
    assert measures["training_error"] == 1
    assert measures["stationarity_residual"] == pytest.approx(1)
    assert all(math.isfinite(value) for value in measures.values())


@pytest.mark.parametrize("labels", ["correct", "random"])
def test_a_training_set_is_balanced(labels: str, splits: dict[str, Split]) -> None:
    images, signs, mean = training_set(splits["train"], **{**CHOICE, "labels": labels})
    assert images.shape == (10, 784) and mean.shape == (784,)
    assert images.dtype == signs.dtype == mean.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1
    assert sorted(signs.tolist()) == [-1] * 5 + [1] * 5


def rows_among(rows: Tensor, images: Tensor) -> list[int]:
    """Positions of rows (m, d) among the images (n, 28, 28)."""
    equal = (rows[:, None] == images.flatten(1)[None]).all(dim=2)
    assert equal.any(dim=1).all()
    return [int(position) for position in equal.int().argmax(dim=1)]


def test_the_signs_are_the_parities(splits: dict[str, Split]) -> None:
    images, signs, _ = training_set(splits["train"], **CHOICE)
    parities = splits["train"][1][rows_among(images, splits["train"][0])] % 2
    assert parities.tolist() == [1] * 5 + [0] * 5
    assert signs.tolist() == [1] * 5 + [-1] * 5


def test_an_offset_gives_other_images_in_order(splits: dict[str, Split]) -> None:
    everything = splits["train"][0]
    long, first, second = (
        rows_among(training_set(splits["train"], **{**CHOICE, **changes})[0], everything)
        for changes in ({"per_class": 10}, {}, {"offset": 5})
    )
    assert len(set(long)) == 20 and not set(first) & set(second)
    assert first[:5] + second[:5] == long[:10] and first[5:] + second[5:] == long[10:]


def test_the_public_mean_knows_nothing_of_the_set(splits: dict[str, Split]) -> None:
    everything, digits = splits["train"]
    images, _, mean = training_set((everything, digits), **{**CHOICE, "offset": 3})
    chosen = rows_among(images, everything)
    kept = np.delete(everything.flatten(1).double().numpy(), chosen, axis=0)
    np.testing.assert_allclose(mean.numpy(), kept.mean(axis=0), atol=1e-5)
    changed = everything.clone()
    changed[chosen] = torch.rand(10, 28, 28)
    assert torch.equal(training_set((changed, digits), **{**CHOICE, "offset": 3})[2], mean)


def test_too_few_images_are_refused(splits: dict[str, Split]) -> None:
    odd = int((splits["train"][1] % 2).sum())
    smaller = min(odd, len(splits["train"][1]) - odd)
    training_set(splits["train"], **{**CHOICE, "offset": smaller - 5})
    message = rf"^offset \+ training\.per_class = {smaller + 1}: .* holds {smaller} images"
    with pytest.raises(BadInput, match=message):
        training_set(splits["train"], **{**CHOICE, "offset": smaller - 4})


def test_random_labels_are_drawn_by_the_seed_alone(splits: dict[str, Split]) -> None:
    choice = {**CHOICE, "labels": "random", "per_class": 20}
    images, signs, mean = training_set(splits["train"], **choice)
    again = training_set(splits["train"], **choice)
    assert all(torch.equal(a, b) for a, b in zip((images, signs, mean), again, strict=True))
    other = training_set(splits["train"], **{**choice, "seed": 1})
    assert torch.equal(other[0], images) and not torch.equal(other[1], signs)
    correct = training_set(splits["train"], **{**choice, "labels": "correct"})
    assert torch.equal(correct[0], images) and torch.equal(correct[2], mean)
    assert 8 <= (signs == correct[1]).sum() <= 32  # about half of 40


def test_colours_are_pure(splits: dict[str, Split]) -> None:
    images, signs, mean = training_set(splits["train"], **{**CHOICE, "examples": "colours"})
    assert images.shape == (10, 192)
    for sign, channel in ((1, 0), (-1, 2)):
        shown = images[signs == sign].unflatten(1, (3, 64))
        assert len(shown) == 5
        assert (shown[:, channel] == 1).all()
        assert not shown[:, [c for c in range(3) if c != channel]].any()
    assert (mean == 0.5).all()


@pytest.mark.parametrize("widths", [(32,), (32, 32)])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_its_set(
    method: str, widths: tuple[int, ...], splits: dict[str, Split]
) -> None:
    seen: list[dict[str, float]] = []
    network = drawn(*widths)
    settings = {**TRAINING, "method": method, **OF_METHOD[method]}
    history = network.fit(splits["train"], splits["validation"], seen.append, **settings)
    assert history == seen
    assert [entry["epoch"] for entry in history] == [0, 100, 200, 300]
    images, signs, mean = training_set(splits["train"], **CHOICE)
    assert (signs * network(images.unflatten(1, (28, 28))) > 0).all()
    assert history[0]["training_error"] > 0 and history[-1]["training_error"] == 0
    assert history[-1]["stationarity_residual"] < history[0]["stationarity_residual"]
    assert torch.equal(network.mean, mean)


def test_normalised_steps_come_nearer_to_a_kkt_point_than_gradient_descent(
    splits: dict[str, Split],
) -> None:
    last = {
        method: fitted(splits, method=method, **OF_METHOD[method])[1][-1]
        for method in ("normalised", "gradient_descent")
    }
    residuals = [last[method]["stationarity_residual"] for method in last]
    assert residuals[0] < 0.5 * residuals[1]
    margins = [last[method]["normalised_margin"] for method in last]
    assert margins[0] > margins[1]


def test_the_normalised_margin_is_scaled_as_it_is_told(splits: dict[str, Split]) -> None:
    _, history = fitted(splits, margin=3.0, sharpening=4.0)
    assert history[-1]["smallest_margin"] == pytest.approx(12, rel=0.02)


@pytest.mark.parametrize("widths", [(32,), (32, 32)])
def test_weight_decay_converges_to_its_stationary_point(
    widths: tuple[int, ...], splits: dict[str, Split]
) -> None:
    # Red and blue lie at an obtuse angle. Of images that do not, some units end at the kink of
    # one, where plain steps never come to rest.
    decay = 0.01
    network = drawn(*widths, shape=(3, 8, 8))
    choice = {**CHOICE, "examples": "colours"}
    settings = {
        **TRAINING,
        **choice,
        "method": "weight_decay",
        "weight_decay": decay,
        "learning_rate": 0.3,
        "decay": 1.0,
        "steps": 3000,
        "report_every": 3000,
    }
    history = network.fit(splits["train"], splits["validation"], silent, **settings)
    images, signs, _ = training_set(splits["train"], **choice)
    images, signs = images.double(), signs.double()
    network.double()
    logits = network(images).detach()
    shares = (-signs * logits).sigmoid() / len(signs)
    expected = (shares * signs) @ gradient_matrix(network, images) / (2 * decay)
    theta = flat(network)
    assert float((theta - expected).norm() / theta.norm()) < 1e-4
    assert history[-1]["stationarity_residual"] < 1e-4
    assert history[-1]["smallest_margin"] > 0
    assert "test_error" not in history[-1]  # no validation image has colours


def test_no_steps_leave_the_network_as_it_was_drawn(splits: dict[str, Split]) -> None:
    network, history = fitted(splits, steps=0)
    assert torch.equal(flat(network), flat(drawn(32, 32)))
    assert [entry["epoch"] for entry in history] == [0]
    assert torch.equal(network.mean, training_set(splits["train"], **CHOICE)[2])


def test_defaults_learn_a_small_set(splits: dict[str, Split]) -> None:
    torch.manual_seed(0)
    network = Network(widths=[64, 64])
    history = network.fit(splits["train"], splits["validation"], per_class=20, steps=400)
    assert [entry["epoch"] for entry in history] == [0, 200, 400]
    assert history[-1]["training_error"] == 0 and history[-1]["test_error"] < 0.2


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bytes(method: str, splits: dict[str, Split]) -> None:
    settings = {"method": method, **OF_METHOD[method], "labels": "random", "steps": 50}
    first, again, other = (
        flat(fitted(splits, **settings, seed=seed)[0]).numpy().tobytes() for seed in (0, 0, 1)
    )
    assert first == again and first != other


@pytest.mark.parametrize(
    ("shape", "examples"), [((4, 4), "parity"), ((28, 28), "colours"), ((3, 8, 8), "parity")]
)
def test_images_of_another_shape_are_refused(
    shape: tuple[int, ...], examples: str, splits: dict[str, Split]
) -> None:
    network = drawn(8, shape=shape)
    with pytest.raises(BadInput, match=rf"^examples = '{examples}'.* shape = "):
        network.fit(
            splits["train"], splits["validation"], silent, **{**TRAINING, "examples": examples}
        )


@pytest.mark.parametrize("method", METHODS)
def test_a_learning_rate_that_diverges_is_one_line(method: str, splits: dict[str, Split]) -> None:
    with pytest.raises(
        BadInput, match=r"^learning_rate = 1e\+10: the logits are not finite .* lower it"
    ) as refusal:
        fitted(splits, method=method, learning_rate=1e10, weight_decay=1e-3)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("method", ["gradient_descent", "weight_decay"])
def test_a_learning_rate_that_kills_all_units_is_refused(
    method: str, splits: dict[str, Split]
) -> None:
    with pytest.raises(
        BadInput, match=r"^learning_rate = 5: all units are off and .* at step \d+; lower it"
    ):
        fitted(splits, method=method, learning_rate=5.0, decay=1.0, weight_decay=1e-3)


def test_settings_are_checked_before_training() -> None:
    check: Callable[..., dict[str, Any]] = bind
    assert check(Network.fit, TRAINING, where="networks.m.training", given=()) == TRAINING
    everything = check(Network.fit, {}, where="networks.m.training", given=())
    assert everything.keys() == TRAINING.keys() and everything["per_class"] == 250
    for changes, message in (
        ({"method": "magic"}, "networks.m.training.method = 'magic'"),
        ({"decay": 0.0}, "networks.m.training.decay = 0.0"),
        ({"sharpening": 0.5}, "networks.m.training.sharpening = 0.5"),
    ):
        with pytest.raises(Refusal, match=message):
            check(Network.fit, {**TRAINING, **changes}, where="networks.m.training", given=())


def test_a_checkpoint_holds_the_public_mean_and_no_training_image(
    splits: dict[str, Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    network, _ = fitted(splits)
    arguments = {"shape": [28, 28], "widths": [32, 32], "first_deviation": 1e-3}
    save_checkpoint(network, name="m", architecture="margin", arguments=arguments, dataset="digits")
    path = tmp_path / "models" / "m.safetensors"
    loaded, header = load_checkpoint(path)
    assert header["architecture"] == "margin" and header["arguments"] == arguments
    images, _, mean = training_set(splits["train"], **CHOICE)
    assert torch.equal(loaded.get_buffer("mean"), mean)
    shown = splits["validation"][0]
    with torch.no_grad():
        assert torch.equal(loaded(shown), network(shown))
    tensors = load_file(path)
    assert set(tensors) == {"mean", "layers.0.bias", *(f"layers.{i}.weight" for i in range(3))}
    for tensor in tensors.values():
        if tensor.shape[-1] == 784:
            for held in (images, images - mean):
                assert torch.cdist(tensor.reshape(-1, 784), held).min() > 0.1
