"""Images with missing pixels, by the two kinds of masks that methods treat differently."""

import torch
from torch import Tensor

from retrace.data.masks import missing_pixels
from retrace.pipeline.params import Mask, RandomPixels, Rectangle

BOTTOM = Rectangle(kind="rectangle", rows=[14, 27], columns=[0, 27])
RANDOM = RandomPixels(kind="random", share=0.5)


def hide(images: Tensor, pattern: Mask) -> Tensor:
    missing = missing_pixels(pattern, count=len(images), seed=0)
    return torch.where(torch.from_numpy(missing), torch.nan, images)
