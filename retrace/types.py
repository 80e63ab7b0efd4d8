"""Types that networks, methods and the pipeline share."""

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

SIDE = 28  # pixels: every image is SIDE x SIDE
PIXELS = SIDE * SIDE

Seed = Annotated[int, Field(ge=0, lt=2**32)]

Precision = Literal["float32", "mixed"]
"""What products of float32 matrices may be rounded to: see `retrace.pipeline.device`."""

Split = tuple[Tensor, Tensor]
"""Images (n, 28, 28) float32 in [0, 1] and labels (n,) int64."""

Means = Callable[[dict[str, Tensor]], dict[str, float]]
"""Takes measures (n,) of the same images to their means, each with a 95 % interval."""

Callback = Callable[[int, Tensor, Tensor], None]
"""What a method calls before each step and at the end, steps + 1 times, with the step from 0 on,
the loss of each image (B,) and the present estimate (B, 28, 28). Without iterations it does not."""


class BadInput(ValueError):
    """What a network or a method cannot work with; the text begins with the argument's name."""


def ignore(step: int, loss: Tensor, estimate: Tensor) -> None:
    """The callback of whoever does not want to watch."""
