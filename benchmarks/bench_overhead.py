"""What the pipeline costs beside the work: `retrace run` and `dvc repro`, with and without work."""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.timing import alternate, print_table, write_result
from retrace.commands.demo import prepare
from retrace.pipeline.command import Refusal, run

ROUNDS = 3
# How a line begins after which a stage runs: of `retrace run`, and of DVC.
RUNNING = re.compile(r"stage \d+ of \d+, [^:]*: (\S+)|Running stage '([^']+)'")
BEFORE = "(before the first)"
WAYS = {"retrace run": ("python", "-m", "retrace.commands.run"), "dvc repro": ("dvc", "repro")}


def own_environment() -> dict[str, str]:
    """The environment to run in: nothing of the caller's workspace or tracking server."""
    hidden = ("DVC_ROOT", "PYTHONPATH", "MLFLOW_TRACKING_URI")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["PYTHONUNBUFFERED"] = "1"  # lines are timed as they come
    return environment


def stage_seconds(lines: Iterator[str]) -> list[tuple[str, float]]:
    """Each stage in its order, and the wall seconds from its first line to the next stage's."""
    seconds = []
    name, since = BEFORE, time.perf_counter()
    for line in lines:
        if found := RUNNING.match(line):
            now = time.perf_counter()
            seconds.append((name, now - since))
            name, since = found[1] or found[2], now
    return [*seconds, (name, time.perf_counter() - since)]


def by_kind(stages: list[tuple[str, float]]) -> dict[str, dict[str, float]]:
    """Number and seconds of the stages of each kind: ``score`` for all ``score@<problem>``."""
    kinds: dict[str, dict[str, float]] = {}
    for name, seconds in stages:
        kind = kinds.setdefault(name.split("@")[0], {"runs": 0, "seconds": 0.0})
        kind["runs"] += 1
        kind["seconds"] += seconds
    return kinds


def kept(lines: Iterable[str], output: list[str]) -> Iterator[str]:
    """Pass lines on and append them to `output`."""
    for line in lines:
        output.append(line)
        yield line


def timed(way: str, folder: Path, *, log: Path | None = None) -> list[tuple[str, float]]:
    """Run the pipeline in one of `WAYS`, time its stages and write what it prints to `log`."""
    if log:
        log.touch()  # a folder that is not there should be known now, not in two minutes
    output: list[str] = []
    process = subprocess.Popen(
        WAYS[way],
        cwd=folder,
        env=own_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    seconds = stage_seconds(kept(process.stdout, output))
    if log:
        log.write_text("".join(output), encoding="utf-8")
    if process.wait():
        raise Refusal(f"{way} failed:\n{''.join(output[-20:])}")
    return seconds


def working_seconds(folder: Path) -> float:
    """Seconds of training and reconstruction, as the stages themselves measured them."""
    files = [*folder.glob("models/*.json"), *folder.glob("data/reconstructions/*/*.json")]
    return sum(float(json.loads(file.read_text(encoding="utf-8"))["seconds"]) for file in files)


def measure(folder: Path, *, log: Path | None) -> dict[str, Any]:
    """Run the demo in both ways, each from an empty cache; then both with nothing to do."""
    runs: dict[str, Any] = {}
    for way in WAYS:
        place = folder / way.replace(" ", "_")
        prepare(place)
        stages = timed(way, place, log=log)
        wall, work = sum(seconds for _, seconds in stages), working_seconds(place)
        runs[way] = {
            "stages": by_kind(stages),
            "number": len(stages) - 1,  # but for what comes before the first
            "wall_seconds": wall,
            "working_seconds": work,
            "share_of_work": work / wall,
        }
    commands = {
        **WAYS,
        "dvc status": ("dvc", "status"),
        "retrace --help": ("retrace", "--help"),
        "stages.train --help": ("python", "-m", "stages.train", "--help"),
        "python": ("python", "-c", "pass"),
        "import torch": ("python", "-c", "import torch"),
    }
    call = partial(
        subprocess.run, cwd=place, env=own_environment(), capture_output=True, check=True
    )
    nothing = {name: partial(call, words) for name, words in commands.items()}
    return {"runs": runs, "noop_seconds": alternate(nothing, rounds=ROUNDS)}


def main(log: Path | None) -> None:
    """Time the demo by `retrace run` and by `dvc repro`, and both with nothing to do."""
    with tempfile.TemporaryDirectory(prefix="retrace-bench-") as name:
        result = measure(Path(name), log=log)
    print_table(
        "nothing to do",
        ["", "seconds"],
        [[name, f"{value:.2f}"] for name, value in result["noop_seconds"].items()],
    )
    for way, found in result["runs"].items():
        wall, work = found["wall_seconds"], found["working_seconds"]
        print_table(
            f"the demo by {way}: {found['share_of_work']:.0%} training and reconstruction",
            ["", "stages", "seconds", "share"],
            [
                *(
                    [f"{kind}", v["runs"], f"{v['seconds']:.1f}", f"{v['seconds'] / wall:.0%}"]
                    for kind, v in found["stages"].items()
                ),
                ["whole run", found["number"], f"{wall:.1f}", "100%"],
                ["training and reconstruction", "", f"{work:.1f}", f"{work / wall:.0%}"],
            ],
        )
    write_result("overhead", {"dataset": "digits", "rounds": ROUNDS, **result})


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--log", type=Path, help="file for what the timed runs print")


if __name__ == "__main__":
    run(main, arguments=options)
