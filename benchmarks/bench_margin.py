"""Training to a KKT point: normalised steps and plain gradient descent, to the same residual.

On the same network, images and initial weights. `normalised` runs until its residual is below
`TARGET`. Gradient descent at a constant rate, ten times the published one (Haim et al. 2022, arXiv
2206.07758, give that 10^6 epochs), is *measured* for `DESCENT_STEPS` steps; where it has not got
there by then, a straight line of the residual over the logarithm of the steps, fitted to the later
half of the stretch, is *extrapolated*. Where that line does not fall, the stretch itself is a lower
bound. The residual of the first layer alone is compared too: under the logistic loss the weights
grow like a power of log(steps), so that the initial weights of the later layers, which normalised
steps shrink, stay in theta nearly for ever. The attacks read the first layer, which is drawn small.

About 2 minutes on two free cores (estimated).
"""

import copy
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from benchmarks.data import dataset_name, read_splits
from benchmarks.timing import print_table, write_result
from retrace.networks.margin import Network, gradient_factors, training_set
from retrace.pipeline.command import Refusal, run
from retrace.pipeline.params import bind, load
from retrace.types import Split

ENTRY = "margin_100"  # of params.yaml: 100 images
TARGET = 0.2  # stationarity residual
STEPS = 400  # of `normalised`; its learning rate falls over all of them
REPORT_EVERY = 20
DESCENT_STEPS = 1500
DESCENT_REPORT_EVERY = 125
DESCENT_RATE = 0.1  # constant; published is 0.01, of which ten steps go about as far
LARGEST_EXPONENT = 300  # of a number of steps that is written out: a float ends at 1e308

Trace = list[dict[str, float]]


class Stopwatch:
    """Takes the history's entries: with the seconds of the steps alone, and the first layer.

    Parameters
    ----------
    first_layer : function
        Residual of the first layer alone.
    """

    def __init__(self, first_layer: Callable[[], float]) -> None:
        self.first_layer = first_layer
        self.trace: Trace = []
        self.seconds = 0.0
        self.resumed = time.time()

    def __call__(self, entry: dict[str, float]) -> None:
        # The entry's time is taken before its measures are.
        self.seconds += entry["timestamp"] - self.resumed
        self.trace.append(
            {
                "step": entry["epoch"],
                "seconds": self.seconds,
                "residual": entry["stationarity_residual"],
                "first_layer_residual": self.first_layer(),
                "smallest_margin": entry["smallest_margin"],
                "norm": entry["norm"],
            }
        )
        self.resumed = time.time()


CHOICE = ("examples", "labels", "per_class", "offset", "seed")  # of a training set


def first_layer_residual(network: Network, images: Tensor, signs: Tensor) -> float:
    """|theta_1 - sum lambda_i y_i grad_1 f(x_i)| / |theta_1| with the best lambda >= 0, theta_1 the
    first layer's weights and bias.

    As in `retrace.networks.margin.kkt_measures`, of one layer: <theta_1, grad_1 f> = f.

    Parameters
    ----------
    network : Network
    images : (n, d)
        In [0, 1].
    signs : (n,)
    """
    network = copy.deepcopy(network).double()
    shown = images.unflatten(1, network.shape).double()
    margins, activations, deltas = gradient_factors(network, shown, signs.double())
    gram = (deltas[0] @ deltas[0].T) * (activations[0] @ activations[0].T + 1)
    values, vectors = torch.linalg.eigh(gram)
    root = values.clamp(min=max(float(values.max()), 1e-30) * 1e-12).sqrt()
    target = (vectors.T @ margins) / root
    duals, _ = nnls((root[:, None] * vectors.T).numpy(), target.numpy(), maxiter=50 * len(images))
    best = torch.from_numpy(duals)
    square = sum(float(part.detach().square().sum()) for part in network.layers[0].parameters())
    left = square - 2 * float(best @ margins) + float(best @ (gram @ best))
    return math.sqrt(max(left, 0.0) / square)


def trained(training: Split, validation: Split, *, changes: dict[str, Any]) -> Trace:
    """Train the network of `ENTRY` with some settings changed.

    Parameters
    ----------
    training, validation : (images, labels)
    changes : dict
        Of the entry's ``training`` section.

    Returns
    -------
    list of dict
        ``step``, ``seconds`` (of the steps alone), ``residual``, ``first_layer_residual``,
        ``smallest_margin`` and ``norm`` at each report.
    """
    entry = load().networks[ENTRY]
    where = f"networks.{ENTRY}"
    settings = bind(Network.fit, {**entry.training, **changes}, where=f"{where}.training")
    images, signs, _ = training_set(training, **{key: settings[key] for key in CHOICE})
    torch.manual_seed(settings["seed"])
    network = Network(**bind(Network.__init__, entry.arguments, where=f"{where}.arguments"))
    watch = Stopwatch(partial(first_layer_residual, network, images, signs))
    network.fit(training, validation, watch, **settings)
    return watch.trace


