"""Any image file as MNIST's were made: 20 x 20 in 28 x 28, white on black, centred by mass.

LeCun et al. 1998 ("Gradient-based learning applied to document recognition", section III.A): each
digit was scaled to fit a box of 20 x 20 pixels with its aspect ratio kept, anti-aliased, and put
into 28 x 28 so that its centre of mass lies in the centre of the field.

The rules, in their order:

1. The first frame of the file, turned as its EXIF data say. Broken metadata are left out.
2. Colour becomes luminance, 0.299 R + 0.587 G + 0.114 B. What is transparent is composed onto
   white, or onto black where the visible part is light. Where the brightest pixel has at most 1/16
   of what its type holds (0 and 1 in 8 bits, 0 to 1023 in 16), it counts as white.
3. An image of 28 x 28 pixels is taken as framed already. It is kept as it is (or inverted) where
   its ground is black (or white); elsewhere it gets a black ground and full contrast by the rules
   4 to 8.
4. Dark on light or light on dark: strokes stand out to one side from what is around them.
5. Thin lines along an edge from one side to the other, and what lies beyond, are a form's.
6. The paper under the ink is as bright as the darkest way from there to the edge of the picture
   (morphological reconstruction): shade that comes from the edge stays paper, in any shape. Strokes
   that run into the edge are no way if they are most of the ink.
7. Ink is what lacks more than 0.2 of the most that is lacking in it. It has sharp edges and stands
   out from the paper's noise; shade and noise do not. A picture without ink is blank.
8. Specks, with less than 0.03 of the largest mark's squared ink, are left out, and a rectangle
   around all else.
9. The ink's box is scaled to 20 pixels along its longer side and stretched to [0, 1] again, so
   that thin strokes do not fade.
10. The centre of mass comes to the pixel (14, 14), as in MNIST's files, as far as the frame allows.

This does not find a digit in a scene: the image shows one thing on a sheet. Where the result may
not be it, `Converted.doubts` says why.
"""

import io
import math
import struct
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage
from skimage.morphology import reconstruction

from retrace.pipeline.command import Refusal
from retrace.types import SIDE

BOX = 20  # pixels of the box that the ink fills
CENTRE = 14  # index of the pixel at which the centre of mass of MNIST's images lies (14.0 +- 0.3)
LARGEST = 256  # pixels of a side, above which an image is first averaged over blocks
PROGRAMS = ("EPS",)  # read by running a foreign program (Ghostscript), which no image may do here
LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
UNFILLED = 1 / 16  # of what a type holds: a brightest pixel up to there counts as white
CONTRAST = 1 / 32  # of the range: what differs less is blank paper
INK = 0.2  # share of the full contrast above which a pixel counts as ink
FAINT = 1 / 16  # of the range: ink stands out more
EVEN = 0.25  # share of an evenly lit sheet's rim that is as bright as most of it
BLUR = 1 / 250  # of the longer side: a Gaussian's deviation, which evens out noise
NOISE = 9  # times the median grain: what exceeds it is no noise
CERTAIN = 14  # times the paper's standard deviation: what is blank stands out less
SHARP = 7.9  # of a mark's contrast, for each side of the picture: ink changes as fast at its edges
STEEP = 0.5  # of a mark's contrast: ink that changes as much from pixel to pixel is sharp anyway
SPECK = 0.03  # of the largest mark's squared ink: what has less is dirt
LINE = 0.95  # share of a side that a form's line covers
APART = 0.4  # of the largest mark's squared ink: what has more may be another thing
SOLID = 5  # pixels from the inside of ink to its edge: of MNIST 0.1 % have more
DRAINED = 128  # pixels of a side, more than shade needs

PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # of a PNG file; others are metadata
PNG = b"\x89PNG\r\n\x1a\n"

Floats = NDArray[np.floating[Any]]


class Converted(NamedTuple):
    """An image as a network sees it."""

    image: NDArray[np.uint8]  # (28, 28), white on black
    inverted: bool  # whether the file was dark on light
    framed: bool  # whether it was scaled and centred; False where the file has 28 x 28 pixels
    original: Image.Image  # RGB, what the file shows, for a picture beside it
    doubts: tuple[str, ...]  # why the image may not be what the file shows


