"""What the pipeline costs beside the work: no-op `dvc repro`, imports, DVC and file handling."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from dvc.utils.serialize import dumps_yaml

from benchmarks.timing import alternate, print_table, write_result
from retrace.commands.demo import CHANGES, merged
from retrace.pipeline.command import Refusal, run
from retrace.pipeline.params import PARAMS, read_yaml

TRACKED = ("stages", "dvc.yaml", "params.yaml", ".dvcignore", ".dvc/config", ".gitignore")
IMAGES = 20  # of each mask
ROUNDS = 3
RUNNING = "Running stage '"
BEFORE = "(before the first)"


def minimal(content: dict[str, Any]) -> dict[str, Any]:
    """Parameters of `make demo`, fewer images, one run for each problem and method, and only the
    networks that these need."""
    content = merged(content, read_yaml(CHANGES))
    firsts = {(r["problem"], r["method"]): name for name, r in reversed(content["runs"].items())}
    runs = {name: run for name, run in content["runs"].items() if name in firsts.values()}
    needed = {"gaussian", "classifier", *(run["network"] for run in runs.values())}
    networks = {name: entry for name, entry in content["networks"].items() if name in needed}
    masks = {**content["masks"], "images": IMAGES}
    return {**content, "networks": networks, "masks": masks, "runs": runs}


def own_environment() -> dict[str, str]:
    """The environment to run in: nothing of the caller's workspace or tracking server."""
    hidden = ("DVC_ROOT", "PYTHONPATH", "MLFLOW_TRACKING_URI")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["PYTHONUNBUFFERED"] = "1"  # lines are timed as they come
    return environment


def prepare(folder: Path) -> None:
    """Lay out a Git repository: the tracked files, minimal parameters, an empty DVC cache."""
    command = ["git", "ls-files", *TRACKED]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(name, folder / name)
    content = minimal(read_yaml(PARAMS))
    (folder / PARAMS).write_text(dumps_yaml(content), encoding="utf-8")
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)


def stage_seconds(lines: Iterator[str]) -> list[tuple[str, float]]:
    """Each stage in its order, and the wall seconds from its first line to the next stage's."""
    seconds = []
    name, since = BEFORE, time.perf_counter()
    for line in lines:
        if line.startswith(RUNNING):
            now = time.perf_counter()
            seconds.append((name, now - since))
            name, since = line.removeprefix(RUNNING).split("'")[0], now
    return [*seconds, (name, time.perf_counter() - since)]


def by_kind(stages: list[tuple[str, float]]) -> dict[str, dict[str, float]]:
    """Number and seconds of the stages of each kind: ``score`` for all ``score@<run>``."""
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


def repro(
    folder: Path, environment: dict[str, str], *, log: Path | None
) -> list[tuple[str, float]]:
    """Run the whole pipeline and time its stages; write what it prints to `log`."""
    if log:
        log.touch()  # a folder that is not there should be known now, not in two minutes
    output: list[str] = []
    process = subprocess.Popen(
        ["dvc", "repro"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    seconds = stage_seconds(kept(process.stdout, output))
    if log:
        log.write_text("".join(output), encoding="utf-8")
    if process.wait():
        raise Refusal(f"dvc repro failed:\n{''.join(output[-20:])}")
    return seconds


def working_seconds(folder: Path) -> float:
    """Seconds of training and reconstruction, as the stages themselves measured them."""
    files = [*folder.glob("models/*.json"), *folder.glob("data/reconstructions/*.json")]
    return sum(float(json.loads(file.read_text(encoding="utf-8"))["seconds"]) for file in files)


def measure(folder: Path, *, log: Path | None) -> dict[str, Any]:
    """Time a fresh run, then no-op commands and bare imports in the finished workspace."""
    prepare(folder)
    environment = own_environment()
    stages = repro(folder, environment, log=log)
    commands = {
        "dvc repro": ["dvc", "repro"],
        "dvc status": ["dvc", "status"],
        "python": ["python", "-c", "pass"],
        "import torch": ["python", "-c", "import torch"],
        "stages.train --help": ["python", "-m", "stages.train", "--help"],
        "stages.track --help": ["python", "-m", "stages.track", "--help"],
    }
    call = partial(subprocess.run, cwd=folder, env=environment, capture_output=True, check=True)
    noop = alternate(
        {name: partial(call, words) for name, words in commands.items()}, rounds=ROUNDS
    )
    wall = sum(seconds for _, seconds in stages)
    work = working_seconds(folder)
    runs = len(stages) - 1  # but for what comes before the first
    return {
        "noop_seconds": noop,
        "ratio": noop["dvc repro"] / noop["dvc status"],
        "share_outside": 1 - work / wall,
        "stage_runs": runs,
        "stages": by_kind(stages),
        # Every stage but the last imports about what training imports.
        "start_up_seconds": runs * noop["stages.train --help"],
        "wall_seconds": wall,
        "working_seconds": work,
    }


def main(log: Path | None) -> None:
    """Time `dvc repro` with nothing to do against `dvc status`, and the share of a whole run on
    scikit-learn's digits that is neither training nor reconstruction."""
    with tempfile.TemporaryDirectory(prefix="retrace-bench-") as name:
        result = measure(Path(name), log=log)
    print_table(
        f"nothing to do, {result['stage_runs']} stages",
        ["", "seconds"],
        [
            *([name, f"{value:.2f}"] for name, value in result["noop_seconds"].items()),
            ["repro / status (wanted: at most 1.5)", f"{result['ratio']:.2f}"],
        ],
    )
    wall = result["wall_seconds"]
    outside = wall - result["working_seconds"]
    print_table(
        f"a whole run on digits, empty cache: {result['share_outside']:.0%} of it is neither "
        "training nor reconstruction",
        ["", "runs", "seconds", "share"],
        [
            *(
                [f"stage {kind}", v["runs"], f"{v['seconds']:.1f}", f"{v['seconds'] / wall:.0%}"]
                for kind, v in result["stages"].items()
            ),
            ["whole run", result["stage_runs"], f"{wall:.1f}", "100%"],
            *(
                [name, "", f"{value:.1f}", f"{value / wall:.0%}"]
                for name, value in {
                    "training and reconstruction": result["working_seconds"],
                    "start-up of the stages (imports)": result["start_up_seconds"],
                    "the rest: DVC, files, scores, report": outside - result["start_up_seconds"],
                }.items()
            ),
        ],
    )
    sizes = {"images": IMAGES}
    write_result("overhead", {"dataset": "digits", "rounds": ROUNDS, "sizes": sizes, **result})


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--log", type=Path, help="file for what the timed run prints")


if __name__ == "__main__":
    run(main, arguments=options)
