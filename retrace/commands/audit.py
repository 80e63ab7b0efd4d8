"""`retrace.audit` on files of one's own: a checkpoint, and perhaps images.

Not a stage of the pipeline: it writes where it is told to.
"""

import argparse
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import tqdm

from retrace.commands.complete import check_target, write_picture
from retrace.data.conversion import convert, read_image
from retrace.measures.identification import shown_pairs
from retrace.measures.quality import means_with_intervals
from retrace.pipeline.artifacts import (
    FORMAT,
    dataset_of,
    load_checkpoint,
    read_arrays,
    split_path,
    write_arrays,
    write_json,
)
from retrace.pipeline.command import Refusal, run
from retrace.pipeline.params import Params, load
from retrace.problems.training_data.audit import Audit, attack_on, audit_of
from retrace.problems.training_data.plain import network_of
from retrace.report.pictures import scale_of, sheet, split_rows, stacked
from retrace.types import BadInput

PICKLES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")
ARCHITECTURES = ("linear",)
ACTIVATIONS = ("relu", "leaky_relu", "gelu", "tanh")  # a copy: help imports nothing heavy
STANDS_OUT = 0.05  # cosine of two first layers: of independent ones about 0.002
SMALL = 64  # pixels of a side, up to which colours are taken as they are
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
SHOWN, COLUMNS = 40, 10  # images on the sheet, and in a row of it
FLOATS = ("BF16", "F16", "F32", "F64")  # as safetensors names the types of weights that are read
PART = re.compile(r"-(\d+)-of-(\d+)$")  # at the end of the name of a checkpoint in parts

Array = NDArray[Any]


