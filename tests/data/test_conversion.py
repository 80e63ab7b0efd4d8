"""Any image file becomes what MNIST's files hold, or is refused in a line."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from scipy import ndimage

from retrace.data.conversion import convert
from retrace.pipeline.command import Refusal

PAPER, PEN = 230, 20
HEIGHT, WIDTH = 300, 240  # of a made photo


def drawn(width: int = 240, height: int = 180, *, left: int = 60, top: int = 30) -> Image.Image:
    """A dark seven on light paper, 80 x 120 pixels large, away from the middle."""
    picture = Image.new("L", (width, height), PAPER)
    pen = ImageDraw.Draw(picture)
    pen.rectangle((left, top, left + 79, top + 15), fill=PEN)
    pen.rectangle((left + 64, top, left + 79, top + 119), fill=PEN)
    return picture


def saved(folder: Path, picture: Image.Image, name: str = "image.png", **options: Any) -> Path:
    picture.save(folder / name, **options)
    return folder / name


def ink_box(image: "np.ndarray[Any, Any]") -> tuple[int, int]:
    rows, columns = np.nonzero(image > 50)
    return int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1


def test_the_frame_is_mnists(tmp_path: Path) -> None:
    converted = convert(saved(tmp_path, drawn()))
    assert converted.image.shape == (28, 28) and converted.image.dtype == np.uint8
    assert converted.inverted and converted.framed
    assert ink_box(converted.image) == (20, 13)  # 120 x 80 to 20 x 13.3
    assert converted.image.max() == 255 and converted.image[0].max() == 0
    mass = converted.image.astype(float)
    for axis in (0, 1):
        profile = mass.sum(axis=axis)
        assert abs(profile @ np.arange(28) / profile.sum() - 14) <= 0.5


def test_an_enlarged_digit_comes_back(tmp_path: Path, digit_splits: dict[str, Any]) -> None:
    """Ten times as large, dark on light, off the middle of a larger sheet."""
    errors = []
    for image in digit_splits["test"]["images"][:40]:
        reference = convert(saved(tmp_path, Image.fromarray(image).resize((560, 560)))).image
        large = Image.fromarray(255 - image).resize((280, 280), Image.Resampling.BICUBIC)
        sheet = Image.new("L", (500, 400), 255)
        sheet.paste(large, (190, 7))
        found = convert(saved(tmp_path, sheet)).image
        errors.append(float(((found / 255 - reference / 255) ** 2).mean()))
    assert np.median(errors) < 0.002 and max(errors) < 0.02


def variants() -> dict[str, Image.Image]:
    grey = drawn()
    light = np.asarray(grey)
    opacity = Image.fromarray(np.where(light == PEN, 255, 0).astype(np.uint8))
    ink = {shade: Image.new("RGBA", grey.size, (shade, shade, shade, 0)) for shade in (0, 255)}
    for layer in ink.values():
        layer.putalpha(opacity)
    return {
        "white on black": Image.fromarray(255 - light),
        "colour": Image.merge("RGB", (grey, grey, grey)),
        "transparent, black ink": ink[0],
        "transparent, white ink": ink[255],
        "grey with transparency": Image.merge("LA", (Image.new("L", grey.size, 0), opacity)),
        "palette": Image.merge("RGB", (grey, grey, grey)).quantize(8),
        "one bit": grey.point(lambda value: 255 * (value > 128)).convert("1"),
        "16 bit": Image.fromarray(light.astype(np.uint16) * 257),
        "CMYK": Image.merge("RGB", (grey, grey, grey)).convert("CMYK"),
        "float": Image.fromarray((light / 255).astype(np.float32)),
    }


@pytest.mark.parametrize("kind", list(variants()))
def test_every_kind_of_pixel_gives_the_same(kind: str, tmp_path: Path) -> None:
    expected = convert(saved(tmp_path, drawn())).image.astype(int)
    name = "image.tif" if kind in ("CMYK", "float") else "image.png"
    converted = convert(saved(tmp_path, variants()[kind], name))
    assert np.abs(converted.image.astype(int) - expected).max() <= 3
    assert converted.inverted == (kind not in ("white on black", "transparent, white ink"))
    assert converted.original.mode == "RGB" and converted.original.size == (240, 180)


def test_luminance_weighs_the_colours(tmp_path: Path) -> None:
    """Of pure colours on black, 0.299, 0.587 and 0.114 of white."""
    pixels = np.zeros((28, 28, 3), np.uint8)
    pixels[10, 10:13] = 255 * np.eye(3, dtype=np.uint8)
    found = convert(saved(tmp_path, Image.fromarray(pixels))).image[10, 10:13]
    assert found.tolist() == [76, 150, 29]


def test_28_pixels_are_kept_as_they_are(tmp_path: Path, digit_splits: dict[str, Any]) -> None:
    image = digit_splits["test"]["images"][0]
    converted = convert(saved(tmp_path, Image.fromarray(image)))
    assert not converted.framed and not converted.inverted
    np.testing.assert_array_equal(converted.image, image)
    converted = convert(saved(tmp_path, Image.fromarray(255 - image)))
    assert converted.inverted
    np.testing.assert_array_equal(converted.image, image)


def test_a_thin_stroke_does_not_fade(tmp_path: Path) -> None:
    picture = Image.new("L", (2000, 3000), 255)
    ImageDraw.Draw(picture).line((300, 200, 1700, 2800), fill=0, width=6)
    image = convert(saved(tmp_path, picture)).image
    assert image.max() == 255 and ink_box(image)[0] == 20


def test_a_line_of_one_pixel_and_a_corner_stay_in_the_frame(tmp_path: Path) -> None:
    picture = Image.new("L", (300, 300))
    ImageDraw.Draw(picture).line((150, 20, 150, 280), fill=255)
    assert ink_box(convert(saved(tmp_path, picture)).image) == (20, 1)
    # Nearly all mass in one corner of the ink's box: its centre cannot reach the frame's.
    picture = Image.new("L", (300, 300))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((230, 230, 280, 280), fill=255)
    pen.line((20, 20, 230, 230), fill=255, width=2)
    image = convert(saved(tmp_path, picture)).image
    assert np.flatnonzero((image > 200).any(axis=1)).max() == 19  # the box lies at the very top


def test_the_camera_held_upright_is_read_upright(tmp_path: Path) -> None:
    turned = drawn().transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    expected = convert(saved(tmp_path, drawn())).image.astype(int)
    found = convert(saved(tmp_path, turned, exif=exif)).image.astype(int)
    assert np.abs(found - expected).max() <= 3


def test_an_image_of_many_pixels_gives_the_same(tmp_path: Path) -> None:
    """Averaged over blocks first, which no pixel of 28 x 28 shows."""
    expected = convert(saved(tmp_path, drawn())).image.astype(int)
    large = drawn().resize((240 * 12, 180 * 12), Image.Resampling.NEAREST)
    found = convert(saved(tmp_path, large)).image.astype(int)
    assert np.abs(found - expected).max() <= 40
    assert np.abs(found - expected).mean() <= 1


def light(kind: str) -> "np.ndarray[Any, Any]":
    """Of what falls on a sheet, the share that is left (300, 240)."""
    y, x = np.ogrid[0 : 1 : HEIGHT * 1j, 0 : 1 : WIDTH * 1j]
    kinds = {
        "even": 1 + 0 * (x + y),
        "from the left": 1 - 0.45 * x + 0 * y,
        "from above": 1 - 0.45 * y + 0 * x,
        "from a corner": 1 - 0.225 * (1 - x + y),
        "vignette": 1 - ((x - 0.5) ** 2 + (y - 0.5) ** 2),
        "lamp": 0.4 + 0.6 * np.exp(-3 * ((x - 0.3) ** 2 + (y - 0.3) ** 2)),
        "cast shadow": 1 - 0.4 / (1 + np.exp(-80 * (x + 0.5 * y - 0.85))),
        "corner in the shade": 1 - 0.5 / (1 + np.exp(-60 * (x + y - 1.5))),
    }
    share: np.ndarray[Any, Any] = kinds[kind]
    return share


def drawing(digit: "np.ndarray[Any, Any]", *, side: int = 190, left: int = 30) -> Any:
    """Ink (300, 240) in [0, 1]: a digit enlarged smoothly, off the middle of a sheet."""
    large = Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)
    ink = np.zeros((HEIGHT, WIDTH))
    ink[60 : 60 + side, left : left + side] = np.asarray(large) / 255
    return ink


def photo(
    ink: Any,
    *,
    shade: str = "even",
    paper: float = 0.92,
    pen: float = 0.1,
    noise: float = 0.01,
    scale: int = 1,
) -> Image.Image:
    """Of a sheet in some light, with a sensor's noise, to be saved as JPEG."""
    values = (paper + (pen - paper) * ink) * light(shade)
    values = values + np.random.default_rng(0).normal(0, noise, values.shape)
    picture = Image.fromarray(np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8))
    return picture.reduce(scale)


