"""Sheets of small images: with captions for the report and the README, bare for MLflow."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

BACKGROUND, INK = (255, 255, 255), (30, 30, 30)
MISSING = (86, 140, 190)  # missing pixels: no grey, and apart from it for colour-blind eyes
GAP = 2  # pixels between images
TEXT = 14  # pixels
# Of runs, in order (Tol's muted and bright schemes, which colour-blind eyes tell apart).
COLOURS = [
    *("#4477aa", "#cc6677", "#ddcc77", "#117733", "#332288", "#aa4499"),
    *("#44aa99", "#999933", "#882255", "#66ccee", "#ee7733", "#bbbbbb"),
]


def sheet(
    rows: Mapping[str, NDArray[Any]],
    *,
    title: str = "",
    columns: list[str] | None = None,
    scale: int = 2,
) -> Image.Image:
    """Draw rows of images in [0, 1], each with its caption on the left.

    Parameters
    ----------
    rows : dict of (n, h, w) or (n, 3, h, w)
        By caption, grey or RGB; NaN is drawn in a colour of its own. All rows have as many images.
    title : str, optional
        A line above everything.
    columns : list of str, optional
        Captions above the columns.
    scale : int
        Screen pixels for each image pixel.

    Returns
    -------
    PIL image, RGB
    """
    font = ImageFont.load_default(size=TEXT)
    left = int(max(font.getlength(caption) for caption in rows)) + 3 * GAP
    line = TEXT + 3 * GAP
    top = line * (bool(title) + bool(columns))
    strips = [_strip(images, scale=scale) for images in rows.values()]
    height, width = strips[0].shape[:2]
    picture = Image.new("RGB", (left + width, top + len(strips) * (height + GAP) + GAP), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    draw.text((GAP, GAP), title, fill=INK, font=font)
    for i, (caption, strip) in enumerate(zip(rows, strips, strict=True)):
        y = top + GAP + i * (height + GAP)
        picture.paste(Image.fromarray(strip), (left, y))
        draw.text((GAP, y + height // 2), caption, fill=INK, font=font, anchor="lm")
    for i, caption in enumerate(columns or []):
        x = left + round((i + 0.5) * width / len(columns or []))
        draw.text((x, top - line + GAP), caption, fill=INK, font=font, anchor="mt")
    return picture


def mosaic(rows: Sequence[NDArray[Any]], *, scale: int = 2) -> NDArray[np.uint8]:
    """Rows of (n, h, w) or (n, 3, h, w) images as one bare picture (H, W, 3).

    For MLflow, which shows pictures in squares of 256 pixels under the name of their run: four
    rows of four images of 28 x 28 fill one at scale 2, and captions could not be read.
    """
    strips = [_strip(images, scale=scale) for images in rows]
    padded = [np.pad(s, ((0, GAP), (0, 0), (0, 0)), constant_values=255) for s in strips]
    return np.concatenate(padded)


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures one below the other."""
    width = max(picture.width for picture in pictures)
    whole = Image.new("RGB", (width, sum(picture.height for picture in pictures)), BACKGROUND)
    y = 0
    for picture in pictures:
        whole.paste(picture, (0, y))
        y += picture.height
    return whole


def split_rows(images: NDArray[Any], *, columns: int) -> list[NDArray[Any]]:
    """Images (n, ...) as rows of `columns` each, white ones at the end of the last."""
    blank = np.ones((-len(images) % columns, *images.shape[1:]), images.dtype)
    filled = np.concatenate([images, blank])
    return [filled[i : i + columns] for i in range(0, len(filled), columns)]


def scale_of(images: NDArray[Any]) -> int:
    """Screen pixels for each pixel of (n, ..., h, w): 2 for 28 x 28, and as large for others."""
    return max(1, 56 // images.shape[-1])


def _strip(images: NDArray[Any], *, scale: int) -> NDArray[np.uint8]:
    """(n, h, w) or (n, 3, h, w) to (h·scale, n·(w·scale + GAP), 3)."""
    channels = np.repeat(images[:, None], 3, axis=1) if images.ndim == 3 else images
    channels = np.moveaxis(channels, 1, -1)  # (n, h, w, 3)
    colour = np.rint(np.nan_to_num(np.clip(channels, 0, 1)) * 255).astype(np.uint8)
    colour[np.isnan(channels).any(axis=-1)] = MISSING
    colour = colour.repeat(scale, axis=1).repeat(scale, axis=2)
    colour = np.pad(colour, ((0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=255)
    return np.concatenate(list(colour), axis=1)


def completed(estimate: NDArray[Any], observed: NDArray[Any]) -> NDArray[Any]:
    """The observation with the estimate in its missing pixels, in [0, 1]."""
    return np.where(np.isnan(observed), np.clip(estimate, 0, 1), observed)
