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
    rows : dict of (n, h, w)
        By caption; NaN is drawn in a colour of its own. All rows have as many images.
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
    """Rows of (n, h, w) images as one bare picture (H, W, 3).

    For MLflow, which shows pictures in squares of 256 pixels under the name of their run: four
    rows of four images of 28 x 28 fill one at scale 2, and captions could not be read.
    """
    strips = [_strip(images, scale=scale) for images in rows]
    padded = [np.pad(s, ((0, GAP), (0, 0), (0, 0)), constant_values=255) for s in strips]
    return np.concatenate(padded)


def _strip(images: NDArray[Any], *, scale: int) -> NDArray[np.uint8]:
    """(n, h, w) to (h·scale, n·(w·scale + GAP), 3)."""
    grey = np.nan_to_num(np.clip(images, 0, 1))
    colour = np.repeat(np.rint(grey * 255).astype(np.uint8)[..., None], 3, axis=-1)
    colour[np.isnan(images)] = MISSING
    colour = colour.repeat(scale, axis=1).repeat(scale, axis=2)
    colour = np.pad(colour, ((0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=255)
    return np.concatenate(list(colour), axis=1)


def completed(estimate: NDArray[Any], observed: NDArray[Any]) -> NDArray[Any]:
    """The observation with the estimate in its missing pixels, in [0, 1]."""
    return np.where(np.isnan(observed), np.clip(estimate, 0, 1), observed)
