"""Every network and every method on another device gives what the processor gives.

The other device is an emulated one (see pretend.py), and a GPU where there is one.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pretend
import pytest
import small
import torch
from conftest import ROOT, TINY, execute, write_params
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor

from retrace.checks import check_all
from retrace.execution import engine, reconstruction, shards
from retrace.networks import dense
from retrace.pipeline.artifacts import (
    checkpoint_path,
    history_path,
    read_arrays,
    read_json,
    reconstruction_path,
    record_path,
)
from retrace.pipeline.command import Refusal
from retrace.pipeline.device import (
    PROBE,
    PROBED,
    chosen,
    computing_on,
    described,
    matmul_precision,
    told_by,
)
from retrace.pipeline.params import Params, load
from stages import reconstruct, train

pytestmark = [pytest.mark.xdist_group("device"), pytest.mark.numerical]

PRETEND = pretend.register()
RUNS = small.named_runs()
TIMES = ("timestamp", "elapsed", "cpu_seconds")
# Of the emulated device, whose arithmetic is the processor's own: where an array lies in memory
# changes a last digit, and samplers carry it on.
CLOSE = {"rtol": 1e-5, "atol": 2e-5}
MIXED_CLOSE = {"rtol": 0.05, "atol": 0.02}  # of 8 bits, where a processor rounds to them
# Of a GPU, whose sums have another order: measures of a training, relatively; and values of a
# reconstruction, of which so large a share may be farther away, where a choice fell otherwise.
MEASURES, VALUES, SHARE = 0.05, 1e-3, 0.02
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
DEVICES = [PRETEND, pytest.param(torch.device("cuda"), marks=GPU)]
ARCHITECTURES = sorted(file.stem for file in (ROOT / "retrace/networks").glob("[!_]*.py"))
METHODS = sorted(
    (file.parent.name, file.stem) for file in (ROOT / "retrace/methods").glob("*/[!_]*.py")
)


Move = Callable[[torch.device], None]


@pytest.fixture
def compute(small_networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Move:
    """Works in a copy of that folder, and has stages compute on a device."""
    folder = shutil.copytree(small_networks, tmp_path / "copy")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RETRACE_WORKERS", "1")
    monkeypatch.setattr(shards, "SIZE", small.IMAGES)  # a shard of one mask, and one of many

    def on(device: torch.device) -> None:
        for module in (train, reconstruction, shards):
            monkeypatch.setattr(module, "chosen", lambda name: device)

    return on


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_every_network_is_trained_as_on_the_processor(
    device: torch.device, architecture: str, compute: Move
) -> None:
    names = [k for k, v in small.NETWORKS.items() if v["architecture"] == architecture]
    assert names, f"tests/small.py has no network of {architecture}: add one"
    compute(device)
    for name in names:
        weights, history = load_file(checkpoint_path(name)), read_json(history_path(name))
        train.main(name)
        again = read_json(history_path(name))
        assert history["device"] == "cpu" and again["device"] == described(device)
        for entry, expected in zip(again["epochs"], history["epochs"], strict=True):
            for key in entry.keys() - set(TIMES):
                rtol = CLOSE["rtol"] if device == PRETEND else MEASURES
                np.testing.assert_allclose(entry[key], expected[key], rtol=rtol, atol=1e-6)
        found = load_file(checkpoint_path(name))
        for key, expected in weights.items():
            assert found[key].dtype == expected.dtype and found[key].shape == expected.shape
            if device == PRETEND:
                np.testing.assert_allclose(
                    found[key], expected, rtol=CLOSE["rtol"], atol=CLOSE["atol"], err_msg=key
                )


@pytest.mark.filterwarnings("ignore:sparse_span. the first layer's rows span all:UserWarning")
@pytest.mark.parametrize(("problem", "method"), METHODS)
@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_every_method_answers_as_on_the_processor(
    device: torch.device, problem: str, method: str, compute: Move
) -> None:
    names = [k for k, v in RUNS.items() if (v["problem"], v["method"]) == (problem, method)]
    assert names, f"tests/small.py has no run of {problem}/{method}: add one"
    for name in names:
        compute(torch.device("cpu"))
        reconstruct.main(name)
        expected = read_arrays(reconstruction_path(name.partition("-")[0], name))
        assert expected["estimate"].size
        compute(device)
        reconstruct.main(name)
        assert read_json(record_path(name.partition("-")[0], name))["device"] == described(device)
        found = read_arrays(reconstruction_path(name.partition("-")[0], name))
        assert found.keys() == expected.keys()
        for key, values in expected.items():
            agree(found[key], values, device=device)


def agree(found: NDArray[Any], expected: NDArray[Any], *, device: torch.device) -> None:
    """Assert that two arrays of an answer are the same within the tolerances above."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    if found.dtype.kind == "U":
        assert np.array_equal(found, expected)
        return
    step = float(found.dtype.kind in "ui" and found.dtype.itemsize == 1)  # 8 bits were rounded to
    if found.dtype == np.float16:
        step = 2e-3
    if device == PRETEND:
        atol = max(CLOSE["atol"], step)
        np.testing.assert_allclose(found, expected, rtol=CLOSE["rtol"], atol=atol)
        return
    far = np.abs(found.astype(float) - expected.astype(float)) > VALUES + step
    assert far.mean() <= SHARE


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_draws_are_those_of_the_processor(device: torch.device) -> None:
    weights = torch.tensor([[0.2, 0.3, 0.5]]).repeat(4, 1)
    covariance = torch.tensor([[2.0, 1.0], [1.0, 2.0]])

    def draws(weights: Tensor, covariance: Tensor) -> list[Tensor]:
        torch.manual_seed(1)
        generator = torch.Generator().manual_seed(2)
        return [
            torch.randn(3, 2, generator=generator, dtype=torch.float64),
            torch.rand(3),
            torch.randperm(7),
            torch.randint(5, (4,), generator=generator),
            torch.randint(0, 2, (4, 1)),
            torch.multinomial(weights, 6, replacement=True, generator=generator),
            weights.multinomial(2),
            torch.bernoulli(weights),
            torch.randn_like(weights),
            *torch.linalg.eigh(covariance),
        ]

    expected = draws(weights, covariance)
    with computing_on(device):
        found = draws(weights.to(device), covariance.to(device))
        made = [torch.zeros(2), torch.tensor([1.0]), torch.as_tensor(np.ones(2)), torch.eye(2)]
    assert {value.device.type for value in (*found, *made)} == {device.type}
    assert all(torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True))
    assert torch.zeros(1).device.type == "cpu"


