"""Run `dvc repro` in the current repository and fail if a stage that did not change ran.

A stage may run for three reasons:

changed    before the run, its command, a parameter or a dependency is not what dvc.lock says;
cold       before the run, an output is not in the cache (or, where DVC does not cache it, not in
           the workspace as dvc.lock says), so that it cannot be restored;
follows    it comes after such a stage in the graph, and the run gave it other dependencies than
           dvc.lock had: where a stage makes again what it made before, those after it must rest.

Any other stage that runs did so for nothing: it has `always_changed`, no dependencies or `persist`
outputs, or another stage writes what it reads and does not say so.

Exit code: that of `dvc repro` if it fails, 1 if a stage ran for nothing, otherwise 0.
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from dvc.cli import main as dvc
from dvc.repo import Repo

LOCK = Path("dvc.lock")
RUNNING = "Running stage"  # how DVC's record of a stage that really runs begins


class Recorder(logging.Handler):
    """Keeps the names of the stages that DVC runs, and not of those that it restores."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.names: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if str(record.msg).startswith(RUNNING) and isinstance(record.args, tuple):
            self.names.append(str(record.args[0]))


def dependency_changed(dependency: Any, outputs: Iterable[Any]) -> bool:
    """Whether a dependency is not what dvc.lock says, given all outputs of the pipeline.

    One that the pipeline makes may be missing or stale until its maker has run or was restored:
    then the two entries of dvc.lock are compared, that of the maker and that of the user.
    """
    inside = dependency.fs.isin_or_eq
    made = [
        out
        for out in outputs
        if inside(out.fs_path, dependency.fs_path) or inside(dependency.fs_path, out.fs_path)
    ]
    if any(out.workspace_status() for out in made):
        return any(
            out.fs_path == dependency.fs_path and out.hash_info != dependency.hash_info
            for out in made
        )
    return bool(dependency.status())


def lost(output: Any) -> bool:
    """Whether DVC cannot take an output from the cache or leave it where it lies."""
    return bool(output.changed_cache() if output.use_cache else output.workspace_status())


def plan() -> tuple[set[str], set[str], set[str]]:
    """Names of the stages that are changed, that are cold, and that come after one of these."""
    with Repo() as repo, repo.lock:
        stages, graph = repo.index.stages, repo.index.graph
        outputs = [out for stage in stages for out in stage.outs]
        changed = {
            stage
            for stage in stages
            if stage.changed_stage() or any(dependency_changed(d, outputs) for d in stage.deps)
        }
        cold = {stage for stage in stages if any(map(lost, stage.outs))}
        after: set[Any] = set()
        queue = [*changed, *cold]
        while queue:
            # An edge of DVC's graph leads from a stage to one that it depends on.
            new = set(graph.predecessors(queue.pop())) - after
            after |= new
            queue += new
        names = [{stage.addressing for stage in group} for group in (changed, cold, after)]
    return names[0], names[1], names[2]


def inputs() -> dict[str, tuple[Any, ...]]:
    """What dvc.lock says of each stage, but for its outputs."""
    if not LOCK.exists():
        return {}
    stages = yaml.safe_load(LOCK.read_text(encoding="utf-8"))["stages"]
    return {n: tuple(s.get(k) for k in ("cmd", "deps", "params")) for n, s in stages.items()}


def main() -> int:
    """Plan, run, compare."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    # The stages find the Python that runs this file, whether its environment is active or not.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    changed, cold, after = plan()
    before = inputs()
    recorder = Recorder()
    logging.getLogger("dvc.stage.run").addHandler(recorder)
    if code := int(dvc(["repro"])):
        return code
    now = inputs()
    follows = {name for name in after if before.get(name) != now.get(name)}
    reasons: dict[str, list[str]] = {"changed": [], "cold": [], "follows": [], "NO REASON": []}
    for name in recorder.names:
        groups = {"changed": changed, "cold": cold, "follows": follows}
        reasons[next((r for r, group in groups.items() if name in group), "NO REASON")].append(name)
    for reason, names in reasons.items():
        print(f"repro: ran, {reason}:", *names, flush=True)
    return 1 if reasons["NO REASON"] else 0


if __name__ == "__main__":
    sys.exit(main())
