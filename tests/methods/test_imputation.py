"""Imputation methods against closed forms, an independent implementation and the baselines."""

from typing import Any

import numpy as np
import pytest
import torch
from hidden import BOTTOM, RANDOM, hide
from sklearn.linear_model import Ridge
from torch import Tensor

from retrace.methods.autoencoding import one_pass as autoencoding
from retrace.methods.imputation import backpropagation, fill, one_pass, ridge
from retrace.networks import dense, gaussian
from retrace.pipeline.params import Mask

pytestmark = pytest.mark.numerical

SETTINGS: dict[str, Any] = {
    "objective": "known",
    "start": "zero",
    "answer": "output",
    "steps": 20,
    "learning_rate": 0.1,
    "restarts": 1,
    "seed": 0,
}


@pytest.fixture(scope="module")
def statistics(images: Tensor) -> gaussian.Network:
    network = gaussian.Network()
    network.fit((images[:1000], torch.empty(0)), (images[:10], torch.zeros(10)))
    return network


@pytest.fixture(scope="module")
def autoencoder(images: Tensor) -> dense.Network:
    """PCA as a linear autoencoder with a sigmoid: deterministic, and no training needed."""
    torch.manual_seed(0)
    network = dense.Network(widths=[12], gain=1.0, dropout=0.0)
    data = images[:1000].flatten(1)
    mean = data.mean(dim=0)
    components = torch.linalg.svd(data - mean, full_matrices=False).Vh[:12]
    encoder, decoder = network.encoder[0], network.decoder[0]
    with torch.no_grad():
        encoder.weight.copy_(components)  # type: ignore[operator]
        encoder.bias.copy_(-components @ mean)  # type: ignore[operator]
        decoder.weight.copy_(4 * components.T)  # type: ignore[operator]
        decoder.bias.copy_(4 * mean - 2)  # type: ignore[operator]
        network.get_buffer("mean").copy_(mean.reshape(28, 28))
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("pattern", [BOTTOM, RANDOM])
def test_ridge_agrees_with_scikit_learn(
    pattern: Mask, images: Tensor, statistics: gaussian.Network
) -> None:
    observed = hide(images[1000:1003], pattern)
    got = ridge.reconstruct(statistics, observed, penalty=0.02)
    training = images[:1000].flatten(1).double().numpy()
    for given, estimate in zip(observed.flatten(1).double().numpy(), got.flatten(1), strict=True):
        missing = np.isnan(given)
        # scikit-learn's penalty weighs the sum of squares, ours their mean.
        model = Ridge(alpha=0.02 * len(training), solver="cholesky")
        model.fit(training[:, ~missing], training[:, missing])
        expected = model.predict(given[None, ~missing])[0].clip(0, 1)
        np.testing.assert_allclose(estimate[missing], expected, atol=1e-6)
        np.testing.assert_allclose(estimate[~missing], given[~missing], atol=1e-7)


def test_ridge_beats_the_mean_and_the_mean_beats_zero(
    images: Tensor, statistics: gaussian.Network
) -> None:
    truth = images[1000:1100]
    observed = hide(truth, BOTTOM)
    errors = [
        (estimate - truth).square().mean()
        for estimate in (
            ridge.reconstruct(statistics, observed, penalty=0.02),
            fill.reconstruct(statistics, observed, value="mean"),
            fill.reconstruct(statistics, observed, value="zero"),
        )
    ]
    assert errors[0] < 0.8 * errors[1] < 0.8 * errors[2]


def test_fill_keeps_what_is_known(images: Tensor, statistics: gaussian.Network) -> None:
    observed = hide(images[:4], RANDOM)
    filled = fill.reconstruct(statistics, observed, value="zero")
    known = ~observed.isnan()
    assert torch.equal(filled[known], observed[known])
    assert not filled[~known].any()


def test_one_pass_is_the_network_of_the_filled_image(
    images: Tensor, autoencoder: dense.Network
) -> None:
    observed = hide(images[:4], BOTTOM)
    expected = autoencoder(observed.nan_to_num(0.0))
    got = one_pass.reconstruct(autoencoder, observed, start="zero")
    torch.testing.assert_close(got, expected)