class Ink(NamedTuple):
    """Ink (h, w) in [0, 1], 0 on the paper; whether it was the darker of the two; doubts."""

    ink: Floats
    inverted: bool
    doubts: tuple[str, ...] = ()


def convert(path: Path) -> Converted:
    """Read an image file and convert it by the rules above. Refused when it is missing, no image,
    broken, larger than Pillow's limit, or blank."""
    original = read_image(path)
    values = luminance(original, path=path)
    framed = values.shape != (SIDE, SIDE)
    found = find_ink(values, path=path) if framed else framed_ink(values, path=path)
    image = frame(found.ink) if framed else found.ink
    doubts = found.doubts
    if framed and (share := (image > 0.5).mean()) > 0.5:
        doubts += (f"{share:.0%} of its frame are ink",)
    if framed and ndimage.distance_transform_edt(np.pad(image > 0.5, 1)).max() > SOLID:
        doubts += ("it is a patch rather than strokes",)
    bytes_ = np.rint(image * 255).astype(np.uint8)
    return Converted(bytes_, found.inverted, framed, as_rgb(original, values), doubts)


def read_image(path: Path) -> Image.Image:
    """The first frame of an image file, the right way up. Refused when it is missing, no image,
    broken, or has more than `PIL.Image.MAX_IMAGE_PIXELS` pixels, which may be a decompression bomb.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would be waited for
        raise Refusal(f"{path} is no file; give an image file")
    try:
        with warnings.catch_warnings():
            # Pillow only warns up to twice its limit. Its other warnings are of metadata.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            try:
                return opened(path)
            except (ValueError, UnidentifiedImageError) as error:
                # Pillow refuses a PNG file also for texts that are too long or damaged.
                for kept in ((*PIXEL_CHUNKS, b"eXIf"), PIXEL_CHUNKS):
                    pixels = png_pixels(path, kept=kept)
                    if pixels is None:
                        break
                    with suppress(ValueError, UnidentifiedImageError):
                        return opened(io.BytesIO(pixels))
                raise error from None
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
        raise Refusal(
            f"{path} is not an image that Pillow can read ({reason_of(error, path)}); PNG and JPEG "
            "are"
        ) from None


def opened(source: Path | io.BytesIO) -> Image.Image:
    """The first frame of a file, turned as its EXIF data say where they can be read."""
    Image.init()
    formats = [name for name in Image.OPEN if name not in PROGRAMS]
    with Image.open(source, formats=formats) as file:
        file.load()
        try:
            return ImageOps.exif_transpose(file)
        except Exception:  # as in `read_image`; the pixels are whole
            return file.copy()


def png_pixels(path: Path, *, kept: Sequence[bytes]) -> bytes | None:
    """A PNG file without its other chunks; None of any other file."""
    with path.open("rb") as file:
        if file.read(len(PNG)) != PNG:
            return None
        chunks = [PNG]
        while len(head := file.read(8)) == 8:
            length = int.from_bytes(head[:4]) + 4  # with the checksum
            if head[4:] in kept:
                chunks += [head, file.read(length)]
            else:
                file.seek(length, io.SEEK_CUR)
    return b"".join(chunks)


def reason_of(error: Exception, path: Path) -> str:
    """Why Pillow reads no image from a file, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        # It says nothing itself; the format that the file begins as does.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            begin = file.read(16)
            if not begin:
                return "it is empty"
            for name, (factory, accept) in Image.OPEN.items():
                try:
                    if name not in PROGRAMS and accept and accept(begin) is True:
                        file.seek(0)
                        factory(file, "")
                except struct.error:
                    continue  # too short to begin as this format
                except Exception as cause:
                    return " ".join(f"{name}: {cause}".split())[:80]
        return "of no known format"
    return " ".join(f"{error!r}".split())[:80]


def is_deep(image: Image.Image) -> bool:
    """Whether its pixels have one number of more than 8 bits each."""
    return image.mode.startswith("I;16") or image.mode in ("I", "F")


