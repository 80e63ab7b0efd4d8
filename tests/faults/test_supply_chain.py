"""What is installed is what was tried: exact versions everywhere, and no known weakness of code."""

import re
import shutil
import tomllib

import pytest
from conftest import ROOT, execute

PIN = re.compile(r"([\w.-]+)(?:\[[\w,]+\])?==([\w.]+)")


def pinned(requirements: list[str]) -> dict[str, str]:
    """Names, as registries compare them, and versions; nothing but exact pins is allowed, and
    extras of our own."""
    found = {}
    for requirement in requirements:
        if requirement.startswith("retrace-networks["):
            continue
        match = PIN.fullmatch(requirement)
        assert match, f"{requirement}: an exact version is wanted"
        found[re.sub(r"[-_.]+", "-", match[1]).lower()] = match[2]
    return found


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
CONSTRAINTS = pinned((ROOT / "constraints.txt").read_text(encoding="utf-8").split())


def test_what_make_setup_installs_is_constrained_to_the_same_versions() -> None:
    named = pinned(PROJECT["project"]["dependencies"] + EXTRAS["pipeline"] + EXTRAS["dev"])
    assert len(named) > 15
    assert {name: CONSTRAINTS.get(name) for name in named} == named


def test_the_other_extras_are_pinned_and_agree_with_the_constraints() -> None:
    for extra in EXTRAS.values():
        for name, version in pinned(extra).items():
            assert CONSTRAINTS.get(name, version) == version, name


def test_the_build_system_is_pinned() -> None:
    assert pinned(PROJECT["build-system"]["requires"])


def test_workflows_use_no_moving_branch() -> None:
    workflows = (ROOT / ".github/workflows").glob("*.y*ml")
    used = re.findall(r"uses: *(\S+)", "\n".join(path.read_text("utf-8") for path in workflows))
    assert used
    assert not [use for use in used if not re.search(r"@(v\d+|[0-9a-f]{40})$", use)]


def test_bandit_finds_nothing() -> None:
    if not shutil.which("bandit"):
        pytest.skip("bandit is not installed: pip install '.[audit]'")
    command = (
        "bandit",
        "--quiet",
        "--recursive",
        "--configfile",
        "pyproject.toml",
        "retrace",
        "stages",
    )
    assert execute(*command, cwd=ROOT).stdout.strip() == ""
