"""The published reconstruction attack against double backward by autograd, and its refusals."""

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from retrace.methods.training_data import kkt
from retrace.networks import convolutional
from retrace.networks.margin import Network
from retrace.pipeline.command import Refusal
from retrace.pipeline.params import bind
from retrace.types import BadInput

pytestmark = pytest.mark.numerical

SETTINGS: dict[str, Any] = {
    "candidates": 6,
    "deviation": 0.3,
    "learning_rate": 0.02,
    "multiplier_rate": 0.01,
    "multiplier_minimum": 0.2,
    "sharpness": 5.0,
    "steps": 30,
    "trials": 1,
    "search_steps": 10,
    "bounds": "published",
    "seed": 3,
}
SETTING = kkt.Setting(*(SETTINGS[name] for name in kkt.Setting._fields))
RUN: dict[str, Any] = {name: SETTINGS[name] for name in ("candidates", "multiplier_rate", "seed")}


def small(*widths: int) -> Network:
    """A random network in float64; sees images of 4 x 4."""
    torch.manual_seed(0)
    network = Network(shape=[4, 4], widths=list(widths), first_deviation=0.3).double()
    network.mean.uniform_(0.2, 0.6)
    return network


def target_of(network: Network) -> kkt.Target:
    """As `reconstruct` makes it."""
    weights, bias = kkt.homogeneous_layers(network)
    end = torch.ones_like(network.mean)
    return kkt.Target(weights, bias, kkt.factored(weights), -end, end)


class ModifiedRelu(torch.autograd.Function):
    """ReLU whose derivative is σ(αz), which can be differentiated again."""

    @staticmethod
    def forward(context: Any, z: Tensor, sharpness: float) -> Tensor:
        context.save_for_backward(z)
        context.sharpness = sharpness
        return z.relu()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (z,) = context.saved_tensors
        return gradient * (context.sharpness * z).sigmoid(), None


def loss_by_autograd(
    network: Network, x: Tensor, multipliers: Tensor, signs: Tensor, setting: kkt.Setting
) -> Tensor:
    """The loss of the attack, written again plainly."""
    hidden = x
    for layer in network.layers[:-1]:
        hidden = ModifiedRelu.apply(layer(hidden), setting.sharpness)
    outputs = network.layers[-1](hidden).squeeze(1)
    parameters = list(network.parameters())
    gradients = torch.autograd.grad(
        (multipliers * signs * outputs).mean(), parameters, create_graph=True
    )
    loss = 5 * (setting.multiplier_minimum - multipliers).relu().square().sum()
    loss = loss + (x - 1).relu().square().sum() + (-1 - x).relu().square().sum()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        loss = loss + (parameter.detach() - gradient).square().sum()
    return loss


def start(setting: kkt.Setting) -> tuple[Tensor, Tensor, Tensor]:
    """x, the multipliers and the signs that the attack starts from, in float64."""
    generator = torch.Generator().manual_seed(SETTINGS["seed"])
    x = torch.randn(6, 16, generator=generator, dtype=torch.float64) * setting.deviation
    multipliers = torch.rand(6, generator=generator, dtype=torch.float64)
    return x, multipliers, torch.tensor([1, 1, 1, -1, -1, -1], dtype=torch.float64)


def attack_by_autograd(
    network: Network, setting: kkt.Setting, *, steps: int
) -> tuple[Tensor, Tensor, float]:
    """The whole attack with torch's optimisers: x, the multipliers, the last loss."""
    x, multipliers, signs = start(setting)
    optimisers = [
        torch.optim.SGD([variable.requires_grad_()], lr=rate, momentum=0.9)
        for variable, rate in (
            (x, setting.learning_rate),
            (multipliers, SETTINGS["multiplier_rate"]),
        )
    ]
    for _ in range(steps):
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss_by_autograd(network, x, multipliers, signs, setting).backward()
        for optimiser in optimisers:
            optimiser.step()
    loss = loss_by_autograd(network, x, multipliers, signs, setting)
    return x.detach(), multipliers.detach(), float(loss.detach())


def loss_and_gradients(
    target: kkt.Target, point: tuple[Tensor, Tensor, Tensor], setting: kkt.Setting
) -> tuple[Tensor, Tensor, Tensor]:
    """Of `kkt.unexplained`, with respect to x and the multipliers."""
    x, multipliers, signs = point
    variables = x.clone().requires_grad_(), multipliers.clone().requires_grad_()
    loss = kkt.unexplained(target, *variables, signs, setting)
    of_x, of_multipliers = torch.autograd.grad(loss, variables)
    return loss.detach(), of_x, of_multipliers


