"""Small real data, and a workspace of one's own for every test that touches files."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, settings

from retrace.data.download import digits
from retrace.data.split import split

if TYPE_CHECKING:  # what `retrace` says of threads that wait is read when torch is imported
    import torch

# No example is too slow, however busy the machine is, and each run tries the same ones.
settings.register_profile(
    "retrace", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("retrace")

ROOT = Path(__file__).parent.parent
MNIST = ROOT.parent / "shared" / "mnist"  # the four files, where they happen to lie there

# What differs from the defaults, for seconds of work.
TINY: dict[str, Any] = {
    "data": {"name": "digits", "path": None, "mirror": None, "validation": 0.2, "seed": 0},
    "device": "cpu",
    "networks": {
        "gaussian": {"architecture": "gaussian"},
        "classifier": {
            "architecture": "classifier",
            "arguments": {"channels": [2, 2], "hidden": 8, "dropout": 0.0},
            "training": {
                "epochs": 1,
                "batch_size": 64,
                "learning_rate": 0.01,
                "schedule": "constant",
                "grace": 1,
            },
        },
        "ffnn": {
            "architecture": "dense",
            "arguments": {"widths": [24], "gain": 1.0},
            "training": {"epochs": 12, "batch_size": 32, "learning_rate": 0.01, "grace": 12},
        },
        "margin": {
            "architecture": "margin",
            "arguments": {"widths": [16, 16]},
            "training": {
                "per_class": 4,
                "steps": 100,
                "decay": 0.05,
                "sharpening": 2.0,
                "report_every": 50,
            },
        },
        "mlp": {
            "architecture": "mlp",
            "arguments": {"widths": [24]},
            "training": {
                "per_class": 1,
                "batch_size": 0,
                "weight_decay": 0.01,
                "steps": 300,
                "report_every": 150,
            },
        },
        "linear": {
            "architecture": "regression",
            "training": {"points": 20, "span": 10.0, "noise": 1.0},
        },
        "vae": {
            "architecture": "vae",
            "arguments": {"code_size": 3, "widths": [16, 8]},
            "training": {
                "epochs": 1,
                "batch_size": 32,
                "learning_rate": 0.01,
                "schedule": "constant",
                "grace": 1,
            },
        },
    },
    "masks": {
        "images": 12,
        "seed": 0,
        "patterns": {
            "bottom": {"kind": "rectangle", "rows": [14, 27], "columns": [0, 27]},
            "random_50": {"kind": "random", "share": 0.5},
        },
    },
    "problems": {
        "autoencoding": {"source": "data/dataset.json"},
        "imputation": {"source": "data/masks.npz"},
        "training_data": {"source": "data/validation.npz"},
        "membership": {
            "source": "data/train.npz",
            "settings": {"per_class": 2, "held_out": 300, "public": 200},
        },
        "network_inversion": {"source": "models/vae.safetensors"},
        "decoder_inversion": {"source": "models/vae.safetensors", "settings": {"images": 12}},
    },
    "runs": {
        "autoencoding-ffnn": {"problem": "autoencoding", "method": "one_pass", "network": "ffnn"},
        "imputation-mean": {"problem": "imputation", "method": "fill", "network": "gaussian"},
        "imputation-ridge": {
            "problem": "imputation",
            "method": "ridge",
            "network": "gaussian",
            "settings": {"penalty": 0.01},
        },
        "imputation-known": {
            "problem": "imputation",
            "method": "backpropagation",
            "network": "ffnn",
            "settings": {"start": "noise", "steps": 5, "learning_rate": 0.1, "restarts": 2},
        },
        "training_data-sparse_span": {
            "problem": "training_data",
            "method": "sparse_span",
            "network": "margin",
            "settings": {
                "candidates": 10,
                "starts": 20,
                "objectives": 20,
                "neighbours": 4,
                "rounds": 1,
                "passes": 1,
                "iterations": 5,
            },
        },
        "training_data-kkt": {
            "problem": "training_data",
            "method": "kkt",
            "network": "margin",
            "settings": {
                "candidates": 10,
                "deviation": 0.01,
                "learning_rate": 0.05,
                "multiplier_rate": 0.001,
                "multiplier_minimum": 0.1,
                "sharpness": 20.0,
                "steps": 5,
                "trials": 2,
                "search_steps": 2,
            },
        },
        "training_data-vertices": {
            "problem": "training_data",
            "method": "vertices",
            "network": "mlp",
            "settings": {
                "candidates": 10,
                "objectives": 8,
                "rounds": 1,
                "passes": 1,
                "iterations": 5,
            },
        },
        "membership-stationarity": {
            "problem": "membership",
            "method": "stationarity",
            "network": "mlp",
        },
        "membership-loss": {"problem": "membership", "method": "loss", "network": "mlp"},
        "network_inversion-linear": {
            "problem": "network_inversion",
            "method": "affine",
            "network": "linear",
            "settings": {"wanted": [100.0], "more": 3, "start": 1.0},
        },
        "decoder_inversion-gauss_newton": {
            "problem": "decoder_inversion",
            "method": "gauss_newton",
            "network": "vae",
            "settings": {
                "penalty": 0.0,
                "bank": 20,
                "screening": 2,
                "rounds": 2,
                "iterations": 10,
                "tolerance": 0.000001,
            },
        },
    },
    "scoring": {"resamples": 200, "seed": 0},
}


# One, since there are two test processes on two cores; what holds must hold with any number.
THREADS = int(os.environ.get("RETRACE_TEST_THREADS", "1"))


@pytest.fixture(scope="session", autouse=True)
def threads() -> None:
    """As many threads for torch as `THREADS` says, here as in what `execute` starts."""
    import torch

    torch.set_num_threads(THREADS)


@pytest.fixture(scope="session")
def digit_splits() -> dict[str, dict[str, Any]]:
    """scikit-learn's digits as train, validation and test, uint8."""
    arrays = digits()
    return split((arrays["images"], arrays["labels"]), None, validation=0.2, seed=0)


