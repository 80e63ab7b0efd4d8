"""How many of some images can be identified from a classifier's weights: `sparse_span`, counted.

The attack reads the weights alone. The images are compared with its candidates afterwards, and so
are images that the classifier never saw, as many as there are: the null. What of the null nearly
equals one of the images is taken out and named.
"""

import math
import re
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from retrace.measures.identification import (
    ENOUGH,
    THRESHOLDS,
    UNMATCHED,
    Duplicates,
    Truth,
    near_duplicates,
    null_matching,
)
from retrace.measures.quality import means_with_intervals
from retrace.methods.training_data import sparse_span
from retrace.methods.training_data.row_differences import two_hidden_layers
from retrace.problems.training_data.score import score_candidates
from retrace.types import BadInput, Callback, Means, ignore

DARKEST = 0.01  # largest value of images that can be in [0, 1]: five steps of 255 and more
CONTRASTS = 3.0  # ratio of the contrasts of images and held-out ones of the same kind, at most
INVERTED = -0.5  # correlation of the mean image of both, at least
NAMED = 5  # positions in a printed line; `Audit.scores` has all
FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
UNREAD = "only Linear layers, each a `.weight` and perhaps a `.bias`, and a `mean` are read"
REMOVED = {  # what was taken out: names of its position and of the other's, and in words
    "image_repeats": ("image", "repeats", "left out of the images, repeating another"),
    "null_removed": ("held_out", "image", "taken out of the held-out images, nearly an image"),
    "null_repeats": ("held_out", "repeats", "left out of the held-out images, repeating another"),
}


class Audit(NamedTuple):
    """What a classifier gives away; printed, a table and what there is to say of it.

    Attributes
    ----------
    scores : dict
        Of `score_candidates`, with ``n``, the images, and ``seconds``; ``claim``, what the null can
        say; ``null_highest``, the position of the held-out image that is matched best;
        ``null_suspects``, positions of those that are matched as hardly any image never seen is;
        and what was taken out: ``image_repeats``, ``null_removed`` and ``null_repeats``, positions
        and the correlation of the two. Positions are those in what was given, from 0 on.
    candidates : (K, *shape) float32
        In [0, 1], the likeliest first.
    truth : Truth
        What they were compared with.
    """

    scores: dict[str, Any]
    candidates: Tensor
    truth: Truth

    def __str__(self) -> str:
        scores = self.scores
        return "\n".join(
            [
                table(scores),
                f"{scores['candidates']} candidates; {scores['claim']}",
                *remarks(scores),
            ]
        )


def audit(
    weights: nn.Module | Mapping[str, Tensor],
    images: NDArray[Any] | Tensor,
    held_out: NDArray[Any] | Tensor,
    *,
    distinct_null: bool = False,
    means: Means = means_with_intervals,
    callback: Callback = ignore,
    **settings: Any,
) -> Audit:
    """Say how many of some images can be identified from a binary classifier's weights.

    Parameters
    ----------
    weights : Module or mapping of tensors
        A ReLU network of two hidden layers and one output, with a bias in the first layer only; its
        layers in the order of the numbers in their names. A buffer `mean` is what it subtracts from
        its input. Weights of 16 bits and more are read.
    images : (n, rows, columns), (n, 1, rows, columns), (n, 3, rows, columns) or (n, d)
        Bytes, or in [0, 1]: those of which some may be training images.
    held_out : (m, ...), likewise
        Images of the same kind that the classifier never saw, all there are: 100 and more, to claim
        1 %.
    distinct_null : bool
        Whether the held-out images are known not to repeat each other; otherwise they are searched.
    means : function
        Takes measures of images to means with intervals.
    callback : function
        Called by the attack after each round.
    **settings
        Of `sparse_span.reconstruct`, where they differ from its defaults. Public images are not
        used.

    Raises
    ------
    BadInput
        When the attack does not cover the network, or when images have another shape or range, or
        the held-out ones are of another kind or all among the images. The text begins with
        ``weights``, ``images`` or ``held_out``.
    """
    given, null = pixels(images, name="images"), pixels(held_out, name="held_out")
    network = network_of(weights, shape=tuple(given.shape[1:]))
    inputs = math.prod(network.shape)
    fitting(tuple(null.shape[1:]), inputs=inputs, wanted=network.shape, name="held_out")
    given, null = (part.reshape(-1, *network.shape) for part in (given, null))
    check_alike(given, null)
    truth, positions, removed = compared(
        given, null, mean=network.get_buffer("mean"), distinct_null=distinct_null
    )
    started = time.time()
    nothing = given[:0]  # no public images
    candidates = sparse_span.reconstruct(network, nothing, callback=callback, **settings)
    seconds = time.time() - started
    scores = score_candidates(candidates, truth, means=means)
    values = null_matching(candidates, truth, mean=truth.mean).values
    highest = int(positions[values.argmax()])
    scores |= {
        "n": len(truth.images),
        "seconds": seconds,
        "claim": claim_of(scores, highest=highest),
        "null_highest": highest,
        "null_suspects": positions[values > float(THRESHOLDS[-1])].tolist(),
        **removed,
    }
    return Audit(scores, candidates, truth)


