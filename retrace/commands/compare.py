"""Two states of the repository on one page, side by side, the differences marked.

A state is a Git revision: its dvc.lock and params.yaml, the metrics that Git keeps, and what
dvc.lock names in DVC's cache. Nothing is checked out, computed again or fetched; what the cache
lacks is said on the page. The code is today's for both states, so that both are drawn alike.
"""

import argparse
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from retrace.git import committed, git
from retrace.pipeline.command import Refusal, run
from retrace.pipeline.params import parse_yaml, shown
from retrace.problems.sections import ordered, section_of, show_of
from retrace.report import charts, pictures
from retrace.report.model import (
    Block,
    Case,
    Cell,
    Chart,
    Column,
    Gallery,
    Row,
    Section,
    State,
    Steps,
    Strip,
    Summary,
    Table,
)
from retrace.report.page import (
    dataset_facts,
    machine,
    rendered,
    stage_seconds,
    versions,
    write_page,
)
from retrace.report.pictures import Colours

COMPARISON = Path("metrics/compare.html")
NAMES = ("A", "B")
SAME_IMAGES = ("data/test.npz", "data/train.npz", "data/observed/imputation.npz")
METRICS = re.compile(r"metrics/(headline/)?\w+/[^/]+\.json$")
Part = TypeVar("Part")
Merged = TypeVar("Merged")


def shown_at(revision: str, path: str) -> bytes:
    """A file as a revision has it; refused where it has none."""
    content = committed(path, revision=revision)
    if content is None:
        raise Refusal(f"{revision} has no {path}")
    return content


def commit_of(revision: str) -> str:
    """The commit that a revision names; refused where it names none, or Git cannot be asked."""
    git("rev-parse", "--git-dir")  # refused where there is no repository, or Git does not read it
    try:
        if revision.startswith("-"):
            raise Refusal("an option is none")
        return git("rev-parse", "--verify", f"{revision}^{{commit}}").decode().strip()
    except Refusal as refusal:
        raise Refusal(
            f"{revision!r:.80}: not a commit, branch or tag of this repository ({refusal})"
        ) from None


def cache_folder() -> Path:
    """Where DVC keeps files, as its configuration says."""
    from dvc.repo import Repo  # half a second, only here

    with Repo() as repository:
        return Path(repository.cache.local.path)


def differences(before: Any, after: Any, path: str = "") -> list[tuple[str, str, str]]:
    """Parameters that differ: their path, and both values, empty where there is none."""
    if isinstance(before, dict) and isinstance(after, dict):
        found = []
        for key in before | after:
            inner = f"{path}.{key}" if path else str(key)
            found += differences(before.get(key), after.get(key), inner)
        return found
    if before == after:
        return []
    first, second = ("" if value is None else shown(value) for value in (before, after))
    return [(path, first, second)]


class LaidOut(NamedTuple):
    """A revision whose files lie in a folder."""

    state: State  # which forgives missing files
    sums: list[str]  # of the images, which tell whether two states show the same
    params: dict[str, Any]  # the whole params.yaml


def laid_out(revision: str, folder: Path, cache: Path) -> LaidOut:
    """Put the files of a revision into a new folder, as links into DVC's cache and from Git.
    Refused when the revision has no dvc.lock or params.yaml that can be read."""
    contents = {name: shown_at(revision, name) for name in ("dvc.lock", "params.yaml")}
    try:
        lock, params = (parse_yaml(content, name=name) for name, content in contents.items())
        stages = lock["stages"]
        runs, networks, scoring = params["runs"], params["networks"], params["scoring"]
    except (Refusal, KeyError, TypeError) as error:
        raise Refusal(
            f"{revision}: dvc.lock or params.yaml cannot be read ({error!r:.160})"
        ) from None
    folder.mkdir()
    sums = []
    for out in (out for stage in stages.values() for out in stage.get("outs", [])):
        path, digest = str(out["path"]), str(out.get("md5", ""))
        if path in SAME_IMAGES:
            sums.append(f"{path} {digest}")
        source = cache / digest[:2] / digest[2:]
        target = folder / path
        inside = target.resolve().is_relative_to(folder.resolve())
        if inside and len(digest) > 2 and source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source.resolve())
    listed = git("ls-tree", "-r", "-z", "--name-only", revision, "metrics/")
    for path in filter(METRICS.match, os.fsdecode(listed).split("\0")):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(shown_at(revision, path))
    # Runs that dvc.lock remembers and params.yaml no longer names are not shown.
    name = params.get("data", {}).get("name", "unknown")
    state = State(runs, networks, scoring, name, forgiving=True)
    return LaidOut(state, sums, params)


