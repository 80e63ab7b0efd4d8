"""Imputation with a prior, against closed forms, autograd and exact posteriors."""

from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hidden import BOTTOM, RANDOM, hide
from scipy.spatial.distance import cdist
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from retrace.execution import shards
from retrace.measures.quality import mse
from retrace.methods.imputation import (
    _latent,
    backpropagation_prior,
    biharmonic,
    combined,
    denoising_score,
    fill,
    knn,
    latent_search,
    masked,
    mixture,
    posterior,
    ridge,
)
from retrace.methods.imputation._regression import Regression
from retrace.networks import denoiser, gallery, gaussian, prior
from retrace.networks import masked as masked_network
from retrace.networks._training import train
from retrace.pipeline.command import Refusal
from retrace.pipeline.params import GIVEN, EveryNthRow, Mask, RandomPixels, Rectangle, bind
from retrace.types import BadInput

pytestmark = pytest.mark.numerical

SEARCH: dict[str, Any] = {"likelihood_blocks": 1.0, "likelihood_scattered": 2.5}


def fitted(images: Tensor, *, components: int, axes: int, epochs: int) -> prior.Network:
    torch.manual_seed(0)
    network = prior.Network(code_size=8, widths=[64], components=components, axes=axes)
    network.fit(
        (images[:1000], torch.zeros(1000)),
        (images[1000:1050], torch.zeros(50)),
        epochs=epochs,
        batch_size=50,
        learning_rate=0.003,
        schedule="cosine",
        mixture_iterations=5,
        mixture_images=1000,
        seed=0,
    )
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def network(images: Tensor) -> prior.Network:
    return fitted(images, components=4, axes=20, epochs=30)


@pytest.fixture(scope="module")
def linear() -> Any:
    """A decoder without hidden layers: σ(W z + b), and everything else of a prior."""
    torch.manual_seed(1)
    layer = nn.Linear(3, 784).requires_grad_(False)
    layer.weight.mul_(3)
    return SimpleNamespace(decoder=nn.Sequential(layer))


def test_a_mixture_of_one_component_is_ridge(images: Tensor) -> None:
    network = fitted(images, components=1, axes=30, epochs=1)
    # The mixture's own regularisation is no part of the identity.
    network.covariances -= 1e-3 * torch.eye(30, dtype=torch.float64)
    for pattern in (BOTTOM, RANDOM):
        values = hide(images[1000:1004], pattern).flatten(1)
        expected = ridge.conditional_mean(
            values, mean=network.mean.flatten(), covariance=network.covariance, penalty=0.01
        )
        got = mixture.conditional_mean(network, values, penalty=0.01)
        missing = values.isnan()
        torch.testing.assert_close(got[missing], expected[missing], rtol=0, atol=1e-6)


