"""Which training images does an attack give away: matching of candidates, and its null threshold.

The usual bar for reconstructed training data, an SSIM above 0.4, is met on MNIST by digits that the
network never saw. So the same candidates are matched to as many held-out images of the same
classes, and a training image counts as identified only above a correlation that those hardly ever
reach.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stages.command import Refusal
from stages.networks.margin import Split, training_set

# Thresholds on the correlation, in steps of 0.001: exact decimals, so that 0.9 is 0.9.
GRID = [step / 1000 for step in range(500, 1001)]
NULL_SHARE = 0.01  # of the held-out images may be matched above the threshold
SMALLEST_NORM = 1e-12  # of a centred image: one without any contrast correlates with nothing
COLOUR_TOLERANCE = 0.02  # of a mean colour in [0, 1]: five steps of 255
UNMATCHED = -1
OTHER_DRAW = 1000  # how far the offset of held-out coloured images lies behind that of the others
THRESHOLDS = ("0.90", "0.95", "0.99")  # of the correlation: keys of the matches in a metrics file
CHOICE = ("examples", "labels", "per_class", "offset", "seed")


class Truth(NamedTuple):
    """What the candidates of an attack are compared with.

    Attributes
    ----------
    images : (n, d) float32
        The training images of the attacked network, in [0, 1].
    held_out : (n, d) float32
        As many images of the same classes that it never saw.
    mean : (d,) float32
        The public mean image.
    coloured : bool
        Whether they are images of one colour each, which differ in nothing else.
    """

    images: Tensor
    held_out: Tensor
    mean: Tensor
    coloured: bool


def truth_of(split: Split, training: Mapping[str, Any], *, where: str) -> Truth:
    """Take the training images of a network from the training split, and as many held-out ones.

    Parameters
    ----------
    split : (images, labels)
        The training split, (N, 28, 28) and (N,).
    training : dict
        The network's ``training`` section, of which the keys in `CHOICE` are used.
    where : str
        Path of that section, for the message.

    Raises
    ------
    Refusal
        When a key is missing, or the split is too small for held-out images of their own: those
        of "parity" are the last ``per_class`` of each class (up to the size of the smaller one).
        Coloured images are drawn, not taken from the split: another draw is held out.
    """
    missing = [key for key in CHOICE if key not in training]
    if missing:
        raise Refusal(f"{where}.{missing[0]} is missing: no training images can be attacked there")
    chosen = {key: training[key] for key in CHOICE}
    images, _, mean = training_set(split, **chosen)
    coloured = chosen["examples"] == "colours"
    if coloured:
        offset = chosen["offset"] + OTHER_DRAW
    else:
        odd = int((split[1] % 2).sum())
        smaller = min(odd, len(split[1]) - odd)
        offset = smaller - chosen["per_class"]
        if chosen["offset"] + chosen["per_class"] > offset:
            raise Refusal(
                f"{where}.per_class = {chosen['per_class']}: behind the training images, no "
                f"{chosen['per_class']} held-out ones are left among the {smaller} of the smaller "
                "class"
            )
    held_out, _, _ = training_set(split, **{**chosen, "offset": offset})
    return Truth(images, held_out, mean, coloured)


def correlations(candidates: Tensor, images: Tensor, *, mean: Tensor | None) -> Tensor:
    """Normalised cross-correlation (NCC) of every candidate with every image.

    Parameters
    ----------
    candidates : (K, d) or (K, ...)
        Flattened here.
    images : (n, d)
    mean : (d,), optional
        The public mean image, which is subtracted from both: what is left is what tells one digit
        from another. Without it, each image's own scalar mean is subtracted: the usual NCC, which
        a blurred mean image already raises.

    Returns
    -------
    (K, n) float64
        Cosines in [-1, 1]; 0 where nothing is left of an image after the subtraction.
    """

    def directions(rows: Tensor) -> Tensor:
        rows = rows.double().flatten(1)
        centred = rows - (rows.mean(dim=1, keepdim=True) if mean is None else mean.double())
        return centred / centred.norm(dim=1, keepdim=True).clamp(min=SMALLEST_NORM)

    return (directions(candidates) @ directions(images).T).clamp(-1, 1)


class Matching(NamedTuple):
    """The candidate that each image is matched to.

    Attributes
    ----------
    candidates : (n,) int64
        Position among the candidates, or `UNMATCHED` where there are fewer than images.
    values : (n,) float64
        The similarity of the two; -inf where there is no candidate.
    """

    candidates: Tensor
    values: Tensor


def match(similarity: Tensor) -> Matching:
    """Match candidates and images one to one, so that the sum of similarities is largest.

    One to one, since one blurred candidate resembles many images: it may count once, and many
    copies of one image count once too. The sum, not the count above some threshold, so that one
    matching serves all thresholds (Kuhn 1955; scipy's `linear_sum_assignment`).

    Parameters
    ----------
    similarity : (K, n)
        Finite; min(K, n) pairs are made.
    """
    from scipy.optimize import linear_sum_assignment  # here: it takes 0.4 s

    images = similarity.shape[1]
    candidates = torch.full((images,), UNMATCHED)
    values = torch.full((images,), -torch.inf, dtype=torch.float64)
    rows, columns = map(torch.from_numpy, linear_sum_assignment(similarity.numpy(), maximize=True))
    candidates[columns] = rows
    values[columns] = similarity[rows, columns].double()
    return Matching(candidates, values)


def counts_above(values: Tensor, thresholds: list[float]) -> list[int]:
    """How many values (n,) lie above each threshold."""
    bars = torch.tensor(thresholds, dtype=torch.float64)
    return [int(count) for count in (values > bars[:, None]).sum(dim=1)]


def null_threshold(null_values: Tensor) -> float:
    """The smallest threshold of `GRID` that at most 1 % of the held-out images exceed.

    In-sample: it holds for the held-out images that it is chosen on, and about so for others. At
    1.0, the last of the grid, no image counts: nothing tells training from held-out images there.

    Parameters
    ----------
    null_values : (n,)
        NCC of each held-out image with its candidate, matched one to one.
    """
    allowed = NULL_SHARE * len(null_values)
    counts = counts_above(null_values, GRID)
    return next(
        (bar for bar, count in zip(GRID, counts, strict=True) if count <= allowed), GRID[-1]
    )


def first_candidates(similarity: Tensor, *, first: int, threshold: float) -> tuple[float, int]:
    """How right the first candidates are, by the attack's own ranking.

    Here a candidate may share its image with others: that is what `distinct` shows.

    Parameters
    ----------
    similarity : (K, n)
        In the order of the ranking; K at least `first`.
    first : int
        Candidates looked at, at least 1.
    threshold : float

    Returns
    -------
    precision : float
        Share of them whose NCC with some training image is above the threshold.
    distinct : int
        Different images among those that these candidates resemble most.
    """
    best = similarity[:first].max(dim=1)
    right = best.values > threshold
    return float(right.double().mean()), len(best.indices[right].unique())


def most_reused(similarity: Tensor) -> int:
    """The largest number of images whose most similar candidate is the same one.

    Near the number of images where one blurred candidate resembles all of them best; 0 without
    candidates.

    Parameters
    ----------
    similarity : (K, n)
    """
    if not len(similarity):
        return 0
    return int(similarity.argmax(dim=0).bincount().max())


def colour_distances(candidates: Tensor, images: Tensor) -> Tensor:
    """Differences of the mean colours, the largest over the channels.

    Parameters
    ----------
    candidates : (K, channels, rows, columns)
    images : (n, d)
        Of the same shape, flattened.

    Returns
    -------
    (K, n) float64
    """
    shaped = images.unflatten(1, candidates.shape[1:])
    found, wanted = (stack.double().flatten(2).mean(dim=2) for stack in (candidates, shaped))
    return (found[:, None] - wanted).abs().amax(dim=2)


def colour_errors(distances: Tensor) -> Tensor:
    """Error of the colour nearest to each image's.

    Images of one colour are copies of each other, of which the weights keep one: they share a
    candidate.

    Parameters
    ----------
    distances : (K, n)
        See `colour_distances`.

    Returns
    -------
    (n,) float64
        1, the largest error that there is, without a candidate.
    """
    if not len(distances):
        return distances.new_ones(distances.shape[1])
    return distances.amin(dim=0)


class Pairs(NamedTuple):
    """Candidates beside the training images that they resemble, for pictures.

    Attributes
    ----------
    candidates, images : (m,) int64
        Positions, in the order of the attack's ranking.
    values : (m,) float64
        NCC of the two; of coloured images the difference in colour.
    """

    candidates: Tensor
    images: Tensor
    values: Tensor


def shown_pairs(candidates: Tensor, truth: Truth, *, threshold: float, count: int) -> Pairs:
    """The first `count` identified candidates with their images, by the attack's own ranking.

    Where none is identified, the first candidates, each with the image most similar to it. Coloured
    images are compared by colour, and identified within `COLOUR_TOLERANCE`.

    Parameters
    ----------
    candidates : (K, rows, columns) or (K, channels, rows, columns)
    truth : Truth
    threshold : float
        On the NCC.
    count : int
    """
    if truth.coloured:
        similarity, threshold = -colour_distances(candidates, truth.images), -COLOUR_TOLERANCE
    else:
        similarity = correlations(candidates, truth.images, mean=truth.mean)
    matched, values = match(similarity)
    images = torch.nonzero(values >= threshold if truth.coloured else values > threshold).flatten()
    if len(images):
        images = images[matched[images].argsort()][:count]
        pairs = Pairs(matched[images], images, values[images])
    else:
        nearest = similarity[:count].max(dim=1)
        pairs = Pairs(torch.arange(len(nearest.values)), nearest.indices, nearest.values)
    return pairs._replace(values=-pairs.values) if truth.coloured else pairs
