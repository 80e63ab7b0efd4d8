"""What the repository says of itself is so."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, execute


def committed(path: str) -> str:
    """A file as it is in the last commit, whatever has been run or changed since."""
    result = subprocess.run(
        ["git", "show", f"HEAD:{path}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if result.returncode:
        pytest.skip(f"no commit has {path}")
    return result.stdout


def test_the_table_of_the_readme_is_the_measured_one() -> None:
    readme = committed("README.md")
    assert committed("metrics/summary.md").strip() in readme
    scores = {
        run: json.loads(committed(f"metrics/imputation-{run}.json"))["masks"]
        for run in re.findall(r"^\| `(\w+)` \| \d\.\d\d / ", readme, re.M)
    }
    assert len(scores) > 5
    masks = ("band", "bottom", "centre", "random_50", "random_90")
    for run, by_mask in scores.items():
        cells = (f"{by_mask[m]['mse_over_ridge']:.2f} / {by_mask[m]['ssim']:.3f}" for m in masks)
        assert f"| `{run}` | {' | '.join(cells)} |" in readme


def test_links_and_pictures_of_the_documents_exist() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        text = page.read_text(encoding="utf-8")
        targets = re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r'src="([^"]+)"', text)
        local = [target for target in targets if "://" not in target]
        assert all((page.parent / target).exists() for target in local), page


def test_the_tree_of_the_readme_names_every_file_of_stages() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("```")
    (described,) = [block for block in tree if "stages/\n" in block]
    for path in (ROOT / "stages").glob("[!_]*"):
        assert path.name in described or path.name == "__pycache__", path.name


def test_every_network_and_run_has_a_place_in_the_documents() -> None:
    params = yaml.safe_load(committed("params.yaml"))
    cards = (ROOT / "docs/model-cards.md").read_text(encoding="utf-8")
    table = committed("metrics/report/table.md")
    assert all(f"`{name}`" in cards for name in params["networks"])
    measured = [name for name in params["runs"] if (ROOT / f"metrics/{name}.json").exists()]
    assert len(measured) > 40
    assert all(f"`{name.partition('-')[2]}`" in table for name in measured)


def test_every_pinned_package_is_constrained_to_the_same_version() -> None:
    pins = re.findall(r'^    "([\w-]+)==([\w.]+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    constraints = dict(
        line.lower().split("==") for line in (ROOT / "constraints.txt").read_text().split()
    )
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
    committed(".gitattributes")
    options = [word for setting in settings for word in ("-c", setting)]
    clone = tmp_path / "clone"
    execute("git", "clone", "--quiet", *options, str(ROOT), str(clone), cwd=tmp_path)
    listed = execute("git", "ls-tree", "-r", "-z", "HEAD", cwd=clone).stdout.split("\0")[:-1]
    blobs = {path: entry.split()[2] for entry, _, path in (row.partition("\t") for row in listed)}
    assert len(blobs) > 400
    command = ("git", "hash-object", "--no-filters", "--", *blobs)
    assert execute(*command, cwd=clone).stdout.split() == list(blobs.values())
    assert not execute("git", "status", "--porcelain", cwd=clone).stdout
