"""`--help` of every command: at once, and what the command itself would print."""

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, execute

from retrace import __version__, commands
from retrace.commands import help
from retrace.pipeline import command

MODULES = sorted(
    [
        f"{folder}.{path.stem}"
        for folder in ("stages", "benchmarks")
        for path in (ROOT / folder).glob("*.py")
        if "run(main" in path.read_text(encoding="utf-8")
    ]
    + [f"retrace.commands.{name}" for name in commands.COMMANDS]
)
HEAVY = ("torch", "numpy", "scipy", "PIL", "dvc", "mlflow", "matplotlib", "yaml", "pydantic")


@pytest.fixture
def without(tmp_path: Path) -> dict[str, str]:
    """Variables with which nothing that takes seconds to import can be imported."""
    for package in HEAVY:
        (tmp_path / f"{package}.py").write_text("raise SystemExit(__name__)", encoding="utf-8")
    return {"PYTHONPATH": str(tmp_path)}


def retrace(*arguments: str, **extra: str) -> tuple[int, str, str]:
    done = execute(sys.executable, "-m", "retrace", *arguments, cwd=ROOT, check=False, **extra)
    return done.returncode, done.stdout, done.stderr


def test_there_are_commands_to_ask() -> None:
    assert {"stages.train", "benchmarks.bench_ssim", "retrace.commands.mend"} < set(MODULES)
    assert len(MODULES) > 25


@pytest.mark.parametrize("name", MODULES)
def test_the_text_is_that_of_the_command_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def run(main: Any, **given: Any) -> None:
        parser = command.parser_of(command.program_of(name), main.__doc__, **given)
        asked.append(parser.format_help())

    monkeypatch.setattr(command, "run", run)
    monkeypatch.delitem(sys.modules, name, raising=False)
    runpy.run_module(name, run_name="__main__")
    parser = help.described(name)
    assert parser is not None
    assert [" ".join(parser.format_help().split())] == [" ".join(text.split()) for text in asked]


@pytest.mark.parametrize("name", MODULES)
def test_help_imports_nothing_that_takes_seconds(name: str, without: dict[str, str]) -> None:
    program = command.program_of(name)
    started = ["-m", *program.split()] if program.startswith("retrace") else program.split()[1:]
    done = execute(sys.executable, *started, "--help", cwd=ROOT, check=False, **without)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {program} [-h]")


def test_the_command_says_what_it_can(without: dict[str, str]) -> None:
    said = retrace("--help", **without)
    assert said == retrace(**without)
    code, out, err = said
    assert (code, err) == (0, "") and out.startswith("usage: retrace ")
    assert all(f"\n  {name} " in out for name in commands.COMMANDS)
    assert retrace("--version", **without) == (0, f"retrace {__version__}\n", "")
    code, out, err = retrace("compleat", "--help", **without)
    assert (code, out) == (2, "")
    assert err == f"retrace: compleat: unknown; allowed are {', '.join(commands.COMMANDS)}\n"


def test_a_package_that_is_not_installed_is_named(tmp_path: Path) -> None:
    (tmp_path / "dvc.py").write_text("raise ModuleNotFoundError('no dvc', name='dvc')")
    code, _, err = retrace("mend", PYTHONPATH=str(tmp_path))
    assert code == 2
    assert err == "retrace: no dvc; `pip install 'retrace-networks[pipeline]'` installs it\n"


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
