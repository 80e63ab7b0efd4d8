"""A problem is one place: another one is a folder of two files, a method, and its entries in
params.yaml. It is observed, reconstructed, scored, drawn and published with no other line changed.
"""

import copy
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from conftest import TINY, execute, write_params

FILES = {
    "retrace/problems/denoising/__init__.py": '"""Images without their noise."""\n',
    "retrace/problems/denoising/observe.py": '''"""Test images with noise."""

import numpy as np

from retrace.problems import Ground, Observations


def observe(ground: Ground, *, deviation: float = 0.2) -> Observations:
    images = ground.split("test")[0][:20].numpy()
    noise = np.random.default_rng(0).normal(scale=deviation, size=images.shape)
    observed = (images + noise).astype(np.float32)
    given = {"observed": observed, "dataset": np.array(ground.dataset), "each": np.array(True)}
    return Observations(given, {"images": images})
''',
    "retrace/problems/denoising/score.py": '''"""The error that is left."""

import torch

from retrace.measures import quality

JUDGES, BASELINE = (), None


class Scorer:
    baselines = {}

    def __init__(self, ground, records, means):
        self.means, self.truth = means, torch.from_numpy(ground.truth["images"])

    def __call__(self, run):
        error = quality.mse(torch.from_numpy(run.arrays["estimate"]), self.truth)
        scores = quality.with_psnr(self.means({"mse": error}))
        return {"n": len(self.truth), **scores}, {key: scores[key] for key in ("mse", "psnr")}
''',
    "retrace/methods/denoising/__init__.py": '"""Methods."""\n',
    "retrace/methods/denoising/smooth.py": '''"""The mean of a pixel and its neighbours."""

from torch import nn

from retrace.types import ignore


def reconstruct(network, observed, *, side: int = 3, callback=ignore):
    return nn.functional.avg_pool2d(observed[:, None], side, 1, side // 2)[:, 0]
''',
}


def test_a_sixth_problem(make_workspace: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = make_workspace(tmp_path / "clone")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    params: dict[str, Any] = copy.deepcopy(TINY)
    params["networks"] = {"gaussian": params["networks"]["gaussian"]}
    params["problems"] = {"denoising": {"source": "data/dataset.json"}}
    run = {"problem": "denoising", "method": "smooth", "network": "gaussian"}
    params["runs"] = {
        "denoising-smooth": run,
        "denoising-none": {**run, "settings": {"side": 1}},
    }
    write_params(folder, params)
    said = execute(sys.executable, "-m", "retrace.commands.run", cwd=folder).stdout
    assert "11 stages ran" in said
    mse = {
        name: json.loads((folder / f"metrics/denoising/denoising-{name}.json").read_text())["mse"]
        for name in ("smooth", "none")
    }
    assert mse["smooth"] < 0.7 * mse["none"]
    table = (folder / "metrics/report/table.md").read_text(encoding="utf-8")
    assert "`smooth`" in table and f"{mse['smooth']:.4f}" in table
    page = (folder / "metrics/report.html").read_text(encoding="utf-8").lower()
    assert '<section id="denoising">' in page and page.count('class="card"') == 7
    assert not re.search(r"\bfive\b|repeat\(\d", page)  # nothing counts the problems
    assert "3 runs published" in said
    stages = yaml.safe_load((folder / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    assert {"observe@denoising", "score@denoising", "reconstruct@denoising-smooth"} <= set(stages)
