"""Membership by the loss: a network is surer of what it was trained on."""

import torch
from torch import Tensor, nn

from retrace.types import BadInput, Callback, ignore

BLOCK = 1000  # images at once


def reconstruct(
    network: nn.Module,
    observed: Tensor,
    *,
    beside: dict[str, Tensor],
    callback: Callback = ignore,
) -> Tensor:
    """Take images with a small loss for members (Yeom et al. 2018, arXiv 1709.01604, section 3.2).

    Unlike `stationarity` it is told the labels. It is the strongest attack that looks at one
    network's outputs alone: any other order of the loss, as Carlini et al.'s logit scale (2022,
    arXiv 2112.03570), is the same order.

    Parameters
    ----------
    network : Module
        Gives logits (B, classes).
    observed : (N, *shape)
        Images in [0, 1].
    beside : dict
        ``labels`` (N,), whole numbers.
    callback : function
        Not called: nothing is iterated.

    Returns
    -------
    (N,) float32
        Minus the cross-entropy in nats: the larger, the more likely a member.

    Raises
    ------
    BadInput
        When the network gives no logits of classes.
    """
    parts = []
    with torch.no_grad():
        for images, labels in zip(
            observed.split(BLOCK), beside["labels"].split(BLOCK), strict=True
        ):
            logits = network(images)
            if logits.dim() != 2 or logits.shape[1] <= int(labels.max()):
                raise BadInput(
                    f"the network gives {tuple(logits.shape[1:])} numbers for an image: no logits "
                    "of all classes"
                )
            # In float64: the losses of training images are as small as 1e-9.
            parts.append(
                -nn.functional.cross_entropy(logits.double(), labels.long(), reduction="none")
            )
    return torch.cat(parts).float()