@pytest.mark.parametrize("widths", [(12,), (12, 9), (12, 9, 7)])
@pytest.mark.parametrize("sharpness", [3.0, 150.0])
def test_loss_and_gradients_agree_with_double_backward(
    widths: tuple[int, ...], sharpness: float
) -> None:
    network = small(*widths)
    x, multipliers, signs = start(SETTING._replace(deviation=0.7))  # some lie outside [-1, 1]
    multipliers *= 20  # so that the weighted gradients are as large as the weights
    setting = SETTING._replace(sharpness=sharpness, multiplier_minimum=8.0)
    assert (x.abs() > 1).any() and (multipliers < 8).any()
    variables = x.clone().requires_grad_(), multipliers.clone().requires_grad_()
    loss = loss_by_autograd(network, *variables, signs, setting)
    expected = torch.autograd.grad(loss, variables)
    got = loss_and_gradients(target_of(network), (x, multipliers, signs), setting)
    torch.testing.assert_close(got, (loss.detach(), *expected), rtol=1e-9, atol=1e-11)


def test_factors_of_layers_of_low_rank_change_nothing_but_the_cost() -> None:
    target = target_of(small(24, 20))
    thin = torch.randn(20, 2, dtype=torch.float64) @ torch.randn(2, 24, dtype=torch.float64)
    target.weights[1] = thin + 1e-15 * torch.randn(20, 24, dtype=torch.float64)  # as rounded
    chains = kkt.factored(target.weights)
    assert [tuple(map(tuple, map(torch.Tensor.size, chain))) for chain in chains] == [
        ((24, 16),),  # of full rank
        ((20, 2), (2, 24)),
        ((1, 20),),
    ]
    whole: list[kkt.Chain] = [(weight,) for weight in target.weights]
    plain, faster = (
        loss_and_gradients(target._replace(chains=products), start(SETTING), SETTING)
        for products in (whole, chains)
    )
    torch.testing.assert_close(faster, plain, rtol=1e-11, atol=1e-12)


def test_float32_is_precise_enough() -> None:
    network = small(12, 9)
    setting = SETTING._replace(sharpness=19.2, multiplier_minimum=0.415)
    x, multipliers, signs = start(setting)
    exact, single = (
        loss_and_gradients(
            target_of(network.to(dtype)),
            (x.to(dtype), multipliers.to(dtype), signs.to(dtype)),
            setting,
        )
        for dtype in (torch.float64, torch.float32)
    )
    for a, b in zip(exact, single, strict=True):
        assert (a - b).norm() < 1e-5 * a.norm()


def test_the_attack_agrees_with_double_backward() -> None:
    network = small(12, 9)
    steps = SETTINGS["steps"]
    x, multipliers, loss = kkt.extract(target_of(network), SETTING, **RUN, steps=steps)
    expected = attack_by_autograd(network, SETTING, steps=steps)
    torch.testing.assert_close((x, multipliers), expected[:2])
    assert float(loss) == pytest.approx(expected[2])

    got = kkt.reconstruct(network, torch.empty(0), **SETTINGS)
    order = multipliers.argsort(descending=True)
    images = (expected[0][order] + network.mean).clamp(0, 1).reshape(6, 4, 4).float()
    torch.testing.assert_close(got, images)


def trained() -> Network:
    """A network that knows four images of noise and nothing else, from a small start."""
    torch.manual_seed(0)
    network = Network(shape=[4, 4], widths=[12], first_deviation=0.001).double()
    images, signs = torch.rand(4, 4, 4).double(), torch.tensor([1, 1, -1, -1])
    network.mean.fill_(0.5)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.5)
    for _ in range(500):
        optimiser.zero_grad()
        nn.functional.softplus(-signs * network(images)).sum().backward()
        optimiser.step()
    return network


def test_candidates_explain_a_trained_network_and_not_a_random_one() -> None:
    setting = SETTING._replace(deviation=0.1, learning_rate=0.05, sharpness=10.0)
    run: dict[str, Any] = {"candidates": 8, "multiplier_rate": 0.1, "seed": 3}
    fallen = []
    for network in (trained(), small(12)):
        target = target_of(network)
        first, last = (kkt.extract(target, setting, **run, steps=n)[2] for n in (0, 200))
        fallen.append(float(last / first))
    assert fallen[0] < 0.02 and 0.5 < fallen[1] < 1


def test_the_loss_falls_and_is_shown_at_every_step() -> None:
    network = small(12, 9).float()
    seen: list[tuple[int, Tensor, Tensor]] = []
    got = kkt.reconstruct(
        network, torch.empty(0), **SETTINGS, callback=lambda *shown: seen.append(shown)
    )
    steps, losses, estimates = zip(*seen, strict=True)
    assert steps == tuple(range(SETTINGS["steps"] + 1))
    assert losses[0].shape == (6,) and estimates[0].shape == got.shape == (6, 4, 4)
    assert all((b < a).all() for a, b in pairwise(losses))
    assert got.dtype == estimates[0].dtype == torch.float32
    assert got.min() >= 0 and got.max() <= 1
    # What was shown last is what is returned, in another order.
    assert torch.equal(*(x.flatten(1).sum(1).sort().values for x in (got, estimates[-1])))


