"""Members told by shadow networks, beside the attacks that need none.

The likelihood-ratio attack (LiRA; Carlini et al. 2022, arXiv 2112.03570) trains shadow networks as
the attacked one was trained, on other images of the same kind, and asks of each image how sure the
networks are that saw it, or did not. It gets here what its authors ask for: the architecture, the
settings of the training, and images of the same split; labels; and the logit scale.

- Offline: no shadow saw any of the images. How far is the network surer of an image than the
  shadows are? Beside it a variant of ours, with two sides: how sure the shadows are of their own
  images stands for members.
- Online: shadows of a pool, which is the members and some of the held-out images. Each image of it
  was seen by some of them, and not by the others.

Variances are shared by all images, as the authors advise for few shadows, or of each image.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal
from tqdm import tqdm

from benchmarks.timing import RESULTS, machine, print_table, write_result
from retrace.measures import membership
from retrace.measures.quality import means_with_intervals
from retrace.methods.membership import loss, stationarity
from retrace.networks.mlp import Network, shuffled
from retrace.pipeline.artifacts import read_json
from retrace.pipeline.command import Refusal, run
from retrace.pipeline.params import load
from retrace.problems import Ground
from retrace.problems.membership.score import parts_of
from retrace.types import BadInput, Split

RESULT = RESULTS / "membership.json"
TOGETHER = 4  # shadows in one batch: a step's weights, gradients and momenta stay in the cache
BLOCK = 1000  # images at once
FITTED = 0.9  # share of its own images that a shadow has to take for what they are
SEED = 0  # of the images that shadows are trained on
SHARED = {"shared variance": True, "each image's variance": False}


def draw_sets(labels: Tensor, *, per_class: int, count: int, generator: torch.Generator) -> Tensor:
    """Training sets of so many images of each class, (count, n) positions.

    A class is cut into sets in a random order, and again in another when it is used up, so that
    sets overlap no more than they must, and all images are in as many, or nearly.
    """
    of_class = []
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten()
        cuts = len(members) // per_class
        if cuts < 1:
            raise BadInput(f"{len(members)} images of class {int(label)}, not {per_class}")
        orders = [
            members[torch.randperm(len(members), generator=generator)][: cuts * per_class]
            for _ in range(-(-count // cuts))
        ]
        of_class.append(torch.cat(orders).view(-1, per_class)[:count])
    return torch.cat(of_class, dim=1)


def fit(
    networks: Sequence[Network],
    images: Tensor,
    labels: Tensor,
    *,
    training: dict[str, Any],
    seeds: Sequence[int],
    progress: Callable[[], object] = lambda: None,
) -> None:
    """Train networks at once, each on images of its own, as `Network.fit` trains one.

    SGD turns with its inputs, momentum and weight decay too, and the gradient of the first layer
    lies in the span of the images. So fewer images than pixels are given by their coordinates in an
    orthonormal basis of it, and what the layer holds outside of it only decays. Up to rounding the
    weights are the same, for half the work. Adam scales each weight by itself: it gets the pixels.

    Parameters
    ----------
    networks : sequence of Network
        K, of one architecture, as they were drawn.
    images : (K, n, *shape)
    labels : (K, n)
    training : dict
        Settings of `Network.fit`.
    seeds : sequence of int
        K, of the order of the images.
    progress : function
        Called after each step.
    """
    one = networks[0]
    activate = getattr(torch.nn.functional, one.activation)
    inputs = (images.flatten(2) - one.mean) / one.deviation  # (K, n, d)
    sgd = training["optimiser"] == "sgd"
    basis, outside = None, torch.zeros(())
    with torch.no_grad():
        layers = list(zip(*(network.layers for network in networks), strict=True))
        weights = [torch.stack([layer.weight.mT for layer in same]) for same in layers]  # in x out
        biases = [torch.stack([layer.bias[None] for layer in same]) for same in layers]
        if sgd and inputs.shape[1] < inputs.shape[2]:
            q, r = torch.linalg.qr(inputs.mT.double())
            basis, inputs = q.float(), r.mT.float().contiguous()  # (K, d, n), (K, n, n)
            outside = weights[0]
            weights[0] = basis.mT @ outside
            outside = outside - basis @ weights[0]
    left = torch.ones(())  # share of `outside` that the decay has left
    parameters = [tensor.requires_grad_() for tensor in (*weights, *biases, left)]
    rate, decay = training["learning_rate"], training["weight_decay"]
    optimiser: torch.optim.Optimizer
    if sgd:  # fused, other than that of `Network.fit`: faster, and the same up to rounding
        optimiser = torch.optim.SGD(
            parameters, lr=rate, momentum=training["momentum"], weight_decay=decay, fused=True
        )
    else:
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[training["optimiser"]]
        optimiser = kind(parameters, lr=rate, weight_decay=decay, fused=True)
    steps, count = training["steps"], inputs.shape[1]
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
    orders = [
        shuffled(count, training["batch_size"] or count, torch.Generator().manual_seed(seed))
        for seed in seeds
    ]
    of = torch.arange(len(networks))[:, None]
    for _, *some in zip(range(steps), *orders, strict=False):
        batch = torch.stack(some)  # (K, B)
        hidden = torch.baddbmm(biases[0], inputs[of, batch], weights[0])
        for weight, bias in zip(weights[1:], biases[1:], strict=True):
            hidden = torch.baddbmm(bias, activate(hidden), weight)
        total = torch.nn.functional.cross_entropy(
            hidden.flatten(0, 1), labels[of, batch].flatten(), reduction="sum"
        )
        optimiser.zero_grad()
        (total / batch.shape[1] + 0 * left).backward()  # so that `left` decays as the weights do
        optimiser.step()
        if training["schedule"] == "cosine":
            scheduler.step()
        progress()
    with torch.no_grad():
        if basis is not None:
            weights[0] = basis @ weights[0] + left * outside
        for same, weight, bias in zip(layers, weights, biases, strict=True):
            for layer, w, b in zip(same, weight, bias, strict=True):
                layer.weight.copy_(w.mT)
                layer.bias.copy_(b[0])


def shadows_of(
    split: Split, sets: Tensor, *, record: dict[str, Any], first: int, title: str
) -> list[Network]:
    """Networks trained as the record says, each on its set (K, n) of a split, on all cores: each
    trains some at once.

    They are drawn from seeds beginning with `first`.
    """
    seeds = range(first, first + len(sets))
    networks = []
    for seed in seeds:
        torch.manual_seed(seed)
        networks.append(Network(**record["arguments"]))
    cores, stopped = torch.get_num_threads(), Event()
    groups = [slice(i, i + TOGETHER) for i in range(0, len(sets), TOGETHER)]
    torch.set_num_threads(1)  # of each thread
    try:
        with (
            tqdm(
                total=len(groups) * record["training"]["steps"],
                desc=title,
                unit="step",
                disable=None,
            ) as bar,
            ThreadPoolExecutor(cores) as pool,
        ):

            def progress() -> None:
                bar.update()
                if stopped.is_set():
                    raise KeyboardInterrupt

            def one(group: slice) -> None:
                images, labels = (of[sets[group]] for of in split)
                fit(
                    networks[group],
                    images,
                    labels,
                    training=record["training"],
                    seeds=seeds[group],
                    progress=progress,
                )

            try:
                for _ in pool.map(one, groups):
                    pass
            except BaseException:
                stopped.set()  # or Ctrl-C would wait for minutes
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        torch.set_num_threads(cores)
    return networks


@torch.no_grad()
def confidences(networks: Sequence[torch.nn.Module], images: Tensor, labels: Tensor) -> Tensor:
    """log(p / (1 − p)) of the probability p of each image's label by each network, (K, N) float64.

    The logit scale of the paper, from logits, so that p is not rounded to 1.
    """
    found = []
    for network in networks:
        logits = torch.cat([network(some) for some in images.split(BLOCK)]).double()
        own = labels[:, None]
        others = logits.scatter(1, own, -torch.inf).logsumexp(dim=1)
        found.append(logits.gather(1, own).squeeze(1) - others)
    return torch.stack(found)


def normal(values: Tensor, chosen: Tensor, *, shared: bool) -> Normal:
    """A normal distribution of each image's confidence, by the networks that are chosen for it.

    Parameters
    ----------
    values : (K, N) float64
    chosen : (K, N) bool
    shared : bool
        One variance, that about each image's median, pooled over the images.
    """
    taken = torch.where(chosen, values, torch.nan)
    median = taken.nanquantile(0.5, dim=0)  # as the authors' code has it, not the mean
    squares, free = (taken - median).square().nansum(dim=0), chosen.sum(dim=0) - 1
    variance = squares.sum() / free.sum() if shared else squares / free
    return Normal(median, variance.sqrt().clamp(min=1e-30).expand_as(median))


def ratio(confidence: Tensor, *, seen: Normal, unseen: Normal) -> Tensor:
    """log of p(confidence | member) / p(confidence | no member), of each image."""
    scores: Tensor = seen.log_prob(confidence) - unseen.log_prob(confidence)
    return scores


def surer(confidence: Tensor, *, unseen: Normal) -> Tensor:
    """In standard deviations, how much surer than unseen images make networks: in the order of the
    one-sided test's probability, which rounds to 1."""
    return (confidence - unseen.mean) / unseen.stddev