def steps_to(trace: Trace, *, measure: str, target: float) -> dict[str, Any]:
    """Steps until a measure is at most `target`: measured, or extrapolated in log steps.

    Parameters
    ----------
    trace : list of dict
        See `trained`.
    measure : str
    target : float

    Returns
    -------
    dict
        ``how``: "measured", "extrapolated", or "lower bound" where the trend does not fall;
        ``log10_steps``; ``steps``, None beyond 10^300; ``slope``, the change of the measure for
        ten times the steps (None where measured).
    """
    reached = [entry["step"] for entry in trace if entry[measure] <= target]
    if reached:
        steps = max(reached[0], 1.0)
        return {
            "how": "measured",
            "log10_steps": math.log10(steps),
            "slope": None,
            "steps": steps,
        }
    last = trace[-1]["step"]
    later = [entry for entry in trace if entry["step"] >= last / 2]
    logarithms = np.log10([entry["step"] for entry in later])
    slope, offset = map(float, np.polyfit(logarithms, [entry[measure] for entry in later], deg=1))
    how, exponent = "lower bound", math.log10(last)
    if slope < 0:
        # Not below the stretch in which it was measured not to get there.
        how, exponent = "extrapolated", max((target - offset) / slope, exponent)
    steps_or_none = 10**exponent if exponent < LARGEST_EXPONENT else None
    return {"how": how, "log10_steps": exponent, "slope": slope, "steps": steps_or_none}


def written_steps(found: dict[str, Any]) -> str:
    """For the table: steps as a number where they were measured, else as a power of ten."""
    if found["how"] == "measured":
        return f"{found['steps']:.0f} (measured)"
    mark = ">" if found["how"] == "lower bound" else "~"
    return f"{mark} 10^{found['log10_steps']:.1f} ({found['how']})"


def compare_steps() -> dict[str, Any]:
    """Steps of both ways to the same residual; see the module's docstring."""
    training, validation = read_splits()
    both = partial(trained, training, validation)
    normalised = both(
        changes={"method": "normalised", "steps": STEPS, "report_every": REPORT_EVERY}
    )
    there = next((entry for entry in normalised if entry["residual"] <= TARGET), None)
    if there is None:
        lowest = min(entry["residual"] for entry in normalised)
        raise Refusal(f"TARGET = {TARGET}: `normalised` came to {lowest:.3f} in {STEPS} steps")
    descent = both(
        changes={
            "method": "gradient_descent",
            "learning_rate": DESCENT_RATE,
            "decay": 1.0,
            "steps": DESCENT_STEPS,
            "report_every": DESCENT_REPORT_EVERY,
        }
    )
    per_step = descent[-1]["seconds"] / descent[-1]["step"]
    result: dict[str, Any] = {
        "descent": {"seconds_per_step": per_step, "trace": descent},
        "measures": {},
        "normalised": {"trace": normalised, **there},
    }
    for measure in ("residual", "first_layer_residual"):
        found = steps_to(descent, measure=measure, target=there[measure])
        steps = found["steps"]
        result["measures"][measure] = {
            **found,
            "target": there[measure],
            "descent_after_stretch": descent[-1][measure],
            "log10_ratio": found["log10_steps"] - math.log10(there["step"]),
            "ratio": None if steps is None else steps / there["step"],
            "seconds": None if steps is None else steps * per_step,
        }
    return result


def print_steps(result: dict[str, Any], *, dataset: str) -> None:
    """Print what `compare_steps` found."""
    normalised, descent = result["normalised"], result["descent"]
    stretch = descent["trace"][-1]
    names = {"residual": "of all layers", "first_layer_residual": "of the first layer"}
    found = [result["measures"][measure] for measure in names]
    print_table(
        f"{ENTRY}, {dataset}: steps to the same stationarity residual, wanted: a ratio of 300",
        ["", *names.values()],
        [
            ["residual aimed at", *(f"{f['target']:.3f}" for f in found)],
            ["normalised: steps (measured)", *[f"{normalised['step']:.0f}"] * 2],
            ["normalised: seconds (measured)", *[f"{normalised['seconds']:.1f}"] * 2],
            [
                f"gradient descent: after {stretch['step']:.0f} steps (measured)",
                *(f"{f['descent_after_stretch']:.3f}" for f in found),
            ],
            [
                "gradient descent: seconds of these (measured)",
                *[f"{stretch['seconds']:.1f}"] * 2,
            ],
            [
                "gradient descent: change for ten times the steps",
                *("" if f["slope"] is None else f"{f['slope']:+.4f}" for f in found),
            ],
            ["gradient descent: steps", *(written_steps(f) for f in found)],
            [
                "gradient descent: seconds",
                *(
                    "beyond 10^300" if f["seconds"] is None else f"{f['seconds']:.2g} ({f['how']})"
                    for f in found
                ),
            ],
            [
                "ratio of the steps",
                *(
                    f"{'> ' if f['how'] == 'lower bound' else ''}"
                    + (
                        f"{f['ratio']:.0f}"
                        if f["log10_ratio"] < 6
                        else f"10^{f['log10_ratio']:.1f}"
                    )
                    + f" ({f['how']})"
                    for f in found
                ),
            ],
        ],
    )


def main() -> None:
    """Compare the steps that normalised steps and gradient descent need to the same stationarity
    residual (gradient descent extrapolated)."""
    dataset = dataset_name()
    steps = compare_steps()
    print_steps(steps, dataset=dataset)
    write_result(
        "margin",
        {
            "dataset": dataset,
            "network": ENTRY,
            "settings": {
                "descent_rate": DESCENT_RATE,
                "descent_steps": DESCENT_STEPS,
                "normalised_steps": STEPS,
            },
            "steps": steps,
            "target": TARGET,
        },
    )


if __name__ == "__main__":
    run(main)