def test_the_same_seed_gives_the_same_bytes() -> None:
    network = small(12, 9).float()
    first, again, other = (
        kkt.reconstruct(
            network,
            torch.empty(0),
            **{**SETTINGS, "trials": 3, "steps": 5, "seed": seed},
        )
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_search_takes_the_setting_with_the_smallest_loss() -> None:
    network = small(12, 9)
    settings = kkt.settings_to_try(SETTING, trials=6, seed=3)
    assert settings[0] == SETTING and len(set(settings)) == 6
    for setting in settings:
        for name in ("deviation", "learning_rate", "sharpness"):
            assert 0.1 <= getattr(setting, name) / getattr(SETTING, name) <= 10
    losses = [attack_by_autograd(network, setting, steps=10)[2] for setting in settings]
    best = settings[losses.index(min(losses))]
    assert best != SETTING  # else this test would say little
    target = target_of(network)
    assert kkt.search(lambda given: kkt.extract(target, given, **RUN, steps=10), settings) == best

    searched = kkt.reconstruct(network, torch.empty(0), **{**SETTINGS, "trials": 6})
    chosen = {**SETTINGS, **best._asdict()}
    given = kkt.reconstruct(network, torch.empty(0), **chosen)
    assert torch.equal(searched, given)


@pytest.mark.parametrize("trials", [1, 2])
def test_a_loss_that_is_not_finite_is_refused(trials: int) -> None:
    settings = {**SETTINGS, "learning_rate": 1e30, "trials": trials}
    with pytest.raises(BadInput, match=r"^learning_rate = 1e\+30: .* lower it"):
        kkt.reconstruct(small(12, 9).float(), torch.empty(0), **settings)


def test_a_trial_that_diverges_loses() -> None:
    diverging = SETTING._replace(learning_rate=5.0)
    target = target_of(small(12, 9).float())

    def attack(setting: kkt.Setting) -> kkt.Extracted:
        return kkt.extract(target, setting, **RUN, steps=40)

    with pytest.raises(BadInput, match=r"^learning_rate = 5: .* loss is (nan|inf) at step \d+;"):
        attack(diverging)
    chosen = kkt.search(attack, kkt.settings_to_try(diverging, trials=12, seed=3))
    assert chosen.learning_rate < diverging.learning_rate


def two_outputs(network: Network) -> None:
    network.layers[-1] = nn.Linear(9, 2, bias=False)


def no_first_bias(network: Network) -> None:
    network.layers[0] = nn.Linear(16, 12, bias=False)


def later_bias(network: Network) -> None:
    network.layers[1] = nn.Linear(12, 9)


def convolution(network: Network) -> None:
    network.layers[0] = nn.Conv2d(1, 12, 3)


def linear_model(network: Network) -> None:
    network.layers = nn.ModuleList([nn.Linear(16, 1)])


def mean_of_another_size(network: Network) -> None:
    network.mean = torch.zeros(4, 4)


def shape_of_another_size(network: Network) -> None:
    network.shape = (4, 5)


def not_a_number(network: Network) -> None:
    with torch.no_grad():
        network.layers[1].weight[2, 3] = torch.nan  # type: ignore[operator]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (two_outputs, "it has 2 outputs"),
        (no_first_bias, "its first layer has no bias"),
        (later_bias, "a later layer has a bias"),
        (convolution, "one of its layers is Conv2d"),
        (linear_model, "it has no hidden layer"),
        (mean_of_another_size, "its `mean` is not that of its input"),
        (shape_of_another_size, "its `shape` is not that of its input"),
        (not_a_number, "some weights of the network are not finite"),
    ],
)
def test_a_network_that_is_not_covered_is_refused(
    spoil: Callable[[Network], None], message: str
) -> None:
    network = small(12, 9)
    spoil(network)
    with pytest.raises(BadInput, match=message) as refusal:
        kkt.reconstruct(network, torch.empty(0), **SETTINGS)
    assert "\n" not in str(refusal.value)


def test_a_convolutional_autoencoder_is_refused() -> None:
    network = convolutional.Network(decoder="upsampled", channels=[2, 2], code_channels=1)
    with pytest.raises(BadInput, match="it has no `layers`"):
        kkt.homogeneous_layers(network)


def test_an_odd_number_of_candidates_is_refused() -> None:
    assert bind(kkt.reconstruct, SETTINGS, where="runs.x", given=("callback",)) == SETTINGS
    everything = bind(kkt.reconstruct, {}, where="runs.x", given=("callback",))
    assert everything.keys() == SETTINGS.keys() and everything["sharpness"] == 19.2
    with pytest.raises(Refusal, match=re.escape("runs.x.candidates = 5: ")):
        bind(kkt.reconstruct, {**SETTINGS, "candidates": 5}, where="runs.x", given=("callback",))
