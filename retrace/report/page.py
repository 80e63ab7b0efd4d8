"""Sections as one page that works offline, and what it says of where they come from."""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from retrace.git import NoRepository, git
from retrace.pipeline.artifacts import DATASET, history_path, read_json, record_path, write_text
from retrace.pipeline.command import Refusal
from retrace.report import charts, pictures
from retrace.report.model import Section, State

LOCK = Path("dvc.lock")
TEMPLATES = Path(__file__).parent / "templates"
LARGEST = 10_000_000  # bytes: what one may send by e-mail
PACKAGES = ("torch", "numpy", "scipy", "scikit-image", "scikit-learn", "dvc", "mlflow")
Facts = Sequence[Sequence[str]]


def dataset_facts() -> list[tuple[str, str]]:
    """The dataset's name, sizes, source and a digest of all its arrays."""
    dataset = read_json(DATASET)
    digest = hashlib.sha256(json.dumps(dataset["sha256"], sort_keys=True).encode()).hexdigest()
    sizes = ", ".join(f"{count:,} {name}" for name, count in dataset["sizes"].items())
    return [
        ("dataset", f"{dataset['name']}: {sizes}"),
        ("digest of the dataset", f"sha256 {digest}"),
        ("seed of its split", str(dataset["seed"])),
    ]


def stage_seconds(state: State) -> list[tuple[str, float]]:
    """Stages with a timing of their own, in the order of params.yaml: training, reconstruction."""
    paths = {f"train@{name}": history_path(name) for name in state.networks}
    paths |= {
        f"reconstruct@{name}": record_path(entry["problem"], name)
        for name, entry in state.runs.items()
    }
    seconds = []
    for stage, path in paths.items():
        with state.noting():
            seconds.append((stage, float(read_json(path)["seconds"])))
    return seconds


def repository_facts() -> list[tuple[str, str]]:
    """Git commit, sum of dvc.lock, versions and machine, as they are now."""
    try:
        commit = git("rev-parse", "--verify", "HEAD").decode().strip()
        if git("status", "--porcelain", "--untracked-files=no"):
            commit += ", with changes that are not committed"
    except NoRepository:
        commit = "unknown (no Git repository)"
    except Refusal as refusal:
        commit = f"unknown ({refusal})"
    lock = hashlib.sha256(LOCK.read_bytes()).hexdigest() if LOCK.exists() else "missing"
    return [
        ("Git commit", commit),
        ("dvc.lock", f"sha256 {lock}"),
        ("versions", versions()),
        ("machine", machine()),
    ]


def versions() -> str:
    """Of Python and the packages that numbers depend on."""
    found = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return ", ".join(found)


def machine() -> str:
    """Processor, cores and system; no host name, which says nothing to others."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model = f"{names[0]}, {len(names)} cores" if names else model
    return f"{model}, {platform.system()} {platform.machine()}"


def environment() -> Environment:
    """Templates that escape every value, and fail on a misspelt name."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "address": pictures.address,
        "kind": lambda block: type(block).__name__.lower(),
        "svg": lambda chart, name: charts.svg(chart, name=name),
    }
    return found


def rendered(
    parts: Sequence[Section],
    *,
    title: str,
    dataset: str,
    facts: Facts,
    seconds: Sequence[Sequence[Any]],
    states: tuple[str, str] | None = None,
    missing: Mapping[str, Sequence[str]] | None = None,
    parameters: Sequence[tuple[str, str, str]] = (),
) -> str:
    """The page as HTML: facts are (name, value), seconds (stage, seconds, ...). Of a comparison
    also the names of the two states, by state what is missing, and parameters (path, value, value)
    that differ."""
    template = environment().get_template("page.html")
    files = (TEMPLATES / name for name in ("page.css", "page.js"))
    style, script = (file.read_text(encoding="utf-8") for file in files)
    return template.render(
        sections=parts,
        title=title,
        dataset=dataset,
        facts=facts,
        seconds=seconds,
        states=states,
        missing=missing or {},
        parameters=parameters,
        # Our own files, which are neither escaped nor taken for templates.
        style=Markup(style),  # noqa: S704  # nosec B704
        script=Markup(script),  # noqa: S704  # nosec B704
    )


def write_page(path: Path, text: str) -> None:
    """Write a page, refused where it is too large to be sent."""
    size = len(text.encode())
    if size > LARGEST:
        raise Refusal(f"{path} would have {size:,} bytes; at most {LARGEST:,} are allowed")
    write_text(path, text)
