"""What docs/ tells a newcomer to do works as it says."""

import copy
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ROOT, TINY, execute, write_params

from retrace.commands import COMMANDS
from retrace.pipeline.params import load

WALKTHROUGH = (ROOT / "docs/walkthrough.md").read_text(encoding="utf-8")
SERVERS = ROOT / "docs/servers"


def block(language: str, first: str) -> str:
    """The code block that starts with a comment, without this comment."""
    found = re.findall(
        rf"^```{language}\n# {re.escape(first)}\n(.*?)^```", WALKTHROUGH, re.M | re.S
    )
    assert len(found) == 1, first
    return str(found[0])


def test_the_method_of_the_walkthrough_works(
    make_workspace: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = make_workspace(tmp_path / "clone")
    method, test = "retrace/methods/imputation/diffusion.py", "tests/test_diffusion.py"
    (folder / "tests").mkdir()
    for name in (method, test):
        (folder / name).write_text(block("python", name), encoding="utf-8")
    entry = yaml.safe_load(block("yaml", "params.yaml, under `runs`"))
    params: dict[str, Any] = copy.deepcopy(TINY)
    params["runs"] |= entry
    write_params(folder, params)
    execute(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test, cwd=folder)
    execute("dvc", "repro", "reconstruct@imputation-diffusion", cwd=folder)
    with np.load(folder / "data/reconstructions/imputation/imputation-diffusion.npz") as file:
        estimate, history = file["estimate"], file["loss"]
    with np.load(folder / "data/observed/imputation.npz") as file:
        observed = file["observed"]
    known = ~np.isnan(observed)
    np.testing.assert_array_equal(estimate[known], observed[known])
    # In the lower half nothing but the row above it flows in: it fades into the mean of that row.
    assert 0 < estimate[0, :, 27].max() < observed[0, :, 13].max()
    assert len(history) == entry["imputation-diffusion"]["settings"]["steps"] + 1
    # Its schema is its signature, as the page says.
    params["runs"]["imputation-diffusion"]["settings"]["steps"] = 0
    write_params(folder, params)
    refused = execute(sys.executable, "-m", "stages.check", cwd=folder, check=False)
    assert refused.returncode == 2
    assert "runs.imputation-diffusion.settings.steps = 0" in refused.stderr


def test_the_code_of_the_walkthrough_is_clean(tmp_path: Path) -> None:
    ruff = str(Path(sys.executable).parent / "ruff")
    config = ("--config", str(ROOT / "pyproject.toml"))
    for name in ("retrace/methods/imputation/diffusion.py", "tests/test_diffusion.py"):
        (tmp_path / Path(name).name).write_text(block("python", name), encoding="utf-8")
    execute(ruff, "format", *config, "--check", ".", cwd=tmp_path)
    # But for the order of imports, which depends on where a file lies.
    execute(ruff, "check", *config, "--extend-ignore", "I001", ".", cwd=tmp_path)


def test_commands_and_names_of_the_walkthrough_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    params = load()
    known = {
        r"--mask (\w+)": set(params.masks.patterns),
        r"--method (\w+)": {run.removeprefix("imputation-") for run in params.runs},
        r"--settings (\w+)": {run.removeprefix("training_data-") for run in params.runs},
        r"^retrace (\w+)": set(COMMANDS),
    }
    for pattern, allowed in known.items():
        named = set(re.findall(pattern, WALKTHROUGH, re.M))
        assert named and named <= allowed, pattern
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for text in (WALKTHROUGH, (SERVERS / "README.md").read_text(encoding="utf-8")):
        used = re.findall(r"(?:`|^|[A-Z_]+=\S+ )make ([a-z]+)", text, re.M)
        assert used and set(used) <= set(targets)


def test_the_compose_file_is_in_step_and_closed() -> None:
    """No server runs here: pinned versions, no password, nothing beyond the loopback."""
    text = (SERVERS / "compose.yaml").read_text(encoding="utf-8")
    compose = yaml.safe_load(text)
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    )
    (image,) = {
        service["build"]["dockerfile_inline"]
        for service in compose["services"].values()
        if "build" in service
    }
    assert f"mlflow=={pins['mlflow']} " in image
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert "build" in service or ":" in service["image"]
    variables = set(re.findall(r"\$\{(\w+)", text))
    example = dict(
        line.split("=")
        for line in (SERVERS / "example.env").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    )
    assert variables == set(example) and not any(example.values())
    # The buckets that it makes are those that the page and the server name.
    page = (SERVERS / "README.md").read_text(encoding="utf-8")
    for bucket in ("mlflow-artifacts", "dvc-cache"):
        assert f'"{bucket}"' in text and bucket in page
