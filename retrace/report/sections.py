"""The sections of a report, a problem each, in the order that they ask for."""

from collections.abc import Mapping
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

from retrace.pipeline.artifacts import DATASET, headline_path, read_json
from retrace.pipeline.params import load
from retrace.problems import names, part
from retrace.report.model import Cell, Column, Row, Section, State, Table, number, short

IDENTITY = ("dataset", "problem", "method", "network", "settings", "seed")


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
    """How a problem is shown: by its ``show.py`` or, without one, by a table of its headlines."""
    if find_spec(f"retrace.problems.{problem}.show"):
        return part(problem, "show")

    def section(state: State) -> Section:
        found: dict[str, Mapping[str, Any]] = {}
        for name in state.scores(problem):
            with state.noting():
                found[name] = read_json(headline_path(problem, name))
        return Section(problem, title, "", blocks=[headlines(problem, found)])

    title = problem.replace("_", " ").capitalize()
    return SimpleNamespace(TITLE=title, LEAD="", ORDER=100, section=section)


def headlines(problem: str, runs: Mapping[str, Mapping[str, Any]]) -> Table:
    """The numbers of every run's headline."""
    keys = [
        key
        for key in dict.fromkeys(key for scores in runs.values() for key in scores)
        if key not in IDENTITY
    ]

    def cell(value: Any) -> Cell:
        return number(value, ".4g") if isinstance(value, int | float) else Cell(str(value or ""))

    rows = [
        Row(
            short(name, problem),
            [Cell(s["method"]), Cell(s["network"]), *(cell(s.get(key)) for key in keys)],
        )
        for name, s in runs.items()
    ]
    columns = [Column("method"), Column("network"), *map(Column, keys)]
    return Table("All runs", columns, rows)


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
