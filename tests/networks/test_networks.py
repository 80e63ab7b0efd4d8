"""Networks and the one training loop."""

import contextlib
from typing import Any

import pytest
import torch

from retrace.networks import (
    classifier,
    convolutional,
    denoiser,
    dense,
    gallery,
    gaussian,
    masked,
    prior,
)
from retrace.networks._training import evaluate, train
from retrace.pipeline.artifacts import load_checkpoint, save_checkpoint
from retrace.types import BadInput

pytestmark = pytest.mark.numerical

SETTINGS: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 32,
    "learning_rate": 0.005,
    "schedule": "cosine",
    "grace": 2,
    "seed": 0,
}


def labelled(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return images, torch.zeros(len(images), dtype=torch.int64)


def conv(decoder: str) -> convolutional.Network:
    return convolutional.Network(
        decoder=decoder,  # type: ignore[arg-type]
        channels=[16, 16],
        code_channels=4,
    )


@pytest.mark.parametrize(
    ("build", "code_size"),
    [
        (lambda: dense.Network(widths=[32], gain=1.0, dropout=0.0), 32),
        (lambda: dense.Network(widths=[64, 16], gain=1.4, dropout=0.1), 16),
        (lambda: conv("transposed"), 196),
        (lambda: conv("upsampled"), 196),
    ],
)
def test_autoencoders_keep_the_shape_and_the_range(
    build: Any, code_size: int, images: torch.Tensor
) -> None:
    network = build().eval()
    codes = network.encode(images[:3])
    assert codes.shape == (3, code_size) and network.code_size == code_size
    output = network(images[:3])
    assert output.shape == (3, 28, 28)
    assert output.min() >= 0 and output.max() <= 1
    expected = (output - images[:3]).square().mean()
    torch.testing.assert_close(network.loss(images[:3], None), expected)


def test_ffnn_starts_as_its_reference_says() -> None:
    torch.manual_seed(0)
    network = dense.Network(widths=[32], gain=1.0, dropout=0.0)
    encoder, decoder = network.encoder[0], network.decoder[0]
    assert isinstance(encoder, torch.nn.Linear) and isinstance(decoder, torch.nn.Linear)
    assert encoder.weight.shape == (32, 784) and decoder.weight.shape == (784, 32)
    assert encoder.weight.std().item() == pytest.approx(784**-0.5, rel=0.02)
    assert decoder.weight.std().item() == pytest.approx(32**-0.5, rel=0.02)
    assert not encoder.bias.any() and not decoder.bias.any()


@pytest.mark.parametrize("decoder", ["transposed", "upsampled"])
@pytest.mark.parametrize("seed", range(5))
def test_convolutional_networks_do_not_die(decoder: str, seed: int, images: torch.Tensor) -> None:
    torch.manual_seed(seed)
    network = conv(decoder)
    data = labelled(images[:640])
    history = train(network, data, data, **{**SETTINGS, "seed": seed, "epochs": 4})
    mean_image = (images[:640] - images[:640].mean(dim=0)).square().mean().item()
    assert history[-1]["validation_mse"] < mean_image / 2


def test_a_dead_network_is_stopped_with_a_reason(images: torch.Tensor) -> None:
    network = conv("upsampled")
    with torch.no_grad():
        for parameter in network.decoder.parameters():
            parameter.zero_()
        network.decoder[-1].bias.fill_(-100.0)  # type: ignore[operator]
    with pytest.raises(BadInput, match=r"collapsed: validation MSE 0\.\d+ after 2 epochs"):
        train(network, labelled(images[:64]), labelled(images[:64]), **SETTINGS)


def test_nan_stops_training_with_epoch_and_rate(images: torch.Tensor) -> None:
    broken = images[:64].clone()
    broken[40] = float("nan")
    network = dense.Network(widths=[8], gain=1.0, dropout=0.0)
    with pytest.raises(BadInput, match=r"^learning_rate = 0\.005: .* nan in epoch 1"):
        train(network, labelled(broken), labelled(images[:64]), **SETTINGS)


def test_the_best_epoch_is_kept(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    network = dense.Network(widths=[16], gain=1.0, dropout=0.0)
    settings = {
        **SETTINGS,
        "epochs": 12,
        "grace": 12,
        "schedule": "constant",
        "learning_rate": 0.02,
    }
    data = labelled(images[:256])
    history = train(network, data, data, **settings)
    best = min(entry["validation_mse"] for entry in history)
    assert evaluate(network, *data)["mse"] == pytest.approx(best, rel=1e-6)
    assert [entry["epoch"] for entry in history] == list(range(1, 13))
    times = [entry["timestamp"] for entry in history]
    assert times == sorted(times)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(images: torch.Tensor) -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(3)
        network = dense.Network(widths=[16, 4], gain=1.4, dropout=0.2)
        settings = {**SETTINGS, "grace": 100, "epochs": 1, "seed": seed}
        with contextlib.suppress(BadInput):  # collapsed or not is not the question here
            train(network, labelled(images[:256]), labelled(images[:64]), **settings)
        states.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_the_training_mean_is_part_of_the_checkpoint(
    images: torch.Tensor, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = {"widths": [16], "gain": 1.0, "dropout": 0.0}
    torch.manual_seed(0)
    network = dense.Network(**arguments)  # type: ignore[arg-type]
    data = labelled(images[:512])
    train(network, data, data, **{**SETTINGS, "epochs": 12, "grace": 12, "learning_rate": 0.02})
    save_checkpoint(network, name="n", architecture="dense", arguments=arguments, dataset="digits")
    loaded, _ = load_checkpoint(tmp_path / "models" / "n.safetensors")
    torch.testing.assert_close(loaded.mean, images[:512].mean(dim=0))


def test_classifier_measures_cross_entropy_and_error(digit_splits: Any) -> None:
    torch.manual_seed(0)
    network = classifier.Network(channels=[4, 4], hidden=16, dropout=0.0, classes=10).eval()
    x = torch.rand(6, 28, 28)
    labels = torch.arange(6)
    measures = network.evaluate(x, labels)
    logits = network(x)
    right = logits.double().exp()[torch.arange(6), labels] / logits.double().exp().sum(dim=1)
    torch.testing.assert_close(measures["cross_entropy"].double(), -right.log())
    torch.testing.assert_close(network.loss(x, labels).double(), -right.log().mean())
    assert measures["error"].tolist() == (logits.argmax(1) != labels).float().tolist()


@pytest.mark.parametrize(
    "architecture", [classifier, convolutional, dense, denoiser, gallery, gaussian, masked, prior]
)
def test_a_network_needs_no_argument(architecture: Any) -> None:
    network = architecture.Network()
    assert isinstance(network, torch.nn.Module) and network.state_dict()
