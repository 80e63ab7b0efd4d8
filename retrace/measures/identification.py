"""Which training images does an attack give away: matching of candidates, and its null threshold.

The usual bar for reconstructed training data, an SSIM above 0.4, is met on MNIST by digits that the
network never saw. So the same candidates are matched to held-out images of the same classes, and a
training image counts as identified only above a correlation that those hardly ever reach. A
held-out image that nearly equals a training image is none: it is taken out, and counted.
"""

from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

# Thresholds on the correlation, in steps of 0.001: exact decimals, so that 0.9 is 0.9.
GRID = [step / 1000 for step in range(500, 1001)]
NULL_SHARE = 0.01  # of the held-out images may be matched above the threshold
ENOUGH = round(1 / NULL_SHARE)  # held-out images: of fewer, the share allows none
CONFIDENCE = 0.95  # of `null_bound`
NEAR_DUPLICATE = 0.985  # correlation of two images that are one: see `near_duplicates`
SHIFTED = 8  # rows and columns from which on an image is also compared after a shift by a pixel
FLAT = 1e-3  # norm, in pixel units, below which the contrast of an image says nothing
BLOCK = 512  # images that are compared with all others at once
SMALLEST_NORM = 1e-12  # of a centred image: one without any contrast correlates with nothing
COLOUR_TOLERANCE = 0.02  # of a mean colour in [0, 1]: five steps of 255
UNMATCHED = -1
THRESHOLDS = ("0.90", "0.95", "0.99")  # of the correlation: keys of the matches in a metrics file


class Truth(NamedTuple):
    """What the candidates of an attack are compared with."""

    images: Tensor  # (n, d) float32 in [0, 1], the training images of the attacked network
    held_out: Tensor  # (m, d), the null: all images of the same classes that it never saw
    mean: Tensor  # (d,) float32, the public mean image
    coloured: bool  # whether they are images of one colour each, which differ in nothing else
    null_duplicates: int = 0  # of training images, which were taken out of the null


class Duplicates(NamedTuple):
    """Which image each of m others nearly equals."""

    of: Tensor  # (m,) int64, position of the image, or `UNMATCHED`
    values: Tensor  # (m,) float32, correlation with the image that is most similar


def near_duplicates(
    images: Tensor, others: Tensor | None = None, *, shape: tuple[int, ...]
) -> Duplicates:
    """Find others that are one of the images but for noise, compression, brightness or a shift.

    Two images are one where the correlation of their pixels (each less its own scalar mean), the
    best of shifts by up to a pixel in each direction, is above 0.985. This was chosen on MNIST.
    Of all pairs of 60,000 training and 10,000 test images, which are no copies, 29 of 600 million
    (22 of the test images) are above 0.985, all of them ones; 217 above 0.98, 1 above 0.99. Of 500
    test images, each of them changed, 99.8 % and more are above 0.985 after noise of one grey
    level or of 0.02, JPEG at quality 75 or 50, brightness times 0.7 or 1.4 (clipped), gamma 0.7
    or 1.5, a diagonal shift by a pixel, also together with JPEG; 99 % after noise of 0.05; 87 and
    85 % after JPEG at quality 30 and a rotation by two degrees. A shift by half a pixel or by two
    and a rotation by five degrees are not found. Coarser digits look alike more often: of
    scikit-learn's, 72 of 1.6 million pairs are above 0.985.

    Parameters
    ----------
    images : (n, d)
    others : (m, d), optional
        Without it, the images themselves: each is compared with those before it that are no
        duplicates.
    shape : tuple of int
        Of an image, rows and columns last.
    """
    earlier, others = others is None, images if others is None else others
    margin = int(min(shape[-2:]) >= SHIFTED)
    rows, columns = (size - 2 * margin for size in shape[-2:])

    def window(stack: Tensor, top: int, left: int) -> Tensor:
        """Unit vectors of what all images show there; flat ones are alike."""
        part = stack.unflatten(1, shape)[..., top : top + rows, left : left + columns].flatten(1)
        part = part - part.mean(dim=1, keepdim=True)
        part = torch.cat([part, part.new_full((len(part), 1), FLAT)], dim=1)
        return part / part.norm(dim=1, keepdim=True)

    of, values = torch.full((len(others),), UNMATCHED), torch.full((len(others),), -1.0)
    if not len(images):
        return Duplicates(of, values)
    middle = window(others, margin, margin)
    for top, left in product(range(2 * margin + 1), repeat=2):
        shifted = window(images, top, left)
        for start in range(0, len(others), BLOCK):
            block = slice(start, start + BLOCK)
            similarity = shifted @ middle[block].T  # (n, at most BLOCK)
            if earlier:  # image i beside image j = start + column: i < j
                similarity = similarity[: start + BLOCK].triu(1 - start)
            best = similarity.max(dim=0)
            better = best.values > values[block]
            values[block] = torch.where(better, best.values, values[block])
            near = better & (best.values > NEAR_DUPLICATE)
            of[block] = torch.where(near, best.indices, of[block])
    if earlier:  # in a chain, each beside those that stay
        for j in torch.nonzero(of != UNMATCHED).flatten().tolist():
            if of[of[j]] != UNMATCHED:
                stay = torch.nonzero(of[:j] == UNMATCHED).flatten()
                again = near_duplicates(images[stay], images[j : j + 1], shape=shape)
                values[j], of[j] = again.values[0], UNMATCHED
                if again.of[0] != UNMATCHED:
                    of[j] = stay[again.of[0]]
    return Duplicates(of, values)