def pixels(images: NDArray[Any] | Tensor, *, name: str) -> Tensor:
    """Images in [0, 1] as float32; see `audit` for what is refused."""
    array = np.asarray(images)
    if array.ndim < 2 or not array.size:
        raise BadInput(f"{name} has shape {array.shape}; (n, rows, columns) is needed, n from 1 on")
    if array.dtype.kind != "f" and array.dtype != np.uint8:
        raise BadInput(f"{name} holds {array.dtype}; bytes, or floats from 0 to 1, are allowed")
    largest = 255 if array.dtype == np.uint8 else 1
    if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= largest):
        raise BadInput(f"{name}: values from {array.min():g} to {array.max():g}; 0 to 1 is allowed")
    if array.max() < DARKEST * largest:
        raise BadInput(
            f"{name}: no value is above {array.max():g}, nearly black where {largest} is white; "
            "bytes from 0 to 255, or floats from 0 to 1, are needed"
        )
    return torch.from_numpy(array.astype(np.float32)) / largest


class Plain(nn.Module):
    """A network of Linear layers with ReLU in between, as its tensors give it.

    Attributes
    ----------
    layers : ModuleList of Linear
    mean : (d,)
        What the classifier subtracts from its input; 0 where there is no `mean`.
    shape : tuple of int
        Of an image.
    """

    shape: tuple[int, ...]

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        rest = dict(tensors)
        for key, tensor in sorted(rest.items()):
            if tensor.dtype not in FLOATS:
                raise BadInput(
                    f"weights: {key} holds {tensor.dtype}; floats of 16 bits and more are read: "
                    "put quantised ones back into floats first, with their scales"
                )
        mean = rest.pop("mean", None)
        self.layers = nn.ModuleList()
        for key in sorted((key for key in tensors if key.endswith("weight")), key=_natural):
            weight = rest.pop(key)
            if weight.dim() != 2:
                kind = "a convolution" if weight.dim() in (3, 4, 5) else "no Linear layer"
                raise BadInput(f"weights: {key} has shape {tuple(weight.shape)}, {kind}; {UNREAD}")
            bias = rest.pop(key.removesuffix("weight") + "bias", None)
            if bias is not None and bias.shape != weight.shape[:1]:
                raise BadInput(
                    f"weights: the bias of {key} has shape {tuple(bias.shape)}; {UNREAD}"
                )
            # On `meta`: the given tensors are put in at once.
            outputs, inputs = weight.shape
            layer = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
            layer.weight = nn.Parameter(weight.detach().float(), requires_grad=False)
            if bias is not None:
                layer.bias = nn.Parameter(bias.detach().float(), requires_grad=False)
            self.layers.append(layer)
        if rest:
            raise BadInput(f"weights: what {min(rest)} is cannot be read; {UNREAD}")
        linear = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        if not linear:
            raise BadInput(f"weights: no layer; {UNREAD}")
        for first, second in pairwise(linear):
            if first.out_features != second.in_features:
                raise BadInput(
                    f"weights: layers of {first.out_features} outputs and {second.in_features} "
                    "inputs follow each other, in the order of their names; this is no chain"
                )
        self.inputs = linear[0].in_features
        self.register_buffer(
            "mean", torch.zeros(self.inputs) if mean is None else mean.flatten().float()
        )


def _natural(key: str) -> list[tuple[int, str]]:
    """Layers 2 and 10 in this order."""
    return [(int(part or 0), rest) for part, rest in re.findall(r"(\d*)(\D*)", key)]


def network_of(weights: nn.Module | Mapping[str, Tensor], *, shape: tuple[int, ...]) -> Plain:
    """The classifier that the attack reads, which sees images of a shape; see `audit`."""
    network = Plain(weights.state_dict() if isinstance(weights, nn.Module) else weights)
    wanted = tuple(getattr(weights, "shape", ()))
    network.shape = fitting(shape, inputs=network.inputs, wanted=wanted, name="images")
    try:
        two_hidden_layers(network)
    except BadInput as error:
        raise BadInput(f"weights: {error}") from None
    return network


