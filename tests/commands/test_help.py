"""`--help` of every command: at once, and what the command itself would print."""

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, execute

from retrace.commands import help
from retrace.pipeline import command

COMMANDS = sorted(
    f"{folder}.{path.stem}"
    for folder in ("stages", "benchmarks")
    for path in (ROOT / folder).glob("*.py")
    if "run(main" in path.read_text(encoding="utf-8") and path.stem not in ("help", "command")
)
HEAVY = ("torch", "numpy", "scipy", "PIL", "dvc", "mlflow", "matplotlib", "yaml", "pydantic")


def test_there_are_commands_to_ask() -> None:
    assert {"stages.train", "stages.complete", "stages.audit", "stages.mend"} < set(COMMANDS)
    assert len(COMMANDS) > 25


@pytest.mark.parametrize("name", COMMANDS)
def test_the_text_is_that_of_the_command_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def run(main: Any, **given: Any) -> None:
        asked.append(command.parser_of(f"python -m {name}", main.__doc__, **given).format_help())

    monkeypatch.setattr(command, "run", run)
    monkeypatch.delitem(sys.modules, name, raising=False)
    runpy.run_module(name, run_name="__main__")
    parser = help.described(name)
    assert parser is not None
    assert [" ".join(parser.format_help().split())] == [" ".join(text.split()) for text in asked]


def test_help_imports_nothing_that_takes_seconds(tmp_path: Path) -> None:
    for package in HEAVY:
        (tmp_path / f"{package}.py").write_text("raise SystemExit(__name__)", encoding="utf-8")
    for name in COMMANDS:
        done = execute(
            sys.executable, "-m", name, "--help", cwd=ROOT, check=False, PYTHONPATH=str(tmp_path)
        )
        assert (done.returncode, done.stderr) == (0, ""), name
        assert done.stdout.startswith(f"usage: python -m {name} [-h]")


def test_a_command_that_cannot_be_read_answers_by_itself(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("import stages\n", encoding="utf-8")
    (package / "one.py").write_text(
        "from retrace.pipeline.command import run\nKNOWN = str(1)\n\n"
        "def main(a: str) -> None:\n    'Its text.'\n\n"
        "def options(parser: object) -> None:\n    parser.add_argument('a', help=KNOWN)\n\n"
        "run(main, arguments=options)\n",
        encoding="utf-8",
    )
    done = execute(
        sys.executable, "-m", "package.one", "--help", cwd=tmp_path, PYTHONPATH=str(ROOT)
    )
    assert "Its text." in done.stdout
