"""Images that a classifier labels as a wanted class."""

import copy
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from stages.artifacts import Callback
from stages.command import Refusal
from stages.methods.network_inversion._descent import ascend, nearest_by_planes
from stages.methods.network_inversion._nearest import AT_LEAST, PROVED, UNKNOWN

BATCH = 200  # images that go through a network together
BLANK = 0.0  # where the image that a class wants starts: black, no digit
ALMOST_FLAT = 1e-6  # rounds the corner of the total variation, whose slope jumps at 0


def reconstruct(
    network: nn.Module,
    observed: Tensor,
    *,
    goal: Literal["nearest", "preferred"],
    images: Annotated[int, Field(ge=1)],
    probability: Annotated[float, Field(gt=0, lt=1)],
    prior: Annotated[float, Field(ge=0)],
    steps: Annotated[int, Field(ge=1)],
    learning_rate: Annotated[float, Field(gt=0)],
    callback: Callback,
) -> dict[str, Tensor]:
    """For each class, all at once:

    - ``nearest``: to each image the nearest one in [0, 1]ⁿ whose class probability is at least the
      wanted one, by tangent planes of its log-odds (see `_descent.nearest_by_planes`): a local
      optimum, so that the true distance is at most this one;
    - ``preferred``: the image that the class "wants", by Adam from black on the log-odds less
      `prior` times the total variation, the sum of |differences of neighbouring pixels|.

    Parameters
    ----------
    network : Module
        (B, 28, 28) to logits (B, classes).
    observed : (N, 28, 28)
        Images to start from.
    goal : "nearest" or "preferred"
    images : int
        The first so many observed images, each to all classes; of ``nearest``.
    probability : float
        That the class has to have.
    prior : float
        Weight of the total variation, of ``preferred``; 0 for none.
    steps : int
    learning_rate : float
        Adam's, in pixel units; of ``preferred``.
    callback : function
        Called before each step and at the end.

    Returns
    -------
    dict
        ``estimate`` and ``start`` (B, 28, 28) float64, images outermost, then classes; ``label``
        (B,), the wanted class; ``wanted`` (B,), the probability; ``relation``, ``feasible`` and
        ``iterations`` (B,) as in `hidden_unit.reconstruct`.

    Raises
    ------
    Refusal
        When there are fewer images.
    """
    if images > len(observed):
        raise Refusal(f"settings.images = {images}: {len(observed)} are observed")
    network = copy.deepcopy(network).double()
    shape = observed.shape[1:]
    classes = network(observed[:1].double()).shape[1]
    if goal == "nearest":
        chosen = observed[:images].double().flatten(1)
    else:
        chosen = torch.full((1, shape.numel()), BLANK, dtype=torch.float64)
    start = chosen.repeat_interleave(classes, dim=0)  # (B, n)
    label = torch.arange(classes).repeat(len(chosen))

    def log_odds(x: Tensor) -> Tensor:
        """log p / (1 − p) of the wanted classes: the logit less the others' log-sum-exp."""
        found = []
        for part, index in zip(x.split(BATCH), label.split(BATCH), strict=True):
            logits = network(part.unflatten(1, shape))
            others = logits.scatter(1, index[:, None], -torch.inf).logsumexp(dim=1)
            found.append(logits.gather(1, index[:, None]).squeeze(1) - others)
        return torch.cat(found)

    def shown(step: int, loss: Tensor, x: Tensor) -> None:
        callback(step, loss, x.unflatten(1, shape))

    odds = torch.full((len(start),), probability, dtype=torch.float64).logit()
    relation = torch.full_like(label, AT_LEAST)
    if goal == "nearest":
        estimate, reached, iterations = nearest_by_planes(
            log_odds, start, wanted=odds, relation=relation, steps=steps, callback=shown
        )
    else:
        estimate = ascend(
            lambda x: log_odds(x) - prior * _total_variation(x.unflatten(1, shape)),
            start,
            steps=steps,
            learning_rate=learning_rate,
            callback=shown,
        )
        reached = log_odds(estimate) >= odds
        iterations = torch.full_like(label, steps)
    return {
        "estimate": estimate.unflatten(1, shape),
        "start": start.unflatten(1, shape),
        "label": label,
        "wanted": odds.sigmoid(),
        "relation": relation.to(torch.int8),
        "feasible": torch.where(reached, PROVED, UNKNOWN).to(torch.int8),
        "iterations": iterations,
    }


def _total_variation(images: Tensor) -> Tensor:
    """Sum of the absolute differences of neighbouring pixels: (B, rows, columns) to (B,)."""
    steps = [images.diff(dim=axis).flatten(1) for axis in (1, 2)]
    return (torch.cat(steps, dim=1).square() + ALMOST_FLAT).sqrt().sum(dim=1)
