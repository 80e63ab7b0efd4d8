"""Multilayer perceptrons as people train them: forward passes, steps and histories by hand."""

import math
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from scipy.special import erf
from torch import Tensor, nn

from retrace.networks.mlp import Network, shifted, shuffled, training_set
from retrace.pipeline.artifacts import load_checkpoint, save_checkpoint
from retrace.pipeline.command import Refusal
from retrace.pipeline.params import NetworkEntry
from retrace.training import train_network
from retrace.types import BadInput, Split

pytestmark = pytest.mark.numerical

SHAPE = (4, 5)
# All images in every step, so that their order says nothing.
TRAINING: dict[str, Any] = {"per_class": 3, "batch_size": 0, "others": 4, "report_every": 10}
ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "gelu": lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
    "tanh": np.tanh,
}


def images_of(count: int, *, seed: int = 0) -> Split:
    """Images of noise around the means of three classes, in no order, (count, 4, 5) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    means = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(9))
    noise = torch.randn(count, *SHAPE, generator=generator)
    return (means[labels] + 0.1 * noise).clamp(0, 1), labels


@pytest.fixture(scope="module")
def splits() -> tuple[Split, Split]:
    return images_of(60), images_of(20, seed=1)


def drawn(*widths: int, **arguments: Any) -> Network:
    torch.manual_seed(0)
    return Network(
        **{"shape": list(SHAPE), "outputs": 3, "widths": list(widths or (8,)), **arguments}
    )


def fitted(splits: tuple[Split, Split], network: Network | None = None, **changes: Any) -> Network:
    network = network or drawn()
    network.fit(*splits, **{**TRAINING, **changes})
    return network


def parameters(network: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


def test_defaults_are_those_of_mnist() -> None:
    network = Network()
    sizes = [tuple(parameter.shape) for parameter in network.parameters()]
    assert sizes == [(500, 784), (500,), (500, 500), (500,), (10, 500), (10,)]
    assert network(torch.rand(3, 28, 28)).shape == (3, 10)
    assert network.mean.unique().tolist() == pytest.approx([0.1307])
    assert network.deviation.unique().tolist() == pytest.approx([0.3081])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("widths", [(8,), (8, 7, 6)])
def test_the_logits_are_those_of_numpy(
    activation: Literal["relu", "leaky_relu", "gelu", "tanh"], widths: tuple[int, ...]
) -> None:
    network = drawn(*widths, activation=activation, mean=0.4, deviation=0.5).double()
    images = torch.rand(6, *SHAPE, dtype=torch.float64)
    hidden = (images.flatten(1).numpy() - 0.4) / 0.5
    weights = [parameter.numpy() for parameter in parameters(network)]
    for weight, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        hidden = ACTIVATIONS[activation](hidden @ weight.T + bias)
    expected = hidden @ weights[-2].T + weights[-1]
    # The mean was rounded to float32.
    np.testing.assert_allclose(network(images).detach().numpy(), expected, atol=1e-6)


def test_colours_are_flattened() -> None:
    network = drawn(shape=[3, 4, 5])
    assert network(torch.rand(2, 3, 4, 5)).shape == (2, 3)
    assert network.layers[0].in_features == 60


def test_a_training_set_has_the_first_images_of_each_class(splits: tuple[Split, Split]) -> None:
    everything, labels = splits[0]
    images, chosen, mean = training_set(splits[0], per_class=3, offset=2)
    expected = [np.flatnonzero(labels.numpy() == label)[2:5] for label in range(3)]
    rows = np.concatenate(expected)
    assert torch.equal(images, everything[torch.from_numpy(rows)].flatten(1))
    assert chosen.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert images.dtype == mean.dtype == torch.float32 and chosen.dtype == torch.int64
    others = np.delete(everything.flatten(1).double().numpy(), rows, axis=0)
    np.testing.assert_allclose(mean.numpy(), others.mean(axis=0), atol=1e-6)


def test_too_few_images_are_refused(splits: tuple[Split, Split]) -> None:
    smallest = int(splits[0][1].bincount().min())
    training_set(splits[0], per_class=smallest - 1, offset=1)
    message = rf"^offset \+ training\.per_class = {smallest + 1}: .* holds {smallest} images"
    with pytest.raises(BadInput, match=message):
        training_set(splits[0], per_class=smallest, offset=1)


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ({"shape": [4, 4]}, {}, r"^shape = \[4, 4\] has 16 values, the images have 20"),
        ({"outputs": 2}, {}, "^outputs = 2: there are 3 classes"),
        ({"fine_tuned": True}, {"others": 0}, "^others = 0: "),
        ({"fine_tuned": True}, {"others": 50}, r"training\.others = 53: .* holds \d+ images"),
        ({}, {"learning_rate": 1e30}, r"^learning_rate = 1e\+30: .* not finite at step 10"),
    ],
)
def test_what_does_not_fit_is_refused(
    arguments: dict[str, Any],
    settings: dict[str, Any],
    message: str,
    splits: tuple[Split, Split],
) -> None:
    with pytest.raises(BadInput, match=message):
        fitted(splits, drawn(**arguments), steps=30, **settings)


def test_a_refusal_names_the_key_of_the_parameters(splits: tuple[Split, Split]) -> None:
    entry = NetworkEntry(
        architecture="mlp",
        arguments={"shape": list(SHAPE), "widths": [8], "outputs": 3},
        training={**TRAINING, "steps": 30, "learning_rate": 1e30},
    )
    given: dict[str, Any] = {"device": torch.device("cpu"), "dataset": "noise"}
    message = r"networks\.own\.training\.learning_rate = 1e\+30: the training loss is not finite"
    with pytest.raises(Refusal, match=message):
        train_network("own", entry, *splits, **given)
    entry.training["learning_rate"] = 0.1
    network, record = train_network("own", entry, *splits, **given)
    assert isinstance(network, Network) and record["training"]["momentum"] == 0.9
    assert record["epochs"][-1]["test_error"] <= 1


def gradients(network: Network, images: Tensor, labels: Tensor) -> list[Tensor]:
    """Of the mean cross-entropy, by its definition."""
    logits = network(images)
    loss = -(logits - logits.exp().sum(dim=1, keepdim=True).log())[range(len(labels)), labels]
    return list(torch.autograd.grad(loss.mean(), list(network.parameters())))


def by_hand(optimiser: str, network: Network, images: Tensor, labels: Tensor) -> None:
    """Three steps as published, with a rate of 0.1, a momentum of 0.8 and a decay of 0.05."""
    first = [torch.zeros_like(parameter) for parameter in network.parameters()]
    second = [torch.zeros_like(parameter) for parameter in network.parameters()]
    for step in range(1, 4):
        found = gradients(network, images, labels)
        for p, g, m, v in zip(network.parameters(), found, first, second, strict=True):
            with torch.no_grad():
                if optimiser == "adamw":
                    p.mul_(1 - 0.1 * 0.05)
                else:
                    g.add_(0.05 * p)
                if optimiser == "sgd":
                    m.copy_(0.8 * m + g)
                    p.sub_(0.1 * m)
                    continue
                m.copy_(0.9 * m + 0.1 * g)
                v.copy_(0.999 * v + 0.001 * g.square())
                corrected = m / (1 - 0.9**step), v / (1 - 0.999**step)
                p.sub_(0.1 * corrected[0] / (corrected[1].sqrt() + 1e-8))


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
def test_steps_follow_their_formulas(optimiser: str, splits: tuple[Split, Split]) -> None:
    settings = {"learning_rate": 0.1, "momentum": 0.8, "weight_decay": 0.05, "steps": 3}
    # In float64: where a gradient is near 0, Adam's first step has the sign of its rounding.
    double: Any = tuple((images.double(), labels) for images, labels in splits)
    network, other = (drawn(8, 6, activation="tanh").double() for _ in range(2))
    fitted(double, network, optimiser=optimiser, **settings)
    images, labels, _ = training_set(double[0], per_class=3)
    by_hand(optimiser, other, images, labels)
    for got, expected in zip(parameters(network), parameters(other), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9)


def test_batches_are_all_images_each_time_in_another_order() -> None:
    batches = list(islice(shuffled(7, 3, torch.Generator().manual_seed(0)), 9))
    assert [len(batch) for batch in batches] == [3, 3, 1] * 3
    epochs = [torch.cat(batches[start : start + 3]) for start in (0, 3, 6)]
    assert all(epoch.sort().values.tolist() == list(range(7)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])


def test_the_history_says_what_the_network_does(splits: tuple[Split, Split]) -> None:
    network, seen = drawn(), list[dict[str, float]]()
    settings = {**TRAINING, "steps": 25, "learning_rate": 0.3, "schedule": "cosine"}
    history = network.fit(*splits, seen.append, **settings)
    assert history == seen and [entry["epoch"] for entry in history] == [0, 10, 20, 25]
    kinds = {f"{split}_{key}" for split in ("training", "test") for key in ("loss", "error")}
    assert set(history[0]) == {"epoch", "timestamp", "elapsed", "learning_rate"} | kinds
    for entry in history:
        expected = 0.3 * (1 + math.cos(math.pi * entry["epoch"] / 25)) / 2
        assert entry["learning_rate"] == pytest.approx(expected, abs=1e-9)
    images, labels, _ = training_set(splits[0], per_class=3)
    for name, (x, y) in {"training": (images, labels), "test": splits[1]}.items():
        chances = network(x).detach().softmax(dim=1)
        loss = -chances[range(len(y)), y].log().mean()
        assert history[-1][f"{name}_loss"] == pytest.approx(float(loss), rel=1e-4)
        wrong = (chances.argmax(dim=1) != y).float().mean()
        assert history[-1][f"{name}_error"] == pytest.approx(float(wrong), abs=1e-6)
    assert history[-1]["training_loss"] < 0.5 * history[0]["training_loss"]


def test_no_step_leaves_the_network_as_it_was_drawn(splits: tuple[Split, Split]) -> None:
    expected = parameters(drawn())
    network = drawn()
    history = network.fit(*splits, **TRAINING, steps=0)
    assert [entry["epoch"] for entry in history] == [0]
    assert all(map(torch.equal, parameters(network), expected))


def test_only_the_training_set_is_learnt(splits: tuple[Split, Split]) -> None:
    everything, labels = splits[0]
    chosen = training_set(splits[0], per_class=3)[0]
    members = (everything.flatten(1)[:, None] == chosen).all(dim=2).any(dim=1)
    assert int(members.sum()) == 9
    others = everything.clone()
    others[~members] = torch.rand(int((~members).sum()), *SHAPE)
    first, second = (fitted(((x, labels), splits[1]), steps=20) for x in (everything, others))
    assert all(map(torch.equal, parameters(first), parameters(second)))
    members_changed = everything.where(~members[:, None, None], 1 - everything)
    third = fitted(((members_changed, labels), splits[1]), steps=20)
    assert not torch.equal(parameters(third)[0], parameters(first)[0])


def test_the_same_seed_gives_the_same_network(splits: tuple[Split, Split]) -> None:
    settings: dict[str, Any] = {"batch_size": 4, "steps": 20}
    first, again, other = (fitted(splits, seed=seed, **settings) for seed in (3, 3, 4))
    assert all(map(torch.equal, parameters(first), parameters(again)))
    assert not torch.equal(parameters(first)[0], parameters(other)[0])


def test_a_fine_tuned_network_keeps_the_first_layer_from_which_it_began(
    splits: tuple[Split, Split],
) -> None:
    network = drawn(fine_tuned=True)
    before = parameters(network)
    fitted(splits, network, steps=0)
    start = [network.start_weight.clone(), network.start_bias.clone()]
    assert all(map(torch.equal, start, parameters(network)[:2]))
    assert not torch.equal(start[0], before[0])  # it was trained on the others
    longer = fitted(splits, drawn(fine_tuned=True), steps=20)
    assert torch.equal(longer.start_weight, start[0]) and torch.equal(longer.start_bias, start[1])
    assert not torch.equal(parameters(longer)[0], start[0])
    assert set(dict(drawn().named_buffers())) == {"mean", "deviation"}


def test_a_fine_tuned_network_begins_with_adam_on_the_images_behind_its_set(
    splits: tuple[Split, Split],
) -> None:
    """Two epochs of one batch: two steps of torch's Adam on those images, in another order."""
    network = fitted(splits, drawn(fine_tuned=True), offset=1, other_epochs=2, steps=0)
    images, labels, _ = training_set(splits[0], per_class=4, offset=4)
    expected = drawn()
    adam = torch.optim.Adam(expected.parameters(), lr=1e-3)
    for _ in range(2):
        adam.zero_grad()
        nn.functional.cross_entropy(expected(images), labels).backward()
        adam.step()
    found = network.start_weight - parameters(drawn())[0]
    assert found.norm() > 0.01
    torch.testing.assert_close(network.start_weight, parameters(expected)[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("fine_tuned", [False, True])
def test_a_checkpoint_gives_the_network_back(
    fine_tuned: bool, splits: tuple[Split, Split], tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {
        **{"shape": list(SHAPE), "widths": [8, 6], "outputs": 3, "activation": "gelu"},
        **{"mean": 0.4, "deviation": 0.6, "fine_tuned": fine_tuned},
    }
    network = fitted(splits, drawn(**arguments), steps=5)
    path = tmp_path / "own.safetensors"
    identity = {"name": "own", "architecture": "mlp", "dataset": "noise"}
    save_checkpoint(network, arguments=arguments, path=path, **identity)
    loaded, header = load_checkpoint(path)
    assert isinstance(loaded, Network) and header["arguments"] == arguments
    state = network.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert ("start_weight" in state) == fine_tuned
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
    assert torch.equal(loaded(splits[1][0]), network(splits[1][0]))


def test_images_are_moved_by_whole_pixels_and_zeros_move_in() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(200, 3, 4, 5, generator=generator) + 0.1
    moved = shifted(images, 2, generator)
    padded = nn.functional.pad(images, (2, 2, 2, 2))
    seen = set()
    for image, result in zip(padded, moved, strict=True):
        fits = [
            (i, j)
            for i in range(5)
            for j in range(5)
            if torch.equal(image[:, i : i + 4, j : j + 5], result)
        ]
        assert len(fits) == 1
        seen |= set(fits)
    assert len(seen) == 25
    assert shifted(images, 0, generator) is images


def test_dropout_and_shifts_change_the_training_but_not_the_network_as_it_is_used(
    splits: tuple[Split, Split],
) -> None:
    plain = fitted(splits, steps=5)
    for arguments, settings in (({"dropout": 0.5}, {}), ({}, {"shift": 1})):
        one, two = (fitted(splits, drawn(**arguments), steps=5, **settings) for _ in range(2))
        other = fitted(splits, drawn(**arguments), steps=5, seed=1, **settings)
        for a, b in zip(parameters(one), parameters(two), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(parameters(one)[0], parameters(other)[0], atol=1e-4)
        assert not torch.allclose(parameters(one)[0], parameters(plain)[0], atol=1e-4)
        images = splits[1][0]
        assert not one.training
        torch.testing.assert_close(one(images), one(images), rtol=0, atol=0)


def test_dropout_leaves_out_its_share_of_hidden_units() -> None:
    network = drawn(4000, dropout=0.25)
    nn.init.ones_(network.layers[0].bias)  # type: ignore[arg-type]
    nn.init.zeros_(network.layers[0].weight)  # type: ignore[arg-type]
    nn.init.ones_(network.layers[1].weight)  # type: ignore[arg-type]
    network.train()
    kept = network(torch.rand(2, *SHAPE))[:, 0] * 0.75 / 4000
    assert kept.tolist() == pytest.approx([0.75, 0.75], abs=0.03)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shift": 4}, r"^shift = 4: images have \[4, 5\] pixels"),
        ({"noise": 1.0}, r"^noise = 1: needs clip"),
    ],
)
def test_what_moves_or_blurs_too_much_is_refused(
    settings: dict[str, Any], message: str, splits: tuple[Split, Split]
) -> None:
    with pytest.raises(BadInput, match=message):
        fitted(splits, steps=1, **settings)
