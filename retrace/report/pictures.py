"""Small images as pictures: sheets with captions for files, bare ones for MLflow, and bare rows
inside the page, whose captions are its text."""

import base64
import functools
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

BACKGROUND, INK = (255, 255, 255), (30, 30, 30)
MISSING = (86, 140, 190)  # missing pixels: no grey, and apart from it for colour-blind eyes
GAP = 2  # pixels between images
TEXT = 14  # pixels
TRACKED = 4  # images in a row for MLflow
SMALLEST = 28  # pixels that an image on the page has at least, or nearly
PAGE_GAP = 1  # transparent pixels between images on the page
LEVELS = 30  # of a colour map: with few, a PNG is small, and errors are no finer to the eye
WHITE = 254  # the largest grey on the page; 255 is transparent

Colours = Literal["grey", "heat", "signed"]
"""Grey or RGB in [0, 1], NaN in the colour of missing pixels; errors in [0, 1], none black and 1
bright yellow; values of any sign, each image scaled by its largest, 0 pale, positive red and
negative blue."""
MAPS = {"heat": "inferno", "signed": "RdBu_r"}  # of matplotlib
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
    """Draw rows of images in [0, 1], (n, h, w) or (n, 3, h, w), each with its caption on the left.

    NaN is drawn in a colour of its own. All rows have as many images; the title stands above
    everything, the captions of `columns` above these, and `scale` are screen pixels for each pixel.
    """
    font = ImageFont.load_default(size=TEXT)
    left = int(max(font.getlength(caption) for caption in rows)) + 3 * GAP
    line = TEXT + 3 * GAP
    top = line * (bool(title) + bool(columns))
    strips = [_strip(images, scale=scale) for images in rows.values()]
    height, width = strips[0].shape[:2]
    across = max(left + width, int(font.getlength(title)) + 3 * GAP)
    picture = Image.new("RGB", (across, top + len(strips) * (height + GAP) + GAP), BACKGROUND)
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


def shades(values: NDArray[Any]) -> NDArray[Any]:
    """Images (n, h, w) of any sign as greys, each scaled so that the middle grey is 0 and its
    largest value is white (or its smallest black)."""
    largest = np.abs(values).max(axis=(1, 2), keepdims=True)
    return 0.5 + 0.5 * values / np.where(largest > 0, largest, 1)


def code(values: NDArray[Any]) -> NDArray[Any]:
    """A code (d,) as one square image (1, side, side) of its values, row by row."""
    side = int(np.ceil(np.sqrt(len(values))))
    square = np.zeros(side * side)
    square[: len(values)] = values
    return square.reshape(1, side, side)


def coloured(images: NDArray[Any], colours: Colours = "grey") -> NDArray[Any]:
    """Images (n, h, w) as RGB (n, 3, h, w) in [0, 1] where the colours are not grey."""
    if colours == "grey":
        return images
    shown: NDArray[Any] = np.moveaxis(_ramp(colours)[_levels(images, colours)] / 255, -1, 1)
    return shown


def address(images: NDArray[Any], colours: Colours = "grey") -> str:
    """Images side by side as a PNG in a ``data:`` address."""
    if images.ndim == 4:
        shown = np.rint(np.clip(np.moveaxis(images, 1, -1), 0, 1) * 255).astype(np.uint8)
        opaque = np.full((*shown.shape[:3], 1), 255, np.uint8)
        row = _row(np.concatenate([shown, opaque], axis=-1), gap=0)
        return _address(Image.fromarray(row, "RGBA"))
    if colours != "grey":
        return _mapped(_levels(images, colours), _ramp(colours))
    holes = np.isnan(images)
    clipped = np.clip(np.nan_to_num(images), 0, 1)
    if holes.any():
        levels = np.rint(clipped * (LEVELS - 1)).astype(np.uint8)
        levels[holes] = LEVELS
        ramp = np.repeat(np.linspace(0, 255, LEVELS), 3).reshape(-1, 3)
        return _mapped(levels, np.vstack([ramp, MISSING]))
    row = _row(np.rint(clipped * WHITE).astype(np.uint8), gap=255)
    return _address(Image.fromarray(row, "L"), transparency=255)


def _levels(images: NDArray[Any], colours: Colours) -> NDArray[np.uint8]:
    """Images (n, h, w) as levels of a colour map."""
    if colours == "signed":
        images = shades(images)
    return np.rint(np.clip(images, 0, 1) * (LEVELS - 1)).astype(np.uint8)


@functools.cache
def _ramp(colours: Colours) -> NDArray[Any]:
    """`LEVELS` colours of a map, (LEVELS, 3) of 0 to 255."""
    from matplotlib import colormaps

    return np.rint(colormaps[MAPS[colours]](np.linspace(0, 1, LEVELS))[:, :3] * 255)


def _mapped(levels: NDArray[np.uint8], palette: NDArray[Any]) -> str:
    """Levels (n, h, w) in the colours (k, 3) of a palette."""
    image = Image.fromarray(_row(levels, gap=len(palette)), "P")
    image.putpalette(np.vstack([palette, (0, 0, 0)]).astype(np.uint8).tobytes())
    return _address(image, transparency=len(palette))


def _row(stack: NDArray[Any], *, gap: int) -> NDArray[Any]:
    """(n, h, w, ...) side by side, with columns of `gap` between them; small ones larger."""
    factor = max(1, SMALLEST // stack.shape[2])
    stack = stack.repeat(factor, axis=1).repeat(factor, axis=2)
    margin = [(0, 0), (0, 0), (0, PAGE_GAP), *[(0, 0)] * (stack.ndim - 3)]
    padded = np.pad(stack, margin, constant_values=gap)
    return np.concatenate(list(padded), axis=1)[:, :-PAGE_GAP]


def _address(image: Image.Image, **options: Any) -> str:
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True, **options)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
