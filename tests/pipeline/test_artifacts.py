"""Files are whole or not there, and nothing foreign is read."""

import errno
import json
import pickle
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import save
from small import NETWORKS

from retrace.networks.dense import Network
from retrace.pipeline import artifacts
from retrace.pipeline.command import Refusal

ARGUMENTS: dict[str, Any] = {"widths": [8], "gain": 1.0, "dropout": 0.0}


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    artifacts.save_checkpoint(
        Network(**ARGUMENTS),
        name="ffnn",
        architecture="dense",
        arguments=ARGUMENTS,
        dataset="digits",
    )
    return artifacts.checkpoint_path("ffnn")


def rewrite(path: Path, tensors: dict[str, torch.Tensor] | None = None, **changes: Any) -> None:
    """Write the checkpoint again with other header entries or tensors."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        header = {**json.loads(file.metadata()[artifacts.FORMAT]), **changes}
        tensors = tensors or {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    path.write_bytes(save(tensors, metadata={artifacts.FORMAT: json.dumps(header)}))


def test_a_checkpoint_gives_the_network_back(checkpoint: Path) -> None:
    network, header = artifacts.load_checkpoint(checkpoint)
    torch.manual_seed(0)
    expected = Network(**ARGUMENTS)
    x = torch.rand(3, 28, 28)
    torch.testing.assert_close(network(x), expected(x), rtol=0, atol=0)
    assert header["dataset"] == "digits" and header["arguments"] == ARGUMENTS
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


def test_the_same_network_gives_the_same_bytes(checkpoint: Path) -> None:
    before = checkpoint.read_bytes()
    network, _ = artifacts.load_checkpoint(checkpoint)
    artifacts.save_checkpoint(
        network, name="ffnn", architecture="dense", arguments=ARGUMENTS, dataset="digits"
    )
    assert checkpoint.read_bytes() == before


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


def test_a_pickle_in_its_place_is_refused_and_not_run(checkpoint: Path) -> None:
    checkpoint.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(Refusal, match="not a whole safetensors file"):
        artifacts.load_checkpoint(checkpoint)
    torch.save({"weights": Bomb()}, checkpoint)
    with pytest.raises(Refusal, match="not a whole safetensors file"):
        artifacts.load_checkpoint(checkpoint)
    assert not Path("exploded").exists()


def test_checkpoints_that_do_not_fit_are_refused(checkpoint: Path) -> None:
    whole = checkpoint.read_bytes()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"architecture": "classifier"}, "does not hold the architecture 'classifier'"),
        ({"architecture": "../../etc"}, "allowed are classifier, convolutional"),
        ({"arguments": {**ARGUMENTS, "widths": [9]}}, "size mismatch"),
        ({"arguments": {"width": 9}}, "does not hold the architecture"),
        ({"preprocessing": {"scale": 2}}, "preprocessing"),
    ]
    for changes, message in cases:
        checkpoint.write_bytes(whole)
        rewrite(checkpoint, **changes)
        with pytest.raises(Refusal, match=message):
            artifacts.load_checkpoint(checkpoint)
    checkpoint.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Refusal, match="not a whole safetensors file"):
        artifacts.load_checkpoint(checkpoint)
    checkpoint.write_bytes(whole)
    network, _ = artifacts.load_checkpoint(checkpoint)
    checkpoint.write_bytes(save(dict(network.state_dict()), metadata={"format": "pt"}))
    with pytest.raises(Refusal, match="lacks the header"):
        artifacts.load_checkpoint(checkpoint)
    checkpoint.write_bytes(whole)
    broken = {k: v * float("nan") for k, v in network.state_dict().items()}
    rewrite(checkpoint, broken)
    with pytest.raises(Refusal, match="not finite"):
        artifacts.load_checkpoint(checkpoint)
    checkpoint.unlink()
    with pytest.raises(Refusal, match="is missing; `dvc repro` makes it"):
        artifacts.load_checkpoint(checkpoint)


def test_only_what_the_pipeline_makes_is_to_be_deleted(checkpoint: Path) -> None:
    readers: dict[str, Callable[[Path], Any]] = {
        ".safetensors": artifacts.load_checkpoint,
        ".npz": artifacts.read_arrays,
        ".json": artifacts.read_json,
    }
    own = ("mine", "models/../mine", str(checkpoint.parent.absolute() / "mine"))
    for suffix, reader in readers.items():
        for name in (*own, "models/mine", "data/mine"):
            path = Path(f"{name}{suffix}")
            with pytest.raises(Refusal, match=" is missing") as missing:
                reader(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"broken")
            with pytest.raises(Refusal, match=" is not ") as broken:
                reader(path)
            for refusal in (missing, broken):
                assert ("`dvc repro`" in str(refusal.value)) == (name not in own)
            path.unlink()


def test_arrays_come_back_and_object_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    arrays = {"x": np.arange(3.0), "names": np.array(["one", "two"])}
    artifacts.write_arrays(path, arrays)
    first = path.read_bytes()
    artifacts.write_arrays(path, arrays)
    assert path.read_bytes() == first
    np.testing.assert_array_equal(artifacts.read_arrays(path)["names"], arrays["names"])
    np.savez(path, x=np.array([Bomb()], dtype=object))
    with pytest.raises(Refusal, match="Object arrays cannot be loaded"):
        artifacts.read_arrays(path)
    path.write_bytes(first[:100])
    with pytest.raises(Refusal, match="not a readable"):
        artifacts.read_arrays(path)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "result.json"
    artifacts.write_json(path, {"a": 1})
    with pytest.raises(type(error)), artifacts.written_whole(path) as temporary:
        temporary.write_text("half")
        raise error
    assert artifacts.read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_json_has_no_nan_and_can_be_read_by_others(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    with pytest.raises(ValueError, match="Out of range"):
        artifacts.write_json(path, {"mse": float("nan")})
    assert not path.exists()
    artifacts.write_json(path, {"mse": 0.5})
    assert stat.S_IMODE(path.stat().st_mode) & 0o444
    path.write_text("{")
    with pytest.raises(Refusal, match="is not JSON"):
        artifacts.read_json(path)


def test_no_network_takes_the_compiler_to_be_loaded() -> None:
    """Torch imports it, or SymPy, for some operations on the device "meta": a second, in every
    stage."""
    networks = [(entry["architecture"], entry["arguments"]) for entry in NETWORKS.values()]
    program = f"""
import sys
from retrace.pipeline.artifacts import unfilled
for architecture, arguments in {networks!r}:
    unfilled(architecture, arguments)
    assert not {{"torch._dynamo", "sympy"}} & sys.modules.keys(), architecture
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
