"""Columns of images in the first layer: against autograd, NumPy and networks at a standstill."""

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh
from torch import Tensor, nn

from retrace.methods._stationarity import (
    KINK,
    Chain,
    Columns,
    balanced,
    chain_of,
    changed_rows,
    duals_of,
    kept_share,
    rank_above_noise,
    row_distances,
    smallest_share,
)
from retrace.networks import mlp
from retrace.networks.regression import Network as Regression
from retrace.types import BadInput

pytestmark = pytest.mark.numerical

PIXELS, RANK = 20, 8
WIDTHS = [(30,), (30, 12), (30, 12, 11), (30, 12, 11, 9)]
ACTIVATIONS = ("relu", "leaky_relu", "gelu", "tanh")


class Plain(nn.Module):
    """What `chain_of` reads and nothing else, in float64."""

    def __init__(
        self, *widths: int, outputs: int = 10, activation: str = "relu", bias: bool = True
    ) -> None:
        super().__init__()
        sizes = [PIXELS, *widths, outputs]
        self.activation = activation
        self.layers = nn.ModuleList(nn.Linear(*pair, bias=bias) for pair in pairwise(sizes))
        self.register_buffer("mean", torch.rand(PIXELS))
        self.register_buffer("deviation", 0.2 + torch.rand(PIXELS))
        self.double()

    def sums(self, images: Tensor) -> Tensor:
        """What the first layer's units add up."""
        normalised = (images - self.mean) / self.deviation  # type: ignore[operator]
        found: Tensor = self.layers[0](normalised)
        return found

    def logits(self, sums: Tensor) -> Tensor:
        activate = getattr(nn.functional, self.activation)
        for layer in self.layers[1:]:
            sums = layer(activate(sums))
        return sums


def plain(*widths: int, **arguments: Any) -> Plain:
    torch.manual_seed(0)
    return Plain(*widths, **arguments)


def images_of(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, PIXELS, generator=generator, dtype=torch.float64)


def columns_of(network: nn.Module) -> Columns:
    chain = chain_of(network)
    return Columns(chain, chain.rows())


def of_low_rank(*widths: int, **arguments: Any) -> Plain:
    """The same, with a first layer of `RANK` dimensions in which a unit is dead."""
    network = plain(*widths, **arguments)
    left, right = torch.randn(widths[0], RANK), torch.randn(RANK, PIXELS + 1)
    left[3] = 0
    noise = 1e-7 * torch.randn(widths[0], PIXELS + 1)
    rows = (left @ right + noise).double()
    with torch.no_grad():
        first = network.layers[0]
        first.weight.copy_(rows[:, :-1] / network.deviation)  # type: ignore[operator]
        if first.bias is not None:
            first.bias.copy_(rows[:, -1])  # type: ignore[operator]
    return network


@pytest.mark.parametrize("bias", [True, False])
def test_the_chain_is_what_the_network_computes(bias: bool) -> None:
    network = plain(9, 7, bias=bias)
    chain, images = chain_of(network), images_of(5)
    assert len(chain.weights) == len(chain.biases) == 3
    assert all(bool(tensor.any()) == bias for tensor in chain.biases)
    extended = torch.cat([images - chain.mean, torch.ones(5, 1)], dim=1)
    # In units of pixels the normalisation belongs to the layer.
    plainly = (extended[:, :-1] / chain.deviation**2) @ chain.rows()[:, :-1].T + chain.biases[0]
    torch.testing.assert_close(plainly, network.sums(images).detach())
    torch.testing.assert_close(
        chain.normalised(images) @ chain.weights[0].T + chain.biases[0],
        network.sums(images).detach(),
    )


