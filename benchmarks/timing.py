"""How the benchmarks measure and what they write: alternate timing, medians, small JSON files."""

import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from retrace.pipeline.artifacts import write_json

RESULTS = Path(__file__).parent / "results"


def alternate(contestants: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """Median seconds of each contestant, measured in turn (A B A B ...).

    On a machine that others use too, one after the other would compare two loads, not two
    programs.

    Parameters
    ----------
    contestants : dict of function
    rounds : int
        How often each is called and timed, after one call of each that is not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, contestant in contestants.items():
            started = time.perf_counter()
            contestant()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_mebibytes() -> float:
    """The most memory that this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def machine() -> dict[str, Any]:
    """What a number of seconds depends on, without anything that names the machine."""
    return {
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "torch_threads": torch.get_num_threads(),
        **{name: version(name) for name in ("torch", "numpy", "scikit-image", "dvc")},
    }


def write_result(name: str, result: Mapping[str, Any]) -> None:
    """Write benchmarks/results/<name>.json, with the machine's description."""
    write_json(RESULTS / f"{name}.json", {**result, "machine": machine()})
    print(f"written: benchmarks/results/{name}.json\n")


def print_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print a title and right-aligned columns, the first one left-aligned."""
    table = [[str(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    print(title)
    for first, *others in table:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  " + "  ".join(cells))
