"""`retrace audit` and `retrace.audit`: what a classifier gives away of some images, or one line."""

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
from safetensors import safe_open
from safetensors.torch import save_file

from retrace.commands import audit
from retrace.methods.training_data.row_differences import two_hidden_layers
from retrace.networks.margin import Network, training_set
from retrace.pipeline.artifacts import save_checkpoint, write_arrays
from retrace.pipeline.command import Refusal, run
from retrace.pipeline.params import load
from retrace.problems.training_data import audit as library
from retrace.problems.training_data import plain
from retrace.types import BadInput

pytestmark = pytest.mark.numerical
PER_CLASS, FOUND = 3, range(4, 7)  # of six: how many differs from processor to processor
ARGUMENTS: dict[str, Any] = {"widths": [100, 100]}
TRAINING: dict[str, Any] = {
    "per_class": PER_CLASS,
    "steps": 600,
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
    images, _, _ = training_set(parts["train"], per_class=PER_CLASS)
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
    given = {"data": Path("data.npz"), "null": None, "settings": None}
    audit.main(**{"checkpoint": Path(checkpoint), **given, "out": Path("audit.json"), **options})


def test_the_training_images_are_identified_and_others_are_not(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of our checkpoint and of the same tensors without a header: the same."""
    called()
    scores = json.loads(Path("audit.json").read_text())
    # Three of the nine images are others.
    assert scores["n"] == 9 and scores["identified"] in FOUND
    clear = scores["matched"]["0.99"]
    assert clear in FOUND
    null = scores["null_n"]
    assert null == 308 - len(scores["null_removed"]) > 300 and scores["null"] == "validation"
    assert scores["null_identified"] <= null // 100 and scores["null_matched"]["0.99"] == 0
    assert scores["settings"]["public_starts"] == 0
    printed = capsys.readouterr().out
    row = next(line.split() for line in printed.splitlines() if line.startswith("0.99 "))
    assert row == ["0.99", str(clear), "of", "9", "0", "of", str(null)]
    assert f"at most 1% of the {null} held-out images are matched" in scores["claim"]
    assert scores["claim"] in printed and f"{scores['null_bound']:.1%}" in scores["claim"]
    with Image.open("audit.png") as picture:
        assert picture.width > 500
    Path("audit.png").unlink()
    called("plain.safetensors", out=Path("plain.json"))
    bare = json.loads(Path("plain.json").read_text())
    for changing in ("seconds", "checkpoint"):
        assert bare.pop(changing) != scores.pop(changing)
    assert bare == scores
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


def network_in(path: Path) -> plain.Plain:
    return plain.network_of(audit.read_weights(path)[0], shape=(28, 28))


def test_layers_are_ordered_by_their_numbers() -> None:
    """10 behind 2, and the network computes what a Sequential of the same tensors does."""
    torch.manual_seed(0)
    sequential = torch.nn.Sequential(
        torch.nn.Linear(784, 5),
        *[torch.nn.ReLU() for _ in range(9)],
        torch.nn.Linear(5, 4, bias=False),
        torch.nn.ReLU(),
        torch.nn.Linear(4, 1, bias=False),
    )
    network = plain.network_of(sequential, shape=(28, 28))
    weights, _ = two_hidden_layers(network)
    assert [tuple(weight.shape) for weight in weights] == [(5, 784), (4, 5), (1, 4)]
    torch.testing.assert_close(weights[1], sequential.state_dict()["10.weight"])
    assert not network.get_buffer("mean").any()


CANNOT: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "convolution": (layers(784, 5, 5, 1) | {"8.weight": torch.ones(2, 1, 3, 3)}, "a convolution"),
    "not finite": (
        layers(784, 5, 5, 1) | {"2.weight": torch.full((5, 5), torch.nan)},
        "not finite",
    ),
    "no hidden layer": (layers(784, 1), "no hidden layer"),
    "no chain": (layers(784, 5, 5, 1) | {"2.weight": torch.ones(5, 6)}, "no chain"),
    "other images": (layers(100, 5, 5, 1), "images has shape (n, 28, 28), 784 values each; "),
    "int8": (
        {k: v.to(torch.int8) for k, v in layers(784, 5, 5, 1).items()},
        "0.bias holds torch.int8; floats of 16 bits and more are read",
    ),
    "one layer in bytes": (
        layers(784, 5, 5, 1) | {"2.weight": torch.ones(5, 5, dtype=torch.uint8)},
        "2.weight holds torch.uint8",
    ),
    "booleans": (
        layers(784, 5, 5, 1) | {"2.weight": torch.ones(5, 5, dtype=torch.bool)},
        "2.weight holds torch.bool",
    ),
    "float8": (
        layers(784, 5, 5, 1) | {"2.weight": torch.ones(5, 5).to(torch.float8_e4m3fn)},
        "2.weight holds torch.float8_e4m3fn",
    ),
    "complex": (
        layers(784, 5, 5, 1) | {"0.weight": torch.ones(5, 784, dtype=torch.complex64)},
        "0.weight holds torch.complex64",
    ),
    "a mean in integers": (
        layers(784, 5, 5, 1) | {"mean": torch.zeros(784, dtype=torch.int64)},
        "mean holds torch.int64",
    ),
    "infinite as float32": (
        layers(784, 5, 5, 1) | {"0.bias": torch.full((5,), 1e300, dtype=torch.float64)},
        "not finite",
    ),
    "normalisation": (layers(784, 5, 5, 1) | {"1.running_var": torch.ones(5)}, "1.running_var"),
    "a scale": (layers(784, 5, 5, 1) | {"1.weight": torch.ones(5)}, "no Linear layer"),
    "a mean of other size": (
        layers(784, 5, 5, 1) | {"mean": torch.ones(10)},
        "`mean` has 10 values; 1, one for each of up to 4 channels, or 784",
    ),
    "a long bias": (layers(784, 5, 5, 1) | {"0.bias": torch.ones(6)}, "the bias of 0.weight"),
    "nothing": ({"mean": torch.zeros(784)}, "weights: no layer"),
}


@pytest.mark.parametrize("case", CANNOT)
def test_what_the_attack_does_not_cover_is_one_line(case: str) -> None:
    tensors, said = CANNOT[case]
    with pytest.raises(BadInput) as error:
        plain.network_of(tensors, shape=(28, 28))
    assert said in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith("images" if case == "other images" else "weights: ")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_in_other_floats_are_read(kind: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file({key: value.to(kind) for key, value in layers(784, 5, 5, 1).items()}, path)
    weights, bias = two_hidden_layers(network_in(path))
    assert all(tensor.dtype == torch.float32 for tensor in (*weights, bias))
    torch.testing.assert_close(weights[0], torch.full((5, 784), 0.01), rtol=0.01, atol=0)


def test_our_checkpoints_are_held_to_the_same_types(workspace: Path) -> None:
    with safe_open("models/margin.safetensors", framework="pt") as file:
        header = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    for kind, said in ((torch.complex64, "holds C64"), (torch.int8, "holds I8")):
        changed = {key: value.to(kind) for key, value in tensors.items()}
        save_file(changed, "changed.safetensors", metadata=header)
        with pytest.raises(Refusal, match=said):
            audit.read_weights(Path("changed.safetensors"))
    save_file({k: v.half() for k, v in tensors.items()}, "half.safetensors", metadata=header)
    assert audit.read_weights(Path("half.safetensors"))[1] == "digits"
    network = network_in(Path("half.safetensors"))
    assert two_hidden_layers(network)[1].dtype == torch.float32


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_checkpoint_in_parts_is_refused_and_the_line_that_merges_it_works(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tensors = layers(784, 5, 5, 1)
    names = [f"model-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    halves = (dict(list(tensors.items())[:2]), dict(list(tensors.items())[2:]))
    parts = dict(zip(names, halves, strict=True))
    for name, part in parts.items():
        if suffix == "safetensors":
            save_file(part, name)
        else:
            torch.save(part, name)
    index = {"metadata": {}, "weight_map": {key: name for name in names for key in parts[name]}}
    path = Path(f"model.{suffix}.index.json")
    path.write_text(json.dumps(index))
    with pytest.raises(Refusal, match="the index of a checkpoint in parts, 2 here") as refusal:
        audit.read_weights(path)
    assert "\n" not in str(refusal.value)
    with pytest.raises(Refusal, match=f"part 1 of 2 of a checkpoint: .* model.{suffix}.index.json"):
        audit.read_weights(Path(names[0]))
    _, _, command = str(refusal.value).partition('python -c "')
    exec(compile(command.rstrip('"'), "command", "exec"), {})  # noqa: S102
    network = network_in(Path("model.safetensors"))
    torch.testing.assert_close(two_hidden_layers(network)[0][0], torch.full((5, 784), 0.01))


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": 3}', "{", '{"weight_map": {"a": 3}}'])
def test_another_json_is_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text)
    with pytest.raises(Refusal, match=r"whole safetensors|index") as refusal:
        audit.read_weights(path)
    assert "\n" not in str(refusal.value)


SHAPES: dict[str, tuple[tuple[int, ...], int, tuple[int, ...], tuple[int, ...] | None]] = {
    # in the file, values that the network takes, its own shape; what is taken, if any is
    "grey": ((28, 28), 784, (), (28, 28)),
    "one channel first": ((1, 28, 28), 784, (), (28, 28)),
    "one channel last": ((28, 28, 1), 784, (), (28, 28)),
    "a row": ((784,), 784, (), (28, 28)),
    "no square": ((20, 30), 600, (), (20, 30)),
    "colours": ((3, 32, 32), 3072, (), (3, 32, 32)),
    "ours, one channel": ((1, 28, 28), 784, (28, 28), (28, 28)),
    "ours, a row": ((784,), 784, (28, 28), (28, 28)),
    "ours of one channel": ((28, 28), 784, (1, 28, 28), (28, 28)),
    "our colours": ((3, 8, 8), 192, (3, 8, 8), (3, 8, 8)),
    "our colours in a row": ((192,), 192, (3, 8, 8), (3, 8, 8)),
    "colours for grey": ((32, 32, 3), 784, (), None),
    "colours last": ((32, 32, 3), 3072, (), None),
    "our colours last": ((8, 8, 3), 192, (3, 8, 8), None),
    "four channels": ((4, 28, 28), 3136, (), None),
    "two channels": ((2, 14, 28), 784, (), None),
    "a row of no square": ((600,), 600, (), None),
    "a row of another length": ((700,), 784, (), None),
    "turned": ((49, 16), 784, (28, 28), None),
    "one image": ((28,), 784, (), None),
    "a volume": ((3, 4, 8, 8), 768, (), None),
}


@pytest.mark.parametrize("case", SHAPES)
def test_shapes_are_taken_where_they_are_unambiguous(case: str) -> None:
    given, inputs, wanted, taken = SHAPES[case]

    def shape() -> tuple[int, ...]:
        return plain.fitting(given, inputs=inputs, wanted=wanted, name="images")

    if taken is None:
        with pytest.raises(BadInput, match="allowed are") as error:
            shape()
        shown = f"images has shape (n, {', '.join(map(str, given))}), "
        assert str(error.value).startswith(shown)
        assert f"the network takes {inputs}: " in str(error.value)
    else:
        assert shape() == taken


def test_a_pickle_is_not_read_and_the_line_that_converts_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(layers(784, 5, 5, 1), "net.pt")
    monkeypatch.setattr(torch, "load", pytest.fail)
    with pytest.raises(Refusal, match="is a pickle") as refusal:
        audit.read_weights(Path("net.pt"))
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    _, _, command = str(refusal.value).partition('python -c "')
    exec(compile(command.rstrip('"'), "command", "exec"), {})  # noqa: S102
    network = network_in(Path("net.safetensors"))
    torch.testing.assert_close(two_hidden_layers(network)[0][0], torch.full((5, 784), 0.01))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no checkpoint": ({"checkpoint": "none.safetensors"}, "give a checkpoint"),
    "a folder": ({"checkpoint": "data"}, "data is a folder; give a checkpoint"),
    "an archive": ({"data": Path("archive.npy")}, "not a readable .npy"),
    "no safetensors": ({"checkpoint": "data.npz"}, "not a whole safetensors file"),
    "settings": ({"settings": "kkt"}, "the attack is sparse_span; allowed are sparse_span"),
    "no data": ({"data": Path("none.npz")}, "no such file"),
    "no images": ({"data": Path("other.npz")}, "no array `images`; it holds pictures"),
    "no array": ({"data": Path("params.yaml")}, "not a readable .npz"),
    "objects": ({"data": Path("objects.npy")}, "not a readable .npy"),
    "flat": ({"data": Path("flat.npy")}, "(n, rows, columns) is needed"),
    "none": ({"data": Path("zero.npy")}, "n from 1 on"),
    "colours": (
        {"data": Path("colours.npy")},
        "images has shape (n, 28, 28, 3), 2352 values each; ",
    ),
    "bytes of 0 and 1": ({"data": Path("bits.npy")}, "no value is above 1, nearly black where 255"),
    "scaled twice": ({"data": Path("dark.npy")}, "no value is above 0.0039"),
    "not a number": ({"data": Path("nan.npy")}, "values from nan to nan; 0 to 1 is allowed"),
    "complex": ({"data": Path("complex.npy")}, "holds complex128"),
    "half the range": ({"null": Path("faint.npy")}, "they are not scaled alike"),
    "inverted": ({"null": Path("inverted.npy")}, "inverted, it seems"),
    "integers": ({"data": Path("integers.npy")}, "bytes, or floats from 0 to 1"),
    "range": ({"data": Path("range.npy")}, "values from 0 to 255; 0 to 1 is allowed"),
    "other size": (
        {"data": Path("small.npy")},
        "--data small.npy: images has shape (n, 8, 8), 64 values each; the network takes 784",
    ),
    "null of other size": (
        {"null": Path("small.npy")},
        "--null small.npy has shape (n, 8, 8)",
    ),
    "the same": (
        {"null": Path("data.npz")},
        "each of the 9 held-out images nearly equals an image",
    ),
    "nearly the same": ({"null": Path("near.npy")}, "each of the 5 held-out images nearly equals"),
    "over the null": ({"null": Path("audit.json"), "out": Path("audit.json")}, "would overwrite"),
    "no folder": ({"out": Path("none/audit.json")}, "make it first"),
    "no json": ({"out": Path("audit.txt")}, "ends in .json"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line_and_leaves_nothing(case: str, workspace: Path) -> None:
    np.savez("other.npz", pictures=np.zeros((3, 28, 28)))
    Path("archive.npy").write_bytes(Path("data.npz").read_bytes())
    np.save("objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save("flat.npy", np.zeros(784, np.float32))
    np.save("zero.npy", np.zeros((0, 28, 28), np.float32))
    np.save("colours.npy", np.full((9, 28, 28, 3), 0.5, np.float32))
    np.save("bits.npy", np.ones((9, 28, 28), np.uint8))
    np.save("nan.npy", np.full((9, 28, 28), np.nan, np.float32))
    np.save("complex.npy", np.ones((9, 28, 28), complex))
    with np.load("data.npz") as file:
        images = file["images"]
    np.save("dark.npy", images / 255)
    np.save("faint.npy", images[::-1] / 4)
    np.save("inverted.npy", 1 - images)
    np.save("near.npy", np.roll(images[:5], 1, axis=1))
    Path("audit.json").write_text("not ours")
    np.save("integers.npy", np.zeros((9, 28, 28), np.int64))
    np.save("range.npy", np.linspace(0, 255, 9 * 784).reshape(9, 28, 28))
    np.save("small.npy", np.full((9, 8, 8), 0.5, np.float32))
    before = {path: path.stat().st_mtime_ns for path in workspace.rglob("*")}
    options, said = REFUSED[case]
    with pytest.raises(Refusal) as refusal:
        called(**options)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)
    assert {path: path.stat().st_mtime_ns for path in workspace.rglob("*")} == before


def test_held_out_images_come_from_the_file_the_option_or_the_pipeline(
    workspace: Path, digit_splits: dict[str, dict[str, Any]]
) -> None:
    with np.load("data.npz") as file:
        images = file["images"]
    own = digit_splits["test"]["images"][10:19]
    assert found(images=images, held_out=own)["null_n"] == 9
    np.save("own.npy", own[:8, ..., None])
    called(data=Path("given.npz"), null=Path("own.npy"))
    scores = json.loads(Path("audit.json").read_text())
    assert scores["null_n"] == 8 and scores["null"] == "own.npy"
    for dataset in (None, "digits"):  # all there are
        taken = audit.validation_images(dataset)
        np.testing.assert_array_equal(taken, digit_splits["validation"]["images"])
    with pytest.raises(Refusal, match=r"trained on mnist, .* are of digits: give --null FILE"):
        audit.validation_images("mnist")
    Path("data/validation.npz").unlink()
    with pytest.raises(Refusal, match="give --null FILE, or `held_out`"):
        audit.validation_images(None)


def found(**arrays: Any) -> dict[str, Any]:
    """Audit images, of which some are in the training set, beside some that are not."""
    np.savez("given.npz", **arrays)
    called(data=Path("given.npz"))
    scores: dict[str, Any] = json.loads(Path("audit.json").read_text())
    return scores


def test_a_near_duplicate_in_a_small_null_hides_nothing(
    workspace: Path, digit_splits: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """One of the held-out images is a training image but for noise of a grey level: trusted, it
    would be matched as well as that one, and no image would be above the threshold. And what is
    there twice, on either side, counts once."""
    with np.load("data.npz") as file:
        images = file["images"]
    held_out = digit_splits["test"]["images"][10:20].astype(np.float32) / 255
    clean = found(images=images, held_out=held_out)
    assert clean["identified"] in FOUND and clean["null_removed"] == []
    assert clean["null_n"] == 10 and clean["null_bound"] == pytest.approx(1 - 0.05**0.1)
    assert clean["claim"].startswith("10 held-out images are too few to claim 1%")
    assert f"up to {clean['null_bound']:.1%} may be matched" in clean["claim"]
    assert f"one of them (position {clean['null_highest']}) decides" in clean["claim"]
    capsys.readouterr()

    noise = np.random.default_rng(0).normal(0, 0.004, (28, 28))
    near = [np.clip(image + noise, 0, 1) for image in (images[1], held_out[4])]
    images = np.concatenate([images, images[3:4]])
    got = found(images=images, held_out=np.stack([near[0], *held_out, near[1]]))
    (removed,) = got["null_removed"]
    assert (removed["held_out"], removed["image"]) == (0, 1) and removed["correlation"] > 0.999
    (repeat,), (twice,) = got["null_repeats"], got["image_repeats"]
    assert (repeat["held_out"], repeat["repeats"]) == (11, 5)
    assert (twice["image"], twice["repeats"]) == (9, 3)
    assert got["null_duplicates"] == 1 and got["null_n"] == 10 and got["n"] == 9
    assert (
        got["null_highest"] == clean["null_highest"] + 1
    )  # in the file that has one more in front
    for key in ("identified", "threshold", "matched", "null_matched"):
        assert got[key] == clean[key]
    printed = capsys.readouterr().out
    assert "1 taken out of the held-out images, nearly an image: 0 (of 1, 1.000)" in printed
    assert "1 left out of the held-out images, repeating another: 11 (of 5, 1.000)" in printed
    assert "1 left out of the images, repeating another: 9 (of 3, 1.000)" in printed


def test_a_null_of_training_images_is_named(
    workspace: Path,
    digit_splits: dict[str, dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Images that the classifier was trained on, but that are not among those asked for."""
    with np.load("data.npz") as file:
        images = file["images"]
    others = digit_splits["test"]["images"][10:15].astype(np.float32) / 255
    got = found(images=np.concatenate([images[:3], others]), held_out=images[3:])
    assert got["null_removed"] == [] and got["null_suspects"]
    assert all(position < 3 for position in got["null_suspects"])  # the last three are others
    assert "If the classifier was trained on them, they are no null" in capsys.readouterr().out


@pytest.mark.parametrize("count", [1, 2])
def test_few_and_identical_images_have_an_answer(workspace: Path, count: int) -> None:
    with np.load("data.npz") as file:
        images = file["images"]
    got = found(images=np.repeat(images[:count], 3, axis=0), held_out=images[6:7])
    assert got["n"] == count and len(got["image_repeats"]) == 2 * count
    assert got["null_n"] == 1 and got["null_bound"] == pytest.approx(0.95)
    assert Path("audit.png").exists()


@pytest.mark.parametrize("axis", [1, 3])
def test_one_channel_gives_the_same_numbers(workspace: Path, axis: int) -> None:
    with np.load("data.npz") as file:
        images = file["images"]
    called()
    scores = json.loads(Path("audit.json").read_text())
    got = found(images=np.expand_dims(images, axis))
    for key in ("identified", "threshold", "matched", "null_matched", "null_n"):
        assert got[key] == scores[key]


def test_tensors_of_ones_own_give_what_the_command_says(
    workspace: Path, classifier: tuple[Network, torch.Tensor]
) -> None:
    """A module as it stands in memory and a tensor of images; nothing is written."""
    called()
    scores = json.loads(Path("audit.json").read_text())
    with np.load("data.npz") as file:
        images = torch.from_numpy(file["images"])
    before = sorted(workspace.rglob("*"))
    result = library.audit(
        classifier[0],
        images,
        audit.validation_images(None),
        distinct_null=True,
        **audit.settings_of(None, load(), attack="sparse_span"),
    )
    for key in ("identified", "threshold", "matched", "null_n", "null_removed", "claim"):
        assert result.scores[key] == scores[key]
    assert f"{scores['identified']} of 9" in str(result)
    assert result.candidates.shape[1:] == (28, 28)
    assert sorted(workspace.rglob("*")) == before


def test_colours_work_to_the_end(workspace: Path) -> None:
    """Pictures included, of a network of 3 x 8 x 8 values that says nothing of their shape."""
    generator = torch.Generator().manual_seed(3)
    tensors = {
        "0.weight": torch.randn(20, 192, generator=generator),
        "0.bias": torch.randn(20, generator=generator),
        "2.weight": torch.randn(8, 20, generator=generator),
        "4.weight": torch.randn(1, 8, generator=generator),
    }
    save_file(tensors, "colours.safetensors")
    images = torch.rand(20, 3, 8, 8, generator=generator).numpy()
    np.savez("given.npz", images=images[:5], held_out=images[5:])
    called("colours.safetensors", data=Path("given.npz"))
    scores = json.loads(Path("audit.json").read_text())
    assert scores["n"] == 5 and scores["null_n"] == 15
    assert Path("audit.png").exists()


def test_numbers_are_written_before_the_picture(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any, **options: Any) -> None:
        raise ValueError("no picture")

    monkeypatch.setattr(audit, "draw", fails)
    with pytest.raises(ValueError, match="no picture"):
        called()
    assert json.loads(Path("audit.json").read_text())["identified"] in FOUND
    assert not Path("audit.png").exists()


def test_the_command_line(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["audit", "params.yaml", "--data", "data.npz"])
    with pytest.raises(SystemExit) as stopped:
        run(audit.main, arguments=audit.arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("retrace: params.yaml is not a whole safetensors")