def test_a_network_that_says_no_more_is_of_relu_and_is_not_scaled() -> None:
    network = plain(9)
    del network.activation, network.deviation
    chain = chain_of(network)
    assert chain.activation == "relu" and (chain.deviation == 1).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_slopes_are_those_of_a_difference(activation: str) -> None:
    network = plain(9, activation=activation)
    at = torch.linspace(-3, 3, 40, dtype=torch.float64)
    values, slopes = chain_of(network).slopes(at)
    activate = getattr(nn.functional, activation)
    torch.testing.assert_close(values, activate(at))
    difference = (activate(at + 1e-5) - activate(at - 1e-5)) / 2e-5
    torch.testing.assert_close(slopes, difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("outputs", [1, 10])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("widths", WIDTHS, ids=len)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gains_times_duals_are_the_gradient_by_what_the_units_add_up(
    activation: str, widths: tuple[int, ...], bias: bool, outputs: int
) -> None:
    network = plain(*widths, outputs=outputs, activation=activation, bias=bias)
    images = images_of(7)
    columns = columns_of(network)
    gains, _, logits = columns.patterns(images)
    sums = network.sums(images).detach().requires_grad_()
    given = network.logits(sums)
    torch.testing.assert_close(logits, given.detach())
    labels = torch.arange(7) % outputs
    if outputs == 1:
        loss = nn.functional.softplus(-given).sum()
        duals = -torch.sigmoid(-logits)
    else:
        loss = nn.functional.cross_entropy(given, labels, reduction="sum")
        duals = logits.softmax(dim=1) - nn.functional.one_hot(labels, outputs)
    (expected,) = torch.autograd.grad(loss, sums)
    assert columns.live.tolist() == list(range(30)) and gains.shape == (7, 30, outputs)
    got = (gains @ duals[:, :, None]).squeeze(2) * columns.lengths
    assert float(expected.abs().max()) > 1e-4
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_units_are_at_their_kink_where_the_cosine_is_small(activation: str) -> None:
    network, images = plain(30, 12, activation=activation), images_of(40)
    _, kinked, _ = columns_of(network).patterns(images)
    weight, bias = (parameter.detach().numpy() for parameter in network.layers[0].parameters())
    inputs = chain_of(network).normalised(images).numpy()
    inputs = np.c_[inputs, np.ones(40)]
    units = np.c_[weight, bias]
    lengths = np.linalg.norm(inputs, axis=1)[:, None] * np.linalg.norm(units, axis=1)
    expected = (np.abs(inputs @ units.T / lengths) <= KINK) & (activation == "relu")
    assert expected.any() == (activation == "relu") and not expected.all()
    np.testing.assert_array_equal(kinked.numpy(), expected)


def left_over(
    columns: Columns, images: Tensor, basis: Callable[[Tensor], NDArray[Any]]
) -> tuple[list[float], NDArray[Any]]:
    """Relative distances and nearest columns by least squares over the units that are not at their
    kink, over all combinations of a basis of duals: a generalised eigenvalue."""
    gains, kinked, logits = columns.patterns(images)
    assert kinked.any()
    shares, fitted = [], []
    space = columns.columns[columns.live].numpy() / columns.lengths.numpy()[:, None]
    for gain, kinks, logit in zip(gains.numpy(), kinked.numpy(), logits, strict=True):
        wanted = gain @ basis(logit)  # (units, k)
        used = ~kinks
        solution = np.linalg.lstsq(space[used], wanted[used], rcond=None)[0]
        rest = wanted[used] - space[used] @ solution
        values, vectors = eigh(rest.T @ rest, wanted[used].T @ wanted[used])
        shares.append(float(np.sqrt(max(values[0], 0))))
        best = vectors[:, 0]
        whole = np.where(used, wanted @ best, space @ solution @ best)
        fitted.append(whole * columns.lengths.numpy() @ columns.columns[columns.live].numpy())
    return shares, np.array(fitted)


def likeliest(logits: Tensor) -> NDArray[Any]:
    chances = logits.softmax(dim=0).numpy().copy()
    chances[int(logits.argmax())] -= 1
    return np.asarray(chances[:, None])


def differences(logits: Tensor) -> NDArray[Any]:
    """Another basis of the vectors that sum to 0."""
    return np.eye(len(logits))[:, :-1] - np.eye(len(logits))[:, 1:]


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
@pytest.mark.parametrize(("duals", "basis"), [("outputs", likeliest), ("free", differences)])
def test_distances_are_those_of_least_squares(
    duals: Any, basis: Callable[[Tensor], NDArray[Any]], activation: str
) -> None:
    network = of_low_rank(40, 12, outputs=4, activation=activation)
    columns, images = columns_of(network), images_of(30)
    assert len(columns.values) == RANK and columns.live.tolist() == [0, 1, 2, *range(4, 40)]
    residuals, fitted = columns.fit(images, duals=duals)
    shares, expected = left_over(columns, images, basis)
    np.testing.assert_allclose(residuals.numpy(), shares, rtol=1e-5)
    assert min(shares) > 0.05 and max(shares) < 1
    # Up to a factor.
    cosines = (fitted.numpy() * expected).sum(axis=1)
    cosines /= np.linalg.norm(fitted.numpy(), axis=1) * np.linalg.norm(expected, axis=1)
    np.testing.assert_allclose(np.abs(cosines), 1, atol=1e-6)


def test_free_duals_come_no_less_near_and_parts_say_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    columns, images = columns_of(of_low_rank(40, 12, outputs=4)), images_of(30)
    outputs, free = (columns.fit(images, duals=duals)[0] for duals in ("outputs", "free"))
    assert (free <= outputs + 1e-6).all() and (free < 0.9 * outputs).any()
    monkeypatch.setattr("retrace.methods._stationarity.BLOCK", 7)
    torch.testing.assert_close(columns.fit(images)[0], outputs, rtol=1e-9, atol=1e-12)


def test_without_images_nothing_is_fitted() -> None:
    residuals, fitted = columns_of(of_low_rank(40, 12)).fit(images_of(0))
    assert residuals.shape == (0,) and fitted.shape == (0, RANK)


@pytest.mark.parametrize("duals", ["outputs", "free"])
def test_an_image_that_switches_nothing_on_is_as_far_as_can_be(duals: Any) -> None:
    network = of_low_rank(40, 12, outputs=4)
    with torch.no_grad():
        network.layers[1].weight.zero_()  # type: ignore[operator]
        network.layers[1].bias.fill_(-1.0)  # type: ignore[operator]
    residuals, fitted = columns_of(network).fit(images_of(3), duals=duals)
    assert residuals.tolist() == [1, 1, 1] and fitted.isfinite().all()


@pytest.fixture(scope="module", params=["tanh", "gelu"])
def still(request: pytest.FixtureRequest) -> tuple[mlp.Network, Tensor, Tensor]:
    """A network at a standstill of gradient descent with a decay of 0.01, its 9 images and their
    labels; without kinks, at which gradient descent does not come to rest."""
    images, labels = images_of(60).float(), torch.arange(60) % 3
    split = images.unflatten(1, (5, 4)), labels
    torch.manual_seed(0)
    network = mlp.Network(shape=[5, 4], widths=[30, 12], outputs=3, activation=request.param)
    training: dict[str, Any] = {"learning_rate": 0.2, "weight_decay": 0.01, "batch_size": 0}
    network.fit(split, split, **training, per_class=3, steps=2500, report_every=2500)
    chosen, of_chosen, _ = mlp.training_set(split, per_class=3)
    return network, chosen, of_chosen


def test_the_first_layer_is_the_sum_of_the_columns(
    still: tuple[mlp.Network, Tensor, Tensor],
) -> None:
    network, images, labels = still
    chain = chain_of(network)
    first = torch.cat([chain.weights[0], chain.biases[0][:, None]], dim=1)
    columns = columns_of(network)
    first = first[columns.live]
    gains, _, logits = columns.patterns(images)
    duals = logits.softmax(dim=1) - nn.functional.one_hot(labels, 3)
    found = (gains @ duals[:, :, None]).squeeze(2) * columns.lengths  # (9, units)
    extended = torch.cat([chain.normalised(images), torch.ones(9, 1)], dim=1)
    expected = -found.T @ extended / (9 * 0.01)
    assert float((first - expected).norm()) < 5e-3 * float(first.norm())
    # That is no accident: with one image less it is another.
    fewer = -found[1:].T @ extended[1:] / (9 * 0.01)
    assert float((first - fewer).norm()) > 0.05 * float(first.norm())


def test_columns_of_the_training_set_lie_in_the_layer_and_in_no_other(
    still: tuple[mlp.Network, Tensor, Tensor],
) -> None:
    network, images, labels = still
    assert (network(images.unflatten(1, (5, 4))).argmax(dim=1) == labels).all()
    chain = chain_of(network)
    other = chain_of(of_low_rank(30, 12)).rows()
    own, others = (Columns(chain, rows).fit(images)[0] for rows in (chain.rows(), other))
    assert float(own.max()) < 1e-2 and float(others.min()) > 0.3


@pytest.mark.parametrize("noise", [1e-8, 1e-5, 1e-2])
@pytest.mark.parametrize("rank", [1, 20, 60])
def test_the_rank_of_few_dimensions_and_noise(rank: int, noise: float) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    falling = torch.logspace(0, -1, rank, dtype=torch.float64)
    matrix = normal(200, rank) * falling @ normal(rank, 101) + noise * normal(200, 101)
    for scale in (1.0, 1e-6):
        assert rank_above_noise(torch.linalg.svdvals(scale * matrix)) == rank


def test_where_nothing_stands_above_the_rest_all_counts() -> None:
    torch.manual_seed(0)
    for rows, columns in ((200, 101), (50, 400)):
        values = torch.linalg.svdvals(torch.randn(rows, columns).double())
        assert rank_above_noise(values) == len(values)


def test_what_weight_decay_has_left_of_the_start_is_found_and_subtracted() -> None:
    generator = torch.Generator().manual_seed(0)
    for rows in (30, 60):  # fewer and more than columns
        before = torch.randn(rows, 41, generator=generator, dtype=torch.float64)
        change = torch.randn(rows, 6, generator=generator, dtype=torch.float64)
        change = change @ torch.randn(6, 41, generator=generator, dtype=torch.float64)
        for share in (1.0, 0.93, 0.2):
            assert kept_share(share * before + change, before) == pytest.approx(share, abs=1e-9)
    # Of a change in all directions nothing can be said.
    everywhere = torch.randn(30, 41, generator=generator, dtype=torch.float64)
    assert kept_share(before[:30] + everywhere, before[:30]) == 1


def test_what_is_exactly_zero_is_noise_and_of_a_long_spectrum_nearly_all_counts() -> None:
    values = torch.cat([torch.logspace(2, 0, 30), torch.zeros(70)])
    assert rank_above_noise(values) == 30
    steep = rank_above_noise(torch.logspace(0, -60, 200, dtype=torch.float64))
    assert 190 <= steep <= 200


def test_duals_are_those_of_the_cross_entropy() -> None:
    logits = 3 * torch.randn(20, 10, generator=torch.Generator().manual_seed(0)).double()
    labels = logits.argmax(dim=1)
    at = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(at, labels), at)
    expected = gradient / gradient.abs().amax(dim=1, keepdim=True)
    torch.testing.assert_close(duals_of(logits), expected)
    assert duals_of(logits[:, :1]).tolist() == [[1.0]] * 20