def read_weights(path: Path) -> tuple[nn.Module | dict[str, Tensor], str | None]:
    """A checkpoint, one of the pipeline's or any file of tensors, and the dataset that it was
    trained on, where the file says so. Refused when it is missing, a pickle, in parts, no whole
    safetensors file, or its weights are no floats of 16 bits and more."""
    _refuse_parts(path)
    if path.is_dir():
        raise Refusal(f"{path} is a folder; give a checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            for key in sorted(file.keys()):
                kind = file.get_slice(key).get_dtype()
                if kind not in FLOATS:
                    raise Refusal(
                        f"{path}: {key} holds {kind}; weights in {', '.join(FLOATS)} are read: put "
                        "quantised ones back into floats first, with their scales"
                    )
            ours = FORMAT in (file.metadata() or {})
            tensors = {} if ours else {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise Refusal(f"{path} is missing; give a checkpoint") from None
    except (SafetensorError, OSError) as error:
        if path.suffix.lower() in PICKLES:
            target = path.with_suffix(".safetensors").name
            raise Refusal(
                f"{path} is a pickle, which may run code when it is read, and is not read here. "
                'Convert it first: python -c "import torch, safetensors.torch as s; '
                f"s.save_file(torch.load('{path.name}', weights_only=True), '{target}')\""
            ) from None
        raise Refusal(f"{path} is not a whole safetensors file ({error})") from None
    if not ours:
        return tensors, None
    network, header = load_checkpoint(path)
    return network, str(header["dataset"])


def _refuse_parts(path: Path) -> None:
    """Refuse the index of a checkpoint in parts, or one of the parts, and say how to merge them."""
    part = PART.search(path.stem)
    if part and int(part[2]) > 1:
        raise Refusal(
            f"{path} is part {int(part[1])} of {int(part[2])} of a checkpoint: give its index, "
            f"{PART.sub('', path.stem)}{path.suffix}.index.json, to read how to merge them"
        )
    if path.suffix != ".json" or not path.is_file():
        return
    try:
        names = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return  # no index: what it is not is said where it is read
    pickled = not all(str(name).endswith(".safetensors") for name in names)
    load_part = "torch.load(f, weights_only=True)" if pickled else "s.load_file(f)"
    target = f"{path.name.split('.')[0]}.safetensors"
    raise Refusal(
        f"{path} is the index of a checkpoint in parts, {len(names)} here. Merge them first, in "
        'their folder: python -c "import json, pathlib, torch, safetensors.torch as s; '
        f"m = json.loads(pathlib.Path('{path.name}').read_text())['weight_map']; "
        f"s.save_file({{k: v for f in set(m.values()) for k, v in {load_part}.items()}}, "
        f"'{target}')\""
    )


def read_images(path: Path, *, option: str) -> dict[str, Array]:
    """The array of an .npy as ``images``, or ``images`` and perhaps ``held_out`` of an .npz;
    refused where the file cannot be read or has no images."""
    where = f"{option} {path}"
    if not path.is_file():
        raise Refusal(f"{where}: there is no such file")
    if path.suffix.lower() in PICTURES:
        return {"images": image_in(path)}
    if path.suffix.lower() == ".npy":
        try:
            # Mapped, so that a header cannot have more memory taken than the file has.
            return {"images": np.array(np.lib.format.open_memmap(path, mode="r"))}
        except (ValueError, OSError, EOFError) as error:
            raise Refusal(f"{where}: not a readable .npy ({error!r:.120})") from None
    try:
        arrays = read_arrays(path)
    except Refusal as refusal:
        reason = str(refusal).partition("(")[2].rpartition(")")[0]
        raise Refusal(f"{where}: not a readable .npz ({reason})") from None
    if "images" not in arrays:
        raise Refusal(f"{where}: no array `images`; it holds {', '.join(arrays) or 'nothing'}")
    return arrays


def validation_images(dataset: str | None) -> Array:
    """The pipeline's validation images (m, 28, 28), which no network is trained on; refused where
    there are none, or they are of another dataset than the classifier's, where that is known."""
    path = split_path("validation")
    if not path.exists():
        raise Refusal(
            "no held-out images: give --null FILE, or `held_out` in --data, or make the "
            "pipeline's with `dvc repro split`"
        )
    present = dataset_of(path)
    if dataset not in (None, present):
        raise Refusal(
            f"the classifier was trained on {dataset}, the pipeline's validation images are of "
            f"{present}: give --null FILE"
        )
    return read_arrays(path, only=("images",))["images"]


def settings_of(name: str | None, params: Params, *, attack: str) -> dict[str, Any]:
    """Settings of a run of an attack, by its short name; without a name those of the run that is
    called like the attack, if there is one, else its defaults. Refused where there is no such
    run."""
    prefix = "training_data-"
    runs = {
        key.removeprefix(prefix): entry.settings
        for key, entry in params.runs.items()
        if entry.problem == "training_data" and entry.method == attack
    }
    if name is None:
        return runs.get(attack, {})
    if name not in runs:
        allowed = ", ".join(runs) or "none: leave it out"
        raise Refusal(
            f"--settings {name}: on this network the attack is {attack}; allowed are {allowed}"
        )
    return runs[name]


def image_in(path: Path) -> Array:
    """An image file as an array of one image: of 28 x 28 pixels as MNIST was made (see `retrace
    complete`) where it is grey or of another size; small colours as they are, channels first."""
    picture = read_image(path)
    if picture.mode in ("RGB", "RGBA") and max(picture.size) <= SMALL and picture.size != (28, 28):
        return np.asarray(picture.convert("RGB")).transpose(2, 0, 1)[None]
    return convert(path).image[None]


def seed_start(first: Tensor, seeds: str, architecture: str | None) -> tuple[Tensor, Tensor]:
    """Weights and bias of the layer that PyTorch draws first after the seed of a range, FIRST:LAST,
    that resembles the network's first (n_1, d) most. Refused where none stands out."""
    if architecture is None:
        raise Refusal(
            f"--seed-range {seeds}: --architecture is missing, which says how the layers are drawn "
            f"after the seed; allowed are {', '.join(ARCHITECTURES)}"
        )
    bounds = re.fullmatch(r"(\d{1,9}):(\d{1,9})", seeds)
    if not bounds or int(bounds[1]) >= int(bounds[2]):
        raise Refusal(f"--seed-range {seeds}: FIRST:LAST is needed, as 0:1000, the last left out")
    wanted = nn.functional.normalize(first.detach().flatten(), dim=0)
    cosines: dict[int, float] = {}
    best = -1.0
    for seed in tqdm(range(int(bounds[1]), int(bounds[2])), desc="seeds", disable=None):
        torch.manual_seed(seed)
        drawn = nn.Linear(first.shape[1], first.shape[0])
        with torch.no_grad():
            cosine = float(nn.functional.normalize(drawn.weight.flatten(), dim=0) @ wanted)
        cosines[seed] = cosine
        if cosine > best:
            best, start = cosine, (drawn.weight.detach(), drawn.bias.detach())
    (seed, highest), *others = sorted(cosines.items(), key=lambda item: -item[1])
    second = others[0][1] if others else 0.0
    if highest < STANDS_OUT:
        raise Refusal(
            f"--seed-range {seeds}: none stands out; seed {seed} comes nearest, with a cosine of "
            f"{highest:.3f} to the first layer: the start is another one, or decay has left none"
        )
    print(f"seed {seed}: cosine {highest:.3f} to the first layer, the next {second:.3f}")
    return start


def draw(found: Audit, *, name: str) -> Image.Image:
    """Identified images beside the candidates; where none is, the nearest pairs; without images to
    compare them with, the candidates alone, with their residuals."""
    scores, candidates = found.scores, found.candidates
    shape = tuple(candidates.shape[1:])
    if found.truth is None:
        title = f"{name}: {len(candidates)} candidates"
        title += f", {scores['certified']} certified" if "certified" in scores else ""
        values = found.residual[:SHOWN].tolist()
        rows = {"from the weights": candidates[:SHOWN].numpy()}
    else:
        title = (
            f"{name}: {scores['identified']} of {scores['n']} images identified, "
            f"{scores['null_identified']} of {scores['null_n']:,} held-out"
        )
        pairs = shown_pairs(candidates, found.truth, threshold=scores["threshold"], count=SHOWN)
        originals = found.truth.images[pairs.images].unflatten(1, shape).numpy()
        values = pairs.values.tolist()
        rows = {"from the weights": candidates[pairs.candidates].numpy(), "in --data": originals}
    if not values:  # no candidate at all
        rows = {label: np.ones((1, *shape), np.float32) for label in rows}
    captions = [f"{value:.3f}" for value in values]
    strips = zip(*(split_rows(x, columns=COLUMNS) for x in rows.values()), strict=True)
    return stacked(
        [
            sheet(
                dict(zip(rows, strip, strict=True)),
                title=title if i == 0 else "",
                columns=(captions[i * COLUMNS :] + [""] * COLUMNS)[:COLUMNS],
                scale=scale_of(strip[0]),
            )
            for i, strip in enumerate(strips)
        ]
    )


def main(
    checkpoint: Path,
    data: Path | None,
    null: Path | None,
    settings: str | None,
    out: Path,
    start: Path | None = None,
    seed_range: str | None = None,
    architecture: str | None = None,
    mean: list[float] | None = None,
    deviation: list[float] | None = None,
    activation: str | None = None,
    shape: list[int] | None = None,
) -> None:
    """Say what a network's weights give away: candidates for its training images and, with --data,
    which of those images are among them and which are told as members, beside held-out images.
    Write the numbers (.json), the candidates (.npz) and a sheet of them (.png)."""
    params = load()
    picture, arrays_out = out.with_suffix(".png"), out.with_suffix(".npz")
    sources = [path for path in (checkpoint, data, null, start) if path]
    for target, suffix in ((out, ".json"), (picture, ".png"), (arrays_out, ".npz")):
        check_target(target, sources=sources, suffix=suffix)
    if seed_range and start:
        raise Refusal("--seed-range and --start: only one is possible")
    if architecture and not seed_range:
        raise Refusal(f"--architecture {architecture}: says how --seed-range draws; give that too")
    if shape and min(shape) < 1:
        raise Refusal(f"--shape {' '.join(map(str, shape))}: numbers from 1 on are needed")
    arrays = read_images(data, option="--data") if data else {}
    given = read_images(null, option="--null")["images"] if null else arrays.get("held_out")
    weights, dataset = read_weights(checkpoint)
    held_out = validation_images(dataset) if given is None and data else given
    size = tuple(arrays["images"].shape[1:]) if data else tuple(shape or ())
    before = read_weights(start)[0] if start else None
    scoring = params.scoring
    try:
        network = network_of(
            weights,
            shape=size,
            start=before,
            mean=mean,
            deviation=deviation,
            activation=activation,
        )
        if seed_range:
            first = network.get_parameter("layers.0.weight")
            network.take_start(*seed_start(first, seed_range, architecture))
        attack = attack_on(network).__name__.rpartition(".")[2]
        chosen = settings_of(settings, params, attack=attack)
        total = chosen.get("rounds")
        with tqdm(total=total, desc="attack", unit="round", disable=None, delay=1) as bar:

            def progress(step: int, residual: Tensor, pool: Tensor) -> None:
                bar.update()

            found = audit_of(
                network,
                arrays.get("images"),
                held_out,
                distinct_null=given is None,
                means=partial(means_with_intervals, resamples=scoring.resamples, seed=scoring.seed),
                callback=progress,
                **chosen,
            )
    except BadInput as error:
        # The argument's name becomes that of the file or the option.
        files = {
            "weights": str(checkpoint),
            "images": f"--data {data}: images" if data else "--shape",
            "held_out": f"--null {null}" if null else "the null (--null or `held_out`)",
            "start": f"--start {start}" if start else "--seed-range",
            **{name: f"--{name}" for name in ("mean", "deviation", "activation")},
        }
        name = re.match(r"\w*", str(error))
        word = name[0] if name else ""
        raise Refusal(files.get(word, word) + str(error).removeprefix(word)) from None
    source = null or (data if given is not None else None)
    # The numbers first: nothing that goes wrong with a picture loses them.
    write_json(
        out,
        {
            "checkpoint": checkpoint.name,
            "data": data.name if data else None,
            "null": source.name if source else "validation",
            **found.scores,
        },
    )
    write_arrays(
        arrays_out, {"images": found.candidates.numpy(), "residual": found.residual.numpy()}
    )
    print(found)
    print(f"{out}: the numbers")
    print(f"{arrays_out}: the candidates, `images` and `residual`")
    write_picture(picture, draw(found, name=checkpoint.name))
    print(f"{picture}: the pictures")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="a safetensors file of a chain of Linear layers: a state dict of your own, or a "
        "checkpoint of the pipeline (models/*.safetensors)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="images of which some may be training images: .npz with `images`, bytes or in [0, 1], "
        "and perhaps `held_out`; .npy: (n, 28, 28), also with one channel, or (n, 784), colours "
        "(n, 3, rows, columns); or one image file. Without it, the candidates are only shown",
    )
    parser.add_argument(
        "--null",
        type=Path,
        metavar="FILE",
        help="held-out images of the same kind, all there are (default: `held_out` of --data, or "
        "the pipeline's validation images); 100 and more, to claim 1%%",
    )
    parser.add_argument(
        "--start",
        type=Path,
        metavar="CHECKPOINT",
        help="the network before it was trained further, as a public model that was fine-tuned",
    )
    parser.add_argument(
        "--seed-range",
        metavar="FIRST:LAST",
        help="try these seeds for the start; needs --architecture",
    )
    parser.add_argument(
        "--architecture",
        choices=ARCHITECTURES,
        help="how the layers are drawn after the seed: linear, PyTorch's nn.Linear, first layer "
        "first",
    )
    for name in ("mean", "deviation"):
        parser.add_argument(
            f"--{name}",
            type=float,
            nargs="+",
            metavar="NUMBER",
            help=f"{name} of the input's normalisation, one or one for each channel, where the "
            "file does not say it",
        )
    parser.add_argument(
        "--activation",
        choices=ACTIVATIONS,
        help="between the layers, where the file does not say it (default: relu)",
    )
    parser.add_argument(
        "--shape",
        type=int,
        nargs="+",
        metavar="SIZE",
        help="of an image, rows and columns or channels, rows and columns, where there is no "
        "--data and it is no square",
    )
    parser.add_argument(
        "--settings",
        metavar="RUN",
        help="the run of params.yaml whose settings are taken (default: those of the attack; "
        "sparse_span_100, sparse_span_20 for a binary classifier of so many images)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("audit.json"),
        help="a .json; candidates (.npz) and sheet (.png) lie beside it (default: audit.json)",
    )


if __name__ == "__main__":
    run(main, arguments=arguments)