def test_a_mixture_is_the_weighted_mean_of_its_components() -> None:
    """Against densities and regressions written out for all pixels, component by component."""
    torch.manual_seed(0)
    n, p, count, penalty = 784, 3, 2, 0.05
    basis = torch.linalg.qr(torch.randn(n, p, dtype=torch.float64)).Q
    rest = torch.diag(torch.rand(n, dtype=torch.float64) * 0.02)
    outside = torch.eye(n, dtype=torch.float64) - basis @ basis.T
    rest = outside @ rest @ outside
    roots = torch.randn(count, p, p, dtype=torch.float64)
    network: Any = SimpleNamespace(
        mean=torch.rand(28, 28, dtype=torch.float64),
        basis=basis,
        covariance=rest + basis @ torch.diag(torch.tensor([3.0, 2, 1]).double()) @ basis.T,
        weights=torch.tensor([0.3, 0.7], dtype=torch.float64),
        means=torch.randn(count, p, dtype=torch.float64),
        covariances=roots @ roots.mT + 0.1 * torch.eye(p, dtype=torch.float64),
    )
    values = torch.rand(2, n, dtype=torch.float64)
    values[:, 300:] = torch.nan
    evidence, regressions = [], []
    for c in range(count):
        mean = network.mean.flatten() + basis @ network.means[c]
        covariance = rest + basis @ network.covariances[c] @ basis.T
        noisy = covariance[:300, :300] + penalty * torch.eye(300, dtype=torch.float64)
        density = torch.distributions.MultivariateNormal(mean[:300], noisy)
        evidence.append(density.log_prob(values[:, :300]) + network.weights[c].log())
        centred = values[:, :300] - mean[:300]
        regressions.append(mean + (covariance[:, :300] @ torch.linalg.solve(noisy, centred.T)).T)
    weights = torch.stack(evidence).softmax(dim=0).unsqueeze(2)
    expected = (weights * torch.stack(regressions)).sum(dim=0)
    got = mixture.conditional_mean(network, values, penalty=penalty)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_either_block_gives_the_regression(share: float) -> None:
    """Versions of rows with masks of their own, some alike, against a system written out."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(40, 30, dtype=torch.float64, generator=generator)
    covariance, penalty = root @ root.T, 0.1
    known = torch.rand(5, 40, generator=generator) < share
    known[:, :3] = False  # what no row knows
    known[4] = known[3]
    residuals = torch.randn(2, 5, 40, dtype=torch.float64, generator=generator)
    residuals[:, ~known] = torch.nan
    got = Regression(covariance, known, penalty=penalty)(residuals)
    for version, estimates in zip(residuals, got, strict=True):
        for mask, values, estimate in zip(known, version, estimates, strict=True):
            noisy = covariance[mask][:, mask] + penalty * torch.eye(int(mask.sum())).double()
            expected = covariance[:, mask] @ torch.linalg.solve(noisy, values[mask])
            torch.testing.assert_close(estimate, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("pattern", [BOTTOM, RANDOM])
def test_the_gradient_of_the_search_is_that_of_the_energy(
    pattern: Mask, network: prior.Network, images: Tensor
) -> None:
    observed = hide(images[1000:1005], pattern)
    beta = torch.tensor([0.5, 1.0, 1.5, 2.0, 2.5])
    found = _latent.Energy.of(network.decoder, observed, likelihood=beta)
    codes = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    gradient, logits = found.gradient(codes)
    variable = codes.clone().requires_grad_()
    flat, seen = observed.flatten(1), ~observed.flatten(1).isnan()
    entropy = binary_cross_entropy_with_logits(
        network.decoder(variable), flat.nan_to_num(0).expand(3, -1, -1), reduction="none"
    )
    energy = beta * (entropy * seen).sum(dim=2) + variable.square().sum(dim=2) / 2
    (expected,) = torch.autograd.grad(energy.sum(), variable)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(found.at(codes, logits), energy.detach())


def test_the_precision_is_the_hessian_of_a_piecewise_linear_decoder(
    network: prior.Network, images: Tensor
) -> None:
    energy = _latent.Energy.of(network.decoder, hide(images[1000:1001], RANDOM), likelihood=2.0)
    code = torch.randn(1, 8, generator=torch.Generator().manual_seed(0))

    def value(z: Tensor) -> Tensor:
        return energy.at(z[None], energy.logits(z[None]))[0]

    expected = torch.autograd.functional.hessian(value, code[0])
    got = energy.precision(code)[0]
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def test_restarts_never_raise_the_energy(network: prior.Network, images: Tensor) -> None:
    observed = hide(images[1000:1020], BOTTOM)
    final, first = {}, {}
    for restarts in (1, 4):
        losses: list[Tensor] = []

        def watch(step: int, loss: Tensor, estimate: Tensor, seen: list[Tensor] = losses) -> None:
            assert estimate.shape == observed.shape
            seen.append(loss)

        settings: dict[str, Any] = {
            "start_penalty": 0.01,
            "steps": 40,
            "learning_rate": 0.2,
            "answer": "best",
        }
        got = latent_search.reconstruct(
            network, observed, **SEARCH, **settings, restarts=restarts, seed=0, callback=watch
        )
        assert got.shape == observed.shape and len(losses) == 41
        first[restarts], final[restarts] = losses[0], losses[-1]
    assert (final[1] < first[1]).all()
    assert (final[4] <= final[1] + 1e-4).all()


def test_importance_sampling_finds_an_exact_posterior(linear: Any) -> None:
    """Of a code in three dimensions, against a sum over a fine grid."""
    decoder = linear.decoder
    truth = decoder(torch.tensor([[0.5, -0.5, 0.3]])).sigmoid().unflatten(1, (28, 28))
    observed = torch.full_like(truth, torch.nan)
    observed[:, ::6, ::7] = truth[:, ::6, ::7]  # 20 pixels
    energy = _latent.Energy.of(decoder, observed, likelihood=1.0)
    axis = torch.linspace(-4, 4, 33)
    grid = torch.cartesian_prod(axis, axis, axis).unsqueeze(1)  # (33³, 1, 3)
    weights = (-energy.at(grid, energy.logits(grid))).softmax(dim=0)
    whole = torch.cat([decoder(part) for part in grid.split(5000)]).sigmoid()
    expected = _latent.Images(whole, weights)

    generator = torch.Generator().manual_seed(0)
    starts = torch.randn(2, 1, 3, generator=generator)
    modes = _latent.descend(energy, starts, steps=200, learning_rate=0.1)
    torch.testing.assert_close(modes.codes[0], modes.codes[1], rtol=0, atol=1e-2)  # one mode
    got = _latent.importance(energy, _latent.laplace(modes), samples=5000, generator=generator)
    torch.testing.assert_close(got.weights.sum(dim=0), torch.ones(1))
    torch.testing.assert_close(got.mean(), expected.mean(), rtol=0, atol=0.01)

    # And the samples are spread as the posterior is, which the mode alone would not tell.
    def variance(images: _latent.Images) -> Tensor:
        return images._replace(pixels=images.pixels.square()).mean() - images.mean().square()

    torch.testing.assert_close(variance(got), variance(expected), rtol=0.15, atol=1e-3)


def test_a_proposal_has_the_density_that_it_draws_from() -> None:
    torch.manual_seed(0)
    roots = torch.randn(2, 1, 2, 2)
    factors = torch.linalg.cholesky(torch.eye(2) + roots @ roots.mT)
    modes = torch.tensor([[[0.0, 0.0]], [[3.0, 1.0]]])
    proposal = _latent.Proposal(modes, factors, torch.tensor([[0.3], [0.7]]))
    codes = proposal.draw(40000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        codes.mean(dim=0), (0.3 * modes[0] + 0.7 * modes[1]), rtol=0, atol=0.05
    )
    expected = torch.stack(
        [
            weight.log()
            + torch.distributions.MultivariateNormal(mode, precision_matrix=f @ f.T).log_prob(
                codes[:, 0]
            )
            for weight, mode, f in zip(
                torch.tensor([0.3, 0.7]), modes[:, 0], factors[:, 0], strict=True
            )
        ]
    ).logsumexp(dim=0) + np.log(2 * np.pi)
    torch.testing.assert_close(proposal.log_density(codes)[:, 0], expected, rtol=0, atol=1e-4)


def test_known_pixels_among_missing_ones_are_told_from_blocks(images: Tensor) -> None:
    rows = EveryNthRow(kind="rows", first=1, step=2)
    sparse = RandomPixels(kind="random", share=0.9)
    centre = Rectangle(kind="rectangle", rows=[7, 20], columns=[7, 20])
    for pattern, expected in (
        (BOTTOM, False),
        (centre, False),
        (rows, True),
        (RANDOM, True),
        (sparse, True),
    ):
        assert (_latent.scattered(hide(images[:5], pattern)) == expected).all()


def test_methods_with_a_prior_beat_ridge(network: prior.Network, images: Tensor) -> None:
    truth = images[1050:1110]
    observed = hide(truth, BOTTOM)
    missing = observed.isnan()
    moments: Any = SimpleNamespace(
        mean=network.mean.double().flatten(), covariance=network.covariance
    )
    linear = ridge.reconstruct(moments, observed, penalty=0.01)
    settings: dict[str, Any] = {
        "starts": 3,
        "search_steps": 30,
        "learning_rate": 0.2,
        "samples": 30,
        "residual_penalty": 0.01,
        "mixture_penalty": 0.01,
        "mixture_blocks": 0.5,
        "mixture_scattered": 0.5,
        "threshold_blocks": 0.05,
        "threshold_scattered": 0.05,
        "seed": 0,
    }
    got = combined.reconstruct(network, observed, **SEARCH, **settings)
    again = combined.reconstruct(network, observed, **SEARCH, **settings)
    assert torch.equal(got, again)
    ours, baseline = (mse(x, truth, where=missing).mean() for x in (got, linear))
    assert ours < baseline


def test_backpropagation_with_a_prior_lowers_the_energy(
    network: prior.Network, images: Tensor
) -> None:
    truth = images[1050:1080]
    observed = hide(truth, BOTTOM)
    errors: dict[str, float] = {}
    losses: list[float] = []

    def watch(step: int, loss: Tensor, estimate: Tensor) -> None:
        losses.append(loss.mean().item())

    answers: tuple[Literal["output", "corrected"], ...] = ("output", "corrected")
    for answer in answers:
        losses.clear()
        got = backpropagation_prior.reconstruct(
            network,
            observed,
            **SEARCH,
            start_penalty=0.01,
            residual_penalty=0.01,
            answer=answer,
            steps=20,
            learning_rate=0.05,
            callback=watch,
        )
        errors[answer] = mse(got, truth, where=observed.isnan()).mean().item()
    assert losses[-1] < losses[0]
    assert errors["corrected"] < errors["output"]


@pytest.mark.parametrize("sampler", ["importance", "pseudo_gibbs"])
@pytest.mark.parametrize("noise", ["none", "gaussian"])
def test_samples_of_the_posterior(
    network: prior.Network, images: Tensor, sampler: str, noise: str
) -> None:
    observed = hide(images[1050:1060], BOTTOM)
    settings: dict[str, Any] = {
        "sampler": sampler,
        "noise": noise,
        "penalty": 0.01,
        "starts": 2,
        "search_steps": 10,
        "learning_rate": 0.2,
        "samples": 20,
        "completions": 4,
        "seed": 0,
    }
    got = posterior.reconstruct(network, observed, **SEARCH, **settings)
    assert got["estimate"].shape == observed.shape
    assert got["samples"].shape == (10, 4, 28, 28) and got["samples"].dtype == torch.uint8
    assert got["quantiles"].shape == (10, 6, 28, 28)
    assert (got["quantiles"].int().diff(dim=1) >= 0).all()
    # Where the pixel is known, the regression of the residual leaves less in doubt.
    missing = observed.isnan()
    deviation = got["deviation"].float()
    if noise == "gaussian":
        assert deviation[~missing].mean() < 0.7 * deviation[missing].mean()


def test_the_residual_is_drawn_from_its_exact_conditional() -> None:
    """Mean and covariance of Matheron's draws against the Gaussian's closed form."""
    torch.manual_seed(0)
    n, penalty, samples = 784, 0.02, 2000
    root = 0.1 * torch.randn(n, 5, dtype=torch.float64)
    covariance = root @ root.T
    network: Any = SimpleNamespace(
        residual_mean=torch.full((n,), 0.5, dtype=torch.float64), residual_covariance=covariance
    )
    observed = torch.full((1, 28, 28), torch.nan)
    observed.view(1, n)[0, :6] = torch.tensor([0.4, 0.6, 0.5, 0.7, 0.3, 0.5])
    residual = posterior.Residual.of(network, penalty=penalty)
    estimate, drawn = residual.added(
        torch.zeros(1, n), torch.zeros(samples, 1, n), observed, torch.Generator().manual_seed(0)
    )
    noisy = covariance[:6, :6] + penalty * torch.eye(6, dtype=torch.float64)
    gain = torch.linalg.solve(noisy, covariance[:6]).T  # (n, 6)
    known = observed.view(n)[:6].double()
    mean = 0.5 + gain @ (known - 0.5)
    exact = (covariance - gain @ covariance[:6]).diagonal().sqrt()
    estimate, deviation = estimate.flatten().double(), drawn.std(dim=0).flatten().double()
    torch.testing.assert_close(estimate, mean, rtol=0, atol=1e-4)
    torch.testing.assert_close(deviation, exact, rtol=0.1, atol=1e-3)


class Exact:
    """The denoiser of Gaussian images, float64: E[x₀ | x] = V (V + σ²)⁻¹ x in the coordinates."""

    def __init__(self, *, variances: Tensor) -> None:
        generator = torch.Generator().manual_seed(0)
        square = torch.randn(784, 784, dtype=torch.float64, generator=generator)
        self.basis = torch.linalg.qr(square).Q
        self.variances = variances
        self.mean_image = torch.full((28, 28), 0.5, dtype=torch.float64)

    def denoise(self, noisy: Tensor, noise: Tensor) -> Tensor:
        return noisy * self.variances / (self.variances + noise.square())

    def error_variances(self, noise: float) -> Tensor:
        return self.variances * noise**2 / (self.variances + noise**2)


@pytest.fixture(scope="module")
def exact() -> Exact:
    return Exact(variances=0.02 / torch.arange(1, 785, dtype=torch.float64).sqrt())


DIFFUSION: dict[str, Any] = {
    "highest_noise": 0.3,
    "lowest_noise": 0.05,
    "penalty": 1e-9,
    "completions": 2,
    "seed": 0,
}


def gaussian_given(exact: Exact, observed: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (784,) and covariance (784, 784) of an image (28, 28) given its known pixels."""
    covariance = (exact.basis * exact.variances) @ exact.basis.T
    seen = ~observed.flatten().isnan()
    gain = torch.linalg.solve(covariance[seen][:, seen], covariance[seen]).T
    mean = 0.5 + gain @ (observed.flatten()[seen] - 0.5)
    return mean, covariance - gain @ covariance[seen]