def test_duals_where_the_softmax_underflows() -> None:
    logits = torch.tensor([[2000.0, 0.0, -1.0, -2.0], [5.0, 905.0, 3.0, 4.0]]).double()
    assert logits.softmax(dim=1).count_nonzero() == 2
    shares = np.exp([0.0, -1.0, -2.0])
    shares /= shares.sum()
    expected = [[-1.0, *shares], [shares[0], -1.0, shares[2], shares[1]]]
    np.testing.assert_allclose(duals_of(logits).numpy(), expected, rtol=1e-12)


def test_balanced_duals_sum_to_nothing() -> None:
    basis = balanced(5)
    assert basis.shape == (5, 4)
    torch.testing.assert_close(basis.T @ basis, torch.eye(4).double())
    torch.testing.assert_close(basis.sum(dim=0), torch.zeros(4).double())
    assert balanced(1).tolist() == [[1.0]]


def test_the_smallest_share_is_the_smallest_generalised_eigenvalue() -> None:
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(2, 6, 4, 9, generator=generator, dtype=torch.float64)
    left, energy = factors @ factors.mT
    energy = energy + left
    scales = torch.logspace(-12, 8, 6, dtype=torch.float64)[:, None, None]
    shares, best = smallest_share(scales * left, scales * energy)
    for share, v, upper, lower in zip(shares, best, left, energy, strict=True):
        expected = eigh(upper.numpy(), lower.numpy(), eigvals_only=True)[0]
        assert float(share) == pytest.approx(expected, rel=1e-6)
        assert float(v @ upper @ v / (v @ lower @ v)) == pytest.approx(expected, rel=1e-6)
    # Directions that both leave out, as where fewer units are on than there are outputs.
    few = factors[0, :1, :2]
    wide = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    share, _ = smallest_share(wide.T @ (few @ few.mT) @ wide, 2 * wide.T @ (few @ few.mT) @ wide)
    assert float(share) == pytest.approx(0.5, rel=1e-3)
    shares, best = smallest_share(torch.zeros(2, 4, 4).double(), torch.zeros(2, 4, 4).double())
    assert shares.tolist() == [1, 1] and best.isfinite().all()


