"""`retrace.audit` on files of one's own: a checkpoint and images.

Not a stage of the pipeline: it writes where it is told to.
"""

import argparse
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import tqdm

from retrace.commands.complete import check_target, write_picture
from retrace.measures.identification import shown_pairs
from retrace.measures.quality import means_with_intervals
from retrace.methods.training_data import sparse_span
from retrace.pipeline.artifacts import (
    FORMAT,
    dataset_of,
    load_checkpoint,
    read_arrays,
    split_path,
    write_json,
)
from retrace.pipeline.command import Refusal, run
from retrace.pipeline.params import GIVEN, Params, bind, load
from retrace.problems.training_data.audit import Audit, audit
from retrace.report.pictures import scale_of, sheet, split_rows, stacked
from retrace.types import BadInput

PICKLES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")
DEFAULT = "sparse_span"  # short name of the run whose settings are taken
SHOWN, COLUMNS = 40, 10  # images on the sheet, and in a row of it
FLOATS = ("BF16", "F16", "F32", "F64")  # as safetensors names the types of weights that are read
PART = re.compile(r"-(\d+)-of-(\d+)$")  # at the end of the name of a checkpoint in parts

Array = NDArray[Any]


def read_weights(path: Path) -> tuple[nn.Module | dict[str, Tensor], str | None]:
    """A checkpoint, one of the pipeline's or any file of tensors, and the dataset that it was
    trained on, where the file says so. Refused when it is missing, a pickle, in parts, no whole
    safetensors file, or its weights are no floats of 16 bits and more."""
    _refuse_parts(path)
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


def settings_of(name: str, params: Params) -> dict[str, Any]:
    """Settings of a run of `sparse_span`, by its short name; public images are not used here.
    Refused where there is no such run."""
    prefix = "training_data-"
    runs = {
        key.removeprefix(prefix): entry.settings
        for key, entry in params.runs.items()
        if entry.problem == "training_data" and entry.method == "sparse_span"
    }
    if name not in runs:
        raise Refusal(f"--settings {name}: allowed are {', '.join(runs) or 'none: add a run'}")
    where = f"runs.{prefix}{name}.settings"
    return {
        **bind(sparse_span.reconstruct, runs[name], where=where, given=GIVEN),
        "public_starts": 0,
    }


def draw(found: Audit, *, name: str) -> Image.Image:
    """Identified images beside the candidates; where none is, the nearest pairs."""
    scores, candidates, truth = found
    title = (
        f"{name}: {scores['identified']} of {scores['n']} images identified, "
        f"{scores['null_identified']} of {scores['null_n']:,} held-out"
    )
    pairs = shown_pairs(candidates, truth, threshold=scores["threshold"], count=SHOWN)
    shape = tuple(candidates.shape[1:])
    shown = candidates[pairs.candidates].numpy()
    originals = truth.images[pairs.images].unflatten(1, shape).numpy()
    if not len(shown):  # no candidate at all
        shown = originals = np.ones((1, *shape), np.float32)
    captions = [f"{value:.3f}" for value in pairs.values.tolist()]
    strips = zip(*(split_rows(x, columns=COLUMNS) for x in (shown, originals)), strict=True)
    return stacked(
        [
            sheet(
                {"from the weights": above, "in --data": below},
                title=title if i == 0 else "",
                columns=(captions[i * COLUMNS :] + [""] * COLUMNS)[:COLUMNS],
                scale=scale_of(shown),
            )
            for i, (above, below) in enumerate(strips)
        ]
    )


def main(checkpoint: Path, data: Path, null: Path | None, settings: str, out: Path) -> None:
    """Say how many of some images can be identified from a binary classifier's weights, beside
    held-out images; write the numbers (.json) and a sheet of the identified images (.png)."""
    params = load()
    chosen = settings_of(settings, params)
    picture = out.with_suffix(".png")
    sources = [path for path in (checkpoint, data, null) if path]
    for target, suffix in ((out, ".json"), (picture, ".png")):
        check_target(target, sources=sources, suffix=suffix)
    arrays = read_images(data, option="--data")
    given = read_images(null, option="--null")["images"] if null else arrays.get("held_out")
    weights, dataset = read_weights(checkpoint)
    held_out = validation_images(dataset) if given is None else given
    scoring = params.scoring
    with tqdm(total=chosen["rounds"], desc="attack", unit="round", disable=None, delay=1) as bar:

        def progress(step: int, residual: Tensor, pool: Tensor) -> None:
            bar.update()

        try:
            found = audit(
                weights,
                arrays["images"],
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
                "images": f"--data {data}: images",
                "held_out": f"--null {null}" if null else "the null (--null or `held_out`)",
            }
            name = re.match(r"\w*", str(error))
            word = name[0] if name else ""
            raise Refusal(files.get(word, word) + str(error).removeprefix(word)) from None
    # The numbers first: nothing that goes wrong with a picture loses them.
    write_json(
        out,
        {
            "checkpoint": checkpoint.name,
            "data": data.name,
            "null": null.name if null else data.name if given is not None else "validation",
            "settings": chosen,
            **found.scores,
        },
    )
    print(found)
    print(f"{out}: the numbers")
    write_picture(picture, draw(found, name=checkpoint.name))
    print(f"{picture}: the pictures")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="a checkpoint of the pipeline (models/*.safetensors), or any safetensors file of a "
        "ReLU network: two hidden layers, one output, a bias in the first layer only",
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="FILE",
        help=".npz with `images`, bytes or in [0, 1], and perhaps `held_out`; or .npy: "
        "(n, 28, 28), also with one channel, or (n, 784); colours (n, 3, rows, columns)",
    )
    parser.add_argument(
        "--null",
        type=Path,
        metavar="FILE",
        help="held-out images of the same kind, all there are (default: `held_out` of --data, or "
        "the pipeline's validation images); 100 and more, to claim 1%%",
    )
    parser.add_argument(
        "--settings",
        default=DEFAULT,
        metavar="RUN",
        help=f"the sparse_span run of params.yaml whose settings are taken (default: {DEFAULT}; "
        "sparse_span_100 for 100 images, sparse_span_20 for 20)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("audit.json"),
        help="a .json; the sheet lies beside it (default: audit.json)",
    )


if __name__ == "__main__":
    run(main, arguments=arguments)