def luminance(image: Image.Image, *, path: Path) -> Floats:
    """Brightness (h, w) in [0, 1] of an image of any mode, transparency composed, its sides at most
    `LARGEST`. Refused when the values have a range that no rule is for: 32-bit integers above
    65,535, and floats outside [0, 1]."""
    transparent = image.has_transparency_data and not is_deep(image)
    if is_deep(image):
        values = np.asarray(image).astype(np.float64)
        top = 1.0 if image.mode == "F" else 65535.0
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= top):
            raise Refusal(
                f"{path}: pixels from {values.min():g} to {values.max():g}; 0 to {top:g} are "
                "allowed there. Save it with 8 or 16 bits"
            )
        image = Image.fromarray((values / top).astype(np.float32))
    else:
        try:
            image = image.convert("RGBA" if transparent else "RGB")
        except ValueError:
            raise Refusal(f"{path}: colours of the kind {image.mode}; save it as RGB") from None
    # Far above what 20 x 20 pixels show, and far below what as many floats would take.
    image = image.reduce(max(1, math.ceil(max(image.size) / LARGEST)))
    layers = np.asarray(image)
    visible: Floats = layers if layers.ndim == 2 else layers[..., :3] / 255 @ LUMINANCE
    if not transparent:
        return visible / visible.max() if 0 < visible.max() <= UNFILLED else visible
    opacity = layers[..., 3] / 255
    mean = (visible * opacity).sum() / max(opacity.sum(), 1e-12)
    return visible * opacity + (mean <= 0.5) * (1 - opacity)


def framed_ink(values: Floats, *, path: Path) -> Ink:
    """The ink of (28, 28) pixels: as they are where the ground is black, inverted where it is
    white, else by `find_ink`; refused where they are blank."""
    if np.ptp(values) < CONTRAST:
        raise Refusal(f"{path} is blank: all of its pixels are alike")
    ground = round(float(np.median(rim(values))), 6)
    if ground not in (0, 1):
        return find_ink(values, path=path)
    return Ink(1 - values if ground else values, bool(ground))


