"""Images that an input may start from, and a public decoder."""

from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from retrace.problems import Ground, Observations


@torch.no_grad()
def observe(ground: Ground, *, starts: Annotated[int, Field(ge=1)] = 1000) -> Observations:
    """Test images, without their labels, and the matrices of the decoder that is the source, whose
    range may be a prior, with the images' mean code. What is wanted is a setting of each run, and
    the truth is what the network says to the answer."""
    images = ground.split("test")[0][:starts]
    decoder = ground.decoder()
    given: dict[str, Any] = {
        "observed": images.numpy(),
        "dataset": np.array(ground.dataset),
        "each": np.array(False),
        "code": decoder.encode(images)[0].mean(dim=0).numpy(),
        **{f"decoder_{i}": w.numpy() for i, w in enumerate(decoder.decoder_weights())},
    }
    return Observations(given, {})
