"""The sections of a report, a problem each, in the order that they ask for."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from retrace.pipeline.artifacts import DATASET, read_json
from retrace.pipeline.params import load
from retrace.problems import names, part
from retrace.report.model import METHOD, NETWORK, Section, State, scored, tabulated


def present_state() -> State:
    """The state that params.yaml describes."""
    params = load()
    return State(
        runs={name: entry.model_dump() for name, entry in params.runs.items()},
        networks=params.networks,
        scoring=params.scoring.model_dump(),
        dataset=read_json(DATASET)["name"],
    )


def show_of(problem: str) -> Any:
    """How a problem is shown: by its ``show.py`` or, without one, by a table of its numbers."""
    if (Path(__file__).parent / problem / "show.py").exists():
        return part(problem, "show")

    def section(state: State) -> Section:
        runs = state.scores(problem)
        forms = {
            key: "d" if isinstance(value, int) else ".4f"
            for key, value in next(iter(runs.values())).items()
            if isinstance(value, int | float) and not key.endswith(("_low", "_high"))
        }
        columns = [METHOD, NETWORK, *(scored(key, form, key) for key, form in forms.items())]
        return Section(problem, title, "", blocks=[tabulated("All runs", runs, columns)])

    title = problem.replace("_", " ").capitalize()
    return SimpleNamespace(
        TITLE=title, LEAD="", ORDER=100, section=section, pictures=lambda run, ground: ()
    )


def ordered() -> list[str]:
    """The problems in the order of their sections."""
    return sorted(names(), key=lambda problem: show_of(problem).ORDER)


def section_of(problem: str, state: State) -> Section:
    """A problem's section, empty where it has no run."""
    show = show_of(problem)
    if not state.scores(problem):
        return Section(problem, show.TITLE, show.LEAD)
    found: Section = show.section(state)
    return found


def sections(state: State) -> list[Section]:
    return [section_of(problem, state) for problem in ordered()]