def find_ink(values: Floats, *, path: Path) -> Ink:
    """What is drawn on a sheet of paper of some brightness (h, w), and nothing else that the
    picture shows; refused where the sheet is blank."""
    blank = Refusal(
        f"{path} is blank: nothing stands out from its paper, shade and noise; a digit needs some "
        "paper around it"
    )
    doubts = []
    raw, inverted = darkness(values.astype(np.float32))
    blur = BLUR * max(raw.shape)
    smooth = ndimage.gaussian_filter(raw, blur) if blur > 0.5 else raw
    grain = np.abs(smooth - ndimage.uniform_filter(smooth, 3 + 2 * round(2 * blur)))
    least = max(CONTRAST, NOISE * float(np.median(grain)))
    lines = edge_lines(smooth, least=max(least, float(smooth.max()) / 4))
    if lines.any():
        doubts.append("a line along its edge is left out")
        raw, smooth = np.where(lines, 0, raw), np.where(lines, 0, smooth)
    if np.abs(rim(smooth)).max() > least:
        paper = drained(1 - smooth)
        strokes = cut_strokes(smooth, 1 - (1 - smooth) / paper, least=least)
        if strokes.any():
            doubts.append("its ink touches the edge")
            rims = ndimage.binary_dilation(strokes, iterations=1 + max(raw.shape) // 30)
            paper = drained(1 - smooth, closed=rims)  # theirs are darker than paper, too
        raw, smooth = 1 - (1 - raw) / paper, 1 - (1 - smooth) / paper
    first = max(least, INK * float(smooth.max()))
    marks, energy = marks_of(smooth, least=first)
    if not energy.any():
        raise blank
    full = float(smooth[marks == energy.argmax()].max())
    level = max(least, INK * full)
    if full < max(FAINT, CERTAIN * smooth[smooth <= level].std()):
        raise blank
    if level < first:  # something that is no ink was darker
        marks, energy = marks_of(smooth, least=level)
    places = ndimage.find_objects(marks)
    if box := box_around(marks, places, energy):
        doubts.append("a box around it is left out")
        energy[box] = 0
    kept = energy >= SPECK * energy.max()
    boxes = np.array([[(side.start, side.stop) for side in place] for place in places])[kept[1:]]
    sizes = np.ptp(boxes, axis=2).max(axis=1)
    side = max(raw.shape)
    if sizes.max() < side / 25 and sizes.sum() < side / 5:  # nothing but specks
        raise blank
    if are_apart(boxes, energy[1:][kept[1:]]):
        doubts.append("it shows several things")
    ink = kept[marks]
    # The pale rim of a stroke belongs to it, up to other marks.
    near = ndimage.binary_dilation(ink, iterations=1 + round(2 * blur)) & (ink | (marks == 0))
    return Ink(np.clip(np.where(near, raw, 0) / full, 0, 1), inverted, tuple(doubts))


def darkness(values: Floats) -> tuple[Floats, bool]:
    """What share of the paper's light each pixel of (h, w) lacks (of white on black, how much it
    has too much), about 0 on evenly lit paper; and whether the ink is the darker of the two."""
    side = min(values.shape)
    depths = range(0, 1 + side // 10, 1 + side // 100)  # the outermost may be a form's line
    rims = [rim(values[i : values.shape[0] - i, i : values.shape[1] - i]) for i in depths]
    middles = np.array([np.median(each) for each in rims])
    agree = np.array([np.mean(np.abs(each - np.median(each)) < CONTRAST / 2) for each in rims])
    clear = agree >= 0.8 * agree.max()  # and the inner ones cross ink where it fills the picture
    level = max(float(np.median(middles[clear])), CONTRAST)
    even = agree.max() > EVEN
    # The side of the ink has the longer tail: strokes stand out from their surroundings, and from
    # the paper anywhere, if that is even.
    local = values - ndimage.uniform_filter(values, 1 + side // 4)
    skew = 10 * (local**3).sum() + even * ((values - level) ** 3).sum()
    return (1 - values / level, True) if skew < 0 else (values - level, False)


def rim(values: NDArray[Any]) -> NDArray[Any]:
    """The outermost pixels of (h, w)."""
    return np.concatenate([values[0], values[-1], values[1:-1, 0], values[1:-1, -1]])


def edge_lines(ink: Floats, *, least: float) -> NDArray[np.bool_]:
    """What lies on or beyond a thin line of ink from one side of (h, w) to the other, near an edge,
    as the lines of a form do."""
    found = np.zeros(ink.shape, bool)
    for turn in range(4):
        height = ink.shape[turn % 2]
        slack = 1 + height // 100  # a line may be tilted by a degree
        zone = np.rot90(ink, turn)[: height // 6]
        if (zone > least).any(axis=0).mean() <= LINE:
            continue
        covered = (ndimage.maximum_filter1d(zone, 2 * slack + 1, axis=0) > least).mean(axis=1)
        profile = zone.mean(axis=1)
        for (rows,) in ndimage.find_objects(ndimage.label(covered > LINE)[0]):
            thin = rows.stop - rows.start <= 2 * slack + height // 30 and rows.stop < len(zone)
            if thin and profile[rows.stop] < profile[rows].max() / 2:  # shade fades slowly
                np.rot90(found, turn)[: rows.stop] = True
    return found


def drained(paper: Floats, *, closed: NDArray[np.bool_] | None = None) -> Floats:
    """Brightness (h, w) with all dark basins filled up to where they would flow over the edge,
    though not where it is `closed` (h, w): the paper under the ink, while a shadow that reaches the
    edge stays."""
    picture, factor = Image.fromarray(paper), 1 + max(paper.shape) // DRAINED
    small = np.asarray(picture.reduce(factor))
    seed = np.full_like(small, small.max())
    outlet = np.zeros(small.shape, bool)
    outlet[[0, -1]] = outlet[:, [0, -1]] = True
    if closed is not None:
        outlet &= np.asarray(Image.fromarray(closed.astype(np.float32)).reduce(factor)) == 0
    seed[outlet] = small[outlet]
    filled = Image.fromarray(reconstruction(seed, small, method="erosion").astype(paper.dtype))
    level = np.asarray(filled.resize(picture.size, Image.Resampling.BILINEAR))
    return np.maximum(level, CONTRAST)


def cut_strokes(ink: Floats, within: Floats, *, least: float) -> NDArray[np.bool_]:
    """The strokes (h, w) that reach the edge if they are most of the ink, else none: not shade, and
    not a piece of a neighbour. `within` is the ink without what reaches the edge."""
    dark = max(least, float(ink.max()) / 2)
    if rim(ink).max() <= dark:
        return np.zeros(ink.shape, bool)
    marks, energy = marks_of(ink, least=dark)
    left = np.bincount(marks.ravel(), np.minimum(ink, within).ravel() ** 2, len(energy))
    inside = ~np.isin(np.arange(len(energy)), rim(marks))
    energy[inside | (left > 0.75 * energy)] = 0
    for i in np.flatnonzero(energy):
        if ndimage.distance_transform_edt(marks == i).max() > min(ink.shape) / 8:  # no stroke
            energy[i] = 0
    strokes = (energy > 0)[marks]
    others = within[~strokes & (within > least)]
    return strokes if energy.sum() > (others**2).sum() else np.zeros(ink.shape, bool)


def marks_of(ink: Floats, *, least: float) -> tuple[NDArray[np.int32], Floats]:
    """Connected marks (h, w) of more than `least`, numbered from 1 (0 is the paper), and the sum
    of squares of each; 0 of those with soft edges, as shade has and ink has not."""
    on = ink > least
    marks, count = ndimage.label(on, np.ones((3, 3)))
    energy = np.bincount(marks[on], ink[on] ** 2, count + 1)
    peak = np.zeros(count + 1, ink.dtype)
    np.maximum.at(peak, marks[on], ink[on])
    inner = np.zeros_like(on)
    inner[1:-1, 1:-1] = on[:-2, 1:-1] & on[2:, 1:-1] & on[1:-1, :-2] & on[1:-1, 2:]
    edge = marks[on & ~inner]
    size = 1 + 2 * max(2, round(max(ink.shape) / 60))
    sharp = min(STEEP, SHARP * size / max(ink.shape))
    change = ndimage.maximum_filter(ink, size) - ndimage.minimum_filter(ink, size)
    mean = np.bincount(edge, change[on & ~inner], count + 1) / np.maximum(
        np.bincount(edge, minlength=count + 1), 1
    )
    return marks, np.where(mean < sharp * peak, 0, energy)


def box_around(marks: NDArray[np.int32], places: Sequence[Any], energy: Floats) -> int:
    """The number of a mark that is a rectangle around other ones, or 0."""
    kept = energy >= SPECK * energy.max()
    for number in np.flatnonzero(kept).tolist():
        area = marks[places[number - 1]]
        filled = ndimage.binary_fill_holes(area == number)
        if filled.mean() > 0.9 and (kept[area] & filled & (area != number)).any():
            return number
    return 0


def are_apart(boxes: NDArray[np.int64], energy: Floats) -> bool:
    """Whether the two largest marks are of like size with a gap between their boxes (2, 2), wider
    than within a broken stroke."""
    if len(boxes) < 2:
        return False
    small, large = np.argsort(energy)[-2:]
    gap = np.maximum(
        boxes[small, :, 0] - boxes[large, :, 1], boxes[large, :, 0] - boxes[small, :, 1]
    )
    whole = boxes[[small, large], :, 1].max(axis=0) - boxes[[small, large], :, 0].min(axis=0)
    return bool(energy[small] > APART * energy[large] and gap.max() > whole.max() / 12)


def frame(ink: Floats) -> Floats:
    """Scale ink (h, w), which is not blank, to 20 x 20 and centre it in (28, 28); the brightest
    pixel becomes 1."""
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


def as_rgb(image: Image.Image, values: Floats) -> Image.Image:
    """An image of any mode as RGB for a picture, transparency on white; its brightness `values`
    (h, w) where its own numbers would all look black."""
    if image.has_transparency_data and not is_deep(image):
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    picture = None if is_deep(image) else image.convert("RGB")
    if picture is None or np.max(picture.getextrema()) <= UNFILLED * 255:
        return Image.fromarray(np.rint(values * 255).astype(np.uint8)).convert("RGB")
    return picture
