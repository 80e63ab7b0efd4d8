"""Inputs for wanted outputs: 1,000 targets in one batch, or one target after the other."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq, linprog
from torch import Tensor

from benchmarks.timing import alternate, print_table, write_result
from retrace.methods.network_inversion import affine
from retrace.methods.network_inversion._nearest import AT_LEAST, AT_MOST, box_range, nearest
from retrace.networks import regression
from retrace.pipeline.command import run

TARGETS = 1000
ALONE = 20  # targets done one at a time; their rate stands for all
STEPS = 200
ROUNDS = 3
PROBLEMS = 1000  # small random ones, whose feasibility linear programming decides


def network_of(
    *, inputs: int, outputs: int, activation: Any, slope: float, offset: float, span: float
) -> regression.Network:
    """A regression fitted to points of its own; of rank 6 where there are several inputs."""
    network = regression.Network(inputs=inputs, outputs=outputs, activation=activation)
    rank = 6 if inputs > 1 else 0
    network.fit(
        (torch.empty(0), torch.empty(0)),
        (torch.empty(0), torch.empty(0)),
        span=span,
        slope=slope,
        offset=offset,
        noise=0.0,
        rank=rank,
    )
    return network.eval().requires_grad_(False)


def solved(network: regression.Network, targets: Tensor, **settings: Any) -> Tensor:
    """The pipeline's own method: (B, outputs) to inputs (B, inputs)."""
    return affine.reconstruct(
        network,
        torch.empty(0),
        wanted=targets.tolist(),
        **settings,
    )["estimate"]


