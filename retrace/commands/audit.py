"""How many of some images can be identified from a classifier's weights: `sparse_span` on a file.

Not a stage of the pipeline: it takes a checkpoint and images of one's own and writes where it is
told to. The attack reads the weights alone. The images are compared with its candidates
afterwards, and so are images that the classifier never saw, as many as there are: the null. What of
the null nearly equals one of the images is taken out and named.
"""

import argparse
import json
import math
import re
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import tqdm

from retrace.commands.complete import NoMemory, check_target, write_picture
from retrace.measures.identification import (
    ENOUGH,
    THRESHOLDS,
    UNMATCHED,
    Duplicates,
    Truth,
    near_duplicates,
    null_matching,
    shown_pairs,
)
from retrace.methods.training_data import sparse_span
from retrace.methods.training_data.row_differences import two_hidden_layers
from retrace.pipeline.artifacts import (
    FORMAT,
    dataset_of,
    load_checkpoint,
    read_arrays,
    read_split,
    split_path,
    write_json,
)
from retrace.pipeline.command import Refusal, run
from retrace.pipeline.params import GIVEN, Params, bind, load
from retrace.problems.score import means_with_intervals, score_training_data
from retrace.report.pictures import scale_of, sheet, split_rows, stacked

PICKLES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")
DEFAULT = "sparse_span"  # short name of the run whose settings are taken
SHOWN, COLUMNS = 40, 10  # images on the sheet, and in a row of it
NAMED = 5  # images in a printed line; the .json names all
FLOATS = ("BF16", "F16", "F32", "F64")  # as safetensors names the types of weights that are read
PART = re.compile(r"-(\d+)-of-(\d+)$")  # at the end of the name of a checkpoint in parts
DARKEST = 0.01  # largest value of images that can be in [0, 1]: five steps of 255 and more
CONTRASTS = 3.0  # ratio of the contrasts of images and held-out ones of the same kind, at most
INVERTED = -0.5  # correlation of the mean image of both, at least
UNREAD = "only Linear layers, each a `.weight` and perhaps a `.bias`, and a `mean` are read"


class Plain(nn.Module):
    """A network of Linear layers with ReLU in between, as a file of tensors gives it.

    Attributes
    ----------
    layers : ModuleList of Linear
    mean : (d,)
        What the classifier subtracts from its input; 0 where the file has no `mean`.
    shape : tuple of int
        Of an image: see `image_shape`.
    """

    def __init__(self, tensors: dict[str, Tensor], *, shape: tuple[int, ...], path: Path) -> None:
        super().__init__()
        rest = dict(tensors)
        mean = rest.pop("mean", None)
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
        inputs = linear[0].in_features
        self.register_buffer(
            "mean", torch.zeros(inputs) if mean is None else mean.flatten().float()
        )
        self.shape = image_shape(shape, inputs=inputs, path=path)


def image_shape(
    given: tuple[int, ...],
    *,
    inputs: int,
    wanted: tuple[int, ...] = (),
    path: Path,
    where: str = "--data",
) -> tuple[int, ...]:
    """The shape in which a network sees images of a file, whose pixels keep their order.

    Parameters
    ----------
    given : tuple of int
        Of an image in the file. An axis of one channel, first or last, and a row of all pixels are
        unambiguous.
    inputs : int
        Values that the network takes.
    wanted : tuple of int, optional
        What the network says of the shape. Without it, a row of pixels is taken for a square.
    path, where
        Of the network and of the images, for the message.

    Returns
    -------
    tuple of int
        (rows, columns) or (3, rows, columns).

    Raises
    ------
    Refusal
        When the images have another shape; also of colours last, since the order of the pixels
        would be another one, and of other channels than one or three.
    """
    if len(wanted) == 3 and wanted[0] == 1:
        wanted = wanted[1:]
    side = math.isqrt(inputs)
    usual = wanted or ((side, side) if side**2 == inputs else ())
    bare = tuple(size for size in given if size != 1)
    shape = usual if bare == (inputs,) else bare
    if wanted:
        fits = shape in (wanted, tuple(size for size in wanted if size != 1))
    else:
        fits = len(shape) == 2 or (len(shape) == 3 and shape[0] == 3)
    if not fits or math.prod(shape) != inputs:
        if len(usual) == 2:
            size = f"{usual[0]}, {usual[1]}"
            allowed = f"(n, {size}), (n, 1, {size}), (n, {size}, 1) or (n, {inputs})"
        elif usual:
            allowed = f"(n, {', '.join(map(str, usual))}) or (n, {inputs})"
        else:
            allowed = "(n, rows, columns), or (n, 3, rows, columns) of colours, of so many values"
        shown = ", ".join(map(str, given))
        raise Refusal(
            f"{where} has images of shape (n, {shown}), {math.prod(given)} values each; {path} "
            f"takes {inputs}: allowed are {allowed}"
        )
    return wanted or shape


