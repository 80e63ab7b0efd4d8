"""Refuse a wrong params.yaml before anything runs; every other stage comes after this one."""

from pathlib import Path

from retrace.checks import check_all, check_place, remove_left_over
from retrace.pipeline.artifacts import write_text
from retrace.pipeline.command import run
from retrace.pipeline.params import load
from retrace.sweeps.trials import check_sweeps


def main() -> None:
    """Check params.yaml as a whole, and the path of the repository, before anything runs; remove
    the files of networks and runs that params.yaml has no more (DVC's cache keeps them)."""
    check_place(Path.cwd())
    params = load()
    check_all(params)
    check_sweeps(params)
    remove_left_over(params)
    # The same bytes whatever the parameters are, so that no later stage reruns for it.
    write_text(Path("data/checked"), "params.yaml was checked\n")


if __name__ == "__main__":
    run(main)
