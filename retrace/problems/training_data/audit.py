"""What an ordinary checkpoint gives away: images read from its weights, and members told.

The attacks read the weights alone. Images, where some are given, are compared with the candidates
afterwards, and so are images that the network never saw, as many as there are: the null. What of
the null nearly equals one of the images is taken out and named.
"""

import math
import time
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from retrace.measures import membership
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
from retrace.methods._stationarity import Columns, chain_of, changed_rows
from retrace.methods.membership.stationarity import distances_of, standing_out
from retrace.methods.training_data import sparse_span, vertices
from retrace.methods.training_data.row_differences import two_hidden_layers
from retrace.problems.settings import checked
from retrace.problems.training_data.plain import Floats, Plain, fitting, network_of
from retrace.problems.training_data.score import score_candidates
from retrace.types import BadInput, Callback, Means, ignore

DARKEST = 0.01  # largest value of images that can be in [0, 1]: five steps of 255 and more
CONTRASTS = 3.0  # ratio of the contrasts of images and held-out ones of the same kind, at most
INVERTED = -0.5  # correlation of the mean image of both, at least
NAMED = 5  # positions in a printed line; `Audit.scores` has all
CERTIFIED = 10  # candidates from which on their residuals say what members have
ROUNDING = 1e-3  # noise in the first layer, over the largest singular value, above which it is none
CLIFF = 10.0  # ratio of two singular values, from which on it is one
BEYOND = 2.0  # times the largest of these, a residual is no member's
VERDICTS = ("member", "not a member", "cannot be told")
REMOVED = {  # what was taken out: names of its position and of the other's, and in words
    "image_repeats": ("image", "repeats", "left out of the images, repeating another"),
    "null_removed": ("held_out", "image", "taken out of the held-out images, nearly an image"),
    "null_repeats": ("held_out", "repeats", "left out of the held-out images, repeating another"),
}


class Audit(NamedTuple):
    """What a network gives away; printed, tables and what there is to say of it.

    Attributes
    ----------
    scores : dict
        ``attack``, its name, and its ``settings``; ``rows``, what the first layer shows (see
        `seen`); ``candidates``, how many; ``certified``, how many the weights certify, where they
        do; ``seconds``. Where images were given, also those of `score_candidates`, with ``n``, the
        images; ``claim``, what the null can say; ``null_highest``, the position of the held-out
        image that is matched best; ``null_suspects``, positions of those that are matched as
        hardly any image never seen is; what was taken out: ``image_repeats``, ``null_removed`` and
        ``null_repeats``, positions and the correlation of the two; and, beside at least 100
        held-out images, ``membership`` (see `membership_of`). Positions are those in what was
        given, from 0 on.
    candidates : (K, *shape) float32
        In [0, 1], the likeliest first.
    residual : (K,) float32
        How far the column of each lies from what the weights hold: near 0 for a training image.
    truth : Truth or None
        What they were compared with.
    """

    scores: dict[str, Any]
    candidates: Tensor
    residual: Tensor
    truth: Truth | None

    def __str__(self) -> str:
        scores = self.scores
        lines = [sight(scores["rows"])]
        certified = f", {scores['certified']} certified" if "certified" in scores else ""
        lines.append(f"{scores['candidates']} candidates{certified}")
        if self.truth is not None:
            lines += [scores["claim"], table(scores), *remarks(scores)]
            lines += membership_lines(scores)
        return "\n".join(lines)


