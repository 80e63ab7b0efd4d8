"""Images of which a network was trained on some."""

from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from retrace.pipeline.command import WrongValue
from retrace.problems import Ground, Observations


def observe(
    ground: Ground,
    *,
    per_class: Annotated[int, Field(ge=1)] = 100,
    held_out: Annotated[int, Field(ge=1)] = 5000,
    public: Annotated[int, Field(ge=2)] = 2000,
) -> Observations:
    """The first images of each class of the training split, from which networks take their training
    sets, and the last images of that split, whatever their class. Those before them are public:
    what an attacker has of the same kind.

    The truth is the rank of each image in its class, by which a training set is chosen, and which
    of them belong to the last ones.
    """
    images, labels = ground.split("train")
    ranks = torch.zeros(len(labels), dtype=torch.int64)
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten()
        ranks[members] = torch.arange(len(members))
    first = torch.nonzero(ranks < per_class).flatten()
    spare = len(labels) - 1 - int(first.max())
    if held_out + public > spare:
        raise WrongValue(
            f"params.yaml: problems.{ground.problem}.settings: held_out + public = "
            f"{held_out + public}: of the training split's {len(labels)} images, {max(spare, 0)} "
            f"come after the first {per_class} of each class"
        )
    last = torch.arange(len(labels))[-held_out:]
    known = torch.arange(len(labels))[-held_out - public : -held_out]
    chosen = torch.cat([first, last])
    given = {
        "observed": images[chosen].numpy(),
        "public": images[known].numpy(),
        "labels": labels[chosen].float().numpy(),  # a method that asks for them may know them
        "dataset": np.array(ground.dataset),
        "each": np.array(False),
    }
    truth = {
        "ranks": ranks[chosen].numpy(),
        "held_out": (torch.arange(len(chosen)) >= len(first)).numpy(),
    }
    return Observations(given, truth)