def offline(confidence: Tensor, unseen: Tensor, own: Tensor) -> dict[str, Tensor]:
    """Scores (N,) by shadows that saw none of the images.

    Parameters
    ----------
    confidence : (N,)
        Of the attacked network.
    unseen : (K, N)
        Of the shadows.
    own : (K, n)
        Of the shadows, of the images that each was trained on: the same distribution for all
        images, where online has one of each.
    """
    scores = {}
    everything = torch.ones_like(unseen, dtype=torch.bool)
    inside = Normal(own.median(), own.std())
    for words, shared in SHARED.items():
        outside = normal(unseen, everything, shared=shared)
        scores[f"LiRA offline, {words}"] = surer(confidence, unseen=outside)
        scores[f"LiRA offline, two sides, {words}"] = ratio(confidence, seen=inside, unseen=outside)
    return scores


def online(confidence: Tensor, values: Tensor, seen: Tensor) -> dict[str, Tensor]:
    """Scores (N,) by shadows each of which saw some of the images: `seen`, (K, N)."""
    return {
        f"LiRA online, {words}": ratio(
            confidence,
            seen=normal(values, seen, shared=shared),
            unseen=normal(values, ~seen, shared=shared),
        )
        for words, shared in SHARED.items()
    }


def rates(scores: dict[str, Tensor], members: int) -> dict[str, Any]:
    """True-positive rates and AUC of each attack, whose scores are of the members first.

    Rates of less than one false positive, other than none, are left out.
    """
    scoring = load().scoring
    held_out = len(next(iter(scores.values()))) - members
    small = {f"tpr_{key}" for key, share in membership.ALLOWED.items() if 0 < share < 1 / held_out}
    found: dict[str, Any] = {}
    for attack, values in scores.items():
        told = membership.told(values[:members], values[members:])
        told = {key: value for key, value in told.items() if key not in small}
        found[attack] = means_with_intervals(told, resamples=scoring.resamples, seed=scoring.seed)
    return {"n": members, "null_n": held_out, "attacks": found}


