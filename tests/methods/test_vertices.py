"""Vertices that the weights certify: on ordinary networks of few images, and step by step."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from strokes import SHAPE, strokes
from torch import Tensor, nn

from retrace.measures.identification import correlations, match
from retrace.methods._stationarity import Columns, chain_of, changed_rows
from retrace.methods.training_data import _constants, vertices
from retrace.methods.training_data._polytope import Search
from retrace.methods.training_data._row_space import RowSpace
from retrace.networks.mlp import Network, training_set
from retrace.networks.regression import Network as Regression
from retrace.types import BadInput

pytestmark = pytest.mark.numerical

FOUND = 0.99  # normalised cross-correlation with the mean image subtracted
NOTHING = torch.empty(0, *SHAPE)
SETTINGS: dict[str, Any] = {"objectives": 8, "rounds": 3, "passes": 2, "iterations": 40}


class Problem(NamedTuple):
    network: Network
    images: Tensor  # (n, 400)
    held_out: Tensor  # (300, 400)
    mean: Tensor


def problem(*, fine_tuned: bool = False, per_class: int = 3, **training: Any) -> Problem:
    """An ordinary network of one hidden layer, trained on three images of each of ten classes."""
    split, validation = strokes(1000, seed=0), strokes(50, seed=1)
    torch.manual_seed(0)
    network = Network(shape=list(SHAPE), widths=[200], fine_tuned=fine_tuned)
    usual = {"learning_rate": 0.2, "weight_decay": 0.005, "batch_size": 0, "report_every": 1200}
    network.fit(split, validation, **{**usual, **training}, per_class=per_class)
    images, _, mean = training_set(split, per_class=per_class)
    return Problem(network, images, split[0][-300:].flatten(1), mean)


@pytest.fixture(scope="module")
def trained() -> Problem:
    return problem(steps=1200)


class Rounds:
    """A callback that notes what it is called with."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, Tensor, Tensor]] = []

    def __call__(self, step: int, loss: Tensor, estimate: Tensor) -> None:
        self.seen.append((step, loss, estimate))


class Attack(NamedTuple):
    answer: dict[str, Tensor]
    rounds: Rounds


def attack(network: nn.Module, **settings: Any) -> dict[str, Tensor]:
    return vertices.reconstruct(network, NOTHING, **{**SETTINGS, **settings})


@pytest.fixture(scope="module")
def attacked(trained: Problem) -> Attack:
    rounds = Rounds()
    return Attack(attack(trained.network, callback=rounds), rounds)


class Parts(NamedTuple):
    space: RowSpace
    columns: Columns


@pytest.fixture(scope="module")
def parts(trained: Problem) -> Parts:
    chain = chain_of(trained.network)
    rows, _ = changed_rows(trained.network, chain)
    columns = Columns(chain, rows)
    return Parts(RowSpace(rows, chain.mean, len(columns.values)), columns)


def best_of(answer: dict[str, Tensor], truth: Problem) -> Tensor:
    """Correlation of each candidate with the training image most like it."""
    candidates = answer["estimate"]
    return correlations(candidates, truth.images, mean=truth.mean).max(dim=1).values


def found_of(answer: dict[str, Tensor], truth: Problem) -> int:
    """How many training images are found, one to one."""
    similarity = correlations(answer["estimate"], truth.images, mean=truth.mean)
    return int((match(similarity).values > FOUND).sum())


def test_nearly_all_images_are_found_and_no_held_out_one(
    trained: Problem, attacked: Attack
) -> None:
    candidates, residual = attacked.answer["estimate"], attacked.answer["residual"]
    assert candidates.shape[1:] == SHAPE and residual.shape == (len(candidates),)
    assert candidates.dtype == residual.dtype == torch.float32
    assert candidates.min() >= 0 and candidates.max() <= 1
    assert found_of(attacked.answer, trained) >= 27  # of 30
    null = correlations(candidates, trained.held_out, mean=trained.mean)
    assert float(null.max()) < 0.95


