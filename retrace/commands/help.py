"""`--help` of a command or a stage without its imports: torch alone takes seconds.

The text is read from the module's source: the docstring of `main`, what `run` is called with, and
the function that adds arguments, which may use constants of the module that are written out.
"""

import argparse
import ast
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from retrace.pipeline.command import escape_unprintable, parser_of, program_of


def answer(name: str) -> None:
    """Print the help of a module and exit, where it is being started with ``--help``.

    A command whose source says too little is left to answer by itself.
    """
    if not {"-h", "--help"} & set(sys.argv[1:]):
        return
    parser = None
    with suppress(ImportError, SyntaxError, LookupError, NameError):
        parser = described(name)
    if parser is not None:
        escape_unprintable()
        parser.parse_args(["--help"])


def described(name: str) -> argparse.ArgumentParser | None:
    """The parser of a module, or None where the module runs no command; a NameError where its
    arguments need more than constants."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        return None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node).startswith("run(main")
    ]
    if len(calls) != 1 or "main" not in functions:
        return None
    given = {keyword.arg: keyword.value for keyword in calls[0].keywords}
    known: dict[str, Any] = {"argparse": argparse, "Path": Path, **constants(tree)}
    if "arguments" in given:
        added = functions[ast.unparse(given["arguments"])]
        # Our own source, as `import` would run it.
        exec(compile(ast.Module([added], []), spec.origin, "exec"), known)  # noqa: S102  # nosec
    return parser_of(
        program_of(name),
        ast.get_docstring(functions["main"]),
        name=ast.literal_eval(given["name"]) if "name" in given else None,
        arguments=known[added.name] if "arguments" in given else None,
    )


def constants(tree: ast.Module) -> dict[str, Any]:
    """Values of a module's constants that are written out."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            with suppress(ValueError):
                found[node.targets[0].id] = ast.literal_eval(node.value)
    return found
