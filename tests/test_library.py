"""`import retrace`: what it offers, on tensors and arrays of one's own."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, execute

import retrace
from docs import notebook
from retrace.methods.imputation import ridge
from retrace.networks.classifier import Network as Classifier
from retrace.networks.dense import Network as Dense
from retrace.networks.gaussian import Network
from retrace.networks.prior import Network as Prior
from retrace.pipeline.artifacts import save_checkpoint

BOTTOM = np.arange(28)[:, None].repeat(28, axis=1) >= 14
RIDGE: dict[str, Any] = {"method": "ridge", "penalty": 0.01}


@pytest.fixture(scope="module")
def gaussian(images: torch.Tensor) -> Network:
    network = Network()
    network.fit((images, images), (images, images), lambda entry: None)
    return network


def test_its_import_is_cheap_and_lists_what_there_is() -> None:
    heavy = ("torch", "numpy", "pydantic", "retrace.pipeline")
    code = f"import sys, retrace; print(*set(sys.modules) & set({heavy})); print(*dir(retrace))"
    imported, listed = execute(sys.executable, "-c", code, cwd=ROOT).stdout.splitlines()
    assert imported == "" and set(retrace.__all__) < set(listed.split())
    assert all(getattr(retrace, name) for name in retrace.__all__)
    with pytest.raises(AttributeError, match="'retrace' has no attribute 'compleat'"):
        retrace.compleat  # type: ignore[attr-defined]  # noqa: B018


def test_a_network_is_loaded_by_its_name_or_its_path(
    gaussian: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_checkpoint(
        gaussian, name="gaussian", architecture="gaussian", arguments={}, dataset="digits"
    )
    for given in ("gaussian", "models/gaussian.safetensors", Path("models/gaussian.safetensors")):
        network = retrace.load(given)
        assert isinstance(network, Network) and not network.training
        torch.testing.assert_close(network.covariance, gaussian.covariance)
    with pytest.raises(retrace.Refusal, match=r"models/prior\.safetensors is missing"):
        retrace.load("prior")
    with pytest.raises(retrace.Refusal, match=r"^my\.png: a name, or a path that ends in \.safet"):
        retrace.load("my.png")


def test_images_are_completed_in_the_shape_that_they_have(
    gaussian: Network, images: torch.Tensor
) -> None:
    observed = images[:3].masked_fill(torch.from_numpy(BOTTOM), torch.nan)
    expected = ridge.reconstruct(gaussian, observed, penalty=0.01)
    found = retrace.complete(images[:3].numpy(), BOTTOM, network=gaussian, **RIDGE)
    torch.testing.assert_close(found.image[:, 14:], expected[:, 14:].clamp(0, 1), rtol=0, atol=0)
    torch.testing.assert_close(found.image[:, :14], images[:3, :14], rtol=0, atol=0)
    assert found.samples is None and found.deviation is None
    one = retrace.complete(observed[1], network=gaussian, **RIDGE)
    assert one.image.shape == (28, 28)
    torch.testing.assert_close(one.image, found.image[1])


def test_samples_of_ones_own_method_keep_the_known_pixels() -> None:
    """In bytes or in floats, for one image or several."""

    def method(network: Any, observed: torch.Tensor, *, levels: list[int]) -> Any:
        samples = torch.tensor(levels, dtype=torch.uint8).reshape(1, -1, 1, 1)
        return {
            "estimate": torch.full_like(observed, 0.5),
            "deviation": torch.full_like(observed, 0.25),
            "samples": samples.expand(len(observed), -1, 28, 28),
        }

    image = np.full((28, 28), 0.75)
    for given in (image, np.stack([image, image])):
        found = retrace.complete(
            given, BOTTOM, method=method, network=torch.nn.Identity(), levels=[0, 51, 255]
        )
        assert found.samples is not None and found.deviation is not None
        assert found.samples.shape == (*given.shape[:-2], 3, 28, 28)
        assert found.samples[..., :14, :].eq(0.75).all()
        assert found.samples[..., 20, 20].flatten().tolist()[:3] == pytest.approx([0, 0.2, 1])
        assert found.deviation[..., :14, :].eq(0).all()
        assert found.deviation[..., 14:, :].eq(0.25).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "magic"}, "method = 'magic': allowed are backpropagation, "),
        ({"image": np.zeros((8, 8))}, r"image has shape \(8, 8\): allowed are \(28, 28\)"),
        ({"image": np.full((28, 28), 255.0)}, "image: values from 255 to 255; 0 to 1 is"),
        ({"mask": np.ones((28, 28))}, r"mask has shape \(28, 28\) and type torch.float64"),
        ({"mask": BOTTOM[None, None]}, r"mask has shape \(1, 1, 28, 28\)"),
        ({"mask": None}, "mask: no pixel is missing"),
        ({"mask": np.ones((28, 28), bool)}, "mask: all pixels of an image are missing"),
        ({"method": lambda network, observed: observed}, "the estimate is not finite"),
        ({"image": None}, "image is no array of numbers"),
        ({"image": "abc"}, "image is no array of numbers"),
        ({"image": np.full((28, 28), None)}, "image is no array of numbers"),
        ({"image": np.full((28, 28), 0.5j)}, "image has type torch.complex128; real numbers"),
        ({"mask": "abc"}, "mask is no array of numbers"),
        ({"penalty": -1.0}, "^penalty = -1.0: input should be greater than or equal to 0"),
        ({"foo": 3}, "^foo: unknown key"),
        ({"network": 3}, "^network = 3: a Module, a name or a path is needed"),
        ({"network": Classifier()}, "^network: architecture classifier; method ridge takes gauss"),
        ({"method": ridge.reconstruct, "penalty": "1"}, "^penalty = '1': input should be a valid"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, Any], said: str, gaussian: Network) -> None:
    given = {"image": np.full((28, 28), 0.5), "mask": BOTTOM, "method": "ridge"}
    with pytest.raises(retrace.BadInput, match=said) as error:
        retrace.complete(**{**given, "network": gaussian, **changes})
    assert isinstance(error.value, ValueError) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "setting",
    [
        {"samples": 0},
        {"search_steps": -5},
        {"residual_penalty": -1.0},
        {"mixture_blocks": 7.0},
        {"threshold_blocks": -3.0},
    ],
)
def test_settings_are_those_that_params_yaml_could_hold(setting: dict[str, Any]) -> None:
    network = Prior(code_size=2, widths=[4], components=1, axes=2)
    with pytest.raises(retrace.BadInput, match=rf"^{min(setting)} = -?\d.*: input should be"):
        retrace.complete(np.full((28, 28), 0.5), BOTTOM, network=network, **setting)


def test_a_callback_is_called() -> None:
    steps = []
    network = Dense(widths=[4])
    method: dict[str, Any] = {"method": "backpropagation", "steps": 2}
    retrace.complete(
        np.full((28, 28), 0.5),
        BOTTOM,
        network=network,
        callback=lambda step, loss, estimate: steps.append(step),
        **method,
    )
    assert steps == [0, 1, 2]


@pytest.mark.numerical
def test_the_notebook_runs_and_shows_what_it_showed() -> None:
    text = notebook.NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 300_000
    names: dict[str, Any] = {}
    for count, cell in enumerate(notebook.cells_of(json.loads(text)), start=1):
        outputs = notebook.outputs_of(
            *notebook.executed("".join(cell["source"]), names), count=count
        )
        assert cell["execution_count"] == count

        def kinds(outputs: notebook.Outputs) -> list[tuple[str, list[str]]]:
            return [(output["output_type"], list(output.get("data", ()))) for output in outputs]

        assert kinds(outputs) == kinds(cell["outputs"])
    assert names["result"].scores["identified"] >= 4