def test_what_is_certified_is_an_image(trained: Problem, attacked: Attack) -> None:
    residual = attacked.answer["residual"]
    assert (residual.diff() >= 0).all()
    certified = residual < vertices.bar_of(residual, 1.8)
    assert int(certified.sum()) >= 20
    assert (best_of(attacked.answer, trained)[certified] > FOUND).all()


def test_residuals_are_those_of_the_columns(attacked: Attack, parts: Parts) -> None:
    expected, _ = parts.columns.fit(attacked.answer["estimate"].flatten(1))
    torch.testing.assert_close(attacked.answer["residual"], expected.float())


def test_each_round_adds_to_what_is_there_and_no_candidate_is_there_twice(
    trained: Problem, attacked: Attack
) -> None:
    seen = attacked.rounds.seen
    assert [number for number, _, _ in seen] == [1, 2, 3]
    for _, residual, estimate in seen:
        assert residual.shape == (len(estimate),) and estimate.shape[1:] == SHAPE
    assert torch.equal(seen[-1][2], attacked.answer["estimate"])
    own = correlations(seen[-1][2], seen[-1][2].flatten(1), mean=trained.network.mean)
    assert float(own.fill_diagonal_(0).max()) < _constants.SAME_IMAGE + 1e-3
    # Each of the first round is there still, or one that is the same.
    kept = correlations(seen[-1][2], seen[0][2].flatten(1), mean=trained.network.mean)
    assert float(kept.max(dim=0).values.min()) > _constants.SAME_IMAGE - 1e-3


def test_the_same_seed_gives_the_same_bytes_and_no_more_than_asked_for(trained: Problem) -> None:
    short = {"rounds": 1, "passes": 1, "iterations": 10}
    first, again = (attack(trained.network, **short) for _ in range(2))
    assert all(torch.equal(first[key], again[key]) for key in ("estimate", "residual"))
    few = attack(trained.network, **short, candidates=3)
    assert torch.equal(few["estimate"], first["estimate"][:3])
    assert torch.equal(few["residual"], first["residual"][:3])
    other = attack(trained.network, **short, seed=5)
    assert other["estimate"].shape != first["estimate"].shape or not torch.equal(
        other["estimate"], first["estimate"]
    )


def test_images_of_a_fine_tuned_network_are_found_in_the_change() -> None:
    tuned = problem(
        fine_tuned=True,
        per_class=2,
        others=80,
        other_epochs=10,
        learning_rate=0.02,
        weight_decay=0.0,
        steps=200,
    )
    answer = attack(tuned.network, objectives=30, rounds=2)
    assert found_of(answer, tuned) >= 14  # of 20
    # In the layer itself, without its start, hardly any is found: it is of all images.
    del tuned.network.start_weight, tuned.network.start_bias
    assert found_of(attack(tuned.network, objectives=30, rounds=1), tuned) <= 2


def test_a_network_as_it_was_drawn_gives_nothing() -> None:
    """The search runs, in as many random dimensions as there are units."""
    drawn = problem(steps=0)
    rounds = Rounds()
    answer = attack(drawn.network, objectives=30, rounds=1, callback=rounds)
    assert found_of(answer, drawn) == 0


def test_a_network_whose_rows_span_nearly_all_pixels_gives_nothing() -> None:
    torch.manual_seed(0)
    network = Network(shape=[4, 4], widths=[40])
    values = torch.logspace(0, -9, 16)  # steep, without noise: nearly all of them count
    with torch.no_grad():
        network.layers[0].weight.copy_(torch.eye(40, 16) * values)  # type: ignore[operator]
    with pytest.warns(UserWarning, match=r"have 1[3-7] dimensions .* of 16 pixels"):
        answer = attack(network)
    assert answer["estimate"].shape == (0, 4, 4)


def test_a_network_that_is_not_covered_is_refused() -> None:
    with pytest.raises(BadInput, match="does not cover this network"):
        attack(Regression(inputs=5, outputs=3))


def test_the_method_needs_no_settings() -> None:
    split = nn.functional.avg_pool2d(strokes(300, seed=0)[0], 2), torch.arange(300) % 10
    torch.manual_seed(0)
    network = Network(shape=[10, 10], widths=[30])
    training: dict[str, Any] = {"per_class": 1, "batch_size": 0, "weight_decay": 0.01}
    network.fit(split, split, **training, steps=500)
    answer = vertices.reconstruct(network, split[0])
    assert len(answer["estimate"]) and answer["estimate"].shape[1:] == (10, 10)


