"""Mend what a killed `dvc repro` left broken, so that the next one can start.

DVC writes dvc.lock and .dvc/tmp/rwlock in place: a kill at that moment leaves them cut off, and DVC
reads neither again. Entries of dvc.lock that are whole stay; the others are taken from the last
commit or, where it has none, left to DVC's run cache, which restores what those stages had made.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml
from dvc.lock import LockError, make_lock
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from dvc.utils.serialize import dump_yaml
from voluptuous import Invalid

from stages.command import Refusal, run

LOCK = "dvc.lock"
TEMPORARY = Path(".dvc/tmp")


def parsed(text: str) -> dict[str, Any] | None:
    """The content of a dvc.lock, or None where DVC would refuse it; an empty one is refused too,
    since DVC never writes one."""
    try:
        content = yaml.load(text, yaml.CSafeLoader)
        COMPILED_LOCKFILE_SCHEMA(content)
    except (yaml.YAMLError, Invalid):
        return None
    return content if content and content.get("stages") else None


def whole_part(text: str) -> dict[str, Any]:
    """What comes before the cut in a dvc.lock that was cut off: all stages but the last."""
    lines = text.splitlines(keepends=True)
    starts = [i for i, line in enumerate(lines) if line[:2] == "  " and line[2:3].strip(" #-")]
    for start in reversed(starts):
        content = parsed("".join(lines[:start]))
        if content:
            return content
    return {"schema": "2.0", "stages": {}}


def committed(folder: Path) -> dict[str, Any]:
    """The stages of the dvc.lock in the last commit; none outside a Git repository."""
    command = ["git", "show", f"HEAD:./{LOCK}"]
    shown = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    stages: dict[str, Any] = (parsed(shown.stdout) or {}).get("stages", {})
    return stages


def mend(folder: Path) -> list[str]:
    """Mend dvc.lock and DVC's own lock file in a workspace; give a line for each that was broken.

    Raises
    ------
    Refusal
        When a DVC command is at work there: what it is just writing is not broken.
    """
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
            path = folder / LOCK
            if not path.exists():
                return done
            text = path.read_text(encoding="utf-8", errors="replace")
            if parsed(text):
                return done
            content = whole_part(text)
            kept = len(content["stages"])
            content["stages"] |= {
                name: stage
                for name, stage in committed(folder).items()
                if name not in content["stages"]
            }
            added = len(content["stages"]) - kept
            if not content["stages"]:
                path.unlink()
                done.append(f"{path}: cut off before the first stage, removed")
                return done
            from stages.artifacts import written_whole  # imports torch, which is seldom needed

            with written_whole(path) as whole:
                dump_yaml(str(whole), content)
            done.append(f"{path}: cut off; {kept} stages kept, {added} from the last commit")
    except LockError:
        raise Refusal(f"a DVC command is at work in {folder.resolve()}; wait for it") from None
    return done


def main() -> None:
    """Mend a dvc.lock that a killed `dvc repro` left cut off; without one, nothing happens."""
    for line in mend(Path()):
        print(line)


if __name__ == "__main__":
    run(main)
