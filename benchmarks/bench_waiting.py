"""How OpenMP's threads wait for the next small matrix: alone, and beside busy processes."""

import json
import os
import statistics
import subprocess
import sys
from typing import Any

from benchmarks.timing import print_table, write_result
from retrace.pipeline.command import run

# What `retrace` sets by itself, OpenMP's own way, and what it did before: not to spin at all.
WAYS: dict[str, dict[str, str]] = {
    "briefly, as here": {},
    "OpenMP's default": {"GOMP_SPINCOUNT": "300000"},
    "asleep (PASSIVE)": {"OMP_WAIT_POLICY": "PASSIVE"},
}
TURNS = 3
BUSY = "while True: pass"
WORK = """
import json, time
import retrace
import torch
torch.manual_seed(0)
lstm, rows = torch.nn.LSTM(28, 64, batch_first=True), torch.randn(128, 28, 28)
matrices = torch.randn(32, 100, 100, dtype=torch.float64)
matrices = matrices @ matrices.mT

def step():
    lstm(rows)[0].square().mean().backward()

seconds = {}
for name, work, times in (
    ("training step of an LSTM", step, 20),
    ("eigenvectors of 32 matrices", lambda: torch.linalg.eigh(matrices), 5),
):
    work()
    started = time.perf_counter()
    for _ in range(times):
        work()
    seconds[name] = (time.perf_counter() - started) / times
print(json.dumps(seconds))
"""


def measured(way: dict[str, str]) -> dict[str, float]:
    """Seconds of each work in a process of its own, since a wait policy is read at its start."""
    hidden = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {key: value for key, value in os.environ.items() if key not in hidden} | way
    command = [sys.executable, "-c", WORK]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seconds: dict[str, float] = json.loads(done.stdout)
    return seconds


def main() -> None:
    """Compare the seconds of small matrices, with OpenMP's threads waiting in three ways, on free
    cores and beside processes that take one core each."""
    results: dict[str, Any] = {}
    for beside, others in (("alone", 0), ("beside one busy process", 1), ("beside two", 2)):
        busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(others)]
        try:
            turns = [{name: measured(way) for name, way in WAYS.items()} for _ in range(TURNS)]
        finally:
            for process in busy:
                process.kill()
        for work in next(iter(turns[0].values())):
            results[f"{work}, {beside}"] = {
                name: statistics.median(turn[name][work] for turn in turns) for name in WAYS
            }
    print_table(
        "milliseconds, OpenMP's threads waiting",
        ["", *WAYS],
        [
            [work, *(f"{1000 * seconds[name]:.1f}" for name in WAYS)]
            for work, seconds in results.items()
        ],
    )
    write_result("waiting", {"works": results, "rounds": TURNS})


if __name__ == "__main__":
    run(main)