def _natural(key: str) -> list[tuple[int, str]]:
    """Layers 2 and 10 in this order."""
    return [(int(part or 0), rest) for part, rest in re.findall(r"(\d*)(\D*)", key)]


def read_network(path: Path, *, shape: tuple[int, ...]) -> tuple[nn.Module, str | None]:
    """The classifier of a checkpoint: one of the pipeline's, or any file of tensors.

    Parameters
    ----------
    path : Path
    shape : tuple of int
        Of an image in the file of --data: see `image_shape`.

    Returns
    -------
    network : Module
        With ``layers``, ``mean`` and ``shape``.
    dataset : str or None
        That it was trained on, where the file says so.

    Raises
    ------
    Refusal
        When it is missing, a pickle, in parts, no whole safetensors file, or no network that the
        attack covers: ReLU, two hidden layers, one output, a bias in the first layer only, finite
        weights in floats of 16 bits and more, images of that shape.
    """
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
    if ours:
        network, header = load_checkpoint(path)
        network, dataset = network.float(), str(header["dataset"])
    else:
        network, dataset = Plain(tensors, shape=shape, path=path), None
    try:
        two_hidden_layers(network)
    except Refusal as refusal:
        raise Refusal(f"{path}: {refusal}") from None
    wanted: tuple[int, ...] = network.shape  # type: ignore[assignment]
    fitting = image_shape(shape, inputs=math.prod(wanted), wanted=wanted, path=path)
    network.shape = fitting  # type: ignore[assignment]
    return network, dataset


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


def read_images(path: Path, *, option: str) -> dict[str, Tensor]:
    """Images of an .npy, or ``images`` and perhaps ``held_out`` of an .npz, in [0, 1].

    Returns
    -------
    dict of (n, ...) float32
        In the file's own shape: see `image_shape`.

    Raises
    ------
    Refusal
        When the file cannot be read, has no images, or those are neither bytes nor in [0, 1], or
        so dark that they must have been scaled otherwise.
    """
    where = f"{option} {path}"
    if not path.is_file():
        raise Refusal(f"{where}: there is no such file")
    if path.suffix.lower() == ".npy":
        try:
            # Mapped, so that a header cannot have more memory taken than the file has.
            arrays = {"images": np.array(np.lib.format.open_memmap(path, mode="r"))}
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
    if array.ndim < 2 or not array.size:
        raise Refusal(f"{where} has shape {array.shape}; (n, rows, columns) is needed, n from 1 on")
    if array.dtype.kind != "f" and array.dtype != np.uint8:
        raise Refusal(f"{where} holds {array.dtype}; bytes, or floats from 0 to 1, are allowed")
    largest = 255 if array.dtype == np.uint8 else 1
    if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= largest):
        raise Refusal(f"{where}: values from {array.min():g} to {array.max():g}; 0 to 1 is allowed")
    if array.max() < DARKEST * largest:
        raise Refusal(
            f"{where}: no value is above {array.max():g}, nearly black where {largest} is white; "
            "bytes from 0 to 255, or floats from 0 to 1, are needed"
        )
    return torch.from_numpy(array.astype(np.float32)) / largest


