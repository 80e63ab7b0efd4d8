"""Rows and images that close a forget gate of an LSTM."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from retrace.methods.network_inversion._descent import nearest_by_planes, prepared
from retrace.methods.network_inversion._nearest import (
    AT_MOST,
    DISPROVED,
    PROVED,
    UNKNOWN,
    box_range,
    nearest,
)
from retrace.types import SIDE, BadInput, Callback, ignore


def reconstruct(
    network: nn.Module,
    observed: Tensor,
    *,
    units: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)],
    change: Literal["row", "image"] = "row",
    row: Annotated[int, Field(ge=0, lt=SIDE)] = 14,
    images: Annotated[int, Field(ge=1)] | None = None,
    gate: Annotated[float, Field(gt=0, lt=1)] = 0.3,
    sharpness: Annotated[float, Field(gt=0)] = 5.0,
    steps: Annotated[int, Field(ge=1)] = 150,
    callback: Callback = ignore,
) -> dict[str, Tensor]:
    """Change images as little as possible so that a unit forgets: its forget gate
    σ(W_if x_t + b_if + W_hf h_{t−1} + b_hf) is at most `gate`.

    - ``row``: at one row t, by that row alone. The rows before it fix the hidden state h_{t−1}, so
      that the gate's logit is affine in the 28 pixels of the row: the nearest row in [0, 1]²⁸ is
      known exactly, or it is proved that there is none (see `_nearest.nearest`).
    - ``image``: at all rows from `row` on, by all pixels. The hidden states depend on the pixels;
      tangent planes of log Σ_t exp(k logit_t) / k, which is at least the largest logit, by
      gradients through time (see `_descent.nearest_by_planes`): a local optimum. It is proved that
      no image does it where even the smallest row and hidden states of the best signs, which lie in
      (−1, 1), leave a logit too large.

    Parameters
    ----------
    network : Module
        See retrace/networks/lstm.py.
    observed : (N, 28, 28)
        Images to start from.
    units : list of int
        Units of the LSTM.
    row : int
        t from 0 on.
    images : int, optional
        The first so many observed images, or all of them, for each unit.
    gate : float
        What the gate has to be at most.
    sharpness : float
        k; of ``image``.
    steps : int
        Of ``image``.
    callback : function
        Called before each step and at the end; not for ``row``.

    Returns
    -------
    dict
        ``estimate`` and ``start`` (B, 28, 28) float64, units outermost; ``unit`` (B,), ``wanted``
        (B,), the gate; ``relation``, ``feasible`` and ``iterations`` (B,) as in
        `hidden_unit.reconstruct`.

    Raises
    ------
    BadInput
        On a unit or an image that does not exist.
    """
    network, chosen = prepared(network, observed, images)
    on_row, on_hidden, bias = network.forget_parts()  # type: ignore[operator]
    width = len(bias)
    for unit in units:
        if unit >= width:
            raise BadInput(f"units: {unit} is none of the {width} units of the LSTM")
    start = chosen.repeat(len(units), 1, 1)  # (B, 28, 28)
    index = torch.tensor(units).repeat_interleave(len(chosen))
    wanted = torch.full((len(start),), gate, dtype=torch.float64)
    logit, relation = wanted.logit(), torch.full_like(index, AT_MOST)
    if change == "row":
        before = network.before(chosen)[:, row].repeat(len(units), 1)  # type: ignore[operator]
        fixed = (before * on_hidden[index]).sum(dim=1) + bias[index]
        found, possible = nearest(
            start[:, row], on_row[index], fixed, wanted=logit, relation=relation, box=True
        )
        estimate = start.clone()
        estimate[:, row] = found
        feasible = torch.where(possible, PROVED, DISPROVED)
        iterations = torch.zeros_like(index)
    else:

        def largest(x: Tensor) -> Tensor:
            """log Σ_t exp(k logit_t) / k of images (B, 784)."""
            pixels = x.unflatten(1, (SIDE, SIDE))
            logits = network.forget_logits(pixels)[:, row:]  # type: ignore[operator]
            of_unit = logits.gather(2, index[:, None, None].expand(-1, SIDE - row, 1)).squeeze(2)
            return (sharpness * of_unit).logsumexp(dim=1) / sharpness

        point, reached, iterations = nearest_by_planes(
            largest,
            start.flatten(1),
            wanted=logit,
            relation=relation,
            steps=steps,
            callback=lambda step, loss, x: callback(step, loss, x.unflatten(1, (SIDE, SIDE))),
        )
        lowest = box_range(on_row[index], bias[index])[0] - on_hidden[index].abs().sum(dim=1)
        feasible = torch.where(reached, PROVED, UNKNOWN)
        feasible = torch.where(lowest > logit, DISPROVED, feasible)
        estimate = point.unflatten(1, (SIDE, SIDE))
        estimate = torch.where((feasible == DISPROVED)[:, None, None], start, estimate)
    return {
        "estimate": estimate,
        "start": start,
        "unit": index,
        "wanted": wanted,
        "relation": relation.to(torch.int8),
        "feasible": feasible.to(torch.int8),
        "iterations": iterations,
    }
