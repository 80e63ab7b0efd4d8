"""Regressions whose inputs are sought, and the scores of what a method answers."""

from typing import Any

import torch
from torch import Tensor

from retrace.measures.quality import means_with_intervals
from retrace.networks import regression
from retrace.problems.network_inversion import score as network_inversion

AFFINE: dict[str, Any] = {
    "wanted": [100.0],
    "start": 1.0,
    "solver": "gradient",
    "learning_rate": 0.5,
}
NOTHING = torch.empty(0)


def fitted(inputs: int = 1, outputs: int = 1, activation: Any = "identity", **training: Any) -> Any:
    network = regression.Network(inputs=inputs, outputs=outputs, activation=activation)
    network.fit((NOTHING, NOTHING), (NOTHING, NOTHING), **{"noise": 0.0, **training})
    return network.eval().requires_grad_(False)


def scored(network: Any, answer: dict[str, Tensor], method: str, settings: dict[str, Any]) -> Any:
    arrays = {key: value.numpy() for key, value in answer.items()}

    def means(values: dict[str, Tensor]) -> dict[str, float]:
        return means_with_intervals(values, resamples=200, seed=0)

    run = network_inversion.Inversion(network, arrays, method, settings)
    return network_inversion.score(run, means=means)[0]
