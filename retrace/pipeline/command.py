"""How every stage starts and how it fails: one clear line and a non-zero exit code."""

import argparse
import errno
import io
import sys
import warnings
from collections.abc import Callable

REFUSED = 2
INTERRUPTED = 130
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class Refusal(Exception):
    """Bad input or a state that cannot go on; its text is the one line that the user reads."""


class WrongValue(Refusal):
    """A value of params.yaml, or what follows from it, is to blame: refused whenever it is tried,
    on any machine."""


def program_of(module: str) -> str:
    """What a user types to start a module."""
    command = module.removeprefix("retrace.commands.")
    return f"python -m {module}" if command == module else f"retrace {command}"


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


def one_line(text: object) -> str:
    """A text with each line break, control character and undecodable byte as its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def escape_unprintable() -> None:
    """Print what the terminal's encoding lacks as its escape, in place of a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def complain(text: object) -> None:
    print(f"retrace: {one_line(text)}", file=sys.stderr)


def run(
    main: Callable[..., None],
    *,
    name: str | None = None,
    arguments: Callable[[argparse.ArgumentParser], None] | None = None,
) -> None:
    """Parse the command line of a stage, run it and turn what the user can mend into one line.

    What the terminal cannot show, such as a file's name that is no UTF-8, is printed as its escape.
    The docstring of `main` is the text of ``--help``; `name` says what the one positional argument
    stands for ("network", "run"), if there is one; `arguments` adds further ones to the parser,
    which `main` takes by keyword.

    Raises
    ------
    SystemExit
        2 after a `Refusal`, a `BadInput` or a full disk, 130 after Ctrl-C.
    """
    escape_unprintable()
    warnings.showwarning = lambda message, *_, **__: complain(message)
    module = getattr(sys.modules[main.__module__], "__spec__", None)
    program = program_of(module.name if module else main.__module__)
    given = parser_of(program, main.__doc__, name=name, arguments=arguments).parse_args()
    try:
        main(**vars(given))
    except Refusal as refusal:
        complain(refusal)
        sys.exit(REFUSED)
    except OSError as error:
        if error.errno in DISK_FULL:
            message = "the disk is full; nothing half-written was kept. Free some space"
        elif error.filename is not None:  # no permission, a folder in place of a file, ...
            message = f"{error.filename}: {error.strerror}; nothing half-written was kept. Mend it"
        else:
            raise
        complain(f"{message} and run it again")
        sys.exit(REFUSED)
    except ValueError as error:
        from retrace.types import BadInput  # imports torch, as whoever raised it has

        if not isinstance(error, BadInput):
            raise
        complain(error)
        sys.exit(REFUSED)
    except KeyboardInterrupt:
        complain("interrupted; nothing half-written was kept. Run it again")
        sys.exit(INTERRUPTED)
