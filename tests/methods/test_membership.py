"""Members told from other images: by the columns in the first layer, and by the loss."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score
from strokes import SHAPE, strokes
from torch import Tensor, nn

from retrace.methods._stationarity import Columns, chain_of, changed_rows, row_distances
from retrace.methods.membership import loss, stationarity
from retrace.methods.membership.stationarity import distances_of, standing_out
from retrace.networks.mlp import Network, training_set
from retrace.networks.regression import Network as Regression
from retrace.types import BadInput

pytestmark = pytest.mark.numerical


class Problem(NamedTuple):
    network: Network
    members: Tensor  # (n, 20, 20)
    held_out: Tensor  # (300, 20, 20)
    labels: Tensor  # of both, one after the other


def problem(*, fine_tuned: bool = False, per_class: int = 3, **training: Any) -> Problem:
    split, validation = strokes(1000, seed=0), strokes(50, seed=1)
    torch.manual_seed(0)
    network = Network(shape=list(SHAPE), widths=[200], fine_tuned=fine_tuned)
    usual = {"learning_rate": 0.2, "weight_decay": 0.005, "batch_size": 0, "report_every": 1200}
    network.fit(split, validation, **{**usual, **training}, per_class=per_class)
    images, labels, _ = training_set(split, per_class=per_class)
    both = torch.cat([labels, split[1][-300:]])
    return Problem(network, images.unflatten(1, SHAPE), split[0][-300:], both)


@pytest.fixture(scope="module")
def trained() -> Problem:
    return problem(steps=1200)


def scores_of(method: Any, of: Problem, **settings: Any) -> Tensor:
    observed = torch.cat([of.members, of.held_out])
    settings["beside"] = {"labels": of.labels.float(), "public": strokes(10, seed=2)[0]}
    scores: Tensor = method.reconstruct(of.network, observed, **settings)
    assert scores.shape == (len(observed),) and scores.dtype == torch.float32
    assert scores.isfinite().all()
    return scores


def area(scores: Tensor, of: Problem) -> float:
    labels = np.arange(len(scores)) < len(of.members)
    return float(roc_auc_score(labels, scores.numpy()))


def test_members_are_told_from_held_out_images(trained: Problem) -> None:
    scores = scores_of(stationarity, trained)
    assert area(scores, trained) > 0.99
    found = scores[:30] > scores[30:].max()
    assert int(found.sum()) >= 24  # of 30


def test_rows_and_columns_are_tests_of_their_own(trained: Problem) -> None:
    chain = chain_of(trained.network)
    columns = Columns(chain, chain.rows(), ridge=1e-6).fit(trained.members.flatten(1))[0]
    rows = row_distances(chain, chain.rows(), trained.members.flatten(1))
    both = distances_of(trained.network, trained.members, ridge=1e-6)
    torch.testing.assert_close(both, torch.cat([columns[:, None], rows], dim=1))
    for tests, alone in (("columns", columns[:, None]), ("rows", rows)):
        of_it: Any = tests
        found = distances_of(trained.network, trained.members, tests=of_it, ridge=1e-6)
        torch.testing.assert_close(found, alone)
    scores = {tests: scores_of(stationarity, trained, tests=tests) for tests in ("rows", "columns")}
    torch.testing.assert_close(
        scores_of(stationarity, trained), torch.maximum(scores["rows"], scores["columns"])
    )
    assert int((scores["rows"][:30] > scores["rows"][30:].max()).sum()) == 30


def test_the_score_counts_deviations_of_the_logarithm_in_the_clearest_test() -> None:
    generator = np.random.default_rng(0)
    public = np.exp(generator.normal([0.0, -3.0, -1.0], [1.0, 0.5, 0.2], size=(4000, 3)))
    distances = np.exp([[-4.0, -3.0, -1.0], [1.0, -5.0, -1.0], [0.0, -3.0, -0.8]])
    scores = standing_out(torch.from_numpy(distances), torch.from_numpy(public))
    assert scores.tolist() == pytest.approx([4, 4, 0], abs=0.15)
    # No distance at all is finite; a test in which all public images are one says nothing.
    public[:, 1] = 0.5
    distances[0] = 0
    scores = standing_out(torch.from_numpy(distances), torch.from_numpy(public))
    assert scores.isfinite().all() and scores[1].item() == pytest.approx(0, abs=0.15)
    with pytest.raises(BadInput, match=r"^public: all images lie at one distance"):
        standing_out(torch.from_numpy(distances), torch.ones(5, 3).double())


def test_public_images_are_asked_for(trained: Problem) -> None:
    for beside in ({}, {"public": trained.held_out[:1]}):
        with pytest.raises(BadInput, match=r"^public: at least two images"):
            stationarity.reconstruct(trained.network, trained.members, beside=beside)


def test_images_that_are_none_of_the_networks_are_refused(trained: Problem) -> None:
    public = {"public": trained.held_out}
    for wrong, said in (
        (255 * trained.members, "observed: pixels are in"),
        (trained.members * torch.nan, "observed: pixels are in"),
        (trained.members[:, 1:], r"observed has images of shape \(19, 20\), public of \(20, 20\)"),
        (trained.members[0], r"observed has images of shape \(20,\), public of \(20, 20\)"),
    ):
        with pytest.raises(BadInput, match=rf"^{said}"):
            stationarity.reconstruct(trained.network, wrong, beside=public)
    smaller = trained.members[:, 1:]
    with pytest.raises(BadInput, match=r"^images of shape \(60, 19, 20\) have 380 pixels each"):
        stationarity.reconstruct(trained.network, smaller, beside={"public": smaller})


def test_rows_that_span_everything_tell_nothing() -> None:
    torch.manual_seed(0)
    network = Network(shape=[4, 5], widths=[40])
    images = torch.rand(6, 4, 5)
    with pytest.raises(BadInput, match=r"^tests = rows: the rows of all layers span whatever"):
        distances_of(network, images, tests="rows")
    assert distances_of(network, images).shape == (6, 1)


def test_a_network_as_it_was_drawn_tells_nothing() -> None:
    untrained = problem(steps=0)
    assert 0.25 < area(scores_of(stationarity, untrained), untrained) < 0.75
    assert 0.35 < area(scores_of(loss, untrained), untrained) < 0.65


def test_columns_of_a_fine_tuned_network_lie_in_the_change() -> None:
    settings: dict[str, Any] = {"others": 80, "other_epochs": 10, "learning_rate": 0.02}
    tuned = problem(fine_tuned=True, per_class=2, **settings, weight_decay=0.0, steps=200)
    scores = scores_of(stationarity, tuned)
    chain = chain_of(tuned.network)
    rows, duals = changed_rows(tuned.network, chain)
    assert duals == "free"
    distances, _ = Columns(chain, rows).fit(tuned.members.flatten(1), duals=duals)
    torch.testing.assert_close(distances_of(tuned.network, tuned.members)[:, 0], distances)
    assert scores[:20].min() > scores[20:].max()
    # Of the layer itself, the images fine-tuned on are no others than those before.
    del tuned.network.start_weight, tuned.network.start_bias
    assert not torch.allclose(scores_of(stationarity, tuned), scores, atol=0.1)


@pytest.mark.parametrize("block", [1000, 7])
def test_the_loss_is_that_of_scikit_learn(
    block: int, trained: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "BLOCK", block)
    scores = scores_of(loss, trained)
    with torch.no_grad():
        logits = trained.network(torch.cat([trained.members, trained.held_out]))
    chances = logits.double().softmax(dim=1).numpy()
    assert area(scores, trained) > 0.95
    for score, chance, label in zip(scores, chances, trained.labels, strict=True):
        expected = log_loss([int(label)], chance[None], labels=list(range(10)))
        assert float(score) == pytest.approx(-expected, rel=1e-4, abs=1e-7)


class Sure(nn.Module):
    """Gives logits of which the first is above the others by what the image says."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([images.flatten(1)[:, :1], torch.zeros(len(images), 2)], dim=1)


def test_losses_of_what_a_network_is_sure_of_are_no_ties() -> None:
    """They are below what float32 tells from 0 where it takes p for 1."""
    images = torch.tensor([20.0, 25.0, 30.0])[:, None, None]
    scores = loss.reconstruct(Sure(), images, beside={"labels": torch.zeros(3)})
    expected = [-np.log1p(2 * np.exp(-value)) for value in (20.0, 25.0, 30.0)]
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-2)


@pytest.mark.parametrize("wrong", ["classes", "shape"])
def test_what_gives_no_logits_is_refused(wrong: str) -> None:
    network = Sure() if wrong == "classes" else nn.Identity()
    labels = torch.tensor([0.0, 3.0 if wrong == "classes" else 0.0])
    given = r"\(3,\)" if wrong == "classes" else r"\(4, 5\)"
    with pytest.raises(BadInput, match=rf"the network gives {given} numbers for an image"):
        loss.reconstruct(network, torch.rand(2, 4, 5), beside={"labels": labels})


def test_a_network_that_is_not_covered_is_refused() -> None:
    with pytest.raises(BadInput, match="does not cover this network"):
        images = torch.rand(2, 5)
        stationarity.reconstruct(Regression(inputs=5, outputs=3), images, beside={"public": images})