def fitting(
    given: tuple[int, ...], *, inputs: int, wanted: tuple[int, ...] = (), name: str
) -> tuple[int, ...]:
    """The shape (rows, columns) or (3, rows, columns) in which a network of so many inputs sees
    images, whose pixels keep their order.

    An axis of one channel, first or last, and a row of all pixels are unambiguous. `wanted` is what
    the network says of the shape; without it, a row of pixels is taken for a square. Refused, with
    the name of the images, are other shapes, colours last, since the order of the pixels would be
    another one, and other channels than one or three.
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
        raise BadInput(
            f"{name} has shape (n, {', '.join(map(str, given))}), {math.prod(given)} values each; "
            f"the network takes {inputs}: allowed are {allowed}"
        )
    return wanted or shape


def check_alike(images: Tensor, held_out: Tensor) -> None:
    """Refuse held-out images (m, *shape) that are scaled or inverted otherwise than the images."""
    both = [part.flatten(1) for part in (images, held_out)]
    contrast, other = (float(part.std(dim=1).median()) for part in both)
    if max(contrast, other) > CONTRASTS * min(contrast, other):
        raise BadInput(
            f"held_out has a contrast (standard deviation of the pixels) of {other:.3f}, the "
            f"images {contrast:.3f}: they are not scaled alike; give images of the same kind"
        )
    if float(torch.corrcoef(torch.stack([part.mean(dim=0) for part in both]))[0, 1]) < INVERTED:
        raise BadInput(
            "held_out is light where the images are dark: inverted, it seems; give images of the "
            "same kind"
        )


def compared(
    images: Tensor, held_out: Tensor, *, mean: Tensor, distinct_null: bool
) -> tuple[Truth, Tensor, dict[str, list[dict[str, Any]]]]:
    """Take out what is there twice: every picture counts once, and none on both sides.

    Of images that repeat each other the weights hold one, and a candidate is matched to one, so
    that the copies would count as safe. A held-out image that nearly equals an image would count
    as matched though the classifier saw it, and copies of held-out images would make the null look
    larger than it is. Refused when no held-out image is left.

    Of images (n, *shape), held-out ones (m, *shape) and the network's mean (d,), 0 where it
    subtracts none: the truth; positions (k,) of the held-out images that are left; and what was
    removed, see `Audit.scores`.
    """
    shape = tuple(images.shape[1:])
    flat, null = images.flatten(1), held_out.flatten(1)
    repeats = near_duplicates(flat, shape=shape)
    every = torch.arange(len(flat))
    kept = _distinct(repeats)
    removed = {"image_repeats": _entries("image_repeats", repeats, every, every)}
    flat = flat[kept]
    known = near_duplicates(flat, null, shape=shape)
    fresh = _distinct(known)
    removed["null_removed"] = _entries("null_removed", known, torch.arange(len(null)), kept)
    removed["null_repeats"] = []
    if not len(fresh):
        raise BadInput(
            f"held_out: each of the {len(null)} held-out images nearly equals an image; give "
            "images that the classifier never saw"
        )
    if not distinct_null:
        copies = near_duplicates(null[fresh], shape=shape)
        removed["null_repeats"] = _entries("null_repeats", copies, fresh, fresh)
        fresh = fresh[_distinct(copies)]
    null = null[fresh]
    truth = Truth(
        images=flat,
        held_out=null,
        # What all images share must not count as likeness, whether the classifier subtracts it
        # or not; of both, so that neither is nearer to it.
        mean=mean if bool(mean.any()) else torch.cat([flat, null]).mean(dim=0),
        coloured=False,
        null_duplicates=len(removed["null_removed"]),
    )
    return truth, fresh, removed


def _distinct(found: Duplicates) -> Tensor:
    return torch.nonzero(found.of == UNMATCHED).flatten()


def _entries(kind: str, found: Duplicates, own: Tensor, others: Tensor) -> list[dict[str, Any]]:
    """The duplicates, each with what it equals, by their positions in what was given."""
    key, other, _ = REMOVED[kind]
    return [
        {
            key: int(own[i]),
            other: int(others[found.of[i]]),
            "correlation": round(min(float(found.values[i]), 1.0), 4),
        }
        for i in torch.nonzero(found.of != UNMATCHED).flatten()
    ]


def claim_of(scores: Mapping[str, Any], *, highest: int) -> str:
    """What the null can say, in one line; of few, the one at `highest` decides."""
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


def table(scores: Mapping[str, Any]) -> str:
    """Counts of images and of held-out ones, each of how many."""
    n, m = scores["n"], scores["null_n"]
    rows = [("correlation above", "images", "held-out")]
    rows += [
        (bar, f"{count} of {n:,}", f"{scores['null_matched'][bar]} of {m:,}")
        for bar, count in scores["matched"].items()
    ]
    identified, null = (f"{scores[key]:,} of" for key in ("identified", "null_identified"))
    rows.append((f"{scores['threshold']:.3f} (identified)", f"{identified} {n:,}", f"{null} {m:,}"))
    return "\n".join(f"{bar:<24}{images:>16}{held_out:>16}" for bar, images, held_out in rows)


def remarks(scores: Mapping[str, Any]) -> list[str]:
    """What was taken out, a line for each kind: how many, and the positions of the first few with
    those of what they equal and the correlation of the two; and what makes the null doubtful."""
    lines = []
    for kind, (key, other, words) in REMOVED.items():
        if entries := scores[kind]:
            shown = [f"{e[key]} (of {e[other]}, {e['correlation']:.3f})" for e in entries]
            lines.append(f"{len(entries)} {words}: {_first(shown)}")
    if suspects := scores["null_suspects"]:
        lines.append(
            f"{len(suspects)} held-out images are matched above {THRESHOLDS[-1]}, as hardly any "
            f"image never seen is: {_first(suspects)}. If the classifier was trained on them, they "
            "are no null, and the threshold is too high"
        )
    return lines


def _first(values: Sequence[Any]) -> str:
    return ", ".join([*map(str, values[:NAMED]), *["…"] * (len(values) > NAMED)])
