"""Where the time of `make run` goes: the whole pipeline, stage by stage, from an empty cache."""

import argparse
import subprocess
from pathlib import Path

from benchmarks.bench_overhead import by_kind, timed, working_seconds
from benchmarks.timing import print_table, write_result
from retrace.pipeline.command import Refusal, run

LONGEST = 15  # stages in the table


def main(folder: Path, log: Path | None) -> None:
    """Clone the last commit into a new folder, run its whole pipeline with a cache of its own, and
    say how long each stage took. On MNIST it takes as long as `make run`: about an hour."""
    if folder.exists():
        raise Refusal(f"{folder} exists; a folder that does not is expected")
    subprocess.run(["git", "clone", "--quiet", ".", str(folder)], check=True)
    stages = timed("retrace run", folder, log=log)
    wall, work = sum(seconds for _, seconds in stages), working_seconds(folder)
    kinds = by_kind(stages)
    print_table(
        f"{wall:.0f} s, of which {work:.0f} s are training and reconstruction",
        ["stages", "number", "seconds", "share"],
        [
            [kind, f"{v['runs']}", f"{v['seconds']:.0f}", f"{v['seconds'] / wall:.0%}"]
            for kind, v in sorted(kinds.items(), key=lambda item: -item[1]["seconds"])
        ],
    )
    longest = sorted(stages, key=lambda stage: -stage[1])[:LONGEST]
    print_table(
        "the longest", ["stage", "seconds"], [[name, f"{seconds:.0f}"] for name, seconds in longest]
    )
    write_result(
        "pipeline",
        {
            "kinds": kinds,
            "stages": dict(stages),
            "wall_seconds": wall,
            "working_seconds": work,
        },
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="to be made; the results stay in it")
    parser.add_argument("--log", type=Path, help="file for what the run prints")


if __name__ == "__main__":
    run(main, arguments=options)
