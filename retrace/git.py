"""What Git says, and where it says nothing its own words in one line."""

import os
import subprocess
from pathlib import Path

from retrace.pipeline.command import Refusal


class NoRepository(Refusal):
    """There is no Git, or the folder lies in no repository: there is nothing to be read."""


def git(*arguments: str, folder: Path = Path(), given: str = "") -> bytes:
    """What a Git command, run in a folder and given some text, prints.

    Raises
    ------
    NoRepository
        Without Git, or outside a repository.
    Refusal
        When Git refuses for another reason, such as a repository of another owner.
    """
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},  # its words are looked at below
            input=given.encode(errors="surrogateescape"),
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        raise NoRepository("Git is not installed, or not on PATH") from None
    said = " ".join(done.stderr.decode(errors="replace").split())
    if not done.returncode and not said.startswith("error:"):
        return done.stdout
    if "not a git repository" in said:
        raise NoRepository(
            f"{folder.resolve()} lies in no Git repository: take it by `git clone`, or make it one "
            f"by `git init` and a commit (Git says: {said})"
        )
    raise Refusal(f"Git says: {said or f'nothing, `git {arguments[0]}` failed'}")


def committed(path: str, *, revision: str = "HEAD", folder: Path = Path()) -> bytes | None:
    """A file, by its path from `folder`, as a revision has it; None where it has none.

    Raises
    ------
    Refusal
        As `git` does.
    """
    found = git("cat-file", "--batch", folder=folder, given=f"{revision}:./{path}\n")
    head, _, content = found.partition(b"\n")  # "<id> blob <bytes>", or "<what was asked> missing"
    return content[:-1] if head.split()[-2:-1] == [b"blob"] else None