def first_written(
    network: regression.Network, targets: Tensor, *, start: float, rate: float
) -> Tensor:
    """What a user would write first: for each target torch's gradient descent on the input, as many
    steps with the same learning rate."""
    inputs = network.weight.shape[1]
    found = []
    for target in targets:
        x = torch.full((1, inputs), start, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.SGD([x], lr=rate)
        for _ in range(STEPS):
            loss = (network(x) - target).square().sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        found.append(x.detach())
    return torch.cat(found)


def by_root(start: Tensor, weight: Tensor, wanted: Tensor) -> Tensor:
    """Nearest points of planes in the box, one target after the other: scipy's root of the
    multiplier."""
    found = []
    for x, w, v in zip(start.numpy(), weight.numpy(), wanted.tolist(), strict=True):

        def excess(m: float, x: Any = x, w: Any = w, v: float = v) -> float:
            return float(w @ np.clip(x + m * w, 0, 1) - v)

        ends = 1 / np.abs(w).min()
        root = brentq(excess, -ends, ends, xtol=1e-15, rtol=1e-14, maxiter=500)
        found.append(np.clip(x + root * w, 0, 1))
    return torch.from_numpy(np.stack(found))


def planes(n: int, *, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random starts (count, n), weights (count, n) and feasible values (count,)."""
    generator = torch.Generator().manual_seed(n)
    weight = torch.randn(count, n, generator=generator, dtype=torch.float64)
    start = torch.rand(count, n, generator=generator, dtype=torch.float64)
    low, high = box_range(weight, torch.zeros(count, dtype=torch.float64))
    share = torch.rand(count, generator=generator, dtype=torch.float64)
    return start, weight, low + share * (high - low)


def on_planes(start: Tensor, weight: Tensor, wanted: Tensor) -> Tensor:
    """The pipeline's own projection."""
    nothing = torch.zeros_like(wanted)
    relation = torch.zeros(len(wanted), dtype=torch.int64)
    return nearest(start, weight, nothing, wanted=wanted, relation=relation, box=True).point


def one_by_one(solver: Callable[..., Tensor], *arrays: Tensor) -> Tensor:
    """The same solver with batches of one."""
    return torch.cat([solver(*(x[i : i + 1] for x in arrays)) for i in range(len(arrays[0]))])


def compare(solver: Callable[..., Tensor], user: Callable[..., Tensor], *arrays: Tensor) -> Any:
    """Targets per second of one batch, of batches of one and of what a user would write, and how
    far the answers of the last are from ours."""
    few = [x[:ALONE] for x in arrays]
    seconds = alternate(
        {
            "one batch": partial(solver, *arrays),
            "batches of one": partial(one_by_one, solver, *few),
            "user's loop": partial(user, *few),
        },
        rounds=ROUNDS,
    )
    rates = {
        name: (TARGETS if name == "one batch" else ALONE) / value for name, value in seconds.items()
    }
    apart = (solver(*few) - user(*few)).abs().max().item()
    return {
        "targets_per_second": rates,
        "ratio": rates["one batch"] / rates["batches of one"],
        "ratio_user": rates["one batch"] / rates["user's loop"],
        "max_difference": apart,
    }


def wrong_verdicts() -> dict[str, int]:
    """Verdicts on small random problems that differ from linear programming's."""
    random = np.random.default_rng(0)
    wrong = {"called infeasible, feasible": 0, "called feasible, infeasible": 0, "feasible": 0}
    for _ in range(PROBLEMS):
        n = int(random.integers(1, 9))
        weight, bias, value = random.normal(size=n), random.normal(), 2 * random.normal()
        relation = int(random.integers(AT_MOST, AT_LEAST + 1))
        sides = {"A_eq": [weight], "b_eq": [value - bias]}
        if relation:
            sides = {"A_ub": [-relation * weight], "b_ub": [-relation * (value - bias)]}
        expected = linprog(np.zeros(n), bounds=[(0, 1)] * n, **sides).status == 0
        found = nearest(
            torch.from_numpy(random.random((1, n))),
            torch.from_numpy(weight[None]),
            torch.tensor([bias], dtype=torch.float64),
            wanted=torch.tensor([value], dtype=torch.float64),
            relation=torch.tensor([relation]),
            box=True,
        ).feasible.item()
        wrong["called infeasible, feasible"] += int(expected and not found)
        wrong["called feasible, infeasible"] += int(found and not expected)
        wrong["feasible"] += int(expected)
    return wrong


def main() -> None:
    """Compare targets per second: 1,000 in one batch, and one after the other (rate of a few); and
    count wrong verdicts on feasibility, linear programming being the judge."""
    linear = network_of(
        inputs=1, outputs=1, activation="identity", slope=0.4, offset=-25.0, span=1000.0
    )
    sigmoid = network_of(
        inputs=1, outputs=1, activation="sigmoid", slope=0.02, offset=-10.0, span=1000.0
    )
    vector = network_of(
        inputs=12, outputs=8, activation="identity", slope=1.0, offset=0.5, span=1.0
    )
    generator = torch.Generator().manual_seed(0)
    several = vector(torch.rand(TARGETS, 12, generator=generator, dtype=torch.float64))
    rate = 0.5 * affine.bound(vector.weight, targets=None)
    results = {
        "linear, gradient": compare(
            partial(solved, linear, start=1.0, solver="gradient", learning_rate=0.5, steps=STEPS),
            partial(first_written, linear, start=1.0, rate=0.5),
            torch.linspace(0, 350, TARGETS, dtype=torch.float64)[:, None],
        ),
        # From the middle, where the loop as first written converges too.
        "sigmoid, Gauss-Newton": compare(
            partial(solved, sigmoid, start=500.0, solver="gauss_newton", steps=STEPS),
            partial(first_written, sigmoid, start=500.0, rate=30000.0),
            torch.linspace(0.2, 0.8, TARGETS, dtype=torch.float64)[:, None],
        ),
        "vector_linear, gradient": compare(
            partial(solved, vector, start=0.5, solver="gradient", learning_rate=rate, steps=STEPS),
            partial(first_written, vector, start=0.5, rate=rate),
            several,
        ),
        "lstm_gate, 28 pixels": compare(on_planes, by_root, *planes(28, count=TARGETS)),
        "hidden_unit, 784 pixels": compare(on_planes, by_root, *planes(784, count=TARGETS)),
    }
    verdicts = wrong_verdicts()
    ways = list(results["linear, gradient"]["targets_per_second"])
    print_table(
        f"{TARGETS} targets; one at a time: {ALONE} of them",
        [
            "targets per second",
            *ways,
            "÷ batches of one (wanted: 50)",
            "÷ user's loop",
            "difference",
        ],
        [
            [
                name,
                *(f"{result['targets_per_second'][way]:.0f}" for way in ways),
                f"{result['ratio']:.0f}",
                f"{result['ratio_user']:.0f}",
                f"{result['max_difference']:.1e}",
            ]
            for name, result in results.items()
        ],
    )
    print(f"verdicts on {PROBLEMS} random problems, against linprog: {verdicts}")
    sizes = {"targets": TARGETS, "one_at_a_time": ALONE, "steps": STEPS, "problems": PROBLEMS}
    write_result(
        "network_inversion",
        {"tasks": results, "verdicts": verdicts, "rounds": ROUNDS, "sizes": sizes},
    )


if __name__ == "__main__":
    run(main)
