"""Any image file becomes what MNIST's files hold, or is refused in a line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from stages.command import Refusal
from stages.conversion import convert

PAPER, PEN = 230, 20


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
