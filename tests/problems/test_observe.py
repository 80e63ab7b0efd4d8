"""What is observed of a problem."""

from typing import Any

import pytest
from decoders import random_vae
from torch import Tensor

from retrace.checks import check_runs
from retrace.methods.decoder_inversion import gauss_newton
from retrace.pipeline.params import load
from retrace.problems.decoder_inversion.observe import PENALTIES, best_objectives

pytestmark = pytest.mark.numerical

FEW: dict[str, Any] = {"bank": 50, "rounds": 3, "iterations": 40, "tolerance": 1e-6}


def test_the_best_objective_is_none_that_a_run_could_beat(images: Tensor) -> None:
    network = random_vae(1.5)
    x = images[:3].double()
    best = best_objectives(network, x)
    assert best.shape == (len(PENALTIES), 3)
    for penalty, objective in zip(PENALTIES, best, strict=True):
        settings = {**FEW, "penalty": penalty}
        answer = gauss_newton.reconstruct(network, x, **settings)
        reached = 784 * answer["residual"] + penalty * answer["estimate"].square().sum(dim=1)
        assert (objective <= 1.001 * reached).all()


def test_the_optima_are_known_for_the_penalties_of_the_runs() -> None:
    runs = [run for run in check_runs(load()).values() if run.problem == "decoder_inversion"]
    used = {run.settings["penalty"] for run in runs if "penalty" in run.settings}
    assert used == set(PENALTIES)