def one_image(network: torch.nn.Module, observed: Tensor, settings: dict[str, Any]) -> Tensor:
    """The method for one image, written again plainly: only the missing pixels are variables."""
    missing = observed.isnan()
    free = torch.zeros(int(missing.sum()), requires_grad=True)
    optimiser = torch.optim.Adam([free], lr=settings["learning_rate"])

    def image() -> Tensor:
        return observed.nan_to_num(0.0).masked_scatter(missing, free)

    for _ in range(settings["steps"]):
        output = network(image()[None])[0]
        if settings["objective"] == "known":
            loss = (output - observed)[~missing].square().mean()
        elif settings["objective"] == "whole":
            loss = (output - image()).square().mean()
        else:
            pasted = torch.where(missing, output, observed)
            target = observed.nan_to_num(0.0)
            loss = (pasted - target).square().sum() / missing.sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            free.clamp_(0, 1)
    return network(image()[None])[0] if settings["answer"] == "output" else image()


@pytest.mark.parametrize("objective", ["known", "whole", "masked_target"])
@pytest.mark.parametrize("answer", ["input", "output"])
def test_the_batch_gives_what_one_image_at_a_time_gives(
    objective: str, answer: str, images: Tensor, autoencoder: dense.Network
) -> None:
    settings = {**SETTINGS, "objective": objective, "answer": answer}
    observed = torch.cat([hide(images[:3], BOTTOM), hide(images[3:6], RANDOM)])
    got = backpropagation.reconstruct(autoencoder, observed, **settings)
    expected = torch.stack([one_image(autoencoder, x, settings) for x in observed])
    torch.testing.assert_close(got, expected.detach(), rtol=0, atol=2e-4)


def test_the_objective_falls_and_is_shown_at_every_step(
    images: Tensor, autoencoder: dense.Network
) -> None:
    losses: list[Tensor] = []
    backpropagation.reconstruct(
        autoencoder,
        hide(images[:10], BOTTOM),
        **SETTINGS,
        callback=lambda step, loss, estimate: losses.append(loss),
    )
    assert len(losses) == SETTINGS["steps"] + 1
    assert (losses[-1] < losses[0]).all()


def test_known_pixels_of_the_input_stay(images: Tensor, autoencoder: dense.Network) -> None:
    observed = hide(images[:5], RANDOM)
    settings = {**SETTINGS, "objective": "whole", "answer": "input"}
    got = backpropagation.reconstruct(autoencoder, observed, **settings)
    known = ~observed.isnan()
    assert torch.equal(got[known], observed[known])
    assert got.min() >= 0 and got.max() <= 1


def test_more_restarts_never_raise_the_objective(
    images: Tensor, autoencoder: dense.Network
) -> None:
    observed = hide(images[:6], BOTTOM)
    final = []
    for restarts in (1, 4):
        losses: list[Tensor] = []
        settings = {**SETTINGS, "start": "noise", "steps": 5, "restarts": restarts}
        got = backpropagation.reconstruct(
            autoencoder,
            observed,
            **settings,
            callback=lambda step, loss, estimate, kept=losses: kept.append(loss),  # type: ignore[misc]
        )
        assert got.shape == observed.shape
        final.append(losses[-1])
    # The first start of four is the start of one: the noise is drawn restart by restart.
    assert (final[1] <= final[0] + 1e-7).all()


def test_the_masked_target_pulls_to_black(images: Tensor, autoencoder: dense.Network) -> None:
    truth = images[1000:1040]
    observed = hide(truth, BOTTOM)
    missing = observed.isnan()
    brightness = {}
    for objective in ("known", "masked_target"):
        settings = {**SETTINGS, "objective": objective, "steps": 60}
        got = backpropagation.reconstruct(autoencoder, observed, **settings)
        brightness[objective] = got[missing].mean()
    assert brightness["masked_target"] < 0.8 * brightness["known"]


def test_methods_of_an_autoencoder_run_alone(images: Tensor, autoencoder: dense.Network) -> None:
    truth = images[1000:1040]
    observed = hide(truth, RANDOM)
    missing = observed.isnan()
    passed = one_pass.reconstruct(autoencoder, observed)
    optimised = backpropagation.reconstruct(autoencoder, observed)
    trivial = fill.reconstruct(autoencoder, observed)
    once, often, none = ((x - truth)[missing].square().mean() for x in (passed, optimised, trivial))
    assert often < once < none
    coded = autoencoding.reconstruct(autoencoder, truth)
    assert (coded - truth).square().mean() < (
        autoencoder.get_buffer("mean") - truth
    ).square().mean()