def test_rows_of_a_fine_tuned_network_are_the_change() -> None:
    torch.manual_seed(0)
    network = mlp.Network(shape=[5, 4], widths=[6, 5], deviation=0.25, fine_tuned=True)
    weight, bias = (parameter.detach() for parameter in network.layers[0].parameters())
    change = torch.randn(6, 21)
    network.start_weight.copy_(weight - change[:, :-1])
    network.start_bias.copy_(bias - change[:, -1])
    rows, duals = changed_rows(network, chain_of(network))
    assert duals == "free"
    expected = change * torch.tensor([0.25] * 20 + [1.0])
    torch.testing.assert_close(rows, expected.double(), rtol=1e-5, atol=1e-6)
    network.start_weight.copy_(weight)
    network.start_bias.copy_(bias)
    with pytest.raises(BadInput, match=r"^start: equals the network's first layer"):
        changed_rows(network, chain_of(network))
    network = mlp.Network(shape=[5, 4], widths=[6, 5])
    chain: Chain = chain_of(network)
    rows, duals = changed_rows(network, chain)
    assert duals == "outputs" and torch.equal(rows, chain.rows())


def no_layers(network: Plain) -> None:
    del network.layers


def a_convolution(network: Plain) -> None:
    network.layers[0] = nn.Conv2d(1, 30, 3)