def unobserved(ground: Ground) -> Split:
    """Images of the training split that are not among the observed ones."""
    images, labels = ground.split("train")
    held_out = torch.from_numpy(ground.truth["held_out"])
    first = int(torch.from_numpy(ground.truth["ranks"])[~held_out].max()) + 1
    before = labels[: len(labels) - int(held_out.sum())]
    kept = torch.cat([torch.nonzero(before == label)[first:, 0] for label in before.unique()])
    return images[kept], labels[kept]


def compare(
    ground: Ground, name: str, *, shadows: int, pool: int, steps: int | None = None
) -> dict[str, Any]:
    """Train both kinds of shadows of a network, and score all attacks on the same images."""
    network, record = ground.load(name)
    if record["architecture"] != "mlp" or record["arguments"]["fine_tuned"]:
        raise Refusal(f"--network {name}: an mlp that is not fine-tuned is expected")
    if pool < 2 or shadows < 2 * pool:
        raise Refusal(
            f"--shadows {shadows} --pool {pool}: at least 2, and twice as many shadows, so that "
            "two of them see each image of the pool"
        )
    parts = parts_of(ground, name)
    training = record["training"]
    training["steps"] = training["steps"] if steps is None else steps
    per_class = training["per_class"]
    images, told, public = (
        torch.from_numpy(ground.given[key]) for key in ("observed", "labels", "public")
    )
    labels = told.long()
    ways = {
        "stationarity": stationarity.reconstruct(network, images, beside={"public": public}),
        "loss": loss.reconstruct(network, images, beside={"labels": told}),
    }
    confidence = confidences([network], images, labels)[0]
    result: dict[str, Any] = {
        "shadows": shadows,
        "steps": training["steps"],
        "median_confidence": {
            "members": confidence[parts.members].median().item(),
            "held_out": confidence[parts.held_out].median().item(),
        },
    }
    generator = torch.Generator().manual_seed(SEED)
    beside = draw_sets(
        labels[parts.held_out], per_class=(pool - 1) * per_class, count=1, generator=generator
    )[0]
    # The images that are scored, members first, and those that shadows are trained on.
    pooled = torch.cat([parts.members, parts.held_out[beside]])
    kinds = {
        "offline": (torch.cat([parts.members, parts.held_out]), unobserved(ground)),
        "online": (pooled, (images[pooled], labels[pooled])),
    }
    first = training["seed"] + 1  # not as the attacked network was drawn
    for kind, (chosen, source) in kinds.items():
        sets = draw_sets(source[1], per_class=per_class, count=shadows, generator=generator)
        started = time.perf_counter()
        trained = shadows_of(source, sets, record=record, first=first, title=f"{name}, {kind}")
        seconds = time.perf_counter() - started
        first += shadows
        pairs = zip(trained, sets, strict=True)
        own = torch.cat([confidences([s], *(of[some] for of in source)) for s, some in pairs])
        # The settings may be near those at which SGD diverges: some do, or are not even finite.
        fitted = ((own > 0).double().mean(dim=1) >= FITTED).nonzero().flatten()
        trained, sets, own = [trained[i] for i in fitted.tolist()], sets[fitted], own[fitted]
        seen = torch.zeros(len(fitted), len(chosen), dtype=torch.bool)
        if kind == "online":
            seen.scatter_(1, sets, True)
        sides = (seen, ~seen) if kind == "online" else (~seen,)
        if min(int(side.sum(dim=0).min()) for side in sides) < 2:
            raise Refusal(
                f"{name}: {len(fitted)} of {shadows} shadows fit their images; more --steps or "
                "--shadows are needed"
            )
        values = confidences(trained, images[chosen], labels[chosen])
        if kind == "online":
            found = online(confidence[chosen], values, seen)
        else:
            found = offline(confidence[chosen], values, own)
        scores = {way: score[chosen] for way, score in ways.items()} | found
        result[kind] = {
            "seconds": seconds,
            "shadows": len(fitted),  # that take part
            # Whether shadows are like the attacked network.
            "median_confidence": {
                "members": own.median().item(),
                "held_out": values[~seen].median().item(),
            },
            **rates(scores, len(parts.members)),
        }
    return result


