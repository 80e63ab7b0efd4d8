"""How time and memory grow with images, masks, restarts and candidates, and the fitted exponents.

Time is the processor's, with one thread: others use the machine too. Each point is measured in a
process of its own, so that its peak of memory is its own. The exponent is the slope of a straight
line through the logarithms: 1 where twice as many take twice as long. Fixed costs pull it below 1
for small sizes, so the slope between the two largest is given too.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.data import read_images, read_network
from benchmarks.timing import peak_mebibytes, print_table, write_result
from retrace.methods.imputation import backpropagation
from retrace.methods.training_data import kkt
from retrace.networks.margin import Network as Margin
from retrace.pipeline.command import run
from retrace.types import ignore

STEPS = 10  # of either method: time grows with the steps exactly
BASE = {"images": 100, "masks": 1, "restarts": 1}
SIZES: dict[str, list[int]] = {
    "images": [125, 500, 2000, 4000, 8000],
    "masks": [1, 4, 16, 32],
    "restarts": [1, 4, 16, 32],
    "candidates": [100, 400, 1600, 3200],
}
ROUNDS = 3


def impute(*, images: int, masks: int, restarts: int) -> Callable[[], object]:
    """Imputation of images under masks of 7 rows each, by backpropagation through ffnn."""
    _, pool = read_images("test")
    chosen = pool[torch.arange(images) % len(pool)]
    observed = chosen.repeat(masks, 1, 1, 1)  # (masks, images, 28, 28)
    for i in range(masks):
        observed[i, :, i % 22 : i % 22 + 7] = float("nan")
    network, _ = read_network("ffnn", mean=pool.mean(dim=0))
    flat = observed.flatten(0, 1)
    return lambda: backpropagation.reconstruct(
        network,
        flat,
        objective="known",
        start="noise",
        answer="input",
        steps=STEPS,
        learning_rate=0.1,
        restarts=restarts,
        seed=0,
        callback=ignore,
    )


def attack(*, candidates: int) -> Callable[[], object]:
    """The published attack on a random network of 784, 1,000, 1,000 and 1 units."""
    torch.manual_seed(0)
    network = Margin()
    network.eval().requires_grad_(False)
    observed = torch.rand(2, 28, 28)
    return lambda: kkt.reconstruct(
        network,
        observed,
        candidates=candidates,
        deviation=0.01,
        learning_rate=0.01,
        multiplier_rate=0.001,
        multiplier_minimum=0.1,
        sharpness=20.0,
        steps=STEPS,
    )


def point(what: str, size: int, rounds: int) -> dict[str, float]:
    """Least processor seconds of some calls, and MiB held beyond what was held before them."""
    torch.set_num_threads(1)
    work = attack(candidates=size) if what == "candidates" else impute(**{**BASE, what: size})
    before = peak_mebibytes()
    seconds = []
    for _ in range(rounds + 1):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    del seconds[0]  # libraries warm up
    return {"size": size, "seconds": min(seconds), "mebibytes": peak_mebibytes() - before}


def measured(what: str, size: int, rounds: int) -> dict[str, float]:
    """`point`, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bench_growth", "--point", what]
    command += [str(size), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def exponent(sizes: list[float], values: list[float]) -> float:
    """Slope of the least-squares line through (log size, log value)."""
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-9)), 1)[0])


def main(quick: bool, only: list[str] | None) -> None:
    """Time and peak memory of imputation by images, masks and restarts, and of the published attack
    by candidates, with fitted exponents."""
    if only:
        what, number, times = only
        print(json.dumps(point(what, int(number), int(times))))
        return
    rounds = 1 if quick else ROUNDS
    curves: dict[str, Any] = {}
    for what, sizes in SIZES.items():
        points = [measured(what, size, rounds) for size in sizes[: 3 if quick else None]]
        counts = [p["size"] for p in points]
        curves[what] = {
            "points": points,
            "exponents": {
                key: {
                    "all": exponent(counts, [p[key] for p in points]),
                    "two_largest": exponent(counts[-2:], [p[key] for p in points[-2:]]),
                }
                for key in ("seconds", "mebibytes")
            },
        }
        exponents = curves[what]["exponents"]
        print_table(
            f"{what}: seconds ~ size^{exponents['seconds']['all']:.2f}, "
            f"memory ~ size^{exponents['mebibytes']['all']:.2f}",
            [what, "seconds", "MiB more"],
            [[p["size"], f"{p['seconds']:.3f}", f"{p['mebibytes']:.0f}"] for p in points],
        )
    write_result(
        "growth",
        {
            "base": BASE,
            "curves": curves,
            "quick": quick,
            "rounds": rounds,
            "steps": STEPS,
        },
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="three sizes each, measured once")
    parser.add_argument(
        "--point",
        dest="only",
        nargs=3,
        metavar=("WHAT", "SIZE", "ROUNDS"),
        help="one point, as JSON",
    )


if __name__ == "__main__":
    run(main, arguments=options)