# The steps, each by another route


def exact(parts: Parts, images: Tensor, units: int) -> tuple[RowSpace, Tensor]:
    """A row space that images (n, d) span with random columns (n, units)."""
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(len(images), units, generator=generator, dtype=torch.float64)
    rows = columns.T @ parts.space.extended(images)
    return RowSpace(rows, parts.space.mean.double(), len(images)), columns


def ground_of(space: RowSpace, columns: Any) -> vertices.Ground:
    search = Search(SHAPE, 2, 40, 0.2, 0.1)
    return vertices.Ground(space, columns, search, objectives=12, deflation=10.0)


class Known:
    """Stands for `Columns` where those of the images known are exact."""

    def __init__(self, space: RowSpace, columns: Tensor) -> None:
        self.coordinates = columns @ space.columns

    def fit(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(images)), self.coordinates


def test_shares_of_exact_columns_are_one_and_nothing(trained: Problem, parts: Parts) -> None:
    space, columns = exact(parts, trained.images, 200)
    known: Any = Known(space, columns[:6])
    fitted, images, shares = vertices.shares_of(space, known, trained.images[:6])
    assert fitted.shape == images.shape == (6, 30)
    torch.testing.assert_close(shares, torch.eye(6).double(), rtol=0, atol=1e-6)