def change_of(before: Cell, after: Cell, column: Column) -> Cell:
    """The later cell with the former one, and what has become of it."""
    if (before.text, before.interval) == (after.text, after.interval):
        return replace(after, before=before, change="same")
    if before.value is None or after.value is None:
        return replace(after, before=before, change="changed")
    difference = after.value - before.value
    amount = f"{difference:+.3g}"
    if before.value:
        amount = f"{100 * difference / abs(before.value):+.1f} %"
    if before.text == after.text:  # alike as far as anyone reads it
        change = "same"
    elif not column.better:
        change = "changed"
    else:
        change = "better" if (difference < 0) == (column.better == "lower") else "worse"
    return replace(after, before=before, change=change, amount=amount)


def merged(
    before: Iterable[Part],
    after: Iterable[Part],
    *,
    key: Callable[[Part], Any],
    both: Callable[[Part, Part], Merged],
    alone: Callable[[Part, str], Merged],
) -> list[Merged]:
    """What becomes of parts of both states with the same key, and of those of one; those of the
    first state alone at the end."""
    first, second = ({key(part): part for part in parts} for parts in (before, after))
    found = [both(first[k], p) if k in first else alone(p, NAMES[1]) for k, p in second.items()]
    return found + [alone(part, NAMES[0]) for k, part in first.items() if k not in second]


def tables(before: Table, after: Table) -> Table:
    """Rows of both, the cells of equal columns compared."""
    places = {column.label: i for i, column in enumerate(before.columns)}

    def former(row: Row) -> list[Cell | None]:
        return [row.cells[places[c.label]] if c.label in places else None for c in after.columns]

    def both(old: Row, new: Row) -> Row:
        cells = [
            change_of(cell, found, column) if cell else found
            for cell, found, column in zip(former(old), new.cells, after.columns, strict=True)
        ]
        return replace(new, cells=cells)

    def alone(row: Row, name: str) -> Row:
        if name == NAMES[0]:
            row = replace(row, cells=[cell or Cell() for cell in former(row)])
        return replace(row, only=name)

    rows = merged(before.rows, after.rows, key=lambda row: row.label, both=both, alone=alone)
    return replace(after, rows=rows)


def strips_of(
    before: Iterable[Strip], after: Iterable[Strip], *, errors: Colours = "heat"
) -> list[Strip]:
    """Strips of both: one where they look the same, otherwise one above the other."""

    def looks(strip: Strip) -> list[str]:
        error = [] if strip.error is None else [pictures.address(strip.error, errors)]
        return [pictures.address(strip.images, strip.colours), *error]

    def both(old: Strip, new: Strip) -> Strip:
        if looks(old) == looks(new):
            return new
        note = f"{old.note} → {new.note}" if old.note and new.note else new.note
        return replace(new, before=old, note=note)

    def alone(strip: Strip, name: str) -> Strip:
        return replace(strip, note=f"only in {name}")

    return merged(before, after, key=lambda strip: strip.label, both=both, alone=alone)


def galleries(before: Gallery, after: Gallery) -> Gallery:
    def both(old: Case, new: Case) -> Case:
        return replace(new, strips=strips_of(old.strips, new.strips, errors=after.errors))

    def alone(case: Case, name: str) -> Case:
        return replace(case, strips=[replace(s, note=f"only in {name}") for s in case.strips])

    names = dict.fromkeys([*after.groups, *before.groups])
    groups = {}
    for name in names:
        cases = (gallery.groups.get(name, ()) for gallery in (before, after))
        groups[name] = merged(*cases, key=lambda case: case.name, both=both, alone=alone)
    return replace(after, groups=groups)


def named(block: Block, name: str) -> list[Block]:
    """A block of one state."""
    return [replace(block, title=f"{block.title} ({name})")]


def blocks_of(old: Block, new: Block) -> list[Block]:
    """A block of both states; where they cannot be laid over each other, each with its name."""
    if isinstance(old, Table) and isinstance(new, Table):
        return [tables(old, new)]
    if isinstance(old, Gallery) and isinstance(new, Gallery):
        return [galleries(old, new)]
    if isinstance(old, Chart) and isinstance(new, Chart):
        same = charts.svg(old, name="") == charts.svg(new, name="")
        return [new if same else replace(new, before=old)]
    assert isinstance(old, Steps) and isinstance(new, Steps)
    if captions_of(old) != captions_of(new):
        return named(old, NAMES[0]) + named(new, NAMES[1])
    return [replace(new, strips=strips_of(old.strips, new.strips))]


def captions_of(steps: Steps) -> list[Sequence[str]]:
    """What stands above the columns: only where it is the same are steps laid over each other."""
    return [strip.captions for strip in steps.strips]