def ruled(ink: Any, *sides: Any) -> Any:
    """With lines of a form: `sides` are slices of rows and columns."""
    ink = ink.copy()
    for side in sides:
        ink[side] = 1
    return ink


TOP, BOTTOM, LEFT, RIGHT = np.s_[:4], np.s_[-5:], np.s_[:, :3], np.s_[:, -9:-4]


def speckled(ink: Any) -> Any:
    ink = ink.copy()
    for row, column in ((3, 5), (20, 220), (290, 12), (150, 233)):
        ink[row : row + 4, column : column + 4] = 1
    return ink


def broken(ink: Any) -> Any:
    """Its strokes cut by a gap, as a pen that skips does."""
    ink = ink.copy()
    ink[135:141] = 0
    return ink


def cropped(ink: Any, *, margin: int) -> Image.Image:
    """Of the digit and little else."""
    rows, columns = (np.flatnonzero((ink > 0.3).any(axis=axis)) for axis in (1, 0))
    picture = photo(ink)
    return picture.crop(
        (columns[0] - margin, rows[0] - margin, columns[-1] + margin, rows[-1] + margin)
    )


PHOTOS: dict[str, Callable[[Any], Image.Image]] = {
    **{
        shade: partial(photo, shade=shade)
        for shade in ("from the left", "from above", "from a corner", "vignette", "lamp")
    },
    "cast shadow": lambda ink: photo(ink, shade="cast shadow"),
    "corner in the shade": lambda ink: photo(ink, shade="corner in the shade"),
    "small": lambda ink: photo(ink, shade="vignette", scale=3),
    "pencil": lambda ink: photo(ink, paper=0.78, pen=0.6, noise=0.02),
    "pencil in the shade": lambda ink: photo(
        ink, shade="from a corner", paper=0.8, pen=0.5, noise=0.02
    ),
    "noise": lambda ink: photo(ink, paper=0.85, pen=0.2, noise=0.06),
    "chalk": lambda ink: photo(ink, shade="from the left", paper=0.2, pen=0.9, noise=0.02),
    "a form's line": lambda ink: photo(ruled(ink, TOP)),
    "two lines": lambda ink: photo(ruled(ink, LEFT, BOTTOM)),
    "a cell": lambda ink: photo(ruled(ink, TOP, BOTTOM, LEFT, RIGHT)),
    "a cell in the shade": lambda ink: photo(ruled(ink, TOP, RIGHT), shade="from above"),
    "specks": lambda ink: photo(speckled(ink)),
    "cropped closely": partial(cropped, margin=6),
    "broken": lambda ink: photo(broken(ink)),
}


