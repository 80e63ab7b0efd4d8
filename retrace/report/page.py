"""The report as one page: what each problem achieves, tables, galleries, charts and provenance.

`metrics/page.html` is a cached output of DVC: it holds what follows from its dependencies alone, so
that the same inputs give the same bytes. The Git commit, the sum of dvc.lock, versions and the
machine do not follow from them: while the stage runs, dvc.lock is still being written and will hold
the sum of this very page, and the commit that will hold that dvc.lock does not exist. They are
filled in afterwards: ``python -m stages.page --stamp`` (`make report`) copies the page to
`metrics/report.html` and adds the state that the repository is in by then. That file is neither in
Git nor in DVC's cache: it takes a moment to make.
"""

import argparse
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from retrace.pipeline.artifacts import DATASET, history_path, read_json, timing_path
from retrace.pipeline.command import Refusal, run
from retrace.pipeline.params import load
from retrace.problems.autoencoding import show as autoencoding
from retrace.problems.decoder_inversion import show as decoder_inversion
from retrace.problems.imputation import show as imputation
from retrace.problems.network_inversion import show as network_inversion
from retrace.problems.training_data import show as training_data
from retrace.report.model import Section, State
from retrace.report.sheets import markdown, write_text
from retrace.tracking.git import NoRepository, git

PAGE = Path("metrics/page.html")
REPORT = Path("metrics/report.html")
TABLE = Path("metrics/page.md")
LOCK = Path("dvc.lock")
TEMPLATES = Path(__file__).parent / "sections" / "templates"
LARGEST = 10_000_000  # bytes: what one may send by e-mail
PROBLEMS = (imputation, training_data, network_inversion, decoder_inversion, autoencoding)
PACKAGES = ("torch", "numpy", "scipy", "scikit-image", "scikit-learn", "dvc", "mlflow")
STAMP = "<!-- state of the repository: python -m stages.page --stamp -->"
Facts = Sequence[Sequence[str]]


def present_state() -> State:
    """The state that params.yaml describes."""
    params = load()
    return State(
        runs={name: entry.model_dump() for name, entry in params.runs.items()},
        networks={name: entry.model_dump() for name, entry in params.networks.items()},
        scoring=params.scoring.model_dump(),
        dataset=read_json(DATASET)["name"],
    )


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
    paths |= {f"reconstruct@{name}": timing_path(name) for name in state.runs}
    seconds = {stage: state.seconds(path) for stage, path in paths.items()}
    return [(stage, value) for stage, value in seconds.items() if value is not None]


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
    found = [f"{name} {metadata.version(name)}" for name in PACKAGES]
    return ", ".join([f"Python {platform.python_version()}", *found])


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
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


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
    stamp: bool = True,
) -> str:
    """The page as HTML.

    Parameters
    ----------
    parts : list of Section
    title, dataset : str
    facts : list of (name, value)
        Of the provenance.
    seconds : list of (stage, seconds, ...)
    states : (str, str), optional
        Names of the two states of a comparison.
    missing : dict of list of str, optional
        By state, what could not be shown.
    parameters : list of (path, value, value)
        That differ in a comparison.
    stamp : bool
        Whether to leave a place for the state of the repository.
    """
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
        stamp=Markup(STAMP) if stamp else "",  # noqa: S704 (a constant)  # nosec B704
        kind=lambda block: type(block).__name__.lower(),
        # Our own files, which are neither escaped nor taken for templates.
        style=Markup(style),  # noqa: S704  # nosec B704
        script=Markup(script),  # noqa: S704  # nosec B704
    )


def stamped(page: str, facts: Facts) -> str:
    """The page with facts in the place that was left for them."""
    rows = Markup("").join(
        Markup("<tr><th scope=row>{}</th><td>{}</td></tr>").format(name, value)
        for name, value in facts
    )
    return page.replace(STAMP, str(escape(rows)))


def write_page(path: Path, text: str) -> None:
    """Write a page, refused where it is too large to be sent."""
    size = len(text.encode())
    if size > LARGEST:
        raise Refusal(f"{path} would have {size:,} bytes; at most {LARGEST:,} are allowed")
    write_text(path, text)


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
    return markdown(["problem", "best method", "result", "what is measured", "trivial"], rows)


def draw() -> None:
    """Write metrics/page.html and metrics/page.md."""
    state = present_state()
    parts = [problem.section(state) for problem in PROBLEMS]
    text = rendered(
        parts,
        title="What went into the network?",
        dataset=state.dataset,
        facts=dataset_facts(),
        seconds=stage_seconds(state),
    )
    write_page(PAGE, text)
    write_text(TABLE, summary(parts) + "\n")
    print(f"{PAGE}: {PAGE.stat().st_size / 1e6:.1f} MB")


def stamp() -> None:
    """Write metrics/report.html: the page, and the state of the repository."""
    if not PAGE.exists():
        raise Refusal(f"{PAGE} is missing; `dvc repro page` makes it")
    write_page(REPORT, stamped(PAGE.read_text(encoding="utf-8"), repository_facts()))
    print(f"The report is {REPORT.resolve()} ({REPORT.stat().st_size / 1e6:.1f} MB)")


def main(only_stamp: bool) -> None:
    """Write the report as one page, metrics/page.html; with --stamp, copy it to
    metrics/report.html and add Git commit, sum of dvc.lock, versions and machine."""
    if only_stamp:
        stamp()
    else:
        draw()


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stamp",
        dest="only_stamp",
        action="store_true",
        help="add the state of the repository to a page that is there",
    )


if __name__ == "__main__":
    run(main, arguments=options)
