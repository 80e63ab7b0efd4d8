"""What the repository says of itself is so."""

import json
import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, execute


def text_of(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def test_the_table_of_the_readme_is_the_measured_one() -> None:
    readme = text_of("README.md")
    assert text_of("metrics/report/summary.md").strip() in readme
    scores = {
        run: json.loads(text_of(f"metrics/imputation/imputation-{run}.json"))["masks"]
        for run in re.findall(r"^\| `(\w+)` \| \d\.\d\d / ", readme, re.M)
    }
    assert len(scores) > 5
    masks = ("band", "bottom", "centre", "random_50", "random_90")
    for run, by_mask in scores.items():
        cells = (f"{by_mask[m]['mse_over_ridge']:.2f} / {by_mask[m]['ssim']:.3f}" for m in masks)
        assert f"| `{run}` | {' | '.join(cells)} |" in readme


def test_links_and_pictures_of_the_documents_exist() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    local = [
        page.parent / target
        for page in pages
        for target in re.findall(r"(?:\]\(|src=\"|href=\")([^)\"#\s]+)", page.read_text("utf-8"))
        if "://" not in target
    ]
    assert len(pages) > 5 and len(local) > 30
    assert not [path for path in local if not path.exists()]


def test_the_tree_of_the_readme_is_the_one_that_is_there() -> None:
    """Every stage, and every package of the library."""
    (tree,) = [block for block in text_of("README.md").split("```") if "\nstages/ " in block]
    _, stages, rest = re.split(r"^(?:stages|retrace)/ ", tree, flags=re.MULTILINE)
    named = re.findall(r"^  (\w+)\.py ", stages, re.MULTILINE)
    assert sorted(named) == sorted(path.stem for path in (ROOT / "stages").glob("[!_]*.py"))
    named = re.findall(r"^  (\w+)/ ", rest, re.MULTILINE)
    packages = (ROOT / "retrace").glob("*/__init__.py")
    assert sorted(named) == sorted(path.parent.name for path in packages)


def test_every_network_and_run_has_a_place_in_the_documents() -> None:
    params = yaml.safe_load(text_of("params.yaml"))
    cards = text_of("docs/model-cards.md")
    table = text_of("metrics/report/table.md")
    assert all(f"`{name}`" in cards for name in params["networks"])
    measured = [path.stem for path in ROOT.glob("metrics/*/*-*.json")]
    assert len(measured) > 40
    assert all(f"`{name.partition('-')[2]}`" in table for name in measured)


def test_every_pinned_package_is_constrained_to_the_same_version() -> None:
    pins = re.findall(r'^    "([\w-]+)==([\w.]+)"', text_of("pyproject.toml"), re.M)
    constraints = dict(line.lower().split("==") for line in text_of("constraints.txt").split())
    assert len(pins) > 15
    for name, version in pins:
        assert constraints[name.lower()] == version, name


@pytest.mark.parametrize(
    "settings", [("core.autocrlf=true",), ("core.eol=crlf", "core.autocrlf=false")]
)
def test_a_clone_has_the_committed_bytes_whatever_git_makes_of_line_ends(
    settings: tuple[str, ...], tmp_path: Path
) -> None:
    """DVC's sums are over bytes: with other ones everything would be "modified"."""
    options = [word for setting in settings for word in ("-c", setting)]
    clone = tmp_path / "clone"
    execute("git", "clone", "--quiet", *options, str(ROOT), str(clone), cwd=tmp_path)
    listed = execute("git", "ls-tree", "-r", "-z", "HEAD", cwd=clone).stdout.split("\0")[:-1]
    blobs = {path: entry.split()[2] for entry, _, path in (row.partition("\t") for row in listed)}
    assert len(blobs) > 400
    command = ("git", "hash-object", "--no-filters", "--", *blobs)
    assert execute(*command, cwd=clone).stdout.split() == list(blobs.values())
    assert not execute("git", "status", "--porcelain", cwd=clone).stdout
