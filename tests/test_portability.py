"""What the tests ask for holds on other processors, for which environment variables stand in.

`make portability` runs the numerical tests and a small pipeline under each of them; `make test`
some numerical tests under all of them together.
"""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, execute

from retrace.pipeline.artifacts import read_json

FULL = pytest.mark.skipif(
    os.environ.get("RETRACE_PORTABILITY") != "full", reason="takes minutes: `make portability`"
)
# Instructions of oneDNN (convolutions, and products where they are rounded), of PyTorch's own
# kernels, of MKL and of OpenBLAS (products of PyTorch, and of NumPy and SciPy); threads.
PROCESSORS: dict[str, dict[str, str]] = {
    "this one": {},
    "oneDNN with AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "PyTorch with AVX2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "PyTorch without vectors": {"ATEN_CPU_CAPABILITY": "default"},
    "MKL on any processor": {"MKL_CBWR": "COMPATIBLE"},
    "OpenBLAS on Haswell": {"OPENBLAS_CORETYPE": "Haswell"},
    "two threads": {"RETRACE_TEST_THREADS": "2", "OMP_NUM_THREADS": "2"},
}
TOGETHER = {key: value for given in PROCESSORS.values() for key, value in given.items()}
TOGETHER["ATEN_CPU_CAPABILITY"] = "default"
# Where sums in another order have been seen to change a choice, and the means of what they chose.
QUICK = (
    "tests/measures/test_quality.py",
    "tests/methods/test_sparse_span.py",
    "tests/pipeline/test_device.py",
)
MEANS = ("mse", "ssim", "psnr", "mse_over_ridge", "mse_over_pca")


def numerical(*files: str, **processor: str) -> str:
    """The summary of the numerical tests under a processor; fails where one of them does."""
    pytest_ = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    done = execute(*pytest_, "-m", "numerical", *files, cwd=ROOT, check=True, **processor)
    return done.stdout.splitlines()[-1]


def test_some_numerical_tests_pass_on_another_processor() -> None:
    assert " passed" in numerical(*QUICK, **TOGETHER)


@FULL
@pytest.mark.parametrize("name", PROCESSORS)
def test_all_numerical_tests_pass(name: str) -> None:
    assert " passed" in numerical(**PROCESSORS[name])


@FULL
@pytest.mark.parametrize("name", list(PROCESSORS)[1:])
def test_a_small_pipeline_gives_the_same_means(
    name: str,
    finished: Path,
    make_workspace: Callable[[Path], Path],
    tmp_path: Path,
) -> None:
    folder = make_workspace(tmp_path / "clone")
    execute("dvc", "repro", cwd=folder, check=True, **PROCESSORS[name])
    found, expected = (means(where / "metrics") for where in (folder, finished))
    assert len(expected) > 10
    assert found == pytest.approx(expected, rel=0.05)


def means(folder: Path) -> dict[str, float]:
    """Means over images in the metrics of a pipeline, by file and path in it."""
    found: dict[str, float] = {}

    def look(content: Mapping[str, Any], where: str) -> None:
        for key, value in content.items():
            if isinstance(value, Mapping):
                look(value, f"{where} {key}")
            elif key in MEANS:
                found[f"{where} {key}"] = value

    for path in sorted(folder.glob("*/*.json")):
        look(read_json(path), path.stem)
    return found


def test_the_stand_ins_are_heard() -> None:
    told = "import torch; print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())"
    assert (
        execute(sys.executable, "-c", told, cwd=ROOT, check=True, **TOGETHER).stdout
        == "DEFAULT 2\n"
    )