def summaries(old: Summary | None, new: Summary | None) -> Summary | None:
    if old is None or new is None:
        return new or old
    result = change_of(old.result, new.result, Column(new.measure, new.better))
    method = new.method if old.method == new.method else f"{old.method} → {new.method}"
    return replace(new, result=result, method=method)


def joined(before: Sequence[Section], after: Sequence[Section]) -> list[Section]:
    """Sections of two states as those of one page."""
    found = []
    for old, new in zip(before, after, strict=True):
        parts = merged(
            *(part.blocks for part in (old, new)),
            key=lambda block: (type(block), block.title),
            both=blocks_of,
            alone=named,
        )
        blocks = [block for part in parts for block in part]
        found.append(replace(new, summary=summaries(old.summary, new.summary), blocks=blocks))
    return found


def drawn(folder: Path, state: State) -> tuple[list[Section], dict[str, str], dict[str, float]]:
    """Sections, facts about the dataset and seconds by stage of a state laid out in a folder."""
    with chdir(folder):  # paths of artifacts are relative
        facts = {"dataset": f"{state.dataset}: its description is not in DVC's cache"}
        with state.noting():
            facts = dict(dataset_facts())
        parts = [attempted(problem, state) for problem in ordered()]
        seconds: dict[str, float] = {}
        with reading(state, "Seconds by stage"):
            seconds = dict(stage_seconds(state))
        return parts, facts, seconds


@contextmanager
def reading(state: State, what: str) -> Iterator[None]:
    """Leave out, with a note, what today's code cannot read of a revision."""
    try:
        yield
    except (Refusal, KeyError, IndexError, ValueError) as error:
        state.missing.append(f"{what}: today's code cannot read its files ({error!r:.120})")


def attempted(problem: str, state: State) -> Section:
    """A problem's section; without content where today's code cannot read what a revision has."""
    show = show_of(problem)
    with reading(state, show.TITLE):
        return section_of(problem, state)
    return Section(problem, show.TITLE, show.LEAD)


def main(a: str, b: str) -> None:
    """Write metrics/compare.html: two Git revisions side by side, from their dvc.lock, the metrics
    in Git and DVC's cache alone."""
    revisions = dict(zip(NAMES, (a, b), strict=True))
    commits = {name: commit_of(revision) for name, revision in revisions.items()}
    cache = cache_folder()
    parts, facts, seconds = {}, {}, {}
    with tempfile.TemporaryDirectory(prefix="retrace-compare-") as temporary:
        folders = {name: Path(temporary) / name for name in NAMES}
        laid = {name: laid_out(commits[name], folders[name], cache) for name in NAMES}
        first, second = laid.values()
        if first.sums == second.sums:
            second.state.chosen = first.state.chosen  # the same images in both
        for name in NAMES:
            parts[name], facts[name], seconds[name] = drawn(folders[name], laid[name].state)
    missing = {name: laid[name].state.missing for name in NAMES}
    rows = [("Git commit", *(f"{revisions[n]}: {commits[n]}" for n in NAMES))]
    rows += [("dvc.lock", *(lock_sum(commits[n]) for n in NAMES))]
    rows += [(key, *(facts[n].get(key, "") for n in NAMES)) for key in facts[NAMES[1]]]
    rows += [("drawn with", versions(), versions()), ("drawn on", machine(), machine())]
    timed = dict.fromkeys(stage for name in NAMES for stage in seconds[name])
    text = rendered(
        joined(*parts.values()),
        title="What has changed?",
        dataset=second.state.dataset,
        facts=rows,
        seconds=[(stage, *(seconds[n].get(stage) for n in NAMES)) for stage in timed],
        states=(f"{a} ({commits['A'][:7]})", f"{b} ({commits['B'][:7]})"),
        missing=missing,
        parameters=differences(first.params, second.params),
    )
    write_page(COMPARISON, text)
    lacking = sum(len(lines) for lines in missing.values())
    size = COMPARISON.stat().st_size / 1e6
    print(f"The comparison is {COMPARISON.resolve().as_uri()} ({size:.1f} MB)")
    if lacking:
        print(
            f"{lacking} things could not be shown; the page says which (`dvc fetch` may bring them)"
        )


def lock_sum(commit: str) -> str:
    return f"sha256 {hashlib.sha256(shown_at(commit, 'dvc.lock')).hexdigest()}"


def arguments(parser: argparse.ArgumentParser) -> None:
    for name in NAMES:
        parser.add_argument(name.lower(), metavar=name, help=f"Git revision {name}")


if __name__ == "__main__":
    run(main, arguments=arguments)
