"""The page's first table as a file in Git, for the README.

A stage of its own: DVC restores none that has both cached and uncached outputs.
"""

from pathlib import Path

from stages.artifacts import written_whole
from stages.command import run

TABLE = Path("metrics/page.md")
SUMMARY = Path("metrics/summary.md")


def main() -> None:
    """Copy the table of metrics/page.md to metrics/summary.md."""
    with written_whole(SUMMARY) as temporary:
        temporary.write_bytes(TABLE.read_bytes())


if __name__ == "__main__":
    run(main)
