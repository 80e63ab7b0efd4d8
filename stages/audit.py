"""How many of some images can be identified from a classifier's weights: `sparse_span` on a file.

Not a stage of the pipeline: it takes a checkpoint and images of one's own and writes where it is
told to. The attack reads the weights alone. The images are compared with its candidates
afterwards, and so are as many that the classifier never saw: the null control.
"""

import argparse
import re
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import tqdm

from stages.artifacts import (
    FORMAT,
    dataset_of,
    load_checkpoint,
    read_arrays,
    read_split,
    split_path,
    write_json,
)
from stages.command import Refusal, run
from stages.complete import NoMemory, check_target, write_picture
from stages.methods.training_data import sparse_span
from stages.methods.training_data.row_differences import two_hidden_layers
from stages.params import GIVEN, Params, bind, load
from stages.pictures import scale_of, sheet, split_rows, stacked
from stages.score import means_with_intervals, score_training_data
from stages.scoring.identification import Truth, shown_pairs

PICKLES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")
DEFAULT = "sparse_span"  # short name of the run whose settings are taken
SHOWN, COLUMNS = 40, 10  # images on the sheet, and in a row of it
UNREAD = "only Linear layers, each a `.weight` and perhaps a `.bias`, and a `mean` are read"


class Plain(nn.Module):
    """A network of Linear layers with ReLU in between, as a file of tensors gives it.

    Attributes
    ----------
    layers : ModuleList of Linear
    mean : (d,)
        What the classifier subtracts from its input; 0 where the file has no `mean`.
    shape : tuple of int
        Of an image.
    """

    def __init__(self, tensors: dict[str, Tensor], *, shape: tuple[int, ...], path: Path) -> None:
        super().__init__()
        rest = dict(tensors)
        pixels = int(np.prod(shape))
        mean = rest.pop("mean", torch.zeros(pixels)).flatten().float()
        self.layers = nn.ModuleList()
        for key in sorted((key for key in tensors if key.endswith("weight")), key=_natural):
            weight = rest.pop(key)
            if weight.dim() != 2:
                kind = "a convolution" if weight.dim() in (3, 4, 5) else "no Linear layer"
                raise Refusal(f"{path}: {key} has shape {tuple(weight.shape)}, {kind}; {UNREAD}")
            bias = rest.pop(key.removesuffix("weight") + "bias", None)
            if bias is not None and bias.shape != weight.shape[:1]:
                raise Refusal(f"{path}: the bias of {key} has shape {tuple(bias.shape)}; {UNREAD}")
            # On `meta`: the file's own tensors are put in at once.
            outputs, inputs = weight.shape
            layer = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
            layer.weight = nn.Parameter(weight.float(), requires_grad=False)
            if bias is not None:
                layer.bias = nn.Parameter(bias.float(), requires_grad=False)
            self.layers.append(layer)
        if rest:
            raise Refusal(f"{path}: what {min(rest)} is cannot be read; {UNREAD}")
        linear = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        if not linear:
            raise Refusal(f"{path} holds no layer; {UNREAD}")
        for first, second in pairwise(linear):
            if first.out_features != second.in_features:
                raise Refusal(
                    f"{path}: layers of {first.out_features} outputs and {second.in_features} "
                    "inputs follow each other, in the order of their names; this is no chain"
                )
        if linear[0].in_features != pixels:
            raise Refusal(
                f"{path} takes {linear[0].in_features} values, the images of --data have {pixels}"
            )
        self.register_buffer("mean", mean)
        self.shape = shape


def _natural(key: str) -> list[tuple[int, str]]:
    """Layers 2 and 10 in this order."""
    return [(int(part or 0), rest) for part, rest in re.findall(r"(\d*)(\D*)", key)]