def no_hidden_layer(network: Plain) -> None:
    network.layers = nn.ModuleList([nn.Linear(PIXELS, 10)])


def another_mean(network: Plain) -> None:
    network.mean = torch.zeros(3)


def not_a_number(network: Plain) -> None:
    with torch.no_grad():
        network.layers[1].bias[2] = torch.nan  # type: ignore[operator]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_layers, "it has no `layers`"),
        (a_convolution, "one of its layers is Conv2d"),
        (no_hidden_layer, "it has no hidden layer"),
        (another_mean, "its `mean` is not that of its input"),
        (not_a_number, "some weights of the network are not finite"),
    ],
)
def test_a_network_that_is_not_covered_is_refused(
    spoil: Callable[[Plain], None], message: str
) -> None:
    network = plain(30, 12)
    chain_of(copy.deepcopy(network))
    spoil(network)
    with pytest.raises(BadInput, match=message):
        chain_of(network)


def test_a_regression_is_refused() -> None:
    with pytest.raises(BadInput, match="does not cover this network"):
        chain_of(Regression(inputs=5, outputs=3))


def test_row_distances_are_those_of_least_squares_in_each_layer_that_leaves_room() -> None:
    torch.manual_seed(0)
    network = mlp.Network(shape=[4, 5], widths=[30, 12, 8], outputs=3)
    linear = [layer for layer in network.layers if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for number, rank in ((0, 6), (1, 4)):  # the third has 8 rows of 13
            layer = linear[number]
            parts = torch.randn(layer.out_features, rank), torch.randn(rank, layer.in_features)
            layer.weight.copy_(parts[0] @ parts[1])
            layer.bias.copy_(layer.weight[:, 0])
    chain = chain_of(network)
    images = torch.rand(300, 4, 5)  # more than one block
    got: list[NDArray[Any]] = []
    hooks = [
        layer.register_forward_hook(lambda _, given, __: got.append(given[0].numpy()))
        for layer in network.double().layers
    ]
    with torch.no_grad():
        network(images.double())
    for hook in hooks:
        hook.remove()
    received = chain.received(images.flatten(1))
    assert len(received) == 4
    found = row_distances(chain, chain.rows(), images.flatten(1))
    assert found.shape == (300, 3)
    for number, (values, given) in enumerate(zip(got[:3], received, strict=False)):
        scale = chain.deviation.numpy() if number == 0 else 1
        full = np.concatenate([values * scale, np.ones((300, 1))], axis=1)
        np.testing.assert_allclose(given.numpy(), full, atol=1e-6)
        weight, bias = (p.detach().numpy() for p in linear[number].parameters())
        rows = np.concatenate([weight * scale, bias[:, None]], axis=1)
        basis = np.linalg.svd(rows, full_matrices=False)[2][: (6, 4, 8)[number]]
        rest = full.T - basis.T @ np.linalg.lstsq(basis.T, full.T, rcond=None)[0]
        expected = np.linalg.norm(rest, axis=0) / np.linalg.norm(full, axis=1)
        np.testing.assert_allclose(found[:, number].numpy(), expected, atol=1e-6)
    # Combinations of the rows are at no distance.
    inside = (chain.rows()[:2] / chain.rows()[:2, -1:])[:, :-1] + chain.mean
    assert float(row_distances(chain, chain.rows(), inside)[:, 0].max()) < 1e-6
    full_rank = mlp.Network(shape=[4, 5], widths=[40, 60], outputs=3)
    assert row_distances(
        chain_of(full_rank), chain_of(full_rank).rows(), images.flatten(1)
    ).shape == (300, 0)
