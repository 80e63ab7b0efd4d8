"""Write the tables, charts and pictures of all runs."""

from pathlib import Path

from retrace.pipeline.artifacts import history_path, read_json, write_rows, write_text
from retrace.pipeline.command import run
from retrace.problems.sections import present_state, sections
from retrace.report.files import markdown, summary, write_section
from retrace.report.model import Table

FOLDER = Path("metrics/report")


def main() -> None:
    """Write metrics/report/: the tables of all problems as Markdown, what `dvc plots` shows, and
    pictures."""
    state = present_state()
    parts = [f"Dataset: **{state.dataset}**."]
    found = sections(state)
    for section in found:
        write_section(FOLDER, section, dataset=state.dataset)
        tables = [markdown(block) for block in section.blocks if isinstance(block, Table)]
        parts += [f"## {section.title}", *tables] if tables else []
    curves = [
        {"network": name, "epoch": int(e["epoch"]), "validation_mse": e["validation_mse"]}
        for name in state.networks
        for e in read_json(history_path(name))["epochs"]
        if "training_loss" in e and "validation_mse" in e
    ]
    write_rows(FOLDER / "training.csv", curves)
    write_text(FOLDER / "summary.md", summary(found) + "\n")
    write_text(FOLDER / "table.md", "\n\n".join(parts) + "\n")
    print(f"{FOLDER / 'table.md'}: the tables; beside it charts and pictures")


if __name__ == "__main__":
    run(main)