@pytest.mark.parametrize("levels", [1, 4])
def test_reverse_diffusion_with_the_exact_score_draws_from_the_exact_conditional(
    exact: Exact, levels: int
) -> None:
    """Of Gaussian images: mean, standard deviation and covariance, whatever the noise levels."""
    generator = torch.Generator().manual_seed(1)
    drawn = exact.variances.sqrt() * torch.randn(2, 784, dtype=torch.float64, generator=generator)
    truth = (0.5 + drawn @ exact.basis.T).unflatten(1, (28, 28))
    samples = 1000
    settings = {**DIFFUSION, "levels": levels, "samples": samples, "completions": 100}
    for pattern in (BOTTOM, RANDOM):
        observed = hide(truth, pattern)
        got = denoising_score.reconstruct(exact, observed, **settings)
        for i, given in enumerate(observed):
            mean, covariance = gaussian_given(exact, given)
            # Antithetic samples: the mean has no error but what clipping and λ leave.
            torch.testing.assert_close(got["estimate"][i].flatten(), mean, rtol=0, atol=1e-4)
            deviation = got["deviation"][i].double().flatten()
            torch.testing.assert_close(
                deviation, covariance.diagonal().clamp(min=0).sqrt(), rtol=0.1, atol=1e-3
            )
        noises = [0.3, 0.1][: min(levels, 2)]
        spreads = [exact.variances, *(exact.error_variances(noise) for noise in noises)]
        seen = ~observed[:1].flatten(1).isnan()
        gaussians = [
            denoising_score.Gaussian(
                variances,
                Regression(denoising_score.covariance_of(exact, variances), seen, penalty=1e-9),
            )
            for variances in spreads
        ]
        known = denoising_score.Known.of(exact, observed[:1], gaussians[0].regression, penalty=1e-9)
        _, images = denoising_score.diffused(
            exact, known, gaussians, noises, samples=samples, generator=generator
        )
        missing = observed[0].flatten().isnan().nonzero().flatten()[:8]
        measured = images[:, 0, missing].T.cov()
        _, covariance = gaussian_given(exact, observed[0])
        expected = covariance[missing][:, missing]
        # The error of a covariance from n draws is about √(2 / n) of the variances.
        torch.testing.assert_close(
            measured, expected, rtol=0, atol=5 * (2 / samples) ** 0.5 * expected.max().item()
        )


