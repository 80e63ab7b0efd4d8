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
) -> Observations:
    """The first images of each class of the training split, from which networks take their training
    sets, and the last images of that split, whatever their class.

    The truth is the rank of each image in its class, by which a training set is chosen, and which
    of them belong to the last ones.
    """
    images, labels = ground.split("train")
    ranks = torch.zeros(len(labels), dtype=torch.int64)
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten()
        ranks[members] = torch.arange(len(members))
    first = torch.nonzero(ranks < per_class).flatten()
    last = torch.arange(len(labels))[-held_out:]
    if int(first.max()) >= int(last.min()) or held_out >= len(labels):
        raise WrongValue(
            f"params.yaml: problems.{ground.problem}.settings: per_class = {per_class} and "
            f"held_out = {held_out} overlap: the training split has {len(labels)} images"
        )
    chosen = torch.cat([first, last])
    given = {
        "observed": images[chosen].numpy(),
        "labels": labels[chosen].float().numpy(),  # a method that asks for them may know them
        "dataset": np.array(ground.dataset),
        "each": np.array(False),
    }
    truth = {
        "ranks": ranks[chosen].numpy(),
        "held_out": (torch.arange(len(chosen)) >= len(first)).numpy(),
    }
    return Observations(given, truth)
