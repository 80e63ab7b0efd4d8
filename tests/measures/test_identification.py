"""The scores of attacks on training data: closed forms, brute force, and the files they go into."""

import gzip
import io
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MNIST
from PIL import Image
from torch import Tensor

from retrace.measures import identification, quality
from retrace.measures.identification import Truth
from retrace.networks.margin import Network
from retrace.pipeline.artifacts import write_json
from retrace.problems.training_data import score
from retrace.report.pictures import GAP, mosaic, split_rows
from retrace.tracking import runs as track
from retrace.types import BadInput

pytestmark = pytest.mark.numerical

PARITY: dict[str, Any] = {
    "examples": "parity",
    "labels": "correct",
    "per_class": 20,
    "offset": 0,
    "seed": 0,
}
COLOURS = {**PARITY, "examples": "colours", "per_class": 6}


def means(values: dict[str, Tensor]) -> dict[str, float]:
    return quality.means_with_intervals(values, resamples=200, seed=0)


@pytest.fixture(scope="module")
def split(digit_splits: dict[str, dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """The training split as `read_split` gives it."""
    train = digit_splits["train"]
    images = torch.from_numpy(train["images"].astype(np.float32) / 255)
    return images, torch.from_numpy(train["labels"].astype(np.int64))


@pytest.fixture(scope="module")
def truth(split: tuple[Tensor, Tensor]) -> Truth:
    return score.truth_in(split, PARITY, where="networks.x.training")


def scored(candidates: Tensor, truth: Truth) -> dict[str, Any]:
    """Scores of candidates (K, 784)."""
    estimate = candidates.reshape(-1, 28, 28)
    return score.score_candidates(estimate, truth, means=means)


def with_correlation(image: Tensor, mean: Tensor, cosine: float, *, seed: int) -> Tensor:
    """An image whose NCC with (d,) `image` is `cosine`: noise in a direction at right angles."""
    signal = (image - mean).double()
    noise = torch.randn(
        len(image), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    noise -= (noise @ signal) / (signal @ signal) * signal
    noise *= signal.norm() / noise.norm() * math.sqrt(1 / cosine**2 - 1)
    return mean + signal + noise


def test_held_out_images_are_others_of_the_same_classes(
    split: tuple[Tensor, Tensor], truth: Truth
) -> None:
    everything, labels = split

    def odd(images: Tensor) -> int:
        return sum(
            int(labels[(everything.flatten(1) == image).all(dim=1)][0] % 2) for image in images
        )

    assert odd(truth.images) == 20 and truth.images.shape == (40, 784)
    # All others of the split, but for what nearly equals a training image.
    assert len(truth.held_out) == len(everything) - 40 - truth.null_duplicates > 1000
    assert truth.null_duplicates < 10  # digits of so few pixels look alike now and then
    assert not any((truth.held_out == image).all(dim=1).any() for image in truth.images)
    share = odd(truth.held_out[:200]) / 200
    assert share == pytest.approx(0.5, abs=0.1)
    alone = score.truth_in(split, PARITY, where="here", null=False)
    assert torch.equal(alone.images, truth.images) and len(alone.held_out) == 0


def test_without_an_image_to_hold_out_training_images_are_refused(
    split: tuple[Tensor, Tensor],
) -> None:
    few = split[0][:40], torch.arange(40) % 2
    settings = {**PARITY, "per_class": 19}
    assert len(score.truth_in(few, settings, where="here").held_out) == 2
    with pytest.raises(BadInput, match=r"here\.per_class = 20: all 40 images .* none is left"):
        score.truth_in(few, {**settings, "per_class": 20}, where="here")
    with pytest.raises(BadInput, match=r"here\.examples is missing"):
        score.truth_in(split, {"epochs": 3}, where="here")


def test_exact_copies_in_any_order_are_all_identified(truth: Truth) -> None:
    got = scored(truth.images, truth)
    assert got["identified"] == 40 == got["identified_low"] == got["identified_high"]
    assert got["matched"] == got["matched_raw"] == {"0.90": 40, "0.95": 40, "0.99": 40}
    assert got["median_mse"] == 0 and got["median_ssim"] == pytest.approx(1)
    assert got["null_identified"] <= got["null_n"] // 100 and 0.5 < got["threshold"] < 1
    similarity = identification.correlations(truth.images, truth.images, mean=truth.mean)
    assert similarity.diagonal() == pytest.approx(1, abs=1e-12)
    assert torch.equal(identification.match(similarity).candidates, torch.arange(40))

    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    shuffled = scored(truth.images[order], truth)
    assert shuffled == got


def test_a_repeated_candidate_counts_once(truth: Truth) -> None:
    got = scored(truth.images[:1].expand(60, -1), truth)
    assert got["matched"]["0.99"] == got["identified"] == 1
    assert got["most_reused"] == 40
    assert got["precision_at"] == {"50": 1.0}
    assert got["distinct_at"] == {"50": 1}


def test_a_noisy_copy_has_the_correlation_of_the_formula(truth: Truth) -> None:
    image, mean = truth.images[3], truth.mean
    for cosine in (0.6, 0.9, 0.99):
        candidate = with_correlation(image, mean, cosine, seed=2)
        got = identification.correlations(candidate[None], image[None], mean=mean)
        assert got.item() == pytest.approx(cosine, abs=1e-6)
    # Noise at right angles of r times the signal's norm: cos = 1 / sqrt(1 + r^2).
    candidate = with_correlation(image, mean, 1 / math.sqrt(1 + 0.25), seed=3)
    signal, noise = (image - mean).double().norm(), (candidate - image).norm()
    assert noise / signal == pytest.approx(0.5, abs=1e-6)


def test_the_usual_correlation_agrees_with_numpy(truth: Truth) -> None:
    got = identification.correlations(truth.images[:5], truth.held_out[:7], mean=None)
    rows = torch.cat([truth.images[:5], truth.held_out[:7]]).double().numpy()
    np.testing.assert_allclose(got, np.corrcoef(rows)[:5, 5:], atol=1e-12)


def test_candidates_of_known_correlation_are_counted_by_threshold(truth: Truth) -> None:
    cosines = [0.999] * 5 + [0.97] * 7 + [0.92] * 9
    candidates = torch.stack(
        [
            with_correlation(image, truth.mean, cosine, seed=i)
            for i, (image, cosine) in enumerate(zip(truth.images[:21], cosines, strict=True))
        ]
    )
    got = scored(candidates.float(), truth)
    assert got["matched"] == {"0.90": 21, "0.95": 12, "0.99": 5}
    assert got["null_matched"]["0.99"] == 0


def test_the_mean_image_alone_identifies_nothing(truth: Truth) -> None:
    got = scored(truth.mean[None], truth)
    assert got["identified"] == got["null_identified"] == 0
    assert "median_mse" not in got and "median_ssim" not in got
    # Nor do many mean images, where the usual NCC would take some blurred digit for a find.
    blurred = truth.mean.expand(100, -1)
    got = scored(blurred, truth)
    assert got["identified"] == 0
    assert got["matched"] == {"0.90": 0, "0.95": 0, "0.99": 0}


def test_held_out_images_as_candidates_identify_nothing(truth: Truth) -> None:
    few = truth._replace(held_out=truth.held_out[:40])
    got = scored(few.held_out, few)
    assert got["threshold"] == 1.0
    assert got["identified"] == got["null_identified"] == 0
    assert got["null_matched"]["0.99"] == 40


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", [(4, 4), (3, 4), (4, 3)])
def test_matching_agrees_with_all_permutations(seed: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    similarity = rng.uniform(-1, 1, size=shape)
    few, many = sorted(shape)
    table = similarity if shape[0] <= shape[1] else similarity.T  # (few, many)
    best = max(
        sum(table[i, j] for i, j in enumerate(order))
        for order in itertools.permutations(range(many), few)
    )
    candidates, values = identification.match(torch.from_numpy(similarity))
    made = values.isfinite()
    assert int(made.sum()) == few
    assert float(values[made].sum()) == pytest.approx(best)
    assert (candidates[~made] == identification.UNMATCHED).all()
    assert len(candidates[made].unique()) == few
    for image in torch.nonzero(made).flatten().tolist():
        assert float(values[image]) == similarity[int(candidates[image]), image]


@pytest.mark.parametrize("n", [20, 100, 500])
def test_the_null_threshold_is_the_smallest_that_keeps_its_promise(n: int) -> None:
    rng = np.random.default_rng(n)
    values = torch.from_numpy(rng.uniform(0.3, 0.95, size=n))
    threshold = identification.null_threshold(values)
    assert int((values > threshold).sum()) <= 0.01 * n
    below = identification.GRID[identification.GRID.index(threshold) - 1]
    assert int((values > below).sum()) > 0.01 * n
    assert identification.null_threshold(torch.full((n,), 0.2)) == 0.5
    assert identification.null_threshold(torch.ones(n)) == 1.0


@pytest.mark.parametrize("m", [7, 19, 100, 350])
def test_the_bound_holds_for_images_never_seen_in_95_of_100_nulls(m: int) -> None:
    """Of uniform values the share above a threshold is known; the threshold is chosen on the null,
    the bound has to hold nonetheless, and may not be looser than the grid makes it."""
    bound = identification.null_bound(m)
    nulls = torch.rand(4000, m, generator=torch.Generator().manual_seed(m), dtype=torch.float64)
    shares = [2 * (1 - identification.null_threshold(0.5 + null / 2)) for null in nulls]
    held = sum(share <= bound for share in shares) / len(shares)
    assert held == pytest.approx(identification.CONFIDENCE, abs=0.02)


def test_the_bound_of_few_images_is_far_from_1_percent() -> None:
    """Where none may be above the threshold: 1 - 0.05^(1/m)."""
    for m in (1, 20, 99):
        assert identification.null_bound(m) == pytest.approx(1 - 0.05 ** (1 / m))
    assert identification.null_bound(0) == 1
    assert 0.01 < identification.null_bound(10_000) < 0.012


def test_a_larger_null_is_matched_at_the_rate_of_as_many_images(truth: Truth) -> None:
    """Candidates that any image may take, fewer than there are images: the share of 40 images never
    seen that is matched, over many draws of 40, is what the one large null says. Matched all at
    once, hardly any would have a candidate."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(30, 784, generator=generator) * 0.15
    candidates = (truth.held_out[torch.randperm(1000, generator=generator)[:30]] + noise).clamp(
        0, 1
    )
    population, n = truth.held_out, len(truth.images)
    null = truth._replace(held_out=population[::2])
    values = identification.null_matching(candidates, null, mean=truth.mean).values
    draws = []
    for _ in range(60):
        drawn = population[1::2][torch.randperm(len(population) // 2, generator=generator)[:n]]
        similarity = identification.correlations(candidates, drawn, mean=truth.mean)
        draws.append(identification.match(similarity).values)
    for bar in (0.3, 0.4, 0.5):
        fresh = float((torch.stack(draws) > bar).double().mean())
        assert fresh > 0.1
        assert float((values > bar).double().mean()) == pytest.approx(fresh, abs=0.06)
    similarity = identification.correlations(candidates, null.held_out, mean=truth.mean)
    assert float((identification.match(similarity).values > 0.3).double().mean()) < 0.06


@pytest.mark.parametrize("m", [1, 39, 40, 41, 100])
def test_each_held_out_image_is_matched_once_in_a_group(truth: Truth, m: int) -> None:
    """Its own copy among the candidates is what it is matched to, wherever it stands."""
    null = truth._replace(held_out=truth.held_out[:m])
    matching = identification.null_matching(truth.held_out[:m], null, mean=truth.mean)
    assert torch.equal(matching.candidates, torch.arange(m))
    assert matching.values == pytest.approx(1)
    one = identification.null_matching(truth.held_out[:1], null, mean=truth.mean)
    groups = -(-m // 40)
    assert int(one.values.isfinite().sum()) in (groups, groups - 1)  # the last may repeat another's
    assert float(one.values[0]) == pytest.approx(1)


def jpeg(image: Tensor, quality: int) -> Tensor:
    stream = io.BytesIO()
    grey = (image.reshape(28, 28) * 255).round().to(torch.uint8).numpy()
    Image.fromarray(grey).save(stream, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(stream))).float().flatten() / 255


def changed(images: Tensor, how: str) -> Tensor:
    """Images (n, 784), changed as a copy may be."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(5))
    square = images.unflatten(1, (28, 28))
    ways: dict[str, Callable[[], Tensor]] = {
        "noise of a grey level": lambda: (images + noise / 255).clamp(0, 1),
        "more noise": lambda: (images + 0.02 * noise).clamp(0, 1),
        "jpeg": lambda: torch.stack([jpeg(image, 75) for image in images]),
        "darker": lambda: 0.7 * images,
        "less contrast": lambda: 0.2 + 0.6 * images,
        "shifted": lambda: square.roll((1, -1), dims=(1, 2)).flatten(1),
        "shifted jpeg": lambda: torch.stack(
            [jpeg(image, 75) for image in square.roll(1, dims=1).flatten(1)]
        ),
    }
    return ways[how]()


CHANGES = (
    *("noise of a grey level", "more noise", "jpeg", "darker", "less contrast"),
    *("shifted", "shifted jpeg"),
)


@pytest.mark.parametrize("how", CHANGES)
def test_near_duplicates_are_found_and_other_digits_are_not(truth: Truth, how: str) -> None:
    copies = changed(truth.images, how)
    found = identification.near_duplicates(truth.images, copies, shape=(28, 28))
    assert torch.equal(found.of, torch.arange(40)) and float(found.values.min()) > 0.985
    others = identification.near_duplicates(truth.images, truth.held_out, shape=(28, 28))
    assert (others.of == identification.UNMATCHED).all()
    # Many of them are of the same class and alike.
    assert int((others.values > 0.93).sum()) > 50


def test_repeats_among_images_leave_the_first(truth: Truth) -> None:
    images = torch.cat([truth.images[:5], truth.images[2:3], 0.7 * truth.images[:1]])
    found = identification.near_duplicates(images, shape=(28, 28))
    assert found.of.tolist() == [identification.UNMATCHED] * 5 + [2, 0]
    # From one digit to another by steps that nearly equal each other: the other one stays.
    shares = torch.linspace(0, 1, 15)[:, None]
    chain = (1 - shares) * truth.images[0] + shares * truth.images[1]
    found = identification.near_duplicates(chain, shape=(28, 28))
    stay = found.of == identification.UNMATCHED
    assert 2 < stay.sum() < 15 and stay[found.of[~stay]].all()
    both = identification.correlations(chain[~stay], chain[found.of[~stay]], mean=None)
    assert (both.diagonal() > identification.NEAR_DUPLICATE - 0.01).all()
    # Beyond one block; of one value; of few pixels; none.
    many = torch.rand(1100, 30, generator=torch.Generator().manual_seed(0))
    many[1090] = many[3]
    many[1091:] = torch.linspace(0, 1, 9)[:, None]
    found = identification.near_duplicates(many, shape=(5, 6))
    assert found.of[1090:].tolist() == [3, identification.UNMATCHED, *[1091] * 8]
    assert (found.of[:1090] == identification.UNMATCHED).all()
    nothing = identification.near_duplicates(images[:0], images, shape=(28, 28))
    assert (nothing.of == identification.UNMATCHED).all() and len(nothing.of) == 7


@pytest.mark.skipif(not MNIST.exists(), reason="MNIST does not lie beside the checkout")
def test_mnist_has_hardly_a_near_duplicate() -> None:
    def images(name: str, count: int) -> Tensor:
        content = gzip.decompress((MNIST / f"{name}-images-idx3-ubyte.gz").read_bytes())
        pixels = np.frombuffer(content, np.uint8, count=784 * count, offset=16)
        return torch.from_numpy(pixels.reshape(count, 784).astype(np.float32)) / 255

    training, test = images("train", 1000), images("t10k", 1000)
    found = identification.near_duplicates(training, test, shape=(28, 28))
    assert int((found.of != identification.UNMATCHED).sum()) == 0
    assert int((found.values > 0.95).sum()) > 10  # ones


def test_a_near_duplicate_in_the_split_is_no_held_out_image(split: tuple[Tensor, Tensor]) -> None:
    """One held-out image that nearly equals a training image of 40 would decide the threshold of
    40, and makes the count of many larger."""
    images, labels = split[0].clone(), split[1]
    same = torch.nonzero(labels % 2 == labels[0] % 2).flatten()
    before = score.truth_in((images, labels), PARITY, where="here")
    images[same[-1]] = changed(before.images[:1], "noise of a grey level").reshape(28, 28)
    if labels[0] % 2 == 0:  # the training images begin with odd ones
        images[same[-1]] = changed(before.images[20:21], "noise of a grey level").reshape(28, 28)
    after = score.truth_in((images, labels), PARITY, where="here")
    assert after.null_duplicates == before.null_duplicates + 1
    got, clean = (scored(t.images, t) for t in (after, before))
    assert got["null_duplicates"] == after.null_duplicates
    assert got["null_matched"]["0.99"] == clean["null_matched"]["0.99"] == 0


def test_no_candidates_are_no_finds_and_valid_json(truth: Truth, tmp_path: Path) -> None:
    got = scored(torch.zeros(0, 784), truth)
    assert got["candidates"] == got["identified"] == got["most_reused"] == 0
    assert got["precision_at"] == got["distinct_at"] == {}
    assert got["matched"] == got["null_matched_raw"] == {"0.90": 0, "0.95": 0, "0.99": 0}
    write_json(tmp_path / "scores.json", got)  # refuses NaN and infinity


def test_precision_goes_by_the_order_of_the_candidates(truth: Truth) -> None:
    noise = torch.rand(60, 784, generator=torch.Generator().manual_seed(0))
    got = scored(torch.cat([truth.images[:25], noise, truth.images]), truth)
    assert got["precision_at"] == {"50": 0.5, "100": 0.4}
    assert got["distinct_at"] == {"50": 25, "100": 25}
    assert got["identified"] == 40


def test_a_colour_is_recovered_for_all_its_images(split: tuple[Tensor, Tensor]) -> None:
    truth = score.truth_in(split, COLOURS, where="here")
    assert truth.images.shape == truth.held_out.shape == (12, 192)
    # Pure colours: there are no others to hold out, so that the null of a toy says nothing.
    images = truth.images.unflatten(1, (3, 8, 8))

    def colour_scores(estimate: Tensor) -> tuple[float, int]:
        got = score.score_candidates(estimate, truth, means=means)
        assert "median_ssim" not in got
        return got["colour_error"], got["colours_recovered"]

    assert colour_scores(images.flip(0)) == (0.0, 12)
    shifted = images.clone()
    shifted[:6, 1] += 0.25  # some green in all that are red
    error, recovered = colour_scores(shifted)
    assert error == pytest.approx(0.25, abs=1e-6) and recovered == 6
    assert colour_scores(images[5:7]) == (0.0, 12)
    assert colour_scores(images[:5]) == (1.0, 6)
    assert colour_scores(images[:0]) == (1.0, 0)
    grey = torch.cat([images, images.new_full(images.shape, 0.5)])
    assert score.score_candidates(grey, truth, means=means)["colour_precision"] == 0.5


@pytest.mark.parametrize("identified", [True, False])
def test_shown_pairs_go_by_rank(truth: Truth, identified: bool) -> None:
    order = torch.randperm(40, generator=torch.Generator().manual_seed(4))
    candidates = truth.images[order].unflatten(1, (28, 28))
    threshold = 0.9 if identified else 1.0
    pairs = identification.shown_pairs(candidates, truth, threshold=threshold, count=8)
    assert torch.equal(pairs.candidates, torch.arange(8))
    assert torch.equal(pairs.images, order[:8])
    assert pairs.values == pytest.approx(1)


def test_rows_are_filled_with_white_and_colours_stay() -> None:
    images = np.zeros((5, 3, 8, 8), np.float32)
    images[:, 0] = 1
    rows = split_rows(images, columns=4)
    assert [len(row) for row in rows] == [4, 4]
    picture = mosaic(rows, scale=7)
    assert picture.shape == (2 * (56 + GAP), 4 * (56 + GAP), 3)
    assert picture[0, 0].tolist() == [255, 0, 0]
    assert picture[-10, -10].tolist() == [255, 255, 255]
    assert split_rows(images[:0], columns=4) == []


def test_scores_are_charted_in_groups() -> None:
    flat = track.charted(
        {
            "problem": "training_data",
            "n": 40,
            "seed": 1,
            "identified": 7,
            "identified_low": 3.0,
            "matched": {"0.99": 5},
            "precision_at": {},
            "masks": {"bottom": {"mse": 0.5, "mse_low": 0.4}},
        }
    )
    assert flat == {"identified": 7, "matched/0.99": 5, "bottom/mse": 0.5}


def test_first_layers_of_both_shapes_are_drawn() -> None:
    """The largest unit first, its largest weight white or black, and no weight middle grey."""
    for shape, units in (((28, 28), 30), ((3, 8, 8), 5)):
        torch.manual_seed(0)
        network = Network(shape=list(shape), widths=[units], first_deviation=0.1)
        with torch.no_grad():
            weights = network.layers[0].weight.fill_(0.001).unflatten(1, shape)  # type: ignore[operator]
            weights[units - 2].zero_()
            weights[units - 2, ..., 0, 0] = 5.0
        picture = track.first_layer_picture(network)
        rows = 4 if units == 30 else 2
        assert picture.shape == (rows * 58, 4 * 58, 3)
        assert (picture[0, 0] == 255).all() and (abs(picture[40, 40].astype(int) - 127) <= 1).all()
        assert (picture[0, 58] == 255).all()  # all of the next unit's weights are its largest
