"""`retrace audit` on a network as people train one: ten lines of PyTorch, saved as a state dict."""

import copy
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import TINY, write_params
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from retrace.commands import audit
from retrace.pipeline.artifacts import write_arrays
from retrace.pipeline.command import Refusal
from retrace.problems.training_data import audit as library
from retrace.problems.training_data import plain
from retrace.types import BadInput

pytestmark = pytest.mark.numerical
MEAN, DEVIATION = 0.2, 0.4
COUNT = 12
SHORT: dict[str, Any] = {"objectives": 60, "rounds": 2}


class Given(NamedTuple):
    network: nn.Sequential
    images: Tensor  # (n, 28, 28), the training images
    held_out: Tensor  # (m, 28, 28)


def trained(
    images: Tensor, labels: Tensor, *, seed: int, steps: int, decay: float
) -> nn.Sequential:
    """What anyone would write."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 10)
    )
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=decay)
    inputs = (images.flatten(1) - MEAN) / DEVIATION
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(inputs), labels).backward()
        optimiser.step()
    return network.requires_grad_(False)


@pytest.fixture(scope="module")
def digits(digit_splits: dict[str, dict[str, Any]]) -> tuple[Tensor, Tensor, Tensor]:
    train = digit_splits["train"]
    images = torch.from_numpy(train["images"]).float() / 255
    held_out = torch.from_numpy(digit_splits["validation"]["images"]).float() / 255
    return images, torch.from_numpy(train["labels"]).long(), held_out


@pytest.fixture(scope="module")
def given(digits: tuple[Tensor, Tensor, Tensor]) -> Given:
    images, labels, held_out = digits
    network = trained(images[:COUNT], labels[:COUNT], seed=3, steps=1500, decay=0.01)
    return Given(network, images[:COUNT], held_out)


@pytest.fixture
def workspace(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: Given,
    digit_splits: dict[str, dict[str, Any]],
) -> Path:
    monkeypatch.chdir(tmp_path)
    params = copy.deepcopy(TINY)
    params["runs"]["training_data-vertices"] = {
        "problem": "training_data",
        "method": "vertices",
        "network": "margin",
        "settings": SHORT,
    }
    write_params(tmp_path, params)
    save_file(dict(given.network.state_dict()), "mine.safetensors")
    validation = {key: digit_splits["validation"][key] for key in ("images", "labels")}
    write_arrays(Path("data/validation.npz"), {**validation, "dataset": np.array("digits")})
    np.save("images.npy", given.images.numpy())
    return tmp_path


def called(checkpoint: str = "mine.safetensors", **options: Any) -> dict[str, Any]:
    usual = {"data": Path("images.npy"), "null": None, "settings": None, "out": Path("audit.json")}
    normalisation = {"mean": [MEAN], "deviation": [DEVIATION]}
    audit.main(Path(checkpoint), **{**usual, **normalisation, **options})
    found: dict[str, Any] = json.loads(Path("audit.json").read_text())
    return found


def test_an_ordinary_checkpoint_gives_its_images_away(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = called()
    assert found["attack"] == "vertices" and found["rows"]["rank"] == COUNT
    assert found["rows"]["cliff"] > 100
    assert found["matched"]["0.99"] >= COUNT // 2 and found["null_matched"]["0.99"] == 0
    assert found["membership"]["tpr_0"] == 1  # by the rows alone
    verdicts = found["membership"]["verdicts"]
    assert len(verdicts) == COUNT and "member" in verdicts
    assert "not a member" not in verdicts
    printed = capsys.readouterr().out
    assert f"have {COUNT} dimensions above their noise" in printed
    assert "about so many training images lie in their span" in printed
    assert "told as members" in printed
    with Image.open("audit.png") as picture:
        assert picture.width > 500


def test_candidates_are_written_without_any_image(
    workspace: Path, given: Given, capsys: pytest.CaptureFixture[str]
) -> None:
    found = called(data=None)
    assert "matched" not in found and "membership" not in found
    with np.load("audit.npz") as file:
        candidates, residual = file["images"], file["residual"]
    assert len(candidates) == len(residual) == found["candidates"] >= found["certified"] > 0
    assert (np.diff(residual) >= 0).all()
    centred = [x.reshape(len(x), -1) - 0.1 for x in (candidates, given.images.numpy())]
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in centred]
    assert ((unit[0] @ unit[1].T).max(axis=0) > 0.99).sum() >= COUNT // 2
    assert f"{found['certified']} certified" in capsys.readouterr().out
    assert Path("audit.png").exists()


def test_one_image_has_a_verdict(
    workspace: Path, given: Given, capsys: pytest.CaptureFixture[str]
) -> None:
    clearest = int(np.argmax(called()["membership"]["scores"]))
    for name, image in (("in", given.images[clearest]), ("out", given.held_out[5])):
        Image.fromarray((image * 255).round().byte().numpy()).save(f"{name}.png")
    capsys.readouterr()
    called(data=Path("in.png"))
    printed = capsys.readouterr().out
    assert re.search(r"\nmember: \d+\.\d standard deviations nearer to what the weights", printed)
    null = Path("null.npy")
    np.save(null, given.held_out[6:].numpy())
    found = called(data=Path("out.png"), null=null)
    printed = capsys.readouterr().out
    assert found["membership"]["verdicts"][0] in ("not a member", "cannot be told")
    assert re.search(rf"\n{found['membership']['verdicts'][0]}: -?\d\.\d standard", printed)
    assert Path("in.png").exists() and Path("out.png").exists()


def test_few_held_out_images_tell_no_members(
    workspace: Path, given: Given, capsys: pytest.CaptureFixture[str]
) -> None:
    null = Path("null.npy")
    np.save(null, given.held_out[:1].numpy())
    found = called(null=null)
    assert "membership" not in found and found["null_n"] == 1
    assert "members cannot be told beside 1 held-out images: give 100" in capsys.readouterr().out


def test_without_a_cliff_nothing_is_said_to_be_no_member(
    workspace: Path, given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save("others.npy", given.held_out[:20].numpy())
    np.save("null.npy", given.held_out[20:].numpy())
    options: dict[str, Any] = {"data": Path("others.npy"), "null": Path("null.npy")}
    monkeypatch.setattr(library, "CERTIFIED", 5)
    assert "not a member" in called(**options)["membership"]["verdicts"]
    rough = {"rank": 60, "inputs": 784, "cliff": 1.2, "noise": 1e-4}
    monkeypatch.setattr(library, "seen", lambda columns, inputs: rough)
    assert "not a member" not in called(**options)["membership"]["verdicts"]
    assert "and no cliff after them" in library.sight(rough)


def test_what_training_adds_to_a_known_start_is_read(
    workspace: Path, digits: tuple[Tensor, Tensor, Tensor]
) -> None:
    """The start by its file, and found among seeds: the same."""
    images, labels, _ = digits
    network = trained(images[:COUNT], labels[:COUNT], seed=7, steps=60, decay=1e-3)
    save_file(dict(network.state_dict()), "short.safetensors")
    torch.manual_seed(7)
    start = nn.Sequential(
        nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 10)
    )
    save_file(dict(start.state_dict()), "start.safetensors")
    alone = called("short.safetensors")
    assert alone["matched"]["0.99"] == 0
    by_file = called("short.safetensors", start=Path("start.safetensors"))
    assert by_file["rows"]["rank"] == COUNT and by_file["matched"]["0.99"] >= COUNT // 2
    assert "certified" not in by_file
    by_seed = called("short.safetensors", seed_range="0:12", architecture="linear")
    assert by_seed["matched"] == by_file["matched"]


def test_other_activations_and_a_first_layer_without_bias_are_searched(given: Given) -> None:
    """Where only the span counts."""
    tensors = dict(given.network.state_dict())
    del tensors["0.bias"]
    found = library.audit(
        tensors,
        given.images,
        given.held_out,
        activation="gelu",
        mean=MEAN,
        deviation=DEVIATION,
        **SHORT,
    )
    assert found.scores["attack"] == "vertices"
    assert found.scores["rows"]["rank"] >= COUNT - 1


def test_colours(given: Given) -> None:
    """3 x 16 x 16, a deviation for each channel."""
    generator = torch.Generator().manual_seed(0)
    small = nn.functional.interpolate(
        torch.cat([given.images, given.held_out])[:, None], size=(16, 16), mode="area"
    )
    ends = small.sub(0.2).mul(2).clamp(0, 1)
    coloured = ends * torch.rand(len(ends), 3, 1, 1, generator=generator).round()
    coloured[:, 0] = ends[:, 0]
    deviation = [0.3, 0.4, 0.5]
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(768, 80), nn.ReLU(), nn.Linear(80, 10))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    scale = torch.tensor(deviation).repeat_interleave(256)
    inputs = (coloured[:COUNT].flatten(1) - 0.3) / scale
    for _ in range(1500):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(inputs), torch.arange(COUNT) % 10).backward()
        optimiser.step()
    found = library.audit(
        network, coloured[:COUNT], coloured[COUNT:], mean=0.3, deviation=deviation, **SHORT
    )
    assert found.candidates.shape[1:] == (3, 16, 16)
    assert found.scores["matched"]["0.99"] >= COUNT // 2
    assert found.scores["null_matched"]["0.99"] == 0


def test_a_start_in_the_file_needs_no_bias(given: Given) -> None:
    tensors = dict(given.network.state_dict())
    tensors["start_weight"] = tensors["0.weight"] / 2
    network = plain.network_of(tensors, shape=(28, 28))
    assert not network.get_buffer("start_bias").any()


def test_the_command_knows_the_activations_of_the_library() -> None:
    assert audit.ACTIVATIONS == plain.ACTIVATIONS


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a start of another shape": (
        {"start": Path("narrow.safetensors")},
        "--start narrow.safetensors: its first layer has shape (70, 784), that of the weights "
        "(200, 784)",
    ),
    "a start equal to the model": (
        {"start": Path("mine.safetensors")},
        "--start mine.safetensors: equals the network's first layer",
    ),
    "a start without a layer": (
        {"start": Path("empty.safetensors")},
        "--start empty.safetensors: its first layer has shape (0,)",
    ),
    "seeds without an architecture": (
        {"seed_range": "0:10"},
        "--seed-range 0:10: --architecture is missing",
    ),
    "no range": ({"seed_range": "10", "architecture": "linear"}, "FIRST:LAST is needed"),
    "an empty range": ({"seed_range": "5:5", "architecture": "linear"}, "FIRST:LAST is needed"),
    "no seed stands out": ({"seed_range": "90:93", "architecture": "linear"}, "none stands out"),
    "two starts": (
        {"seed_range": "0:3", "architecture": "linear", "start": Path("mine.safetensors")},
        "only one is possible",
    ),
    "no deviation": ({"deviation": [0.0]}, "--deviation goes down to 0; above 0 is allowed"),
    "too many means": ({"mean": [0.1, 0.2, 0.3]}, "`mean` has 3 values"),
    "means of channels that are not there": (
        {"mean": [0.1, 0.2]},
        "--mean has 2 values; images of shape [28, 28] have 1 channel",
    ),
    "not a mean": ({"mean": [float("nan")]}, "--mean: not finite"),
    "an endless deviation": ({"deviation": [float("inf")]}, "--deviation: not finite"),
    "an architecture without seeds": ({"architecture": "linear"}, "--architecture linear: says"),
    "a negative shape": ({"data": None, "shape": [-28, -28]}, "--shape -28 -28: numbers from 1"),
    "a shape of other images": ({"data": None, "shape": [3, 3]}, "--shape has shape (n, 3, 3)"),
    "a folder": ({"checkpoint": "folder"}, "folder is a folder"),
    "an adapter": ({"checkpoint": "adapter.safetensors"}, "a.lora_A.weight is of a LoRA adapter"),
    "no units": ({"checkpoint": "thin.safetensors"}, "0.weight has shape (0, 784)"),
    "a layer of zeros": ({"checkpoint": "zero.safetensors"}, "the first layer is 0 everywhere"),
    "a mean outside the box": ({"mean": [33.3]}, "--mean goes up to 33.3"),
    "NaN": ({"checkpoint": "nan.safetensors"}, "nan.safetensors: some weights of the network"),
    "seeds of a network that is not finite": (
        {"checkpoint": "nan.safetensors", "seed_range": "0:3", "architecture": "linear"},
        "nan.safetensors: some weights of the network",
    ),
    "seeds of no chain": (
        {"checkpoint": "branch.safetensors", "seed_range": "0:3", "architecture": "linear"},
        "branch.safetensors: ",
    ),
    "no chain": ({"checkpoint": "branch.safetensors"}, "this is no chain"),
    "another size": ({"data": Path("small.npy")}, "the network takes 784"),
    "settings of another attack": (
        {"settings": "sparse_span"},
        "--settings sparse_span: on this network the attack is vertices",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line_before_the_attack(
    case: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = load_file("mine.safetensors")
    narrow = {"0.weight": torch.ones(70, 784), "0.bias": torch.ones(70)}
    save_file({**tensors, **narrow}, "narrow.safetensors")
    save_file({"x": torch.ones(1)}, "empty.safetensors")
    save_file({**tensors, "2.weight": tensors["2.weight"] * torch.nan}, "nan.safetensors")
    save_file({**tensors, "2.weight": torch.ones(100, 70)}, "branch.safetensors")
    adapter = {"a.lora_A.weight": torch.ones(8, 784), "a.lora_B.weight": torch.ones(10, 8)}
    save_file(adapter, "adapter.safetensors")
    save_file({"0.weight": torch.ones(0, 784)}, "thin.safetensors")
    save_file({key: 0 * value for key, value in tensors.items()}, "zero.safetensors")
    Path("folder").mkdir()
    np.save("small.npy", np.full((9, 8, 8), 0.5, np.float32))
    before = sorted(workspace.rglob("*"))

    def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the attack began")

    monkeypatch.setattr("retrace.methods.training_data.vertices.look_everywhere", never)
    options, said = REFUSED[case]
    with pytest.raises(Refusal) as refusal:
        called(**options)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)
    assert sorted(workspace.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rounds": 0}, "settings.rounds = 0"),
        ({"objectives": "many"}, "settings.objectives = 'many'"),
        ({"speed": 3}, "settings.speed: unknown key"),
        ({"activation": "sine"}, "activation = 'sine': allowed are relu"),
        ({"weights": None}, "weights is NoneType"),
        ({"weights": "margin_20"}, "weights is str"),
        ({"weights": {"a": 1}}, "weights is dict"),
    ],
)
def test_wrong_arguments_of_the_library(given: Given, options: Any, said: str) -> None:
    with pytest.raises(BadInput) as error:
        library.audit(**{"weights": given.network, **options})
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


def test_images_without_held_out_ones_are_refused(given: Given) -> None:
    with pytest.raises(BadInput, match="held_out is missing"):
        library.audit(given.network, given.images)