@pytest.mark.parametrize("kind", list(PHOTOS))
def test_a_photo_comes_out_as_the_digit(
    kind: str, tmp_path: Path, digit_splits: dict[str, Any]
) -> None:
    """Correlation with the same drawing on clean paper, converted, within a pixel."""
    found = []
    for digit in digit_splits["test"]["images"][:12]:
        ink = drawing(digit)
        clean = Image.fromarray(np.rint(255 * (1 - np.clip(ink, 0, 1))).astype(np.uint8))
        expected = convert(saved(tmp_path, clean)).image
        image = convert(saved(tmp_path, PHOTOS[kind](ink), "image.jpg", quality=80)).image
        shifted = [np.roll(image, (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
        found.append(max(np.corrcoef(each.ravel(), expected.ravel())[0, 1] for each in shifted))
    assert np.median(found) > 0.95 and min(found) > 0.7


def test_a_digit_in_a_box_loses_the_box(tmp_path: Path, digit_splits: dict[str, Any]) -> None:
    ink = drawing(digit_splits["test"]["images"][0], side=150, left=50)
    expected = convert(saved(tmp_path, photo(ink))).image
    frame = np.ones((200, 200))
    frame[4:-4, 4:-4] = 0
    ink[40:240, 20:220] = np.maximum(ink[40:240, 20:220], frame)
    converted = convert(saved(tmp_path, photo(ink)))
    assert np.corrcoef(converted.image.ravel(), expected.ravel())[0, 1] > 0.95
    assert converted.doubts == ("a box around it is left out",)


def blank_sheets() -> dict[str, Image.Image]:
    nothing = np.zeros((HEIGHT, WIDTH))
    y, x = np.ogrid[0 : 1 : HEIGHT * 1j, 0 : 1 : WIDTH * 1j]
    texture = ndimage.gaussian_filter(np.random.default_rng(0).normal(0, 1, (HEIGHT, WIDTH)), 2)
    shades = ("even", "from the left", "from a corner", "vignette", "lamp", "cast shadow")
    return {
        **{f"{shade}": photo(nothing, shade=shade) for shade in shades},
        **{f"{shade}, small": photo(nothing, shade=shade, scale=2) for shade in shades},
        "a corner": photo(nothing, shade="corner in the shade"),
        "much noise": photo(nothing, noise=0.06),
        "little noise": photo(nothing, noise=0.002),
        "clean gradient": photo(nothing, shade="from above", noise=0),
        "clean vignette": photo(nothing, shade="vignette", noise=0),
        "two grey levels": Image.fromarray((200 + np.rint(x + 0 * y)).astype(np.uint8)),
        "texture": Image.fromarray(np.rint(200 + 80 * texture).clip(0, 255).astype(np.uint8)),
        "dark": photo(nothing, shade="from the left", paper=0.08),
        "specks": photo(speckled(nothing)),
        "an empty cell": photo(ruled(nothing, TOP, BOTTOM, LEFT, RIGHT)),
        "28 x 28": photo(nothing, noise=0.02).crop((0, 0, 28, 28)),
    }


@pytest.mark.parametrize("kind", list(blank_sheets()))
@pytest.mark.parametrize("quality", [40, 90])
def test_a_blank_sheet_is_refused(kind: str, quality: int, tmp_path: Path) -> None:
    path = saved(tmp_path, blank_sheets()[kind], "image.jpg", quality=quality)
    with pytest.raises(Refusal, match="is blank"):
        convert(path)


@pytest.mark.parametrize(
    ("ground", "contrast"), [(90, 120), (235, -200), (0, 255), (255, -255), (40, 100)]
)
def test_a_framed_image_gets_a_black_ground(
    ground: int, contrast: int, tmp_path: Path, digit_splits: dict[str, Any]
) -> None:
    """And full contrast, with every pixel where it was."""
    for digit in digit_splits["test"]["images"][:20]:
        pixels = np.rint(ground + digit / 255.0 * contrast).astype(np.uint8)
        converted = convert(saved(tmp_path, Image.fromarray(pixels)))
        assert converted.inverted == (contrast < 0) and not converted.framed
        assert converted.image.max() == 255
        assert np.median(converted.image[[0, -1]]) == 0
        assert np.corrcoef(converted.image.ravel(), digit.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("kind", ["0 and 1", "0 to 1023", "0 to 300", "float"])
def test_a_range_that_does_not_fill_its_type_is_no_blank_image(kind: str, tmp_path: Path) -> None:
    light = np.asarray(drawn()) / 255
    kinds: dict[str, np.ndarray[Any, Any]] = {
        "0 and 1": (light > 0.5).astype(np.uint8),
        "0 to 1023": np.rint(light * 1023).astype(np.uint16),
        "0 to 300": np.rint(light * 300).astype(np.uint16),
        "float": (light / 1000).astype(np.float32),
    }
    expected = convert(saved(tmp_path, drawn())).image.astype(int)
    name = "image.tif" if kind == "float" else "image.png"
    converted = convert(saved(tmp_path, Image.fromarray(kinds[kind]), name))
    assert np.abs(converted.image.astype(int) - expected).max() <= 3
    assert np.asarray(converted.original).max() > 200  # and can be seen in a picture of it


def test_what_is_doubtful_says_why(tmp_path: Path, digit_splits: dict[str, Any]) -> None:
    def doubts(ink: Any) -> tuple[str, ...]:
        return convert(saved(tmp_path, photo(ink))).doubts

    first, second = digit_splits["test"]["images"][:2]
    ink = drawing(first)
    assert doubts(ink) == ()
    assert doubts(ruled(ink, TOP)) == ("a line along its edge is left out",)
    lowest = np.flatnonzero((ink > 0.5).any(axis=1))[-1]
    assert doubts(np.roll(ink, HEIGHT - lowest + 4, axis=0)[:HEIGHT]) != ()
    two = np.maximum(drawing(first, side=110, left=5), drawing(second, side=110, left=125))
    assert doubts(two) == ("it shows several things",)
    solid = np.zeros((HEIGHT, WIDTH))
    solid[80:220, 50:190] = 1
    assert "100% of its frame" not in doubts(solid) and "of its frame are ink" in doubts(solid)[0]
    disc = np.hypot(*np.indices((HEIGHT, WIDTH)) - np.array([[[150]], [[120]]])) < 60
    assert "it is a patch rather than strokes" in doubts(disc.astype(float))


def test_metadata_do_not_refuse_an_image(tmp_path: Path) -> None:
    """Pixels are what counts: long texts, damaged ones, EXIF data that are none."""
    expected = convert(saved(tmp_path, drawn())).image
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", "x" * 3_000_000, zip=True)
    long = saved(tmp_path, drawn(), "long.png", pnginfo=text)
    text = PngInfo()
    text.add_text("Title", "seven")
    damaged = saved(tmp_path, drawn(), "damaged.png", pnginfo=text)
    content = damaged.read_bytes()
    damaged.write_bytes(content.replace(b"Title\0seven", b"Title\0eight"))  # another checksum's
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    sideways = drawn().transpose(Image.Transpose.ROTATE_90)
    turned = saved(tmp_path, sideways, "turned.png", pnginfo=text, exif=exif)
    turned.write_bytes(turned.read_bytes().replace(b"Title\0seven", b"Title\0eight"))
    for path in (long, damaged):
        np.testing.assert_array_equal(convert(path).image, expected)
    assert np.abs(convert(turned).image.astype(int) - expected).max() <= 3
    broken = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"
    path = saved(tmp_path, drawn(), "image.jpg", exif=broken, quality=95)
    assert np.abs(convert(path).image.astype(int) - expected).max() < 40


def test_a_refusal_gives_the_reason(tmp_path: Path) -> None:
    path = saved(tmp_path, drawn())
    content = path.read_bytes()
    start = content.index(b"IDAT")
    path.write_bytes(content[: start + 9] + b"\0" + content[start + 10 :])
    with pytest.raises(Refusal, match=r"IDAT|broken"):
        convert(path)
    path.write_bytes(content[:20] + b"\xff\xff" + content[22:])  # the header's checksum is wrong
    with pytest.raises(Refusal, match=r"PNG: .*checksum in b'IHDR'"):
        convert(path)
    path.write_bytes(b"")
    with pytest.raises(Refusal, match="it is empty"):
        convert(path)
    for begin in (b"x", b"xx", content[:3], b"\0\0\0", b"no image at all"):
        path.write_bytes(begin)
        with pytest.raises(Refusal, match="of no known format"):
            convert(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"GIF89a no image at all", "not an image"),
        (b"", "not an image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "not an image"),
        ("truncated", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image"),
        (None, "is missing"),
        ("folder", "is a folder"),
        (Image.new("L", (50, 50), 255), "blank"),
        (Image.new("RGBA", (50, 50), (0, 0, 0, 0)), "blank"),
        (Image.new("L", (1, 1), 9), "blank"),
    ],
    ids=[
        "text",
        "empty",
        "header",
        "truncated",
        "program",
        "missing",
        "folder",
        "paper",
        "clear",
        "pixel",
    ],
)
def test_what_is_no_image_is_one_line(content: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, Image.Image):
        content.save(path)
    elif content == "truncated":
        drawn().save(path)
        path.write_bytes(path.read_bytes()[:-200])
    elif content == "folder":
        path.mkdir()
    with pytest.raises(Refusal, match=said) as refusal:
        convert(path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("side", [40, 50])  # within twice Pillow's limit, and beyond
def test_a_decompression_bomb_is_refused(
    side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, Image.new("L", (side, side)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(Refusal, match="more than 1,000 pixels"):
        convert(path)


def test_numbers_that_are_no_grey_levels_are_refused(tmp_path: Path) -> None:
    for values in (np.array([[0.0, 7.5]]), np.array([[0.0, np.nan]]), np.array([[-1.0, 1.0]])):
        path = saved(tmp_path, Image.fromarray(values.astype(np.float32)), "image.tif")
        with pytest.raises(Refusal, match="0 to 1 are allowed"):
            convert(path)
    path = saved(tmp_path, Image.fromarray(np.array([[0, 70_000]], np.int32)), "image.tif")
    with pytest.raises(Refusal, match="0 to 65535 are allowed"):
        convert(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(Refusal, match=r"pipe\.png is no file"):
        convert(tmp_path / "pipe.png")