@pytest.fixture(scope="session")
def images(digit_splits: dict[str, dict[str, Any]]) -> "torch.Tensor":
    """All training digits, (n, 28, 28) in [0, 1]."""
    import torch

    return torch.from_numpy(digit_splits["train"]["images"].astype(np.float32) / 255)


def environment() -> dict[str, str]:
    """Of a user in a fresh shell: nothing of this process's DVC or MLflow."""
    dropped = ("DVC_", "MLFLOW_", "PYTEST_", "PYTHONPATH")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    return {**kept, "OMP_NUM_THREADS": str(THREADS), "GIT_CONFIG_GLOBAL": os.devnull}


Run = Callable[..., "subprocess.CompletedProcess[str]"]


def execute(
    *command: str, cwd: Path, check: bool = True, **extra: str
) -> "subprocess.CompletedProcess[str]":
    """Run a command as a user would; with `check`, a failure shows its output."""
    result = subprocess.run(
        command,
        cwd=cwd,
        env={**environment(), **extra},
        capture_output=True,
        text=True,
        check=False,
    )
    if check and result.returncode:
        pytest.fail(f"{' '.join(command)}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}")
    return result


def commit(folder: Path, message: str = "Reproduce") -> None:
    """Put what Git does not ignore under version control, as a user would after `dvc repro`."""
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    execute("git", "add", "--all", cwd=folder)
    execute("git", *identity, "commit", "--quiet", "-m", message, cwd=folder)


def write_params(folder: Path, params: dict[str, Any]) -> None:
    text = yaml.safe_dump(params, sort_keys=False)
    (folder / "params.yaml").write_text(text, encoding="utf-8")


@pytest.fixture(scope="session")
def make_workspace() -> Callable[[Path], Path]:
    """A clone of the tracked and new files, with tiny parameters and an empty cache."""

    def make(folder: Path) -> Path:
        listed = execute(
            "git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT
        ).stdout.split("\n")
        kept = ("retrace/", "stages/", ".dvc", ".ci/", "dvc.yaml", "demo.yaml", ".gitignore")
        for name in filter(lambda n: n.startswith(kept), listed):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_file():
                shutil.copyfile(ROOT / name, target)
        write_params(folder, TINY)
        execute("git", "init", "--quiet", "--initial-branch=main", cwd=folder)
        commit(folder, "Start")
        return folder

    return make


@pytest.fixture(scope="session")
def finished(
    make_workspace: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished pipeline with tiny parameters, which takes a minute to make. Tests that use it
    are in the xdist group "pipeline", so that one process makes it once; they leave it as it is."""
    folder = make_workspace(tmp_path_factory.mktemp("pipeline") / "clone")
    execute(sys.executable, "-m", "retrace.commands.run", cwd=folder)
    return folder


@pytest.fixture(scope="session")
def forking() -> Iterator[dict[str, str]]:
    """The variable by which stages are forked, for tests that start many and change no code."""
    from retrace import warm

    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment().items():
            patch.setenv(name, value)
        with warm.running(ROOT) as variable:
            yield variable


@pytest.fixture(scope="session")
def small_networks(
    digit_splits: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with all networks of `small`, trained by the processor. Tests that use it are in the
    xdist group "device", so that one process makes it once; they leave it as it is."""
    import small

    from stages import train

    folder = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        small.lay_out(folder, digit_splits, {**TINY, "device": "cpu"})
        for name in small.NETWORKS:
            train.main(name)
    return folder


# Of tests/faults, which can import `harness`: a pipeline that takes half a minute to make.


@pytest.fixture(scope="session")
def zygote() -> Iterator[Any]:
    """Runs `dvc` and stages without the seconds of their imports."""
    from harness import zygote

    with zygote() as running:
        yield running


@pytest.fixture(scope="session")
def untouched(
    make_workspace: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A workspace with parameters smaller than `TINY`, in which nothing has run."""
    from harness import fresh

    return fresh(make_workspace, tmp_path_factory.mktemp("faults") / "untouched")


@pytest.fixture(scope="session")
def undisturbed(untouched: Path, zygote: Any) -> tuple[Path, float]:
    """The same, finished, and the seconds that this took."""
    from harness import finish

    folder = shutil.copytree(untouched, untouched.parent / "undisturbed", symlinks=True)
    return folder, finish(folder, zygote)