def held_out_for(
    images: Tensor, given: Tensor | None, *, dataset: str | None, path: Path
) -> Tensor:
    """Images that the classifier never saw, all there are, (m, *shape): the null.

    Parameters
    ----------
    images : (n, *shape)
    given : (m, ...) or None
        None takes the pipeline's validation images, which no network is trained on.
    dataset : str or None
        That the classifier was trained on, if known: others of its images must be held out.
    path : Path
        Of the classifier, for the message.

    Raises
    ------
    Refusal
        When there are none, or they are of another kind: shape, contrast, or inverted.
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
    shape = tuple(images.shape[1:])
    image_shape(
        tuple(given.shape[1:]),
        inputs=math.prod(shape),
        wanted=shape,
        path=path,
        where="the null (--null or `held_out`)",
    )
    held_out = given.reshape(-1, *shape)
    contrasts = [float(part.flatten(1).std(dim=1).median()) for part in (images, held_out)]
    if max(contrasts) > CONTRASTS * min(contrasts):
        raise Refusal(
            f"the held-out images have a contrast (standard deviation of the pixels) of "
            f"{contrasts[1]:.3f}, the images {contrasts[0]:.3f}: they are not scaled alike; give "
            "--null FILE with images of the same kind"
        )
    means = torch.stack([part.flatten(1).mean(dim=0) for part in (images, held_out)])
    if float(torch.corrcoef(means)[0, 1]) < INVERTED:
        raise Refusal(
            "the held-out images are light where the images are dark: inverted, it seems; give "
            "--null FILE with images of the same kind"
        )
    return held_out


class Compared(NamedTuple):
    """What the candidates are compared with, and what was taken out of it.

    Attributes
    ----------
    truth : Truth
    positions : (m,) int64
        Of the held-out images in their file, from 0 on.
    removed : dict of list of dict
        ``image_repeats``, ``null_removed`` and ``null_repeats``: positions in the files and the
        correlation of the two.
    """

    truth: Truth
    positions: Tensor
    removed: dict[str, list[dict[str, Any]]]


def compared(images: Tensor, held_out: Tensor, *, mean: Tensor, own_null: bool) -> Compared:
    """Take out what is there twice: every picture counts once, and none on both sides.

    Of images that repeat each other the weights hold one, and a candidate is matched to one, so
    that the copies would count as safe. A held-out image that nearly equals an image would count
    as matched though the classifier saw it, and copies of held-out images would make the null look
    larger than it is.

    Parameters
    ----------
    images : (n, *shape)
    held_out : (m, *shape)
    mean : (d,)
        Of the network; 0 where it subtracts none.
    own_null : bool
        Whether the held-out images were given: only those are searched for copies of each other.

    Raises
    ------
    Refusal
        When no held-out image is left.
    """
    shape = tuple(images.shape[1:])
    flat, null = images.flatten(1), held_out.flatten(1)
    kept, image_repeats = _once(near_duplicates(flat, shape=shape), "image", "repeats")
    flat = flat[kept]
    fresh, null_removed = _once(near_duplicates(flat, null, shape=shape), "held_out", "image", kept)
    if not len(fresh):
        raise Refusal(
            f"each of the {len(null)} held-out images nearly equals an image of --data: give "
            "--null FILE with images that the classifier never saw"
        )
    null_repeats: list[dict[str, Any]] = []
    if own_null:
        repeats = near_duplicates(null[fresh], shape=shape)
        first, null_repeats = _once(repeats, "held_out", "repeats", fresh, fresh)
        fresh = fresh[first]
    null = null[fresh]
    truth = Truth(
        images=flat,
        held_out=null,
        # What all images share must not count as likeness, whether the classifier subtracts it
        # or not; of both, so that neither is nearer to it.
        mean=mean if bool(mean.any()) else torch.cat([flat, null]).mean(dim=0),
        coloured=False,
        null_duplicates=len(null_removed),
    )
    removed = {
        "image_repeats": image_repeats,
        "null_removed": null_removed,
        "null_repeats": null_repeats,
    }
    return Compared(truth, fresh, removed)


def _once(
    found: Duplicates,
    key: str,
    other: str,
    others: Tensor | None = None,
    own: Tensor | None = None,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Positions of what is no duplicate, and the duplicates, each with what it equals.

    Parameters
    ----------
    found : Duplicates
    key, other : str
        Names of the two positions in the entries.
    others, own : (m,) int64, optional
        Positions in their files of what was compared; without them all of a file was.
    """
    copies = torch.nonzero(found.of != UNMATCHED).flatten()
    entries = [
        {
            key: int(i if own is None else own[i]),
            other: int(found.of[i] if others is None else others[found.of[i]]),
            "correlation": round(min(float(found.values[i]), 1.0), 4),
        }
        for i in copies
    ]
    return torch.nonzero(found.of == UNMATCHED).flatten(), entries


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
        See `retrace.problems.score.score_training_data`; with ``n``, ``seconds``.
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
    """What people read: counts of images and of held-out ones, each of how many."""
    n, m = scores["n"], scores["null_n"]
    rows = [("correlation above", "images", "held-out")]
    rows += [
        (bar, f"{count} of {n:,}", f"{scores['null_matched'][bar]} of {m:,}")
        for bar, count in scores["matched"].items()
    ]
    identified, null = (f"{scores[key]:,} of" for key in ("identified", "null_identified"))
    rows.append((f"{scores['threshold']:.3f} (identified)", f"{identified} {n:,}", f"{null} {m:,}"))
    return "\n".join(f"{bar:<24}{images:>16}{held_out:>16}" for bar, images, held_out in rows)


