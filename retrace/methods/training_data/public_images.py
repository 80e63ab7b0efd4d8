"""Controls: candidates that no weight had a part in."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from retrace.types import Callback, ignore


def reconstruct(
    network: nn.Module,
    observed: Tensor,
    *,
    candidates: Annotated[int, Field(ge=1)] = 300,
    show: Literal["mean", "images"] = "mean",
    callback: Callback = ignore,
) -> Tensor:
    """Give the public mean image, or public images, for reconstructions.

    What they score is what a score is worth: an attack has to be far above it.

    Parameters
    ----------
    network : Module
        Only its public ``mean`` (d,) and ``shape`` are read.
    observed : (N, *shape)
        Public images.
    candidates : int
        How many are returned.

    Returns
    -------
    (candidates, *shape) float32
        Fewer where there are fewer public images.
    """
    if show == "images":
        return observed[:candidates].clone()
    mean: Tensor = network.get_buffer("mean")
    shape: tuple[int, ...] = network.shape  # type: ignore[assignment]
    return mean.reshape(1, *shape).repeat(candidates, *[1] * len(shape))