def test_images_that_share_a_batch_with_other_masks_get_the_same_samples(
    exact: Exact, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean, that is: the draws depend on who shares the batch."""
    observed = torch.cat([hide(images[:3], BOTTOM), hide(images[3:6], RANDOM)]).double()
    settings = {**DIFFUSION, "levels": 1, "samples": 2}
    together = denoising_score.reconstruct(exact, observed, **settings)["estimate"]
    monkeypatch.setattr(denoising_score, "BATCH", 1)
    alone = denoising_score.reconstruct(exact, observed, **settings)["estimate"]
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def denoising(images: Tensor) -> denoiser.Network:
    torch.manual_seed(0)
    network = denoiser.Network(axes=60, width=128, blocks=1)
    history = network.fit(
        (images[:1000], torch.zeros(1000)),
        (images[1000:1050], torch.zeros(50)),
        epochs=40,
        batch_size=50,
        learning_rate=0.003,
        schedule="cosine",
        noise_median=0.6,
        noise_spread=1.0,
        seed=0,
    )
    assert history[-1]["validation_relative_error"] < 0.97  # the linear denoiser has about 1
    return network.eval().requires_grad_(False)


def test_reverse_diffusion_beats_ridge_and_repeats_itself(
    denoising: denoiser.Network, images: Tensor
) -> None:
    truth = images[1050:1110]
    settings = {**DIFFUSION, "highest_noise": 3.0, "penalty": 0.01, "levels": 6, "samples": 16}
    observed = hide(truth, BOTTOM)
    got = denoising_score.reconstruct(denoising, observed, **settings)
    again = denoising_score.reconstruct(denoising, observed, **settings)
    assert all(torch.equal(got[key], again[key]) for key in got)
    other = denoising_score.reconstruct(denoising, observed, **{**settings, "seed": 1})
    assert not torch.equal(got["samples"], other["samples"])
    assert got["samples"].shape == (60, 2, 28, 28) and got["samples"].dtype == torch.uint8
    assert got["quantiles"].shape == (60, 6, 28, 28)
    assert (got["quantiles"].int().diff(dim=1) >= 0).all()
    moments: Any = SimpleNamespace(
        mean=denoising.mean_image.double().flatten(),
        covariance=denoising_score.covariance_of(denoising, denoising.variances).double(),
    )
    linear = ridge.reconstruct(moments, observed, penalty=0.01)
    missing = observed.isnan()
    ours, baseline = (mse(x, truth, where=missing).mean() for x in (got["estimate"], linear))
    assert ours < baseline


def test_one_worker_or_two_give_the_same_samples(
    denoising: denoiser.Network, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SIZE", 6)
    observed = torch.stack([hide(images[1050:1057], p) for p in (BOTTOM, RANDOM)]).numpy()
    arguments = {"axes": 60, "width": 128, "blocks": 1}
    settings = {**DIFFUSION, "penalty": 0.01, "levels": 2, "samples": 4}
    answers = []
    for workers, patience in (("1", 1e9), ("2", -1.0)):
        monkeypatch.setenv("RETRACE_WORKERS", workers)
        monkeypatch.setattr(shards, "STARTING", patience)
        merged = shards.run(
            denoising,
            observed,
            method="imputation.denoising_score",
            header={"architecture": "denoiser", "arguments": arguments},
            settings=settings,
            steps=0,
            label="",
            device="cpu",
            precision="float32",
        )
        answers.append(merged.answers)
    assert all(np.array_equal(answers[0][key], answers[1][key]) for key in answers[0])
    assert not np.array_equal(answers[0]["samples"][0], answers[0]["samples"][7])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 5}, "settings.samples = 5"),
        ({"penalty": 0.0}, "settings.penalty = 0.0"),
        ({"levels": 0}, "settings.levels = 0"),
        ({"strength": 1.0}, "settings.strength"),
    ],
)
def test_bad_settings_of_reverse_diffusion_are_refused(
    change: dict[str, Any], message: str
) -> None:
    settings = {**DIFFUSION, "levels": 2, "samples": 4, **change}
    with pytest.raises(Refusal, match=message):
        bind(denoising_score.reconstruct, settings, where="settings", given=GIVEN)


def test_noise_that_rises_is_refused(exact: Exact) -> None:
    settings = {**DIFFUSION, "highest_noise": 0.01, "levels": 2, "samples": 2}
    with pytest.raises(
        BadInput, match=r"^lowest_noise = 0.05: allowed is up to highest_noise, 0.01"
    ):
        denoising_score.reconstruct(exact, torch.full((1, 28, 28), torch.nan), **settings)


def test_darkening_is_monotone_and_leaves_bright_pixels_alone() -> None:
    values = torch.linspace(-0.1, 1.1, 200).reshape(1, 10, 20)
    got = combined.darkened(values, threshold=torch.tensor(0.2)).flatten()
    assert (got.diff() >= 0).all()
    bright = values.flatten() >= 0.2
    assert torch.equal(got[bright], values.flatten()[bright].clamp(0, 1))
    assert torch.equal(combined.darkened(values, threshold=torch.tensor(0.0)), values.clamp(0, 1))


def test_nearest_neighbours_are_those_of_scipy(images: Tensor) -> None:
    network = gallery.Network(count=200)
    network.fit((images[:300], torch.zeros(300)), (images[:1], torch.zeros(1)))
    truth = images[1000:1008]
    for pattern in (BOTTOM, RANDOM):
        observed = hide(truth, pattern)
        got = knn.reconstruct(network, observed, neighbours=3)
        stored = network.images.float().flatten(1) / 255
        for image, estimate in zip(observed.flatten(1), got.flatten(1), strict=True):
            seen = ~image.isnan()
            distances = cdist(image[None, seen].numpy(), stored[:, seen].numpy())[0]
            expected = stored[np.argsort(distances, kind="stable")[:3]].mean(dim=0)
            torch.testing.assert_close(estimate, expected)
    assert torch.equal(
        network(stored[:5].unflatten(1, (28, 28))), stored[:5].unflatten(1, (28, 28))
    )
    with pytest.raises(BadInput, match=r"^count = 200: there are 100 images"):
        network.fit((images[:100], torch.zeros(100)), (images[:1], torch.zeros(1)), print)


def test_a_biharmonic_surface_continues_a_plane() -> None:
    rows, columns = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    plane = (0.2 + 0.01 * rows + 0.012 * columns).repeat(2, 1, 1)
    observed = plane.clone()
    observed[0, 10:16, 8:20] = torch.nan
    observed[1, 5:8, 3:9] = torch.nan
    got = biharmonic.reconstruct(nn.Identity(), observed)
    torch.testing.assert_close(got, plane, rtol=0, atol=1e-3)


@pytest.fixture(scope="module")
def networks(images: Tensor, network: prior.Network, denoising: denoiser.Network) -> dict[str, Any]:
    """Small ones of all kinds, by architecture."""
    training = (images[:1000], torch.zeros(1000))
    torch.manual_seed(0)
    filler = masked_network.Network(widths=[128], dropout=0.0)
    train(filler, training, training, epochs=20, learning_rate=0.005)
    neighbours, moments = gallery.Network(count=1000), gaussian.Network()
    neighbours.fit(training, training)
    moments.fit(training, training)
    return {
        **{"prior": network, "denoiser": denoising, "gallery": neighbours, "gaussian": moments},
        "masked": filler.eval().requires_grad_(False),
    }


@pytest.mark.parametrize(
    ("method", "architecture"),
    [
        (backpropagation_prior, "prior"),
        (biharmonic, "gaussian"),
        (combined, "prior"),
        (denoising_score, "denoiser"),
        (knn, "gallery"),
        (latent_search, "prior"),
        (masked, "masked"),
        (mixture, "prior"),
        (posterior, "prior"),
        (ridge, "gaussian"),
    ],
)
def test_a_method_alone_beats_the_mean_image(
    method: Any, architecture: str, networks: dict[str, Any], images: Tensor
) -> None:
    truth = images[1050:1062]
    for pattern in (BOTTOM, RANDOM):
        observed = hide(truth, pattern)
        got = method.reconstruct(networks[architecture], observed)
        estimate = got["estimate"] if isinstance(got, dict) else got
        assert estimate.min() >= 0 and estimate.max() <= 1
        trivial = fill.reconstruct(networks["gaussian"], observed)
        ours, theirs = (mse(x, truth, where=observed.isnan()).mean() for x in (estimate, trivial))
        # Smoothness alone says little of half an image.
        if not (method is biharmonic and pattern is BOTTOM):
            assert ours < 0.9 * theirs


@pytest.mark.parametrize("method", [combined, latent_search, mixture, posterior])
def test_an_image_that_is_missing_or_known_as_a_whole(
    method: Any, network: prior.Network, images: Tensor
) -> None:
    for given in (images[:1], torch.full((1, 28, 28), torch.nan)):
        got = method.reconstruct(network, given)
        estimate = got["estimate"] if isinstance(got, dict) else got
        assert estimate.isfinite().all()
