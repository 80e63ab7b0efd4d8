"""Any image file as MNIST's were made: 20 x 20 in 28 x 28, white on black, centred by mass.

LeCun et al. 1998 ("Gradient-based learning applied to document recognition", section III.A): each
digit was scaled to fit a box of 20 x 20 pixels with its aspect ratio kept, anti-aliased, and put
into 28 x 28 so that its centre of mass lies in the centre of the field.

The rules, in their order:

1. The first frame of the file, turned as its EXIF data say.
2. Colour becomes luminance, 0.299 R + 0.587 G + 0.114 B; 16 bits are divided by 65,535. What is
   transparent is composed onto white, or onto black where the visible part is light.
3. The background is the median of the outermost pixels. Where it is lighter than halfway between
   the darkest and the lightest pixel, the image is dark on light and inverted.
4. An image of 28 x 28 pixels is taken as framed already and kept as it is otherwise.
5. What the background leaves is stretched to [0, 1]; its ink is what exceeds 0.2. The ink's box is
   scaled to 20 pixels along its longer side and stretched to [0, 1] again, so that thin strokes
   do not fade.
6. The centre of mass comes to the pixel (14, 14), as in MNIST's files, as far as the frame allows.

This does not find a digit in a scene: the image shows one thing on a plain background.
"""

import math
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from stages.command import Refusal
from stages.params import SIDE

BOX = 20  # pixels of the box that the ink fills
CENTRE = 14  # index of the pixel at which the centre of mass of MNIST's images lies (14.0 +- 0.3)
INK = 0.2  # share of the full contrast above which a pixel counts as ink
LARGEST = 2048  # pixels of a side, above which an image is first averaged over blocks
PROGRAMS = ("EPS",)  # read by running a foreign program (Ghostscript), which no image may do here
CONTRAST = 1 / 32  # of the range: what differs less is blank paper
LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601

Floats = NDArray[np.float64]


class Converted(NamedTuple):
    """An image as a network sees it.

    Attributes
    ----------
    image : (28, 28) uint8
        White on black.
    inverted : bool
        Whether the file was dark on light.
    framed : bool
        Whether it was scaled and centred; False where the file has 28 x 28 pixels.
    original : PIL image, RGB
        What the file shows, for a picture beside it.
    """

    image: NDArray[np.uint8]
    inverted: bool
    framed: bool
    original: Image.Image


def convert(path: Path) -> Converted:
    """Read an image file and convert it by the rules above.

    Raises
    ------
    Refusal
        When it is missing, no image, broken, larger than Pillow's limit, or blank.
    """
    original = read_image(path)
    light, inverted = white_on_black(luminance(original, path=path), path=path)
    framed = light.shape != (SIDE, SIDE)
    image = frame(light) if framed else light
    bytes_ = np.rint(image * 255).astype(np.uint8)
    return Converted(bytes_, inverted, framed, shown(original))


def read_image(path: Path) -> Image.Image:
    """The first frame of an image file, the right way up.

    Raises
    ------
    Refusal
        When it is missing, no image, broken, or has more than `PIL.Image.MAX_IMAGE_PIXELS` pixels,
        which may be a decompression bomb.
    """
    try:
        with warnings.catch_warnings():
            # Pillow only warns up to twice its limit. Its other warnings are of metadata.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            Image.init()
            formats = [name for name in Image.OPEN if name not in PROGRAMS]
            with Image.open(path, formats=formats) as file:
                file.load()
                return ImageOps.exif_transpose(file)
    except FileNotFoundError:
        raise Refusal(f"{path} is missing; give an image file") from None
    except IsADirectoryError:
        raise Refusal(f"{path} is a folder; give an image file") from None
    except PermissionError:
        raise Refusal(f"{path} may not be read; change its permissions") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Refusal(
            f"{path} has more than {Image.MAX_IMAGE_PIXELS:,} pixels; scale it down first"
        ) from None
    except Exception as error:  # the formats' parsers raise whatever comes: no common base
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error!r:.80})"
        raise Refusal(
            f"{path} is not an image that Pillow can read{reason}; PNG and JPEG are"
        ) from None