def audit(
    weights: nn.Module | Mapping[str, Tensor],
    images: NDArray[Any] | Tensor | None = None,
    held_out: NDArray[Any] | Tensor | None = None,
    *,
    start: nn.Module | Mapping[str, Tensor] | None = None,
    mean: Floats = None,
    deviation: Floats = None,
    activation: str | None = None,
    shape: Sequence[int] | None = None,
    distinct_null: bool = False,
    means: Means = means_with_intervals,
    callback: Callback = ignore,
    **settings: Any,
) -> Audit:
    """Read training images from a network's weights; tell which of some images are members.

    Two attacks: `sparse_span` on a binary ReLU network of two hidden layers whose only bias is the
    first layer's, which is trained far; `vertices` on every other chain of Linear layers.

    Parameters
    ----------
    weights : Module or mapping of tensors
        A chain of Linear layers, in the order of the numbers in their names, with one activation
        between them. Buffers `mean` and `deviation` are what it subtracts from its input, and
        divides it by. Weights of 16 bits and more are read.
    images : (n, rows, columns), (n, 1, rows, columns), (n, 3, rows, columns) or (n, d), optional
        Bytes, or in [0, 1]: those of which some may be training images.
    held_out : (m, ...), likewise
        Images of the same kind that the network never saw, all there are: 100 and more, to claim
        1 %. Needed where images are given.
    start : Module or mapping of tensors, optional
        The network before it was trained further, of which the first layer is read: a public model
        that was fine-tuned. How much of it a weight decay has left is found from the weights.
    mean, deviation : float, one for each channel, or (d,), optional
        Of the input's normalisation, where the weights do not say it.
    activation : "relu", "leaky_relu", "gelu" or "tanh", optional
        Where the weights do not say it: "relu".
    shape : sequence of int, optional
        Of an image, where no images are given and it is no square.
    distinct_null : bool
        Whether the held-out images are known not to repeat each other; otherwise they are searched.
    means : function
        Takes measures of images to means with intervals.
    callback : function
        Called by the attack after each round.
    **settings
        Of the attack, where they differ from its defaults. Public images are not used.

    Raises
    ------
    BadInput
        When the attacks do not cover the network, when images have another shape or range, or the
        held-out ones are of another kind or all among the images, or on a wrong setting. The text
        begins with the argument's name.
    """
    network = network_of(
        weights,
        shape=tuple(shape or ()) if images is None else np.shape(images)[1:],
        start=start,
        mean=mean,
        deviation=deviation,
        activation=activation,
    )
    return audit_of(
        network,
        images,
        held_out,
        distinct_null=distinct_null,
        means=means,
        callback=callback,
        **settings,
    )


def audit_of(
    network: Plain,
    images: NDArray[Any] | Tensor | None,
    held_out: NDArray[Any] | Tensor | None,
    *,
    distinct_null: bool,
    means: Means,
    callback: Callback,
    **settings: Any,
) -> Audit:
    """`audit` of a network that is read already, for the shape of the images."""
    given = null = None
    if images is not None:
        if held_out is None:
            raise BadInput("held_out is missing: images that the network never saw are needed")
        given, null = pixels(images, name="images"), pixels(held_out, name="held_out")
    attack = attack_on(network)
    if attack is sparse_span:
        settings = {**settings, "public_starts": 0}
    settings = checked(attack.reconstruct, settings, where="settings")
    chain = chain_of(network)
    rows, duals = changed_rows(network, chain)
    columns = Columns(chain, rows)
    nothing = torch.zeros(0, *network.shape)  # no public images
    started = time.time()
    found = attack.reconstruct(network, nothing, callback=callback, **settings)
    candidates = found["estimate"] if isinstance(found, dict) else found
    residual = columns.fit(candidates.flatten(1), duals=duals)[0].float()
    scores: dict[str, Any] = {
        "attack": attack.__name__.rpartition(".")[2],
        "rows": seen(columns, inputs=network.inputs),
        "settings": settings,
        "candidates": len(candidates),
        "seconds": time.time() - started,
    }
    certified = residual[:0]
    if attack is vertices and duals == "outputs":
        certified = residual[residual < vertices.bar_of(residual, settings["trusted"])]
        scores["certified"] = len(certified)
        if (scores["rows"]["cliff"] or 0) < CLIFF:
            certified = residual[:0]  # what training left of the start makes residuals uneven
    if given is None or null is None:
        return Audit(scores, candidates, residual, None)
    fitting(tuple(null.shape[1:]), inputs=network.inputs, wanted=network.shape, name="held_out")
    given, null = (part.reshape(-1, *network.shape) for part in (given, null))
    check_alike(given, null)
    truth, positions, removed = compared(
        given, null, mean=network.get_buffer("mean"), distinct_null=distinct_null
    )
    scores |= score_candidates(candidates, truth, means=means)
    values = null_matching(candidates, truth, mean=truth.mean).values
    highest = int(positions[values.argmax()])
    scores |= {
        "n": len(truth.images),
        "claim": claim_of(scores, highest=highest),
        "null_highest": highest,
        "null_suspects": positions[values > float(THRESHOLDS[-1])].tolist(),
        **removed,
    }
    if len(truth.held_out) >= ENOUGH:
        both = distances_of(network, torch.cat([given.flatten(1), truth.held_out]))
        near, usual = both[: len(given)], both[len(given) :]
        scores["membership"] = membership_of(
            standing_out(near, usual),
            standing_out(usual, usual),
            residuals=near[:, 0],
            certified=certified,
            means=means,
        )
    return Audit(scores, candidates, residual, truth)


def attack_on(network: Plain) -> ModuleType:
    """The attack that fits a network: see `audit`."""
    plain = not bool(network.get_buffer("deviation").ne(1).any())
    if plain and network.activation == "relu" and not hasattr(network, "start_weight"):
        try:
            two_hidden_layers(network)
        except BadInput:
            return vertices
        return sparse_span
    return vertices