def read_network(path: Path, *, shape: tuple[int, ...]) -> tuple[nn.Module, str | None]:
    """The classifier of a checkpoint: one of the pipeline's, or any file of tensors.

    Parameters
    ----------
    path : Path
    shape : tuple of int
        Of the images that it was trained on.

    Returns
    -------
    network : Module
        With ``layers``, ``mean`` and ``shape``.
    dataset : str or None
        That it was trained on, where the file says so.

    Raises
    ------
    Refusal
        When it is missing, a pickle, no whole safetensors file, or no network that the attack
        covers: ReLU, two hidden layers, one output, a bias in the first layer only, finite weights.
    """
    try:
        with safe_open(path, framework="pt") as file:
            ours = FORMAT in (file.metadata() or {})
            tensors = {} if ours else {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise Refusal(f"{path} is missing; give a checkpoint") from None
    except (SafetensorError, IsADirectoryError) as error:
        if path.suffix.lower() in PICKLES:
            target = path.with_suffix(".safetensors").name
            raise Refusal(
                f"{path} is a pickle, which may run code when it is read, and is not read here. "
                'Convert it first: python -c "import torch, safetensors.torch as s; '
                f"s.save_file(torch.load('{path.name}', weights_only=True), '{target}')\""
            ) from None
        raise Refusal(f"{path} is not a whole safetensors file ({error})") from None
    if ours:
        network, header = load_checkpoint(path)
        dataset = str(header["dataset"])
        if getattr(network, "shape", shape) != shape:
            raise Refusal(f"{path} takes images of {network.shape}, those of --data have {shape}")
    else:
        network, dataset = Plain(tensors, shape=shape, path=path), None
    try:
        two_hidden_layers(network)
    except Refusal as refusal:
        raise Refusal(f"{path}: {refusal}") from None
    return network, dataset


def read_images(path: Path, *, option: str) -> dict[str, Tensor]:
    """Images of an .npy, or ``images`` and perhaps ``held_out`` of an .npz, in [0, 1].

    Returns
    -------
    dict of (n, *shape) float32

    Raises
    ------
    Refusal
        When the file cannot be read, has no images, or those are neither bytes nor in [0, 1].
    """
    where = f"{option} {path}"
    if not path.is_file():
        raise Refusal(f"{where}: there is no such file")
    if path.suffix == ".npy":
        try:
            arrays = {"images": np.load(path, allow_pickle=False)}
        except (ValueError, OSError, EOFError) as error:
            raise Refusal(f"{where}: not a readable .npy ({error!r:.120})") from None
    else:
        try:
            arrays = read_arrays(path)
        except Refusal as refusal:
            reason = str(refusal).partition("(")[2].rpartition(")")[0]
            raise Refusal(f"{where}: not a readable .npz ({reason})") from None
        if "images" not in arrays:
            raise Refusal(f"{where}: no array `images`; it holds {', '.join(arrays) or 'nothing'}")
    return {
        key: _pixels(arrays[key], where=f"{where}: {key}")
        for key in ("images", "held_out")
        if key in arrays
    }


def _pixels(array: NDArray[Any], *, where: str) -> Tensor:
    if array.ndim < 3 or not array.size:
        raise Refusal(f"{where} has shape {array.shape}; (n, rows, columns) is needed, n from 1 on")
    if array.dtype == np.uint8:
        return torch.from_numpy(array).float() / 255
    if array.dtype.kind != "f":
        raise Refusal(f"{where} holds {array.dtype}; bytes, or floats from 0 to 1, are allowed")
    if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
        raise Refusal(f"{where}: values from {array.min():g} to {array.max():g}; 0 to 1 is allowed")
    return torch.from_numpy(array.astype(np.float32))


def held_out_for(images: Tensor, given: Tensor | None, *, dataset: str | None) -> Tensor:
    """As many images that the classifier never saw, (n, *shape): the null control.

    Parameters
    ----------
    images : (n, *shape)
    given : (m, *shape) or None
        None takes the pipeline's validation images, which no network is trained on.
    dataset : str or None
        That the classifier was trained on, if known: others of its images must be held out.

    Raises
    ------
    Refusal
        When there are none, they have another shape, or fewer than n are not among the images.
    """
    if given is None:
        if not split_path("validation").exists():
            raise Refusal(
                "no held-out images: give --null FILE, or `held_out` in --data, or make the "
                "pipeline's with `dvc repro split`"
            )
        present = dataset_of(split_path("validation"))
        if dataset not in (None, present):
            raise Refusal(
                f"the classifier was trained on {dataset}, the pipeline's validation images are of "
                f"{present}: give --null FILE"
            )
        given, _ = read_split("validation")
    if given.shape[1:] != images.shape[1:]:
        raise Refusal(
            f"the held-out images have shape {tuple(given.shape[1:])}, the others "
            f"{tuple(images.shape[1:])}; give --null FILE with images of the same kind"
        )
    seen = {image.numpy().tobytes() for image in images}
    fresh = [i for i, image in enumerate(given) if image.numpy().tobytes() not in seen]
    if len(fresh) < len(images):
        raise Refusal(
            f"{len(fresh)} held-out images that are not in --data; {len(images)} are needed, as "
            "many as there are images"
        )
    return given[fresh[: len(images)]]


def settings_of(name: str, params: Params) -> dict[str, Any]:
    """Settings of a run of `sparse_span`, by its short name; public images are not used here.

    Raises
    ------
    Refusal
        When there is no such run.
    """
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


def audit(network: nn.Module, truth: Truth, settings: dict[str, Any], params: Params) -> Any:
    """Attack the weights, then compare.

    Parameters
    ----------
    network : Module
        See `read_network`.
    truth : Truth
        Only for the comparison.
    settings : dict
        Of `sparse_span.reconstruct`.

    Returns
    -------
    candidates : (K, *shape)
    scores : dict
        See `stages.score.score_training_data`; with ``n``, ``seconds``.
    """
    bar = tqdm(total=settings["rounds"], desc="attack", unit="round", disable=None)
    started = time.time()

    def progress(step: int, residual: Tensor, pool: Tensor) -> None:
        bar.update()

    nothing = truth.images[:0].unflatten(1, network.shape)
    answer = sparse_span.reconstruct(
        network,
        nothing,
        **settings,
        callback=progress,
        memory=NoMemory(),
    )
    bar.close()
    candidates = answer["estimate"] if isinstance(answer, dict) else answer
    seconds = time.time() - started
    scoring = params.scoring
    scores = score_training_data(
        candidates,
        truth,
        means=lambda values: means_with_intervals(
            values, resamples=scoring.resamples, seed=scoring.seed
        ),
    )
    return candidates, {"n": len(truth.images), "seconds": seconds, **scores}


def table(scores: dict[str, Any]) -> str:
    """What people read: counts of images, and of as many held-out ones."""
    lines = [f"{'correlation above':<28}{'images':>8}{'held-out':>10}"]
    for bar, count in scores["matched"].items():
        lines.append(f"{bar:<28}{count:>8}{scores['null_matched'][bar]:>10}")
    bar = f"{scores['threshold']:.3f} (identified)"
    lines.append(f"{bar:<28}{scores['identified']:>8}{scores['null_identified']:>10}")
    lines.append(f"of {scores['n']} each; {scores['candidates']} candidates")
    return "\n".join(lines)


def draw(candidates: Tensor, truth: Truth, *, threshold: float, title: str) -> Image.Image:
    """Identified images beside the candidates; where none is, the nearest pairs."""
    pairs = shown_pairs(candidates, truth, threshold=threshold, count=SHOWN)
    shape = tuple(candidates.shape[1:])
    found = candidates[pairs.candidates].numpy()
    originals = truth.images[pairs.images].unflatten(1, shape).numpy()
    if not len(found):  # no candidate at all
        found = originals = np.ones((1, *shape), np.float32)
    captions = [f"{value:.3f}" for value in pairs.values.tolist()]
    strips = zip(*(split_rows(x, columns=COLUMNS) for x in (found, originals)), strict=True)
    return stacked(
        [
            sheet(
                {"from the weights": above, "in --data": below},
                title=title if i == 0 else "",
                columns=(captions[i * COLUMNS :] + [""] * COLUMNS)[:COLUMNS],
                scale=scale_of(found),
            )
            for i, (above, below) in enumerate(strips)
        ]
    )


def main(checkpoint: Path, data: Path, null: Path | None, settings: str, out: Path) -> None:
    """Say how many of some images can be identified from a binary classifier's weights, beside as
    many held-out images; write the numbers (.json) and a sheet of the identified images (.png)."""
    params = load()
    chosen = settings_of(settings, params)
    picture = out.with_suffix(".png")
    for target, suffix in ((out, ".json"), (picture, ".png")):
        check_target(target, sources=(checkpoint, data), suffix=suffix)
    arrays = read_images(data, option="--data")
    images = arrays["images"]
    given = read_images(null, option="--null")["images"] if null else arrays.get("held_out")
    network, dataset = read_network(checkpoint, shape=tuple(images.shape[1:]))
    held_out = held_out_for(images, given, dataset=dataset)
    mean = network.get_buffer("mean")
    truth = Truth(
        images=images.flatten(1),
        held_out=held_out.flatten(1),
        # What all images share must not count as likeness, whether the classifier subtracts it
        # or not.
        mean=mean if bool(mean.any()) else held_out.flatten(1).mean(dim=0),
        coloured=False,
    )
    candidates, scores = audit(network, truth, chosen, params)
    title = (
        f"{checkpoint.name}: {scores['identified']} of {scores['n']} images identified, "
        f"{scores['null_identified']} held-out"
    )
    write_picture(picture, draw(candidates, truth, threshold=scores["threshold"], title=title))
    write_json(
        out, {"checkpoint": checkpoint.name, "data": data.name, "settings": chosen, **scores}
    )
    print(table(scores))
    print(f"{out}: the numbers; {picture}: the pictures")


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
        help=".npz with `images` (n, 28, 28), bytes or in [0, 1], and perhaps `held_out`; or .npy",
    )
    parser.add_argument(
        "--null",
        type=Path,
        metavar="FILE",
        help="held-out images of the same kind, at least as many (default: `held_out` of --data, "
        "or the pipeline's validation images)",
    )
    parser.add_argument(
        "--settings",
        default=DEFAULT,
        metavar="RUN",
        help=f"the sparse_span run of params.yaml whose settings are taken (default: {DEFAULT}; "
        "sparse_span_100 for 100 images, sparse_span_20 for 20)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("audit.json"), help="a .json; the sheet lies beside it"
    )


if __name__ == "__main__":
    run(main, arguments=arguments)
