"""The benchmark of membership by shadow networks: its training, its ratio, its sets."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from strokes import SHAPE, strokes
from torch import Tensor

from benchmarks import bench_membership as lira
from benchmarks.table import page
from retrace.networks.mlp import Network, training_set
from retrace.types import BadInput

SHADOWS = 4
USUAL: dict[str, Any] = {
    "optimiser": "sgd",
    "learning_rate": 0.05,
    "momentum": 0.9,
    "weight_decay": 0.01,
}
USUAL |= {"batch_size": 16, "schedule": "constant", "steps": 20, "per_class": 3}
KINDS: dict[str, dict[str, Any]] = {
    "fewer images than pixels": {},
    "cosine": {"schedule": "cosine", "batch_size": 0},
    "more images than pixels": {"per_class": 45, "steps": 10},
    "Adam": {"optimiser": "adam", "learning_rate": 0.001},
}


def drawn(seed: int, **arguments: Any) -> Network:
    torch.manual_seed(seed)
    return Network(shape=SHAPE, widths=[60, 40], **arguments)


@pytest.mark.numerical
@pytest.mark.parametrize("kind", KINDS)
def test_shadows_are_trained_as_single_networks_are(kind: str) -> None:
    training = USUAL | KINDS[kind]
    split = strokes(1000, seed=0)
    seeds, offsets = range(SHADOWS), [3 * i for i in range(SHADOWS)]
    sets = [training_set(split, per_class=training["per_class"], offset=at) for at in offsets]
    together, alone = [drawn(seed) for seed in seeds], [drawn(seed) for seed in seeds]
    images = torch.stack([images.unflatten(1, SHAPE) for images, _, _ in sets])
    labels = torch.stack([labels for _, labels, _ in sets])
    lira.fit(together, images, labels, training=training, seeds=seeds)
    for network, shadow, seed, at in zip(alone, together, seeds, offsets, strict=True):
        before = copy.deepcopy(network.state_dict())
        network.fit(split, split, **training, offset=at, seed=seed)
        for name, tensor in network.named_parameters():
            moved = (tensor - before[name]).detach().abs().max()
            difference = (shadow.get_parameter(name) - tensor).detach().abs().max()
            assert difference < 1e-3 * moved, name


def test_the_ratio_is_that_of_the_normal_densities() -> None:
    """Values at m ± s have the median m, and the variance 2 s² / (2 − 1) of each side's two."""
    medians = {True: torch.tensor([5.0, 6.0, 7.0]), False: torch.tensor([1.0, 0.0, 4.0])}
    spreads = {True: torch.tensor([0.5, 1.0, 2.0]), False: torch.tensor([1.0, 3.0, 2.0])}
    values = torch.cat(
        [torch.stack([medians[s] - spreads[s], medians[s] + spreads[s]]) for s in (True, False)]
    ).double()
    seen = torch.tensor([True, True, False, False])[:, None].expand_as(values)
    confidence = torch.tensor([5.2, 3.0, 9.0], dtype=torch.float64)

    def expected(deviations: dict[bool, Any]) -> Any:
        of = {s: norm.logpdf(confidence, medians[s], deviations[s]) for s in (True, False)}
        return of[True] - of[False]

    own = {s: spreads[s] * 2**0.5 for s in (True, False)}
    shared = {s: (2 * spreads[s].square()).mean().sqrt() for s in (True, False)}
    scores = lira.online(confidence, values, seen)
    assert scores.keys() == {f"LiRA online, {words}" for words in lira.SHARED}
    np.testing.assert_allclose(scores["LiRA online, shared variance"], expected(shared), rtol=1e-6)
    np.testing.assert_allclose(
        scores["LiRA online, each image's variance"], expected(own), rtol=1e-6
    )
    # One side alone is in the order of the distribution function.
    unseen = lira.normal(values, ~seen, shared=False)
    np.testing.assert_allclose(
        norm.cdf(lira.surer(confidence, unseen=unseen)),
        norm.cdf(confidence, medians[False], own[False]),
        rtol=1e-6,
    )


def test_members_of_made_shadows_are_told() -> None:
    """Each image has a confidence of its own; what a network saw is 3 standard deviations above."""
    generator = torch.Generator().manual_seed(0)

    def noise(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    members, others, shadows = 100, 400, 40
    usual = 5 * noise(members + others)
    seen = torch.rand(shadows, members + others, generator=generator) < 0.3
    values = usual + 3 * seen + noise(*seen.shape)
    confidence = usual + noise(members + others)
    confidence[:members] += 3
    scores = lira.online(confidence, values, seen) | lira.offline(
        confidence, usual + noise(*seen.shape), values[seen].view(1, -1)
    )
    found = lira.rates({**scores, "alone": confidence}, members)
    assert (found["n"], found["null_n"]) == (members, others)
    auc = {attack: entry["auc"] for attack, entry in found["attacks"].items()}
    best = norm.cdf(3 / 2**0.5)  # of two normal distributions that are 3 deviations apart
    for attack in (*(f"LiRA online, {w}" for w in lira.SHARED), "LiRA offline, shared variance"):
        assert abs(auc[attack] - best) < 0.02, attack
    assert auc["alone"] < 0.75
    assert "tpr_0.1" not in found["attacks"]["alone"]  # less than one image of 400


def test_confidences_are_log_odds() -> None:
    images, labels = strokes(20, seed=0)
    network = drawn(0)
    of_labels = network(images).double().softmax(dim=1)[torch.arange(20), labels]
    expected = (of_labels / (1 - of_labels)).log().detach()
    torch.testing.assert_close(lira.confidences([network, network], images, labels)[1], expected)


def test_each_image_is_in_as_many_sets() -> None:
    labels = torch.arange(60) % 3
    generator = torch.Generator().manual_seed(0)
    sets = lira.draw_sets(labels, per_class=4, count=10, generator=generator)
    assert sets.shape == (10, 12)
    assert all(labels[some].bincount().tolist() == [4, 4, 4] for some in sets)
    assert sets.flatten().bincount().tolist() == [2] * 60
    with pytest.raises(BadInput, match="20 images of class 0, not 21"):
        lira.draw_sets(labels, per_class=21, count=1, generator=generator)


def test_the_page_has_a_row_for_each_attack() -> None:
    found = {f"tpr_{key}{end}": 0.5 for key in ("0", "1") for end in ("", "_low", "_high")}
    entry: dict[str, Any] = {"n": 100, "null_n": 400, "seconds": 9.0, "shadows": 7}
    entry |= {"attacks": {way: found | {"auc": 0.75} for way in ("loss", "LiRA online")}}
    result = {"networks": {"small": {"shadows": 8, "offline": entry, "online": entry}}}
    lines = page({"membership": result}).splitlines()
    rate = "50.0% (50% – 50%)"
    assert f"| `small` | loss | 100 | 400 | {rate} | – | {rate} | 0.750 | – | – |" in lines
    assert f"| `small` | LiRA online | 100 | 400 | {rate} | – | {rate} | 0.750 | 7 | 9 |" in lines
