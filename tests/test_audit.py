"""`python -m stages.audit`: what a classifier gives away of some images, or one line."""

import copy
import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, write_params
from PIL import Image
from safetensors.torch import save_file

from stages import audit
from stages.artifacts import save_checkpoint, write_arrays
from stages.command import Refusal, run
from stages.methods.training_data.row_differences import two_hidden_layers
from stages.networks.margin import Network, training_set

PER_CLASS, FOUND = 3, 5
ARGUMENTS: dict[str, Any] = {"shape": [28, 28], "widths": [100, 100], "first_deviation": 0.0001}
TRAINING = {
    **TINY["networks"]["margin"]["training"],
    "per_class": PER_CLASS,
    "steps": 600,
    "decay": 0.014,
    "margin": 10.0,
    "sharpening": 1.0,
    "report_every": 600,
}


@pytest.fixture(scope="module")
def classifier(digit_splits: dict[str, dict[str, Any]]) -> tuple[Network, torch.Tensor]:
    """A classifier of six digits and these digits, (6, 28, 28)."""
    parts = {
        part: (
            torch.from_numpy(digit_splits[part]["images"]).float() / 255,
            torch.from_numpy(digit_splits[part]["labels"]).long(),
        )
        for part in ("train", "validation")
    }
    torch.manual_seed(0)
    network = Network(**ARGUMENTS)
    network.fit(parts["train"], parts["validation"], lambda entry: None, **TRAINING)
    chosen = {key: TRAINING[key] for key in ("examples", "labels", "per_class", "offset", "seed")}
    images, _, _ = training_set(parts["train"], **chosen)
    return network, images.unflatten(1, (28, 28))


@pytest.fixture
def workspace(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    classifier: tuple[Network, torch.Tensor],
    digit_splits: dict[str, dict[str, Any]],
) -> Path:
    monkeypatch.chdir(tmp_path)
    params = copy.deepcopy(TINY)
    params["runs"]["training_data-sparse_span"]["settings"] |= {
        "candidates": 40,
        "starts": 100,
        "objectives": 60,
        "neighbours": 30,
        "rounds": 2,
        "passes": 6,
        "iterations": 60,
        "trusted": 0.04,
    }
    write_params(tmp_path, params)
    network, images = classifier
    save_checkpoint(
        network, name="margin", architecture="margin", arguments=ARGUMENTS, dataset="digits"
    )
    save_file(dict(network.state_dict()), "plain.safetensors")
    validation = {key: digit_splits["validation"][key] for key in ("images", "labels")}
    write_arrays(Path("data/validation.npz"), {**validation, "dataset": np.array("digits")})
    # A third of the images is not of the training set.
    other = torch.from_numpy(digit_splits["test"]["images"][:3]).float() / 255
    np.savez("data.npz", images=torch.cat([images, other]).numpy())
    return tmp_path


def called(checkpoint: str = "models/margin.safetensors", **options: Any) -> None:
    given = {"data": Path("data.npz"), "null": None, "settings": "sparse_span"}
    audit.main(**{"checkpoint": Path(checkpoint), **given, "out": Path("audit.json"), **options})


