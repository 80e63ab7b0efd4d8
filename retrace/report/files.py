"""Parts of a report as files: tables as Markdown and CSV, galleries, steps and charts as PNG."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retrace.pipeline.artifacts import write_rows, written_whole
from retrace.report import charts
from retrace.report.model import Cell, Chart, Gallery, Section, Steps, Table
from retrace.report.pictures import coloured, scale_of, sheet, stacked

LARGE = (6, 10)  # rows and columns of a sheet, at most, whose images are drawn larger


def lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, numbers to the right."""
    rule = ["---", *["---:" for _ in head[1:]]]
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(head), rule, *rows])


def markdown(table: Table) -> str:
    """A table with its title and note, the best of each column in bold."""
    best = [table.best(i) for i in range(len(table.columns))]

    def text(cell: Cell, i: int) -> str:
        shown = f"**{cell.text}**" if best[i] is not None and cell.value == best[i] else cell.text
        return f"{shown} ({cell.interval})" if cell.interval else shown

    rows = [
        [f"`{row.label}`", *(text(cell, i) for i, cell in enumerate(row.cells))]
        for row in table.rows
    ]
    body = lines(["run", *(column.label for column in table.columns)], rows)
    return "\n\n".join(part for part in (f"### {table.title}", table.note, body) if part)


def summary(parts: Sequence[Section]) -> str:
    """The table of the first screen as Markdown, for the README."""
    rows = [
        [
            part.title,
            found.method,
            f"**{found.result.text}**" + (f" ({interval})" if interval else ""),
            found.measure,
            found.baseline or "none",
        ]
        for part in parts
        if (found := part.summary)
        for interval in [found.result.interval]
    ]
    return lines(["problem", "best method", "result", "what is measured", "trivial"], rows)


def scale(rows: Mapping[str, NDArray[Any]]) -> int:
    """Screen pixels for each pixel of a sheet's images."""
    images = next(iter(rows.values()))
    return scale_of(images) + (len(rows) <= LARGE[0] and len(images) <= LARGE[1])


def steps_sheet(steps: Steps, *, title: str) -> Image.Image:
    """Its strips one below the other, each with the captions that stand above it."""
    bands: list[tuple[list[str], dict[str, NDArray[Any]]]] = []
    for strip in steps.strips:
        if strip.captions or not bands:
            bands.append(([*strip.captions], {}))
        bands[-1][1][strip.label] = coloured(strip.images, strip.colours)

    return stacked(
        [
            sheet(rows, title="" if i else title, columns=captions, scale=scale(rows))
            for i, (captions, rows) in enumerate(bands)
        ]
    )


def gallery_sheet(gallery: Gallery, groups: Sequence[str], *, title: str) -> Image.Image:
    """The cases of some groups side by side, those strips that all of them have."""
    cases = [(group, case) for group in groups for case in gallery.groups[group]]
    columns: list[str] = []
    for group, case in cases:
        name = case.name if len(groups) == 1 else f"{group}: {case.name}"
        captions = next((strip.captions for strip in case.strips if strip.captions), ())
        count = len(case.strips[0].images)
        columns += captions or [name if i == count // 2 else "" for i in range(count)]
    by_label = [{strip.label: strip for strip in case.strips} for _, case in cases]
    rows = {}
    for label in by_label[0]:
        strips = [case[label] for case in by_label if label in case]
        if len(strips) == len(cases):
            rows[label] = np.concatenate([coloured(s.images, s.colours) for s in strips])
            changes = [coloured(s.error, "signed") for s in strips if s.error is not None]
            if changes and gallery.errors == "signed":
                rows["difference"] = np.concatenate(changes)
    return sheet(rows, title=title, columns=columns, scale=scale(rows))


def drawn(section: Section, *, dataset: str) -> Iterator[tuple[str, Image.Image | Chart]]:
    """The pictures of a section that are files, by their names."""
    for block in [*section.blocks, *section.sheets]:
        if isinstance(block, Gallery):
            for file, groups in block.sheets.items():
                title = f"{block.title} ({', '.join([dataset, *filter(None, groups)])})"
                yield file, gallery_sheet(block, groups, title=title)
        elif isinstance(block, Steps) and block.file:
            yield block.file, steps_sheet(block, title=f"{block.title} ({dataset})")
        elif isinstance(block, Chart) and block.file:
            yield block.file, block


def write_section(folder: Path, section: Section, *, dataset: str) -> None:
    """Write the pictures and the rows of a section."""
    for name, picture in drawn(section, dataset=dataset):
        with written_whole(folder / f"{name}.png") as temporary:
            if isinstance(picture, Chart):
                charts.png(temporary, picture, title=f"{picture.title} ({dataset})")
            else:
                picture.save(temporary, format="PNG", optimize=True)
    for file, rows in section.rows.items():
        write_rows(folder / file, rows)