def correlations(candidates: Tensor, images: Tensor, *, mean: Tensor | None) -> Tensor:
    """Normalised cross-correlation (NCC) of candidates (K, ...) with images (n, d): (K, n) float64,
    cosines in [-1, 1]; 0 where nothing is left of an image after the subtraction.

    The public mean image (d,) is subtracted from both: what is left is what tells one digit from
    another. Without it, each image's own scalar mean is subtracted: the usual NCC, which a blurred
    mean image already raises.
    """

    def directions(rows: Tensor) -> Tensor:
        rows = rows.double().flatten(1)
        centred = rows - (rows.mean(dim=1, keepdim=True) if mean is None else mean.double())
        return centred / centred.norm(dim=1, keepdim=True).clamp(min=SMALLEST_NORM)

    return (directions(candidates) @ directions(images).T).clamp(-1, 1)


class Matching(NamedTuple):
    """The candidate that each of n images is matched to."""

    candidates: Tensor  # (n,) int64, or `UNMATCHED` where there are fewer than images
    values: Tensor  # (n,) float64, the similarity of the two; -inf where there is no candidate


def match(similarity: Tensor) -> Matching:
    """Match candidates and images one to one, so that the sum of similarities (K, n) is largest.

    One to one, since one blurred candidate resembles many images: it may count once, and many
    copies of one image count once too. The sum, not the count above some threshold, so that one
    matching serves all thresholds (Kuhn 1955; scipy's `linear_sum_assignment`).
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


def null_matching(candidates: Tensor, truth: Truth, *, mean: Tensor | None) -> Matching:
    """Match the m held-out images as the n training images are: n at a time; see `correlations`.

    A one-to-one matching of all m at once would leave most of them without a candidate where m is
    larger than n, and say too little. So they are dealt at random into groups of n, in each of
    which all candidates are there again: however many groups there are, an image has the chance to
    be matched above a threshold that it has among n images never seen. A last group that is not
    full is filled up with images of the others, which count where they were first. Fewer than n
    held-out images are one group; with fewer rivals for a candidate they are matched higher.
    """
    m = len(truth.held_out)
    size = min(len(truth.images), m)
    order = torch.randperm(m, generator=torch.Generator().manual_seed(0))
    dealt = order[torch.arange(-(-m // size) * size) % m]
    groups = [
        match(part)
        for some in dealt.split(size * max(1, BLOCK // size))
        for part in correlations(candidates, truth.held_out[some], mean=mean).split(size, dim=1)
    ]
    back = order.argsort()
    found, values = (torch.cat(parts)[:m][back] for parts in zip(*groups, strict=True))
    return Matching(found, values)


def matchings(candidates: Tensor, truth: Truth) -> tuple[Matching, Matching]:
    """The candidates (K, ...) that training and held-out images are matched to, less the mean."""
    similarity = correlations(candidates, truth.images, mean=truth.mean)
    return match(similarity), null_matching(candidates, truth, mean=truth.mean)


def null_allowed(count: int) -> int:
    """How many of so many held-out images may be matched above the threshold: 1 %."""
    return count // ENOUGH


def null_threshold(null_values: Tensor) -> float:
    """The smallest threshold of `GRID` that at most 1 % of the held-out images' values (m,) exceed.

    Of fewer than 100 that is none of them. In-sample: see `null_bound` for others. At 1.0, the last
    of the grid, no image counts: nothing tells training from held-out images there.
    """
    allowed = null_allowed(len(null_values))
    counts = counts_above(null_values, GRID)
    return next(
        (bar for bar, count in zip(GRID, counts, strict=True) if count <= allowed), GRID[-1]
    )


def null_bound(count: int) -> float:
    """What so many held-out images can say: the share of images never seen that lie above the
    threshold is at most this, with a confidence of 95 %.

    The threshold is chosen on the same images, which this allows for: with a of m allowed above it,
    it is at least the (a + 1)-th largest of m values, and the share of the population above that
    one has the distribution Beta(a + 1, m - a) (Wilks 1941), whatever that of the values is. This
    is its 95 % quantile, and also Clopper and Pearson's upper limit for a of m: 14 % for 20 images,
    4.7 % for 100, 2.1 % for 500, 1.2 % for 10,000; about 3 / m below 100.

    It takes the images for independent draws. Those of a group compete for candidates, which is
    left out of account.
    """
    from scipy.special import betaincinv  # here: it takes 0.1 s

    allowed = null_allowed(count)
    return float(betaincinv(allowed + 1, count - allowed, CONFIDENCE)) if count else 1.0


def first_candidates(similarity: Tensor, *, first: int, threshold: float) -> tuple[float, int]:
    """How right the first candidates are, by the attack's own ranking, in the order of which are
    the similarities (K, n): the share of them whose NCC with some training image is above the
    threshold, and the number of different images among those that these resemble most. Here a
    candidate may share its image with others."""
    best = similarity[:first].max(dim=1)
    right = best.values > threshold
    return float(right.double().mean()), len(best.indices[right].unique())


def most_reused(similarity: Tensor) -> int:
    """The largest number of images whose most similar candidate, by (K, n), is the same one.

    Near the number of images where one blurred candidate resembles all of them best; 0 without
    candidates.
    """
    if not len(similarity):
        return 0
    return int(similarity.argmax(dim=0).bincount().max())


def colour_distances(candidates: Tensor, images: Tensor) -> Tensor:
    """Differences of the mean colours, the largest over the channels: of candidates (K, channels,
    rows, columns) and images (n, d) of the same shape, flattened, (K, n) float64."""
    shaped = images.unflatten(1, candidates.shape[1:])
    found, wanted = (stack.double().flatten(2).mean(dim=2) for stack in (candidates, shaped))
    return (found[:, None] - wanted).abs().amax(dim=2)


def colour_errors(distances: Tensor) -> Tensor:
    """Error (n,) of the colour nearest to each image's, by `colour_distances` (K, n); 1, the
    largest that there is, without a candidate.

    Images of one colour are copies of each other, of which the weights keep one: they share a
    candidate.
    """
    if not len(distances):
        return distances.new_ones(distances.shape[1])
    return distances.amin(dim=0)


class Pairs(NamedTuple):
    """Candidates beside the training images that they resemble, for pictures."""

    candidates: Tensor  # (m,) int64, in the order of the attack's ranking
    images: Tensor  # (m,) int64
    values: Tensor  # (m,) float64, NCC of the two; of coloured images the difference in colour


def shown_pairs(candidates: Tensor, truth: Truth, *, threshold: float, count: int) -> Pairs:
    """The first `count` identified candidates with their images, by the attack's own ranking: those
    with an NCC above the threshold.

    Where none is identified, the first candidates, each with the image most similar to it. Coloured
    images are compared by colour, and identified within `COLOUR_TOLERANCE`.
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