def claim_of(scores: dict[str, Any], *, highest: int) -> str:
    """What the null can say, in one line.

    Parameters
    ----------
    scores : dict
    highest : int
        Position of the held-out image that is matched best, which decides where there are few.
    """
    count, bound = scores["null_n"], f"{scores['null_bound']:.1%}"
    if count < ENOUGH:
        return (
            f"{count} held-out images are too few to claim 1%: one of them (position {highest}) "
            f"decides the threshold, and of images never seen, up to {bound} may be matched above "
            f"it (95% confidence); give {ENOUGH} and more"
        )
    return (
        f"at most 1% of the {count:,} held-out images are matched above the threshold; of all "
        f"images never seen, up to {bound} (95% confidence)"
    )


def removed_lines(removed: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What was taken out, a line for each kind: how many, and the positions of the first few with
    those of what they equal, from 0 on, and the correlation of the two."""
    kinds = {
        "image_repeats": ("image", "repeats", "left out of the images, repeating another"),
        "null_removed": ("held_out", "image", "taken out of the held-out images, nearly an image"),
        "null_repeats": (
            "held_out",
            "repeats",
            "left out of the held-out images, repeating another",
        ),
    }
    lines = []
    for kind, (key, other, words) in kinds.items():
        entries = removed[kind]
        if entries:
            shown = [f"{e[key]} (of {e[other]}, {e['correlation']:.3f})" for e in entries[:NAMED]]
            more = ["…"] * (len(entries) > NAMED)
            lines.append(f"{len(entries)} {words}: {', '.join([*shown, *more])}")
    return lines


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
    """Say how many of some images can be identified from a binary classifier's weights, beside
    held-out images; write the numbers (.json) and a sheet of the identified images (.png)."""
    params = load()
    chosen = settings_of(settings, params)
    picture = out.with_suffix(".png")
    sources = [path for path in (checkpoint, data, null) if path]
    for target, suffix in ((out, ".json"), (picture, ".png")):
        check_target(target, sources=sources, suffix=suffix)
    arrays = read_images(data, option="--data")
    images = arrays["images"]
    given = read_images(null, option="--null")["images"] if null else arrays.get("held_out")
    network, dataset = read_network(checkpoint, shape=tuple(images.shape[1:]))
    images = images.reshape(-1, *network.shape)  # type: ignore[misc]
    held_out = held_out_for(images, given, dataset=dataset, path=checkpoint)
    truth, positions, removed = compared(
        images, held_out, mean=network.get_buffer("mean"), own_null=given is not None
    )
    candidates, scores = audit(network, truth, chosen, params)
    values = null_matching(candidates, truth, mean=truth.mean).values
    suspects = positions[values > float(THRESHOLDS[-1])].tolist()
    highest = int(positions[values.argmax()])
    claim = claim_of(scores, highest=highest)
    # The numbers first: nothing that goes wrong with a picture loses them.
    write_json(
        out,
        {
            "checkpoint": checkpoint.name,
            "data": data.name,
            "null": null.name if null else data.name if given is not None else "validation",
            "settings": chosen,
            "claim": claim,
            "null_highest": highest,
            "null_suspects": suspects,
            **removed,
            **scores,
        },
    )
    print(table(scores))
    print(f"{scores['candidates']} candidates; {claim}")
    for line in removed_lines(removed):
        print(line)
    if suspects:
        shown = ", ".join([*map(str, suspects[:NAMED]), *["…"] * (len(suspects) > NAMED)])
        print(
            f"{len(suspects)} held-out images are matched above {THRESHOLDS[-1]}, as hardly any "
            f"image never seen is: {shown}. If the classifier was trained on them, they are no "
            "null, and the threshold is too high"
        )
    title = (
        f"{checkpoint.name}: {scores['identified']} of {scores['n']} images identified, "
        f"{scores['null_identified']} of {scores['null_n']:,} held-out"
    )
    print(f"{out}: the numbers")
    write_picture(picture, draw(candidates, truth, threshold=scores["threshold"], title=title))
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
        "--out", type=Path, default=Path("audit.json"), help="a .json; the sheet lies beside it"
    )


if __name__ == "__main__":
    run(main, arguments=arguments)