def seen(columns: Columns, *, inputs: int) -> dict[str, Any]:
    """What the first layer shows before any attack: ``rank``, how many singular values of its rows
    stand above the noise; ``inputs``; ``cliff``, how many times the last of them is above the next;
    and ``noise``, that one over the largest (both None where all count)."""
    values, rank = columns.spectrum, len(columns.values)
    found: dict[str, Any] = {"rank": rank, "inputs": inputs, "cliff": None, "noise": None}
    if rank < len(values):
        noise = float(values[rank])
        found |= {"cliff": float(values[rank - 1]) / max(noise, 1e-300), "noise": noise}
    return found


def sight(rows: Mapping[str, Any]) -> str:
    """What `seen` says, in words: whether nothing was found or nothing can be found."""
    rank, inputs, noise = rows["rank"], rows["inputs"], rows["noise"]
    first = f"The rows of the first layer have {rank} dimensions above their noise, of {inputs}"
    if rank > vertices.FULL * inputs:
        return (
            f"{first}: they span nearly every image, so that none can be read from them. There are "
            "more training images than the span can hold, or the network's start is still there "
            "(give it, if it is known)."
        )
    if noise is None:
        return (
            f"{first}, all that they can have: nothing shows how many images lie in their span, "
            "if any does. So look the rows of a layer as it was drawn."
        )
    if noise > ROUNDING:
        return (
            f"{first}, and the noise is {noise:.0e} of the largest, more than rounding leaves: the "
            "network's start is still there (give it, if it is known), and hides the images."
        )
    if rows["cliff"] < CLIFF:
        return (
            f"{first}, and no cliff after them: some of them may be training images, some what "
            "training or rounding of the weights has left."
        )
    return (
        f"{first}, then a cliff of {rows['cliff']:,.0f} times: about so many training images lie "
        "in their span."
    )


def membership_of(
    images: Tensor, held_out: Tensor, *, residuals: Tensor, certified: Tensor, means: Means
) -> dict[str, Any]:
    """What is to be said of images (n,) and held-out ones (m,) by how much they stand out, see
    `standing_out`, and by the images' residuals (n,), the distances of their columns.

    Beside the means with intervals of `told`, over all images: ``scores`` and ``residuals`` of the
    images; ``held_out``, the largest score of the held-out ones, that of 1 % and the median; and
    ``verdicts``. An image is a member where it stands out more than every held-out image. It is no
    member where it stands out as the usual 95 % of theirs do, and its residual
    is twice that of every certified candidate (K,), of at least ten. Otherwise it cannot be told.
    """
    scores: dict[str, Any] = means(membership.told(images, held_out))
    bar = BEYOND * float(certified.max()) if len(certified) >= CERTIFIED else math.inf
    member = images > held_out.max()
    other = (residuals > bar) & (images < held_out.quantile(0.95))
    verdicts = [
        VERDICTS[0 if is_member else 1 if is_other else 2]
        for is_member, is_other in zip(member.tolist(), other.tolist(), strict=True)
    ]
    quantiles = held_out.quantile(held_out.new_tensor([1.0, 0.99, 0.5])).tolist()
    return {
        **scores,
        "scores": images.tolist(),
        "residuals": residuals.tolist(),
        "held_out": dict(zip(("1", "0.99", "0.5"), quantiles, strict=True)),
        "verdicts": verdicts,
    }


def membership_lines(scores: Mapping[str, Any]) -> list[str]:
    """The membership table; of a single image its verdict."""
    if "membership" not in scores:
        return [f"members cannot be told beside {scores['null_n']} held-out images: give {ENOUGH}"]
    found = scores["membership"]
    if len(found["verdicts"]) == 1:
        verdict, score = found["verdicts"][0], found["scores"][0]
        most, first, _ = found["held_out"].values()
        return [
            f"{verdict}: {score:.1f} standard deviations nearer to what the weights hold than held-"
            f"out images are on average; the nearest of {scores['null_n']:,} has {most:.1f}, 1 % "
            f"have more than {first:.1f}"
        ]
    lines = ["", f"{'told as members, at':<24}{'images':>16}{'(95 % interval)':>20}"]
    for name in membership.ALLOWED:
        low, high = (found[f"tpr_{name}_{end}"] for end in ("low", "high"))
        label = f"{name} % of the held-out"
        lines.append(f"{label:<24}{found[f'tpr_{name}']:>16.1%}{f'{low:.1%} – {high:.1%}':>20}")
    return lines


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
