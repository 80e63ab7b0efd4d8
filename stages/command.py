"""How every stage starts and how it fails: one clear line and a non-zero exit code."""

import argparse
import errno
import sys
from collections.abc import Callable

REFUSED = 2
INTERRUPTED = 130


class Refusal(Exception):
    """Bad input or a state that cannot go on; its text is the one line that the user reads."""


def parser_of(
    program: str,
    description: str | None,
    *,
    name: str | None = None,
    arguments: Callable[[argparse.ArgumentParser], None] | None = None,
) -> argparse.ArgumentParser:
    """The parser of a stage's command line, see `run`."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    if name:
        parser.add_argument("name", metavar=name.upper(), help=f"the {name}, as in params.yaml")
    if arguments:
        arguments(parser)
    return parser


def run(
    main: Callable[..., None],
    *,
    name: str | None = None,
    arguments: Callable[[argparse.ArgumentParser], None] | None = None,
) -> None:
    """Parse the command line of a stage, run it and turn what the user can mend into one line.

    Parameters
    ----------
    main : function
        The stage; its docstring is the text of ``--help``.
    name : str, optional
        What the one positional argument stands for ("network", "run"); without it there is none.
    arguments : function, optional
        Adds further arguments to the parser; `main` takes them by keyword.

    Raises
    ------
    SystemExit
        2 after a `Refusal` or a full disk, 130 after Ctrl-C.
    """
    module = getattr(sys.modules[main.__module__], "__spec__", None)
    program = module.name if module else main.__module__
    given = parser_of(
        f"python -m {program}", main.__doc__, name=name, arguments=arguments
    ).parse_args()
    try:
        main(**vars(given))
    except Refusal as refusal:
        print(f"retrace: {refusal}", file=sys.stderr)
        sys.exit(REFUSED)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = "the disk is full; nothing half-written was kept. Free some space"
        elif error.filename is not None:  # no permission, a folder in place of a file, ...
            message = f"{error.filename}: {error.strerror}; nothing half-written was kept. Mend it"
        else:
            raise
        print(f"retrace: {message} and run it again", file=sys.stderr)
        sys.exit(REFUSED)
    except KeyboardInterrupt:
        print(
            "retrace: interrupted; nothing half-written was kept. Run it again",
            file=sys.stderr,
        )
        sys.exit(INTERRUPTED)
