"""The command `retrace`: each of its commands is a module of `retrace.commands`."""

import runpy
import sys

from retrace import __version__
from retrace.commands import COMMANDS, help
from retrace.pipeline.command import REFUSED, complain, escape_unprintable

USAGE = "usage: retrace [--help] [--version] COMMAND ..."


def main() -> None:
    """Run the command that is named first, as ``python -m`` would; its `run` reads the rest."""
    escape_unprintable()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        lines = [f"  {command:<10}{does}" for command, does in COMMANDS.items()]
        print(USAGE, "What went in? Reconstruct inputs of neural networks.", sep="\n\n")
        print("", *lines, "", "retrace COMMAND --help says more.", sep="\n")
    elif name == "--version":
        print(f"retrace {__version__}")
    elif name not in COMMANDS:
        complain(f"{name}: unknown; allowed are {', '.join(COMMANDS)}")
        sys.exit(REFUSED)
    else:
        del sys.argv[1]
        module = f"retrace.commands.{name}"
        help.answer(module)
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("retrace"):
                raise
            complain(f"{error}; `pip install 'retrace-networks[pipeline]'` installs it")
            sys.exit(REFUSED)


if __name__ == "__main__":
    main()
