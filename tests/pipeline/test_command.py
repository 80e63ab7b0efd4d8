"""How a stage speaks: whatever stands in a message, it is one line, and never a traceback."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, environment

STAGE = """
import sys
from retrace.pipeline.command import Refusal, run

def main():
    "Says é → 数 and stops."
    print({said!r})
    raise {error}

run(main, name="thing") if "--help" in sys.argv else run(main)
"""
NAME = "caf\udce9 数 × \x1b[2J.png"  # a byte that is no UTF-8, letters that ASCII lacks, an escape


def spoken(
    folder: Path, encoding: str, error: str, *words: str
) -> "subprocess.CompletedProcess[bytes]":
    path = folder / "stage.py"
    path.write_text(STAGE.format(said=NAME, error=error), encoding="utf-8")
    settings = {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, str(path), *words],
        cwd=folder,
        env={**environment(), **settings},
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
@pytest.mark.parametrize(
    "error",
    [f"Refusal({NAME!r} + ': no\\nimage')", f"FileNotFoundError(2, 'no\\nimage', {NAME!r})"],
)
def test_what_the_terminal_cannot_show_is_printed_as_its_escape(
    encoding: str, error: str, tmp_path: Path
) -> None:
    done = spoken(tmp_path, encoding, error)
    lines = done.stderr.decode(encoding).splitlines()
    assert done.returncode == 2
    assert (
        len(lines) == 1 and lines[0].startswith("retrace: caf\\udce9 ") and "\\x1b[2J" in lines[0]
    )
    assert "no\\nimage" in lines[0]
    out = done.stdout.decode(encoding)
    assert out.startswith("caf\\udce9 ") and ("数" in out) == (encoding == "utf-8")


def test_help_is_printed_whatever_the_encoding(tmp_path: Path) -> None:
    done = spoken(tmp_path, "ascii", "SystemExit", "--help")
    assert done.returncode == 0 and b"Says \\xe9" in done.stdout
