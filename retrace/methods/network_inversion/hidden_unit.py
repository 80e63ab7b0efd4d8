"""Images that drive a hidden unit to a value, shut it down, or maximise it."""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from retrace.methods.network_inversion._descent import (
    ascend,
    nearest_by_planes,
    prepared,
    value_and_gradient,
)
from retrace.methods.network_inversion._nearest import (
    AT_MOST,
    DISPROVED,
    EQUAL,
    PROVED,
    UNKNOWN,
    box_range,
    nearest,
)
from retrace.types import BadInput, Callback, ignore

OFF = 0.0  # at most this goes into a ReLU that is shut down
STRAIGHT = 1e-9  # relative deviation from a plane that is rounding
BATCH = 200  # images that go through a network together: their arrays stay in the cache

Values = Callable[[Tensor, Tensor], Tensor]  # images (B, n) and a unit for each, to values (B,)


def unit_values(network: nn.Module, images: Tensor, *, layer: str) -> Tensor:
    """What the units of a layer hold before their activation, (B, units), of a network and images
    (B, 28, 28) in float64. The layer is a dense or convolutional module by its name; the units of
    the latter are its channels' pixels, flattened. Refused where there is no such layer."""
    names = [n for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    if layer not in names:
        raise BadInput(f"layer = {layer!r}: the network's layers are {', '.join(names)}")
    kept: list[Tensor] = []
    handle = network.get_submodule(layer).register_forward_hook(
        # A copy, since margin networks rectify in place.
        lambda module, given, output: kept.append(output.clone())
    )
    try:
        network(images)
    finally:
        handle.remove()
    return kept[0].flatten(1)


def reconstruct(
    network: nn.Module,
    observed: Tensor,
    *,
    layer: str,
    units: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)],
    levels: list[float],
    images: Annotated[int, Field(ge=1)] | None = None,
    solver: Literal["exact", "gradient"] = "gradient",
    steps: Annotated[int, Field(ge=1)] = 60,
    learning_rate: Annotated[float, Field(gt=0)] = 0.05,
    callback: Callback = ignore,
) -> dict[str, Tensor]:
    """For each unit and image: the image in [0, 1]ⁿ that maximises the unit, the nearest one that
    shuts it down, and the nearest ones that drive it to each level.

    - ``exact``: a unit of the first layer is affine in the image, w·x + b (which is checked). It is
      largest where x is 1 for w > 0 and 0 for w < 0; the nearest image with w·x + b <= 0, or = v,
      is a projection on a half-space, or a plane, in the box (see `_nearest.nearest`), and v is
      feasible if and only if it lies between the sums of the negative and positive weights.
    - ``gradient``: for deeper layers, Adam on the unit for the largest value, tangent planes for
      the others (see `_descent.nearest_by_planes`): local optima. A value that was reached is
      feasible, for one that was not nothing is proved.

    Parameters
    ----------
    network : Module
        (B, 28, 28) to anything.
    observed : (N, 28, 28)
        Images to start from.
    layer : str
        See `unit_values`.
    levels : list of float
        Wanted values before the activation.
    images : int, optional
        The first so many observed images are taken, or all of them, for each unit.
    steps : int
        Of ``gradient``.
    learning_rate : float
        Adam's, in pixel units; of ``gradient``.
    callback : function
        Called before each step of the tangent planes and at the end; not by ``exact``.

    Returns
    -------
    dict
        ``estimate`` and ``start`` (B, 28, 28) float64, units outermost, then the tasks (maximise,
        shut down, each level), then images; ``unit`` and ``task`` (B,), ``wanted`` (B,), NaN for
        the maximum of a deeper unit, which is unknown; ``relation``, ``feasible``, ``iterations``
        (B,) as in `affine.reconstruct`, `UNKNOWN` where nothing is proved.

    Raises
    ------
    BadInput
        On a layer, unit or image that does not exist, a level that is not finite, or ``exact``
        for units that are not affine.
    """
    if not bool(torch.tensor(levels).isfinite().all()):
        raise BadInput(f"levels = {levels}: a level is not finite")
    network, chosen = prepared(network, observed, images)
    images = len(chosen)
    shape = observed.shape[1:]
    width = unit_values(network, chosen[:1], layer=layer).shape[1]
    for number in units:
        if number >= width:
            raise BadInput(f"units: {number} is none of the {width} units of {layer}")
    tasks = 2 + len(levels)
    unit = torch.tensor(units).repeat_interleave(tasks * images)
    task = torch.arange(tasks).repeat_interleave(images).repeat(len(units))
    start = chosen.flatten(1).repeat(len(units) * tasks, 1)  # (B, n)

    def values(x: Tensor, index: Tensor) -> Tensor:
        parts = zip(x.split(BATCH), index.split(BATCH), strict=True)
        found = [
            unit_values(network, part.unflatten(1, shape), layer=layer).gather(1, i[:, None])
            for part, i in parts
        ]
        return torch.cat(found).squeeze(1)

    wanted = torch.tensor([torch.nan, OFF, *levels], dtype=torch.float64)[task]
    relation = torch.where(task == 1, AT_MOST, EQUAL)
    rising = task == 0
    if solver == "exact":
        weight, bias = _planes(values, unit, start)
        wanted = torch.where(rising, box_range(weight, bias)[1], wanted)
        estimate, possible = nearest(
            start, weight, bias, wanted=wanted, relation=relation, box=True
        )
        feasible = torch.where(possible, PROVED, DISPROVED)
        iterations = torch.zeros_like(unit)
    else:
        level = ~rising
        estimate, feasible = start.clone(), torch.full_like(unit, UNKNOWN)
        iterations = torch.full_like(unit, steps)
        estimate[rising] = ascend(
            lambda x: values(x, unit[rising]),
            start[rising],
            steps=steps,
            learning_rate=learning_rate,
            callback=ignore,
        )
        estimate[level], reached, iterations[level] = nearest_by_planes(
            lambda x: values(x, unit[level]),
            start[level],
            wanted=wanted[level],
            relation=relation[level],
            steps=steps,
            callback=lambda step, loss, x: callback(step, loss, x.unflatten(1, shape)),
        )
        feasible[level] = torch.where(reached, PROVED, UNKNOWN)
    return {
        "estimate": estimate.unflatten(1, shape),
        "start": start.unflatten(1, shape),
        "unit": unit,
        "task": task,
        "wanted": wanted,
        "relation": relation.to(torch.int8),
        "feasible": feasible.to(torch.int8),
        "iterations": iterations,
    }


def _planes(values: Values, unit: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (B, n) and biases (B,) of affine units; refuses others."""
    bias, weight = value_and_gradient(lambda x: values(x, unit), torch.zeros_like(start))
    found = values(start, unit)
    expected = (weight * start).sum(dim=1) + bias
    scale = weight.abs().sum(dim=1) + bias.abs()
    if not bool(((found - expected).abs() <= STRAIGHT * scale).all()):
        raise BadInput(
            "solver = 'exact': these units are not affine in the image; allowed is 'gradient'"
        )
    return weight, bias