def luminance(image: Image.Image, *, path: Path) -> Floats:
    """Brightness (h, w) in [0, 1] of an image of any mode, transparency composed.

    Parameters
    ----------
    image : PIL image
    path : Path
        For the message.

    Raises
    ------
    Refusal
        When the values have a range that no rule is for: 32-bit integers above 65,535, and floats
        outside [0, 1].
    """
    deep = image.mode.startswith("I;16") or image.mode in ("I", "F")
    if deep:
        values = np.asarray(image).astype(np.float64)
        top = 1.0 if image.mode == "F" else 65535.0
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= top):
            raise Refusal(
                f"{path}: pixels from {values.min():g} to {values.max():g}; 0 to {top:g} are "
                "allowed there. Save it with 8 or 16 bits"
            )
        return values / top
    transparent = image.has_transparency_data
    try:
        image = image.convert("RGBA" if transparent else "RGB")
    except ValueError:
        raise Refusal(f"{path}: colours of the kind {image.mode}; save it as RGB") from None
    # Far above what 20 x 20 pixels show, and far below what as many floats would take.
    image = image.reduce(max(1, math.ceil(max(image.size) / LARGEST)))
    layers = np.asarray(image) / 255
    visible: Floats = layers[..., :3] @ LUMINANCE
    if not transparent:
        return visible
    opacity = layers[..., 3]
    mean = (visible * opacity).sum() / max(opacity.sum(), 1e-12)
    return visible * opacity + (mean <= 0.5) * (1 - opacity)


def white_on_black(values: Floats, *, path: Path) -> tuple[Floats, bool]:
    """Invert a dark-on-light image; say whether it was one.

    Parameters
    ----------
    values : (h, w) in [0, 1]
    path : Path
        For the message.

    Raises
    ------
    Refusal
        When the image is blank.
    """
    darkest, lightest = values.min(), values.max()
    if lightest - darkest < CONTRAST:
        raise Refusal(f"{path} is blank: all of its pixels are alike")
    inverted = background(values) > (darkest + lightest) / 2
    return (1 - values if inverted else values), bool(inverted)


def background(values: Floats) -> float:
    """The median of the outermost pixels of (h, w)."""
    border = [values[0], values[-1], values[1:-1, 0], values[1:-1, -1]]
    return float(np.median(np.concatenate(border)))


def frame(light: Floats) -> Floats:
    """Scale the ink of a white-on-black image to 20 x 20 and centre it in 28 x 28.

    Parameters
    ----------
    light : (h, w) in [0, 1]
        Not blank.

    Returns
    -------
    (28, 28) in [0, 1]
        The brightest pixel is 1.
    """
    level = background(light)
    ink = np.clip((light - level) / (light.max() - level), 0, 1)
    rows, columns = (np.flatnonzero((ink > INK).any(axis=axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    longer = max(ink.shape)
    height, width = (max(1, math.floor(BOX * side / longer + 0.5)) for side in ink.shape)
    # Pillow's bilinear filter widens with the reduction: that is the anti-aliasing.
    small = np.asarray(
        Image.fromarray(ink.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    ).astype(np.float64)
    small = np.clip(small / small.max(), 0, 1)
    top, left = (
        min(max(round(CENTRE - float(mass @ np.arange(len(mass)) / mass.sum())), 0), SIDE - size)
        for mass, size in ((small.sum(axis=1), height), (small.sum(axis=0), width))
    )
    framed = np.zeros((SIDE, SIDE))
    framed[top : top + height, left : left + width] = small
    return framed


def shown(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB for a picture, transparency on white."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        scaled = values / (1.0 if image.mode == "F" else 65535.0)
        return Image.fromarray(np.rint(scaled * 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
