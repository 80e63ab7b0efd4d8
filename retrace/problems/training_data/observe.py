"""What is public beside a checkpoint."""

from typing import Annotated

import numpy as np
from pydantic import Field

from retrace.problems import Ground, Observations


def observe(ground: Ground, *, public: Annotated[int, Field(ge=1)] = 2000) -> Observations:
    """Images of the same kind, outside every training set: for the attacks that may use some, and
    for the controls. The truth is the training split itself, of which each network saw a part."""
    given = {
        "observed": ground.split("validation")[0][:public].numpy(),
        "dataset": np.array(ground.dataset),
        "each": np.array(False),
    }
    return Observations(given, {})
