"""Rows of small images as PNGs inside the page: bare, since captions are text of the page."""

import base64
import functools
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retrace.report.pictures import MISSING

SIDE = 28  # pixels that an image has at least, or nearly
GAP = 1  # transparent pixels between images
LEVELS = 30  # of a colour map: with few, a PNG is small, and errors are no finer to the eye
WHITE = 254  # the largest grey; 255 is transparent


def grey(images: Sequence[NDArray[Any]] | NDArray[Any]) -> str:
    """Images (n, h, w) or (n, 3, h, w) in [0, 1] side by side; NaN in the colour of missing pixels.

    Returns
    -------
    str
        A ``data:`` address.
    """
    stack = np.stack(list(images))
    if stack.ndim == 4:
        colour = np.rint(np.clip(np.moveaxis(stack, 1, -1), 0, 1) * 255).astype(np.uint8)
        opaque = np.full((*colour.shape[:3], 1), 255, np.uint8)
        row = _row(np.concatenate([colour, opaque], axis=-1), gap=0)
        return _address(Image.fromarray(row, "RGBA"))
    holes = np.isnan(stack)
    clipped = np.clip(np.nan_to_num(stack), 0, 1)
    if holes.any():
        levels = np.rint(clipped * (LEVELS - 1)).astype(np.uint8)
        levels[holes] = LEVELS
        ramp = np.repeat(np.linspace(0, 255, LEVELS), 3).reshape(-1, 3)
        return _mapped(levels, np.vstack([ramp, MISSING]))
    row = _row(np.rint(clipped * WHITE).astype(np.uint8), gap=255)
    return _address(Image.fromarray(row, "L"), transparency=255)


def heat(images: Sequence[NDArray[Any]] | NDArray[Any]) -> str:
    """Errors (n, h, w) in [0, 1] side by side: none black, 1 bright yellow (the map inferno)."""
    stack = np.clip(np.stack(list(images)), 0, 1)
    return _mapped(np.rint(stack * (LEVELS - 1)).astype(np.uint8), _ramp("inferno"))


def signed(images: Sequence[NDArray[Any]] | NDArray[Any]) -> str:
    """Values (n, h, w) of any sign, each image scaled by its largest: 0 is pale, positive is red,
    negative is blue (the map RdBu, reversed)."""
    stack = np.stack(list(images))
    largest = np.abs(stack).max(axis=(1, 2), keepdims=True)
    scaled = 0.5 + 0.5 * stack / np.where(largest > 0, largest, 1)
    return _mapped(np.rint(scaled * (LEVELS - 1)).astype(np.uint8), _ramp("RdBu_r"))


def code(values: NDArray[Any]) -> str:
    """A code (d,) as one square image of its values, row by row."""
    side = int(np.ceil(np.sqrt(len(values))))
    square = np.zeros(side * side)
    square[: len(values)] = values
    return signed(square.reshape(1, side, side))


@functools.cache
def _ramp(name: str) -> NDArray[Any]:
    """`LEVELS` colours of one of matplotlib's maps, (LEVELS, 3) of 0 to 255."""
    from matplotlib import colormaps

    return np.rint(colormaps[name](np.linspace(0, 1, LEVELS))[:, :3] * 255)


def _mapped(levels: NDArray[np.uint8], palette: NDArray[Any]) -> str:
    """Levels (n, h, w) in the colours (k, 3) of a palette."""
    image = Image.fromarray(_row(levels, gap=len(palette)), "P")
    colours = np.vstack([palette, (0, 0, 0)]).astype(np.uint8)
    image.putpalette(colours.tobytes())
    return _address(image, transparency=len(palette))


def _row(stack: NDArray[Any], *, gap: int) -> NDArray[Any]:
    """(n, h, w, ...) side by side, with `GAP` columns of `gap` between them; small ones larger."""
    factor = max(1, SIDE // stack.shape[2])
    stack = stack.repeat(factor, axis=1).repeat(factor, axis=2)
    margin = [(0, 0), (0, 0), (0, GAP), *[(0, 0)] * (stack.ndim - 3)]
    padded = np.pad(stack, margin, constant_values=gap)
    return np.concatenate(list(padded), axis=1)[:, :-GAP]


def _address(image: Image.Image, **options: Any) -> str:
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True, **options)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