def main(network: list[str], shadows: int, pool: int, steps: int | None) -> None:
    """Tell the members of networks' training sets by stationarity, by the loss, and by shadow
    networks (LiRA), which are trained for it, on the images of the pipeline's membership runs.

    Needs the trained networks and the observations of membership, and a quarter of an hour for
    ordinary_100. Networks that are not asked for keep their results.
    """
    ground = Ground("membership")
    results = {
        name: compare(ground, name, shadows=shadows, pool=pool, steps=steps) for name in network
    }
    for name, result in results.items():
        for kind in ("offline", "online"):
            entry = result[kind]
            keys = [*(f"tpr_{key}" for key in membership.ALLOWED), "auc"]
            print_table(
                f"{name}: {entry['n']} members and {entry['null_n']:,} held-out images; "
                f"{entry['shadows']} shadows of {shadows}, in {entry['seconds']:.0f} s",
                ["attack", *(f"at {key} %" for key in membership.ALLOWED), "AUC"],
                [
                    [attack, *(f"{rates[key]:.3f}" if key in rates else "–" for key in keys)]
                    for attack, rates in entry["attacks"].items()
                ],
            )
    if steps is None:
        described = {name: {**result, "machine": machine()} for name, result in results.items()}
        known = read_json(RESULT)["networks"] if RESULT.exists() else {}
        write_result(RESULT.stem, {"dataset": ground.dataset, "networks": known | described})


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--network",
        nargs="+",
        metavar="NAME",
        default=["ordinary_100"],
        help="an mlp of params.yaml, or several; default: ordinary_100",
    )
    parser.add_argument(
        "--shadows", type=int, metavar="N", default=40, help="of each kind; default: 40"
    )
    parser.add_argument(
        "--pool",
        type=int,
        metavar="N",
        default=5,
        help="training sets' worth of images in the online pool; default: 5, one of them members",
    )
    parser.add_argument(
        "--steps", type=int, metavar="N", help="of training, for a try that writes no result"
    )


if __name__ == "__main__":
    run(main, arguments=options)