def test_images_that_are_taken_away_are_gone_and_the_others_stay(
    trained: Problem, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wedderburn's rank reduction: the rank falls by one for each image."""
    space, columns = exact(parts, trained.images, 200)
    # A column counts up to a factor, as it is known of the weights.
    known: Any = Known(space, columns[:6] * torch.linspace(0.1, 7, 6)[:, None].double())
    seen: list[RowSpace] = []

    def looked(smaller: vertices.Ground, *rest: Any) -> Tensor:
        seen.append(smaller.space)
        return trained.images[:1]

    monkeypatch.setattr(vertices, "look_everywhere", looked)
    generator = torch.Generator().manual_seed(0)
    vertices.look_beyond(ground_of(space, known), trained.images[:6], generator)
    (smaller,) = seen
    values = torch.linalg.svdvals(smaller.rows)
    assert len(smaller.values) == 24
    assert float(values[24]) < 1e-9 * float(values[0]) and float(values[23]) > 1e-4 * float(
        values[0]
    )
    extended = space.extended(trained.images)
    rest = extended - extended @ smaller.basis.T @ smaller.basis
    left = rest.norm(dim=1) / extended.norm(dim=1)
    assert float(left[6:].max()) < 1e-6 and float(left[:6].min()) > 0.1


@pytest.mark.parametrize("look", [vertices.look_beyond, vertices.look_aside])
def test_columns_that_repeat_each_other_take_nothing_away(
    look: Any, trained: Problem, parts: Parts
) -> None:
    """As of a single output, where two images may switch on the same units."""
    space, _ = exact(parts, trained.images, 200)
    known: Any = Known(space, torch.zeros(2, 200).double())
    generator = torch.Generator().manual_seed(0)
    assert look(ground_of(space, known), trained.images[:2], generator).shape == (0, 400)


def test_where_too_little_is_left_nothing_is_looked_for(trained: Problem, parts: Parts) -> None:
    space, columns = exact(parts, trained.images[:8], 200)
    known: Any = Known(space, columns[:6])
    generator = torch.Generator().manual_seed(0)
    found = vertices.look_beyond(ground_of(space, known), trained.images[:6], generator)
    assert found.shape == (0, 400)


@pytest.mark.parametrize("look", [vertices.look_beyond, vertices.look_aside])
def test_beyond_the_images_known_are_the_others(look: Any, trained: Problem, parts: Parts) -> None:
    """Those known lie in the space still, but hardly any search ends there."""
    known, others = trained.images[:15], trained.images[15:]
    generator = torch.Generator().manual_seed(0)
    points = look(ground_of(*parts), known, generator)
    assert points.dtype == torch.float32 and points.min() >= 0 and points.max() <= 1
    best = [
        correlations(points, images, mean=trained.mean).max(dim=0).values
        for images in (others, known)
    ]
    found = [int((values > FOUND).sum()) for values in best]
    assert found[0] >= 7 and found[0] > found[1]


def test_directions_say_nothing_of_the_images_known(trained: Problem, parts: Parts) -> None:
    known, generator = trained.images[:5], torch.Generator().manual_seed(0)
    directions = vertices.directions_from(parts.space, known, 21, generator).double()
    assert directions.shape == (21, 400)
    torch.testing.assert_close(directions.abs().mean(dim=1), torch.ones(21).double())
    coordinates = torch.linalg.lstsq(parts.space.basis[:, :-1].T, directions.T).solution.T
    readings = coordinates @ (parts.space.extended(trained.images) @ parts.space.basis.T).T
    readings = readings.abs() / coordinates.norm(dim=1, keepdim=True)
    assert float(readings[:, :5].max()) < 1e-3 and float(readings[:, 5:].max()) > 0.1


@pytest.mark.parametrize(
    ("residual", "trusted", "expected"),
    [
        ([], 1.8, vertices.FIRST_BAR),
        ([0.2, 0.9], 1.8, vertices.FIRST_BAR),
        ([0.1, 0.12, 0.14], 1.8, vertices.FIRST_BAR),  # 1.8 times 0.12 is above it
        ([0.01, 0.012, 0.014, 0.1, 0.5], 2.0, 0.024),
        ([0.01, 0.01, 0.01, 0.03, 0.05, 0.06], 2.0, 0.02),  # 0.06 first, or 0.02 at once
        ([0.001, 0.02, 0.04, 0.05], 1.5, 0.0015),  # 0.03, of two the lower, and so on
    ],
)
def test_the_bar_is_so_many_times_the_median_below_it(
    residual: list[float], trusted: float, expected: float
) -> None:
    assert vertices.bar_of(torch.tensor(residual), trusted) == pytest.approx(expected)


def test_the_projection_without_a_bias_is_plain_least_squares() -> None:
    """Where the last column is 0 throughout, the coordinates have no condition to fulfil."""
    torch.manual_seed(0)
    rows = torch.zeros(30, 17).double()
    rows[:, :-1] = torch.randn(30, 9) @ torch.randn(9, 16)
    space = RowSpace(rows, torch.rand(16))
    assert len(space.values) == 9 and not space.basis[:, -1].any()
    duals = torch.randn(2, 9).double()
    project = space.projection(1e-2, duals, 3.0)
    spread = (space.values / space.values[0]).numpy()
    stacked = np.concatenate(
        [space.basis[:, :-1].T.numpy(), np.diag(0.1 / spread), np.sqrt(3.0) * duals.numpy()]
    )
    for v in torch.rand(5, 16):
        target = np.concatenate([(v - space.mean).numpy(), np.zeros(11)])
        z = np.linalg.lstsq(stacked, target, rcond=None)[0]
        expected = space.mean.numpy() + z @ space.basis[:, :-1].numpy()
        projected: Tensor = project(v[None])
        np.testing.assert_allclose(projected[0].numpy(), expected, atol=1e-5)


def test_images_of_a_layer_without_a_bias_are_found() -> None:
    """What `Columns` and `RowSpace` read of it: its own rows, made by hand of few images."""
    split = strokes(40, seed=0)
    torch.manual_seed(0)
    network = Network(shape=list(SHAPE), widths=[60], mean=0.0, deviation=1.0)
    network.layers[0] = nn.Linear(400, 60, bias=False)
    with torch.no_grad():
        rows = torch.randn(60, 8) @ split[0][:8].flatten(1)
        network.layers[0].weight.copy_(rows)  # type: ignore[operator]
    answer = attack(network, objectives=20, rounds=1)
    images = split[0][:8].flatten(1)
    similarity = correlations(answer["estimate"], images, mean=torch.zeros(400))
    assert int((match(similarity).values > FOUND).sum()) >= 6  # of 8, up to their brightness