def test_on_the_processor_nothing_is_changed() -> None:
    with computing_on(torch.device("cpu")):
        assert not torch._C._len_torch_function_stack()


def test_the_emulated_device_refuses_what_a_gpu_refuses() -> None:
    here, there = torch.ones(3), torch.ones(3).to(PRETEND)
    for wrong in (
        lambda: there + here,
        lambda: torch.cat([there, here]),
        lambda: here[there.long()],
        lambda: there.index_add_(0, torch.tensor([0]), here[:1]),
    ):
        with pytest.raises(RuntimeError, match="on the same device"):
            wrong()
    with pytest.raises(RuntimeError, match="numpy"):
        there.numpy()
    for drawn in (lambda: torch.randn(2, device=PRETEND), lambda: there.clone().normal_()):
        with pytest.raises(RuntimeError, match="drawn on the device"):
            drawn()
    # What CUDA takes, too: a number, and indices of the processor.
    assert ((there + torch.tensor(2.0))[torch.tensor([0, 2])].cpu() == 3).all()


def test_a_device_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen("auto") == chosen("cpu") == torch.device("cpu")
    message = "device = 'cuda': there is none here; allowed are auto and cpu"
    with pytest.raises(Refusal, match=message):
        check_all(Params.model_validate({**TINY, "device": "cuda"}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert chosen("auto") == chosen("cuda") == torch.device("cuda")
    assert chosen("cpu") == torch.device("cpu")
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, {**TINY, "device": "gpu"})
    with pytest.raises(Refusal, match="device = 'gpu': input should be 'auto', 'cpu'"):
        load()


CPU = torch.device("cpu")
MIXED = matmul_precision(CPU, "mixed")  # bfloat16 on some processors, float32 on others


def test_mixed_precision_rounds_as_is_recorded_and_nothing_else() -> None:
    torch.manual_seed(0)
    left, right = torch.randn(64, 200), torch.randn(200, 48)
    exact = left.double() @ right.double()
    rounded = left.bfloat16().double() @ right.bfloat16().double()
    with pytest.raises(ZeroDivisionError), computing_on(CPU, "mixed"):
        mixed = left @ right
        assert mixed.dtype == torch.float32
        # Sums in float32: far from the one product, near to the other.
        near, far = (rounded, exact) if MIXED == "bfloat16" else (exact, rounded)
        assert (mixed - near).abs().max() < 1e-4
        assert (mixed - far).abs().max() > 1e-2
        assert torch.equal(left.double() @ right.double(), exact)
        raise ZeroDivisionError
    assert ((left @ right) - exact).abs().max() < 1e-4
    with computing_on(CPU, "float32"):
        assert ((left @ right) - exact).abs().max() < 1e-4
    assert matmul_precision(CPU, "float32") == "float32"


def test_a_product_tells_what_its_factors_were_rounded_to() -> None:
    left = torch.full((PROBED, PROBED), PROBE)
    ones = torch.ones_like(left)
    # TF32 keeps 10 bits of the fraction, a float32 has 13 more.
    tf32 = ((left.view(torch.int32) + 2**12) & ~(2**13 - 1)).view(torch.float32)
    assert told_by(left @ ones) == "float32"
    assert told_by(tf32 @ ones) == "tf32"
    assert told_by(left.bfloat16().float() @ ones) == "bfloat16"


def test_a_processor_without_the_instructions_records_float32_and_says_so_once(
    compute: Move,
) -> None:
    compute(CPU)
    run = next(k for k, v in RUNS.items() if v["method"] == "backpropagation")
    params = load().model_dump()
    params["runs"][run]["precision"] = "mixed"
    write_params(Path(), params)
    command = f"from stages.reconstruct import main; main({run!r})"
    own = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT")
    for isa, found in (("AVX2", "float32"), (own, MIXED)):
        done = execute(
            *(sys.executable, "-c", command),
            cwd=Path(),
            PYTHONPATH=str(ROOT),
            RETRACE_WORKERS="1",
            ONEDNN_MAX_CPU_ISA=isa,
        )
        told = done.stdout.count(f"{run}: precision = 'mixed' changes nothing on this machine")
        assert told == (found == "float32")
        assert read_json(record_path(run.partition("-")[0], run))["matmul_precision"] == found


@pytest.mark.skipif(MIXED == "float32", reason="mixed precision is float32 on this processor")
def test_networks_and_runs_of_mixed_precision_are_near_those_of_float32(compute: Move) -> None:
    compute(CPU)
    given = load()
    run = next(k for k, v in RUNS.items() if v["method"] == "backpropagation")
    network = given.runs[run].network
    weights, estimates = {}, {}
    for precision in ("float32", "mixed"):
        params = load().model_dump()
        params["networks"][network]["precision"] = params["runs"][run]["precision"] = precision
        write_params(Path(), params)
        train.main(network)
        reconstruct.main(run)
        weights[precision] = read_json(history_path(network))["epochs"][-1]["training_loss"]
        estimates[precision] = read_arrays(reconstruction_path(run.partition("-")[0], run))[
            "estimate"
        ]
        assert read_json(history_path(network))["matmul_precision"] == (
            MIXED if precision == "mixed" else "float32"
        )
    assert weights["mixed"] != weights["float32"]
    assert weights["mixed"] == pytest.approx(weights["float32"], rel=MIXED_CLOSE["rtol"])
    difference = np.abs(estimates["mixed"] - estimates["float32"])
    assert difference.max() > 0 and difference.mean() < MIXED_CLOSE["atol"]


@pytest.mark.parametrize(("name", "asked"), [("local", 0), ("ray", 2)])
def test_a_gpu_works_for_one_process_here_and_for_all_of_a_cluster(
    name: str, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[shards.Shard] = []

    def run(function: Any, tasks: list[shards.Shard]) -> Iterator[tuple[int, shards.Solved]]:
        sent.extend(tasks)
        return ((i, function(task)) for i, task in enumerate(tasks))

    monkeypatch.setattr(shards, "chosen", lambda name: PRETEND)
    monkeypatch.setattr(shards, "SIZE", 2)
    monkeypatch.setattr(shards, "STARTING", -1.0)
    monkeypatch.setattr(engine, "run", run)
    monkeypatch.setenv("RETRACE_ENGINE", name)
    monkeypatch.setenv("RETRACE_WORKERS", "2")
    arguments = {"widths": [3], "gain": 1.0, "dropout": 0.0}
    merged = shards.run(
        dense.Network(widths=[3], gain=1.0, dropout=0.0),
        np.zeros((6, 28, 28), np.float32),
        method="autoencoding.one_pass",
        header={"architecture": "dense", "arguments": arguments},
        settings={},
        steps=0,
        label="",
        device="auto",
        precision="float32",
    )
    assert len(sent) == asked and all(task.device == "auto" for task in sent)
    assert merged.device == pretend.NAME and merged.answers["estimate"].shape == (6, 28, 28)
