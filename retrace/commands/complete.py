"""Complete an image of one's own: convert it, hide a part, and let a run of params.yaml fill it in.

Not a stage of the pipeline: it reads the pipeline's checkpoints and writes where it is told to.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from retrace.data.conversion import Converted, convert, luminance, read_image
from retrace.data.masks import missing_pixels
from retrace.pipeline.artifacts import checkpoint_path, load_checkpoint, written_whole
from retrace.pipeline.command import Refusal, complain, one_line, run
from retrace.pipeline.params import GIVEN, Params, bind, find, load, refused
from retrace.problems.imputation.complete import Completion, complete
from retrace.report.pictures import BACKGROUND, INK, mosaic
from retrace.types import SIDE, BadInput

PROBLEM = "imputation"
PREFERRED = ("combined", "ridge")  # the default method: the first that params.yaml has
SCALE = 6  # screen pixels for each image pixel
PANEL = SCALE * SIDE
SHOWN_SAMPLES = 6
MARGIN, TEXT = 8, 13  # pixels

Panel = tuple[str, Image.Image]


def methods_of(params: Params) -> list[str]:
    """The short names of the imputation runs of params.yaml."""
    prefix = f"{PROBLEM}-"
    return [
        name.removeprefix(prefix)
        for name, entry in params.runs.items()
        if entry.problem == PROBLEM and name.startswith(prefix)
    ]


def mask_of(name: str, params: Params) -> NDArray[np.bool_]:
    """Which pixels (28, 28) of the converted image are hidden: by a pattern of params.yaml, or by
    the white pixels (luminance from 1/2 on) of an image file. That lies over the 28 x 28 pixels
    that the network sees, and is scaled to them. Refused when there is neither, or the file is not
    square, hides nothing or hides everything."""
    masks = params.masks
    if name in masks.patterns:
        hidden: NDArray[np.bool_] = missing_pixels(
            masks.patterns[name], count=1, seed=masks.seed + list(masks.patterns).index(name)
        )[0]
        return hidden
    path = Path(name)
    if not path.exists():
        raise Refusal(
            f"--mask {name}: allowed are {', '.join(masks.patterns)}, or an image file whose white "
            "pixels are hidden"
        )
    picture = read_image(path)
    width, height = picture.size
    if height != width:
        raise Refusal(
            f"--mask {name}: {width} x {height} pixels; a square is needed, since it lies over the "
            f"{SIDE} x {SIDE} pixels that the network sees"
        )
    picture = Image.fromarray(luminance(picture, path=path).astype(np.float32))
    hidden = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX)) >= 0.5
    if not hidden.any():
        raise Refusal(f"--mask {name}: no pixel is white, so that nothing is hidden")
    if hidden.all():
        raise Refusal(f"--mask {name}: all pixels are white; leave at least one known")
    return hidden


def completed_by(name: str, observed: NDArray[Any], params: Params) -> Completion:
    """Fill the missing pixels, NaN, of one image (28, 28) by an imputation run of params.yaml, by
    its short name. Refused when there is no such run, its network is not trained, or its method
    refuses the image."""
    known = methods_of(params)
    if name not in known:
        raise Refusal(f"--method {name}: allowed are {', '.join(known)}")
    where = f"runs.{PROBLEM}-{name}"
    entry = params.runs[f"{PROBLEM}-{name}"]
    method = find(f"methods.{PROBLEM}", entry.method, where=f"{where}.method").reconstruct
    settings = bind(method, entry.settings, where=f"{where}.settings", given=GIVEN)
    path = checkpoint_path(entry.network)
    if not path.exists():
        raise Refusal(f"{path} is missing; `dvc repro train@{entry.network}` makes it")
    network, _ = load_checkpoint(path)
    try:
        return complete(observed, method=method, network=network, **settings)
    except BadInput as error:
        raise refused(error, where=where, sections={"settings": settings}) from None


def draw(
    converted: Converted, observed: NDArray[Any], completion: Completion, *, title: str
) -> Image.Image:
    """The sheet: original, seen, given, completed, uncertainty; then plausible completions."""
    seen = converted.image / 255
    original = converted.original.copy()
    original.thumbnail((PANEL, PANEL))
    first: list[Panel] = [
        ("original file", original),
        ("what the network saw", _panel(seen)),
        ("hidden (blue)", _panel(observed)),
        ("completed", _panel(completion.image.numpy())),
    ]
    if completion.deviation is not None:
        deviation = completion.deviation.numpy()
        largest = float(deviation.max())
        first.append((f"uncertainty (white: {largest:.2f})", _panel(deviation / (largest or 1))))
    rows = [first]
    if completion.samples is not None:
        samples = completion.samples[:SHOWN_SAMPLES].numpy()
        rows.append([(f"plausible {i}", _panel(x)) for i, x in enumerate(samples, start=1)])
    return _laid_out(rows, title=title)


def _panel(image: NDArray[Any]) -> Image.Image:
    return Image.fromarray(mosaic([image[None]], scale=SCALE)[:PANEL, :PANEL])


def _laid_out(rows: Sequence[Sequence[Panel]], *, title: str) -> Image.Image:
    """Captioned panels in rows, under a title."""
    font = ImageFont.load_default(size=TEXT)
    line = TEXT + MARGIN
    columns = max(map(len, rows))
    width = MARGIN + columns * (PANEL + MARGIN)
    height = MARGIN + line + len(rows) * (line + PANEL + MARGIN)
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN), title, fill=INK, font=font)
    for i, panels in enumerate(rows):
        y = MARGIN + line + i * (line + PANEL + MARGIN)
        for j, (caption, picture) in enumerate(panels):
            x = MARGIN + j * (PANEL + MARGIN)
            pen.text((x, y), caption, fill=INK, font=font)
            left, top = (PANEL - picture.width) // 2, (PANEL - picture.height) // 2
            sheet.paste(picture, (x + left, y + line + top))
            # A white original on the white sheet has no edge of its own.
            pen.rectangle((x - 1, y + line - 1, x + PANEL, y + line + PANEL), outline=(190,) * 3)
    return sheet


def check_target(path: Path, *, sources: Sequence[Path], suffix: str) -> None:
    """Refuse what cannot be written before any work is done: a name that ends otherwise, one whose
    folder is missing or not writable, a folder, or one of the sources."""
    if path.suffix.lower() != suffix:
        raise Refusal(f"--out {path}: a name that ends in {suffix} is needed")
    if not path.parent.is_dir():
        raise Refusal(f"--out {path}: the folder {path.parent} is missing; make it first")
    if path.is_dir():
        raise Refusal(f"--out {path} is a folder; name a file")
    if not os.access(path.parent, os.W_OK):
        raise Refusal(f"--out {path}: the folder {path.parent} is not writable")
    if path.exists() and any(source.exists() and path.samefile(source) for source in sources):
        raise Refusal(f"--out {path} would overwrite what is read; name another file")


def write_picture(path: Path, picture: Image.Image) -> None:
    with written_whole(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)


def main(image: Path, mask: str, method: str | None, out: Path) -> None:
    """Convert an image file as MNIST was made, hide a part of it, complete it with a trained
    network, and draw what was given, seen, hidden and found."""
    params = load()
    names = methods_of(params)
    preferred = next((name for name in PREFERRED if name in names), "ridge")
    chosen = preferred if method is None else method
    check_target(out, sources=(image, Path(mask)), suffix=".png")
    small = out.with_name(f"{out.stem}_28x28.png")
    check_target(small, sources=(image, Path(mask)), suffix=".png")
    hidden = mask_of(mask, params)
    converted = convert(image)
    seen = converted.image.astype(np.float32) / 255
    observed = np.where(hidden, np.float32(np.nan), seen)
    completion = completed_by(chosen, observed, params)
    image_28 = completion.image.numpy()
    error = float(((image_28 - seen)[hidden] ** 2).mean())
    mask_name = one_line(Path(mask).name)  # a font draws no bytes that are no UTF-8
    title = f"mask {mask_name}, method {chosen}, mean squared error where hidden {error:.4f}"
    sheet = draw(converted, observed, completion, title=title)
    write_picture(small, Image.fromarray(np.rint(image_28 * 255).astype(np.uint8)))
    write_picture(out, sheet)
    steps = [
        "scaled to 20 x 20 and centred by mass in 28 x 28" if converted.framed else "kept 28 x 28",
        "inverted (it is dark on light)" if converted.inverted else "not inverted",
    ]
    print(f"{image}: {', '.join(steps)}")
    if converted.doubts:
        complain(f"{image}: look at what the network saw: {', '.join(converted.doubts)}")
    print(f"{title} ({int(hidden.sum())} of {hidden.size} pixels)")
    if completion.samples is None:
        print(f"{chosen} gives one completion, no further plausible ones")
    print(f"{out}: the sheet; {small}: the completed image")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", type=Path, metavar="IMAGE", help="any image file")
    parser.add_argument(
        "--mask",
        default="bottom",
        help="a name of masks.patterns in params.yaml, or a square image file whose white pixels "
        "are hidden (default: bottom)",
    )
    parser.add_argument(
        "--method",
        help="an imputation run of params.yaml by its short name, such as ridge "
        f"(default: {' or else '.join(PREFERRED)})",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("completed.png"),
        help="the sheet, a .png (default: completed.png)",
    )


if __name__ == "__main__":
    run(main, arguments=arguments)