def test_the_training_images_are_identified_and_others_are_not(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of our checkpoint and of the same tensors without a header: the same."""
    called()
    scores = json.loads(Path("audit.json").read_text())
    # Of so small a network the weights give five of the six; three images are others.
    assert scores["n"] == 9 and scores["identified"] == scores["matched"]["0.99"] == FOUND
    assert scores["null_identified"] == 0 == scores["null_matched"]["0.95"]
    assert scores["settings"]["public_starts"] == 0
    printed = capsys.readouterr().out
    assert f"0.99 {FOUND:>31}{0:>10}" in printed
    with Image.open("audit.png") as picture:
        assert picture.width > 500
    Path("audit.png").unlink()
    called("plain.safetensors", out=Path("plain.json"))
    plain = json.loads(Path("plain.json").read_text())
    for changing in ("seconds", "checkpoint"):
        assert plain.pop(changing) != scores.pop(changing)
    assert plain == scores
    assert Path("plain.png").exists()


def test_an_untrained_network_gives_nothing_away(workspace: Path) -> None:
    """The control: as it was drawn, with a first layer that no image has formed."""
    torch.manual_seed(1)
    save_file(dict(Network(**ARGUMENTS).state_dict()), "drawn.safetensors")
    called("drawn.safetensors")
    scores = json.loads(Path("audit.json").read_text())
    assert scores["identified"] == scores["null_identified"] == 0
    assert scores["matched"]["0.90"] == 0
    assert Path("audit.png").exists()


def layers(*widths: int, biases: int = 1, **others: torch.Tensor) -> dict[str, torch.Tensor]:
    """Tensors as `nn.Sequential` names them, a bias in the first layers."""
    tensors: dict[str, torch.Tensor] = {}
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        tensors[f"{2 * i}.weight"] = torch.full((outputs, inputs), 0.01)
        if i < biases:
            tensors[f"{2 * i}.bias"] = torch.ones(outputs)
    return tensors | others


def test_layers_are_ordered_by_their_numbers(tmp_path: Path) -> None:
    """10 behind 2, and the network computes what a Sequential of the same tensors does."""
    torch.manual_seed(0)
    sequential = torch.nn.Sequential(
        torch.nn.Linear(784, 5),
        *[torch.nn.ReLU() for _ in range(9)],
        torch.nn.Linear(5, 4, bias=False),
        torch.nn.ReLU(),
        torch.nn.Linear(4, 1, bias=False),
    )
    save_file(dict(sequential.state_dict()), tmp_path / "net.safetensors")
    network, _ = audit.read_network(tmp_path / "net.safetensors", shape=(28, 28))
    weights, _ = two_hidden_layers(network)
    assert [tuple(weight.shape) for weight in weights] == [(5, 784), (4, 5), (1, 4)]
    torch.testing.assert_close(weights[1], sequential.state_dict()["10.weight"])
    assert not network.get_buffer("mean").any()


CANNOT: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "convolution": (layers(784, 5, 5, 1) | {"8.weight": torch.ones(2, 1, 3, 3)}, "a convolution"),
    "outputs": (layers(784, 5, 5, 10), "it has 10 outputs"),
    "no bias": (layers(784, 5, 5, 1, biases=0), "its first layer has no bias"),
    "biases": (layers(784, 5, 5, 1, biases=3), "a later layer has a bias"),
    "not finite": (
        layers(784, 5, 5, 1) | {"2.weight": torch.full((5, 5), torch.nan)},
        "not finite",
    ),
    "one hidden layer": (layers(784, 5, 1), "1 hidden layers; 2 are needed"),
    "three hidden layers": (layers(784, 5, 5, 5, 1), "3 hidden layers; 2 are needed"),
    "no hidden layer": (layers(784, 1), "no hidden layer"),
    "no chain": (layers(784, 5, 5, 1) | {"2.weight": torch.ones(5, 6)}, "no chain"),
    "other images": (layers(100, 5, 5, 1), "takes 100 values, the images of --data have 784"),
    "normalisation": (layers(784, 5, 5, 1) | {"1.running_var": torch.ones(5)}, "1.running_var"),
    "a scale": (layers(784, 5, 5, 1) | {"1.weight": torch.ones(5)}, "no Linear layer"),
    "a mean of other size": (
        layers(784, 5, 5, 1) | {"mean": torch.ones(10)},
        "`mean` and `shape` are not those",
    ),
    "a long bias": (layers(784, 5, 5, 1) | {"0.bias": torch.ones(6)}, "the bias of 0.weight"),
    "nothing": ({"mean": torch.zeros(784)}, "holds no layer"),
}


@pytest.mark.parametrize("case", CANNOT)
def test_what_the_attack_does_not_cover_is_one_line(case: str, tmp_path: Path) -> None:
    tensors, said = CANNOT[case]
    path = tmp_path / "net.safetensors"
    save_file(tensors, path)
    with pytest.raises(Refusal) as refusal:
        audit.read_network(path, shape=(28, 28))
    assert said in str(refusal.value) and "\n" not in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_a_pickle_is_not_read_and_the_line_that_converts_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(layers(784, 5, 5, 1), "net.pt")
    monkeypatch.setattr(torch, "load", pytest.fail)
    with pytest.raises(Refusal, match="is a pickle") as refusal:
        audit.read_network(Path("net.pt"), shape=(28, 28))
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    _, _, command = str(refusal.value).partition('python -c "')
    exec(compile(command.rstrip('"'), "command", "exec"), {})  # noqa: S102
    network, _ = audit.read_network(Path("net.safetensors"), shape=(28, 28))
    torch.testing.assert_close(two_hidden_layers(network)[0][0], torch.full((5, 784), 0.01))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no checkpoint": ({"checkpoint": "none.safetensors"}, "give a checkpoint"),
    "no safetensors": ({"checkpoint": "data.npz"}, "not a whole safetensors file"),
    "settings": ({"settings": "kkt"}, "allowed are sparse_span"),
    "no data": ({"data": Path("none.npz")}, "no such file"),
    "no images": ({"data": Path("other.npz")}, "no array `images`; it holds pictures"),
    "no array": ({"data": Path("params.yaml")}, "not a readable .npz"),
    "objects": ({"data": Path("objects.npy")}, "not a readable .npy"),
    "flat": ({"data": Path("flat.npy")}, "(n, rows, columns) is needed"),
    "integers": ({"data": Path("integers.npy")}, "bytes, or floats from 0 to 1"),
    "range": ({"data": Path("range.npy")}, "values from 0 to 255; 0 to 1 is allowed"),
    "other size": ({"data": Path("small.npy")}, "those of --data have (8, 8)"),
    "null of other size": ({"null": Path("small.npy")}, "(8, 8), the others (28, 28); give"),
    "few held out": ({"null": Path("two.npy")}, "2 held-out images that are not in --data; 9"),
    "the same": ({"null": Path("data.npz")}, "0 held-out images that are not in --data; 9"),
    "no folder": ({"out": Path("none/audit.json")}, "make it first"),
    "no json": ({"out": Path("audit.txt")}, "ends in .json"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line_and_leaves_nothing(case: str, workspace: Path) -> None:
    np.savez("other.npz", pictures=np.zeros((3, 28, 28)))
    np.save("objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save("flat.npy", np.zeros((9, 784), np.float32))
    np.save("integers.npy", np.zeros((9, 28, 28), np.int64))
    np.save("range.npy", np.linspace(0, 255, 9 * 784).reshape(9, 28, 28))
    np.save("small.npy", np.zeros((9, 8, 8), np.float32))
    np.save("two.npy", np.linspace(0, 1, 2 * 784).reshape(2, 28, 28))
    before = {path: path.stat().st_mtime_ns for path in workspace.rglob("*")}
    options, said = REFUSED[case]
    with pytest.raises(Refusal) as refusal:
        called(**options)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)
    assert {path: path.stat().st_mtime_ns for path in workspace.rglob("*")} == before


def test_held_out_images_come_from_the_file_the_option_or_the_pipeline(workspace: Path) -> None:
    images = torch.rand(4, 28, 28, generator=torch.Generator().manual_seed(0))
    own = torch.cat([images[:1], 1 - images])  # one of them is no held-out one
    torch.testing.assert_close(audit.held_out_for(images, own, dataset=None), own[1:])
    np.savez("with.npz", images=images.numpy(), held_out=(own.numpy() * 255).astype(np.uint8))
    arrays = audit.read_images(Path("with.npz"), option="--data")
    torch.testing.assert_close(arrays["held_out"], own, atol=1 / 255, rtol=0)
    with np.load("data/validation.npz") as file:
        expected = torch.from_numpy(file["images"][:4]).float() / 255
    for dataset in (None, "digits"):
        found = audit.held_out_for(images, None, dataset=dataset)
        torch.testing.assert_close(found, expected)
    with pytest.raises(Refusal, match=r"trained on mnist, .* are of digits: give --null FILE"):
        audit.held_out_for(images, None, dataset="mnist")
    Path("data/validation.npz").unlink()
    with pytest.raises(Refusal, match="give --null FILE, or `held_out`"):
        audit.held_out_for(images, None, dataset=None)


def test_the_command_line(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["audit", "params.yaml", "--data", "data.npz"])
    with pytest.raises(SystemExit) as stopped:
        run(audit.main, arguments=audit.arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("retrace: params.yaml is not a whole safetensors")
