"""Mend what a kill, a power cut or a merge left broken, so that the next `dvc repro` can start.

DVC writes dvc.lock and .dvc/tmp/rwlock in place: a kill at that moment leaves them cut off. Git
writes both sides of a merge conflict into dvc.lock, and DVC does not read that either.

A stage's entry in dvc.lock says what was made from what. Any entry that DVC once wrote may be kept:
where it does not fit the workspace, DVC runs the stage again or restores it from its run cache. One
put together from two might fit and be wrong, so that entries are kept or taken whole, as text.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from dvc.lock import LockError, make_lock
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from voluptuous import Invalid

from retrace.git import NoRepository, committed
from retrace.pipeline.command import Refusal, run
from retrace.pipeline.params import conflict_in

LOCK = "dvc.lock"
TEMPORARY = Path(".dvc/tmp")
BROKEN = TEMPORARY / "dvc.lock.broken"
HEADER = "schema: '2.0'\nstages:\n"
NAMED = 5  # stages that a line names

Entries = dict[str, str]  # the text of each stage by its name, as DVC wrote it


class Mended(NamedTuple):
    """What a dvc.lock shall hold, and in words what it was and what was done."""

    entries: Entries
    words: str


def parsed(text: str) -> dict[str, Any] | None:
    """The content of a dvc.lock; None where DVC would refuse it, where it is empty, which DVC never
    writes, and where its end shows that it was cut off."""
    if "\N{REPLACEMENT CHARACTER}" in text:  # a byte that is no UTF-8, see `read`
        return None
    try:
        content = yaml.load(text, yaml.CSafeLoader)
        COMPILED_LOCKFILE_SCHEMA(content)
    except (yaml.YAMLError, Invalid, ValueError):
        return None
    stages = content and content.get("stages")
    if not stages or not text.endswith("\n"):
        return None
    last = list(stages.values())[-1]
    files = [*last.get("deps", []), *last.get("outs", [])]
    return content if all({"md5", "size"} <= file.keys() for file in files) else None


def parts(text: str) -> Entries:
    """The text of every stage that begins in a dvc.lock, whole or not."""
    _, *found = re.split(r"^(?=  ['\"\w][^\s\0-\x1f\ufffd]*:$)", text, flags=re.MULTILINE)
    return {part.partition("\n")[0].strip().removesuffix(":"): part for part in found}


def whole(entries: Entries) -> Entries:
    """Those of them that are whole."""
    return {name: part for name, part in entries.items() if parsed(HEADER + part)}


def read(content: bytes | None) -> str:
    """A dvc.lock as text, with the ends of lines that DVC writes."""
    return (content or b"").decode(errors="replace").replace("\r\n", "\n")


def asked(folder: Path, revision: str) -> str:
    """The dvc.lock of a revision; empty where it has none. Refused when Git refuses to show it, or,
    as a `NoRepository`, when there is none to ask."""
    try:
        return read(committed(LOCK, revision=revision, folder=folder))
    except NoRepository:
        raise
    except Refusal as refusal:
        raise Refusal(
            f"{folder / LOCK} is broken, and Git refuses to show what it has of it. {refusal}"
        ) from None


def files_of(entry: str) -> list[str]:
    """What a stage depends on and what it makes, in order."""
    return re.findall(r"^    - path: (.*)$", entry, re.MULTILINE)


def defined(folder: Path) -> dict[str, tuple[set[str], set[str]]] | None:
    """What every stage that dvc.yaml names depends on, and what it makes; None where DVC cannot
    tell."""
    from dvc.dvcfile import load_file
    from dvc.repo import Repo

    def files(stage: dict[str, Any], *kinds: str) -> set[str]:
        listed = [file for kind in kinds for file in stage.get(kind, [])]
        return {file if isinstance(file, str) else next(iter(file)) for file in listed}

    try:
        with Repo(str(folder)) as repository:
            resolver = load_file(repository, str(folder.resolve() / "dvc.yaml")).resolver
            stages = dict(
                item for key in resolver.get_keys() for item in resolver.resolve_one(key).items()
            )
    except Exception:  # DVC raises errors of its own, of YAML's, of Git's
        return None
    return {
        name: (files(stage, "deps"), files(stage, "outs", "metrics", "plots"))
        for name, stage in stages.items()
    }


def named(names: Iterable[str]) -> str:
    """How many, and the first few."""
    listed = list(names)
    more = f" and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
    return f"{len(listed)} ({', '.join(listed[:NAMED])}{more})" if listed else "0"


def mend_cut(folder: Path, text: str) -> Mended | None:
    """Keep the stages that are whole, take the others from the last commit; None where none is
    missing. Refused when Git refuses to show what the last commit has."""
    begun = parts(text)
    broken = parsed(text) is None
    source = "the last commit"
    try:
        before = parts(asked(folder, "HEAD"))
    except NoRepository as reason:
        before, source = {}, f"Git ({reason})"
    except Refusal:
        if broken:
            raise
        return None
    if broken:
        kept = whole(begun)
        what = damage(text, [name for name in begun if name not in kept])
        missing = set(before) - set(kept)
    else:
        what = "cut off between two lines, it seems"
        missing = between_lines(folder, begun, before)
        kept = {name: part for name, part in begun.items() if name not in missing}
        if not missing:
            return None
    taken = whole({name: part for name, part in before.items() if name in missing})
    have = {**kept, **taken}
    entries = {name: have[name] for name in {**before, **have} if name in have}  # in Git's order
    known = {**begun, **dict.fromkeys(missing), **(defined(folder) or {})}
    left = [name for name in known if name not in entries]
    words = f"{what}; {len(kept)} stages kept, {named(taken)} from {source}"
    if left:
        words += f"; left to `dvc repro`, which runs or restores them: {named(left)}"
    return Mended(entries, words)


def damage(text: str, where: list[str]) -> str:
    """What has befallen a dvc.lock, some stages of which are not whole."""
    if not text.strip("\0\n\r\t "):
        return f"holds nothing but {len(text)} NUL bytes" if "\0" in text else "empty"
    place = f" in {named(where)}" if where else ""
    if "\0" in text:
        return f"holds NUL bytes, as after a power cut,{place}".removesuffix(",")
    if where and where[0] == list(parts(text))[-1]:
        return f"cut off in {where[0]}"
    return f"damaged{place}" if where else "cut off or damaged before the first stage"


def between_lines(folder: Path, begun: Entries, before: Entries) -> set[str]:
    """Names of the stages that a cut between two lines has taken, wholly or in part, though what it
    left reads well: the last commit has more of them, and dvc.yaml still names that."""
    if not begun:  # another's hand wrote it
        return set()
    last = list(begun)[-1]
    files = files_of(begun[last])
    more = set(files_of(before.get(last, ""))) - set(files)
    missing = set(before) - set(begun)
    endless = last not in before and "\n    outs:\n" not in begun[last]
    if not (missing or more or endless):
        return set()
    now = defined(folder)
    if now is not None:
        deps, outs = now.get(last, (set(), set()))
        missing &= set(now)
        more = more & (deps | outs) or (outs if endless else set())
    return missing | {last} if more else missing


def sides(text: str) -> tuple[Entries, Entries]:
    """The stages of both sides of a text with the markers of a merge conflict."""
    ours, theirs, state = "", "", "both"
    for line in text.splitlines(keepends=True):
        marker = line[:7] if line[7:8].strip() == "" else ""
        if marker in ("<<<<<<<", "|||||||", ">>>>>>>") or (marker == "=======" and state != "both"):
            state = {"<": "ours", "|": "base", "=": "theirs", ">": "both"}[marker[0]]
            continue
        ours += line if state in ("ours", "both") else ""
        theirs += line if state in ("theirs", "both") else ""
    return parts(ours), parts(theirs)


def sides_in_git(folder: Path) -> tuple[Entries, Entries, Entries] | None:
    """Both sides of a merge and, as far as known, what they began from; None where Git has not kept
    them. Raises a Refusal as `asked` does."""

    def at(revision: str) -> Entries:
        return parts(asked(folder, revision))

    if theirs := at(":3"):  # the merge goes on
        return at(":2"), theirs, at(":1")
    if theirs := at("MERGE_HEAD"):  # the file was added with its markers
        return at("HEAD"), theirs, {}
    if conflict_in(asked(folder, "HEAD")):  # and committed
        return at("HEAD^1"), at("HEAD^2"), {}
    return None


def mend_conflict(folder: Path, text: str) -> Mended:
    """Join both sides of a merge, stage by stage.

    Git's own copies of the sides are taken, since Git merges line by line and may have made entries
    that neither side had. Without them only what is alike on both sides of the markers is kept.
    """
    reason = "Git has not kept the two sides"
    try:
        found = sides_in_git(folder)
    except NoRepository as refusal:
        found, reason = None, str(refusal)
    if found:
        ours, theirs, base = found
        entries, words = joined(whole(ours), whole(theirs), base)
    else:
        ours, theirs = sides(text)
        entries = {name: part for name, part in whole(ours).items() if theirs.get(name) == part}
        words = f"{len(entries)} stages are alike on both sides and kept ({reason})"
    left = [name for name in {**ours, **theirs} if name not in entries]
    if left:
        words += f"; left to `dvc repro`, which runs or restores them: {named(left)}"
    return Mended(entries, f"a merge conflict; {words}; next: `dvc repro`, then `git add {LOCK}`")


def joined(ours: Entries, theirs: Entries, base: Entries) -> tuple[Entries, str]:
    """The stages of both sides, and what was done in words; of one that both changed, ours stands,
    whose files are here."""
    entries: Entries = {}
    changed: list[str] = []
    differ: list[str] = []
    for name in {**ours, **theirs}:
        mine, other, old = ours.get(name), theirs.get(name), base.get(name)
        if mine is None or (mine == old and other is not None):
            entries[name] = theirs[name]
        else:
            entries[name] = mine
        if mine != other:
            (changed if None in (mine, other) or old in (mine, other) else differ).append(name)
    alike = len(entries) - len(changed) - len(differ)
    return entries, (
        f"{alike} stages are alike on both sides; changed on one side and taken from it: "
        f"{named(changed)}; changed on both and kept as on this branch: {named(differ)}"
    )


def mend(folder: Path) -> list[str]:
    """Mend dvc.lock and DVC's own lock file in a workspace; give a line for each that was broken.

    The broken dvc.lock stays as .dvc/tmp/dvc.lock.broken. Refused where there is no pipeline: DVC
    would take a folder with a .dvc in it for one; when a DVC command is at work there: what it is
    just writing is not broken; when dvc.yaml or params.yaml holds a merge conflict, which only its
    author can resolve; when Git refuses to show what is needed.
    """
    if not (folder / ".dvc/config").exists():
        raise Refusal(f"{folder.resolve()}: no pipeline is here; run from the folder of dvc.yaml")
    for name in ("dvc.yaml", "params.yaml"):
        path = folder / name
        if path.exists() and (conflict := conflict_in(path.read_text("utf-8", errors="replace"))):
            raise Refusal(f"{path}: resolve its merge conflict first ({conflict})")
    done: list[str] = []
    temporary = folder / TEMPORARY
    temporary.mkdir(parents=True, exist_ok=True)
    try:
        with (
            make_lock(str(temporary / "lock"), tmp_dir=str(temporary)),
            make_lock(str(temporary / "rwlock.lock"), tmp_dir=str(temporary)),
        ):
            readers = temporary / "rwlock"
            try:
                json.loads(readers.read_bytes() or b"broken")
            except FileNotFoundError:
                pass
            except ValueError:
                readers.unlink()
                done.append(f"{readers}: cut off, removed")
            done += mend_lock(folder)
    except LockError:
        raise Refusal(f"a DVC command is at work in {folder.resolve()}; wait for it") from None
    return done


def mend_lock(folder: Path) -> list[str]:
    """Mend dvc.lock, while no DVC command is at work; give the line that says how."""
    path = folder / LOCK
    if not path.exists():
        return []
    content = path.read_bytes()
    text = read(content)
    mended = mend_conflict(folder, text) if conflict_in(text) else mend_cut(folder, text)
    if mended is None:
        return []
    from retrace.pipeline.artifacts import (  # imports torch, which is seldom needed
        write_text,
        written_whole,
    )

    line = f"{path}: {mended.words}; as it was: {folder / BROKEN}"
    with written_whole(folder / BROKEN) as temporary:
        temporary.write_bytes(content)
    if not mended.entries:
        path.unlink()
        return [f"{line}; removed, since nothing is left of it"]
    write_text(path, HEADER + "".join(mended.entries.values()))
    return [line]


def without_git(folder: Path) -> list[str]:
    """Let DVC work in a folder that lies in no Git repository, such as an unpacked archive: it does
    so only where its configuration says that there is none."""
    here = folder.resolve()
    inside = any((parent / ".git").exists() for parent in (here, *here.parents))
    if inside or not (here / ".dvc/config").exists():
        return []
    from dvc.config import Config

    config = Config(str(folder / ".dvc"))
    if config["core"].get("no_scm"):
        return []
    with config.edit("local") as local:
        local["core"]["no_scm"] = True
    return [
        "no Git repository here: DVC now works without one (after a `git init`: "
        "dvc config --local --unset core.no_scm)"
    ]


def main() -> None:
    """Mend a dvc.lock that a killed `dvc repro` or a merge left broken, and let DVC work without a
    Git repository; otherwise nothing happens."""
    for line in without_git(Path()) + mend(Path()):
        print(line)


if __name__ == "__main__":
    run(main)
