"""Did the inputs give the wanted outputs: measured again in float64 from checkpoint and input.

Nothing that a method says of its own outputs is used; its verdicts (feasible, proved infeasible,
unknown) are compared with them.
"""

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from retrace.pipeline.command import Refusal, WrongValue
from retrace.problems import Arrays, BaseScorer, Ground, Run, Scores
from retrace.types import Means

JUDGES = ()
BASELINE = None
TOLERANCE = 1e-6  # relative error of an output that counts as reached
EQUAL = 0  # the other relations are -1, at most, and 1, at least
BATCH = 200
HEADLINE = (
    *("reached", "relative_error_max", "absolute_error_max"),
    *("feasible", "infeasible", "unknown", "distance_mean"),
)

Settings = Mapping[str, Any]


class Inversion(NamedTuple):
    """A run's network, reconstruction, method and settings."""

    network: nn.Module
    arrays: Arrays
    method: str
    settings: Settings

    def outputs(self, inputs: Tensor) -> Tensor:
        """What the targets are compared with, differentiable in the inputs (B, ...) float64.

        Which it is, the answer says: with a ``label`` for each input the probability of that class,
        (B,); with a ``unit`` and the setting ``layer`` what goes into the activation of that unit,
        (B,); with a ``unit`` and the setting ``row`` that unit's forget gate at the row, or the
        largest from that row on, (B,); with neither all outputs of the network (B, outputs).
        """
        network = copy.deepcopy(self.network).double().requires_grad_(False)
        of = next((key for key in ("label", "unit") if key in self.arrays), None)
        if of is None:
            return network(inputs)
        if of == "unit" and not {"layer", "row"} & set(self.settings):
            raise WrongValue(
                f"the method {self.method} names units, and neither the setting layer nor row says "
                "whose; their outputs cannot be measured"
            )
        index = torch.from_numpy(self.arrays[of])
        parts = zip(inputs.split(BATCH), index.split(BATCH), strict=True)
        return torch.cat([self._of_images(network, x, i) for x, i in parts])

    def _of_images(self, network: nn.Module, x: Tensor, index: Tensor) -> Tensor:
        if "label" in self.arrays:
            return network(x).softmax(dim=1).gather(1, index[:, None]).squeeze(1)
        if "row" in self.settings:
            gates = network.forget_logits(x).sigmoid()  # type: ignore[operator]
            gates = gates.gather(2, index[:, None, None].expand(-1, gates.shape[1], 1)).squeeze(2)
            row = self.settings["row"]
            one = self.settings["change"] == "row"
            return gates[:, row] if one else gates[:, row:].amax(dim=1)
        kept: list[Tensor] = []
        layer = network.get_submodule(self.settings["layer"])
        # A copy, since margin networks rectify in place.
        handle = layer.register_forward_hook(lambda module, given, out: kept.append(out.clone()))
        network(x)
        handle.remove()
        return kept[0].flatten(1).gather(1, index[:, None]).squeeze(1)

    def sensitivity(self) -> Tensor:
        """Derivative of each answer's output with respect to that answer: (B, ...) of images."""
        variable = torch.from_numpy(self.arrays["estimate"]).requires_grad_()
        (gradient,) = torch.autograd.grad(self.outputs(variable).sum(), variable)
        return gradient


def inversion_of(run: Run, ground: Ground) -> Inversion:
    record = run.record
    network = ground.network(record["network"])
    return Inversion(network, run.arrays, record["method"], record["settings"])


def score(run: Inversion, *, means: Means) -> tuple[Scores, Scores]:
    """Scores of a run and its headline.

    ``relative_error_max`` is the largest |f(x) − v| / |v| over the targets that are not proved
    infeasible (of an output that must be at most, or at least, v the part that is too much), and
    relative to the output at the start where v is 0; ``relative_error_median`` and
    ``absolute_error_max`` alike. ``reached`` is the share of these targets with a relative error of
    at most `TOLERANCE`. ``feasible``, ``infeasible`` and ``unknown`` count the method's verdicts,
    ``contradicted`` those that the outputs contradict: called infeasible, and reached.
    ``without_target`` counts inputs that were to make an output as large as possible, with
    ``raised_mean``, how much larger it is than at the start. ``distance_mean`` is of the Euclidean
    distances from the start, of reached targets; ``outside_max`` is how far a pixel lies outside
    [0, 1]; ``iterations_mean`` counts steps. Refused when the arrays do not belong together.
    """
    arrays = run.arrays
    estimate, start = (torch.from_numpy(arrays[key]).double() for key in ("estimate", "start"))
    wanted = torch.from_numpy(arrays["wanted"])
    n = len(estimate)
    keys = ("start", "wanted", "relation", "feasible", "iterations")
    if estimate.shape != start.shape or any(len(arrays[key]) != n for key in keys):
        raise Refusal("the estimate, its start and its targets differ in number; run `dvc repro`")

    # (B, outputs)
    reached_output, at_start = (run.outputs(x).reshape(n, -1) for x in (estimate, start))
    target = wanted.reshape(n, -1)
    if reached_output.shape != target.shape:
        raise WrongValue(
            f"{target.shape[1]} values are wanted of each input, {reached_output.shape[1]} come out"
        )
    relation = torch.from_numpy(arrays["relation"])[:, None]
    excess = reached_output - target
    excess = torch.where(relation == EQUAL, excess.abs(), excess * -relation)
    # The relation −1 asks for at most, so that what is above is too much: excess · 1.
    error = excess.clamp(min=0)
    scale = torch.where(target != 0, target, at_start).abs()
    # A start that gives exactly the wanted 0 has no scale: its error counts as it is.
    relative = error / torch.where(scale > 0, scale, 1)
    absolute, relative = error.amax(dim=1), relative.amax(dim=1)  # (B,)

    verdict = torch.from_numpy(arrays["feasible"])
    aimed = target.isfinite().all(dim=1)
    counted = aimed & (verdict != 0)
    reached = relative <= TOLERANCE
    moved = (estimate - start).flatten(1).norm(dim=1)
    iterations = torch.from_numpy(arrays["iterations"]).double()
    scores: Scores = {
        "n": n,
        "feasible": int((verdict == 1).sum()),
        "infeasible": int((verdict == 0).sum()),
        "unknown": int((verdict == -1).sum()),
        "contradicted": int((aimed & (verdict == 0) & reached).sum()),
        "iterations_mean": float(iterations.mean()),
        "without_target": int((~aimed).sum()),
    }
    if bool(counted.any()):
        scores |= {
            "relative_error_max": float(relative[counted].max()),
            "relative_error_median": float(relative[counted].quantile(0.5)),
            "absolute_error_max": float(absolute[counted].max()),
            **means({"reached": reached[counted].double()}),
        }
    if bool((counted & reached).any()):
        scores |= means({"distance_mean": moved[counted & reached]})
    if bool((~aimed).any()):
        scores |= {"raised_mean": float((reached_output - at_start)[~aimed].mean())}
    if estimate.dim() == 3:
        scores["outside_max"] = float((estimate - estimate.clamp(0, 1)).abs().max())
    return scores, {key: scores[key] for key in HEADLINE if key in scores}


class Scorer(BaseScorer):
    """Scores of inputs against the outputs that were wanted of them."""

    def __call__(self, run: Run) -> tuple[Scores, Scores]:
        return score(inversion_of(run, self.ground), means=self.means)
