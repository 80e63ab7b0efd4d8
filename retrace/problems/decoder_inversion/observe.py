"""Outputs of a decoder, and images that it cannot give."""

import copy
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from retrace.methods.decoder_inversion._decoder import problem_of
from retrace.methods.decoder_inversion.gauss_newton import (
    levenberg_marquardt,
    screened,
    starting_codes,
)
from retrace.problems import Ground, Observations
from retrace.types import Seed

DRAW = 20  # sets the draw of the codes apart from the starts that a method draws with the same seed
PENALTIES = (0.0, 0.002)  # λ that runs use; of another, nothing is known
SHARE = 0.05  # of the images off the range, whose best codes are sought
STARTS = 45
BANK = 10000
SCREENING = 20  # iterations of all starts, in float32
KEPT = 10  # starts that are followed to the end
ITERATIONS = 60
TOLERANCE = 1e-6
SEED = 1000  # not that of a run: its starts are others


@torch.no_grad()
def observe(
    ground: Ground, *, images: Annotated[int, Field(ge=1)] = 1000, seed: Seed = 0
) -> Observations:
    """Outputs of the decoder in three precisions, and as many test images that no code produced.

    The codes are drawn from the prior and rounded to float32, so that all precisions start from
    the same; they are the truth, with the best known codes of some images off the range.
    """
    single = ground.decoder()
    double = copy.deepcopy(single).double()
    off_range = ground.split("test")[0][:images].double()
    size = (len(off_range), single.code_size)
    drawn = np.random.default_rng([seed, DRAW]).standard_normal(size)
    codes = torch.from_numpy(drawn.astype(np.float32))
    exact = double.decode(codes.double())
    groups = {
        "on_range_float64": exact,
        "on_range_float32": single.decode(codes).double(),
        "on_range_uint8": (exact * 255).round() / 255,
        "off_range": off_range,
    }
    given = {
        "observed": torch.stack(list(groups.values())).numpy(),
        "groups": np.array(list(groups)),
        "dataset": np.array(ground.dataset),
        "each": np.array(True),
    }
    count = max(1, round(SHARE * images))
    truth = {
        "codes": codes.numpy(),
        "penalties": np.array(PENALTIES),
        "objective": best_objectives(single, off_range[:count]).numpy(),
    }
    return Observations(given, truth)


def best_objectives(network: nn.Module, images: Tensor) -> Tensor:
    """The lowest known objective of each image, (penalties, n) float64, from far more starts than a
    run has: solved means within 1 % of it, and a run cannot be the measure of itself."""
    weights, flat = problem_of(network, images, precision="float64")
    starts = starting_codes(network, images, starts=STARTS, bank=BANK, seed=SEED)
    best = []
    for penalty in PENALTIES:
        settings = {"penalty": penalty, "tolerance": TOLERANCE}
        ordered = screened(weights, flat, starts, iterations=SCREENING, **settings)
        fit = levenberg_marquardt(
            weights,
            flat.repeat_interleave(KEPT, dim=0),
            ordered[:, :KEPT].flatten(0, 1),
            iterations=ITERATIONS,
            **settings,
        )
        best.append(fit.objective.unflatten(0, (-1, KEPT)).amin(dim=1))
    return torch.stack(best)
