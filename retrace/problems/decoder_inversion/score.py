"""How well codes of a decoder's outputs were found: scores."""

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from retrace.measures import quality
from retrace.methods._chain import activations
from retrace.pipeline.command import Refusal
from retrace.problems import Arrays, BaseScorer, Run, Scores
from retrace.types import Means

JUDGES = ()
BASELINE = None
OFF_RANGE = "off_range"
# How far the output of a found code may be from that of the true one, in any pixel: the step that
# the observation was rounded to; for float32 64 of its steps, since every layer rounds.
ROUNDING = {"on_range_float64": 2.0**-26, "on_range_float32": 2.0**-17, "on_range_uint8": 1 / 255}
OPTIMUM = 1.01  # times the best known objective counts as solved
SATURATED = 0.999  # a hidden unit beyond it keeps less than 0.2 % of its slope


def checked(arrays: Arrays, observations: Arrays, codes: Tensor, network: nn.Module) -> Tensor:
    """The estimated codes (groups, n, d); refused where the network has no codes, or the true or
    the estimated codes are of another number or size than the network's, or some are not finite."""
    if not hasattr(network, "decoder_weights"):
        raise Refusal("this network has no decoder to invert; its architecture should be vae")
    size: Any = network.code_size
    if codes.shape[1] != size:
        raise Refusal(
            f"the true codes have {codes.shape[1]} values, those of the network {size}; "
            "run `dvc repro`"
        )
    estimate = torch.from_numpy(arrays["estimate"])
    wanted = (len(observations["groups"]), len(codes), size)
    if tuple(estimate.shape) != wanted:
        raise Refusal(f"the estimate has shape {tuple(estimate.shape)}; {wanted} is expected")
    if not bool(torch.isfinite(estimate).all()):
        raise Refusal("the estimate is not finite")
    return estimate.double()


@torch.no_grad()
def score(
    estimate: Tensor,
    *,
    observations: Arrays,
    codes: Tensor,
    optima: Arrays,
    penalty: float,
    network: nn.Module,
    means: Means,
) -> Scores:
    """Scores of each group of images by its name, codes and images compared in float64.

    On the decoder's range: ``code_error_median``, ``_p95`` and ``_max`` of ‖z − ẑ‖∞, the estimate
    being (groups, n, d) and the true codes (n, d); ``mse`` and ``ssim`` of G(ẑ) against G(z), which
    the observation was rounded from; ``solved``, the share whose G(ẑ) is G(z) within that rounding
    in every pixel.

    Off it: ``mse`` and ``ssim`` of G(ẑ) against the image; ``mse_over_encoder``, to the mean MSE of
    the encoder's means; ``norm_median`` and ``norm_max`` of ẑ; ``solved``, the share of the images
    with a known best objective that are within 1 % of it, left out where none is known for this
    penalty λ: the optima are ``penalties`` (P,) and ``objective`` (P, images), of the first images.
    """
    truth = network.decode(codes)  # type: ignore[operator]
    observed = torch.from_numpy(observations["observed"])
    scores: Scores = {}
    for i, group in enumerate(observations["groups"].tolist()):
        decoded = network.decode(estimate[i])  # type: ignore[operator]
        original = observed[i] if group == OFF_RANGE else truth
        errors = quality.mse(decoded, original)
        found: Scores = {**means({"mse": errors, "ssim": quality.ssim(decoded, original)})}
        scores[group] = found
        if group != OFF_RANGE:
            error = (estimate[i] - codes).abs().amax(dim=1)
            within = (decoded - truth).abs().amax(dim=(1, 2)) <= ROUNDING[group]
            found |= {
                "code_error_median": float(error.quantile(0.5)),
                "code_error_p95": float(error.quantile(0.95)),
                "code_error_max": float(error.max()),
                "solved": float(within.double().mean()),
            }
            continue
        encoded = network.decode(network.encode(original)[0])  # type: ignore[operator]
        norms = estimate[i].norm(dim=1)
        found |= {
            "mse_over_encoder": found["mse"] / float(quality.mse(encoded, original).mean()),
            "norm_median": float(norms.quantile(0.5)),
            "norm_max": float(norms.max()),
        }
        for known in np.flatnonzero(optima["penalties"] == penalty)[:1]:
            best = torch.from_numpy(optima["objective"][known])
            pixels = original[0].numel()
            objective = (errors * pixels + penalty * norms.square())[: len(best)]
            solved = objective <= OPTIMUM * torch.minimum(best, objective)
            found["solved"] = float(solved.double().mean())
            found["objective_over_best"] = float(objective.mean() / best.mean())
    return scores


@torch.no_grad()
def certificate(network: nn.Module, codes: Tensor) -> Scores:
    """What says whether the decoder can be inverted layer by layer, in float64, codes (n, d).

    By layer, from the code to the pixels: ``rank`` and ``columns``, which are equal where the
    layer's pseudo-inverse is exact; ``condition``, by which it amplifies errors at most; and of
    hidden layers ``saturated``, the share of values beyond ±0.999 for these codes, where the
    inverse tanh amplifies errors more than 500 times.
    """
    layers: Scores = {}
    weights = network.decoder_weights()  # type: ignore[operator]
    *hidden, _ = activations(weights, codes)
    for number, weight in enumerate(weights, start=1):
        spectrum = torch.linalg.svdvals(weight)
        layers[f"layer_{number}"] = {
            "rank": int(torch.linalg.matrix_rank(weight)),
            "columns": weight.shape[1],
            "condition": float(spectrum[0] / spectrum[-1]),
        }
    for number, values in enumerate(hidden, start=1):
        share = (values.abs() > SATURATED).double().mean()
        layers[f"layer_{number}"]["saturated"] = float(share)
    return layers


@torch.no_grad()
def negative_elbo(network: nn.Module, images: Tensor) -> float:
    """Mean negative evidence lower bound of images (n, 28, 28), nats an image."""
    labels = torch.zeros(len(images))
    return float(network.evaluate(images, labels)["negative_elbo"].mean())  # type: ignore[operator]


class Scorer(BaseScorer):
    """Scores of codes by group of images."""

    @cached_property
    def codes(self) -> Tensor:
        return torch.from_numpy(self.ground.truth["codes"]).double()

    def __call__(self, run: Run) -> tuple[Scores, Scores]:
        network = self.ground.network(run.record["network"])
        estimate = checked(run.arrays, self.ground.given, self.codes, network)
        elbo = {"test_negative_elbo": negative_elbo(network, self.ground.split("test")[0])}
        network.double()
        scores = score(
            estimate,
            observations=self.ground.given,
            codes=self.codes,
            optima=self.ground.truth,
            penalty=run.record["settings"].get("penalty", 0.0),
            network=network,
            means=self.means,
        )
        exact = scores["on_range_float64"]
        headline = {key: exact[key] for key in ("code_error_median", "code_error_max", "solved")}
        headline |= {key: scores[OFF_RANGE][key] for key in ("mse", "mse_over_encoder")}
        rest = {
            "code_size": self.codes.shape[1],
            "certificate": certificate(network, self.codes),
            "seconds_per_1000": 1000 * run.record["seconds"] / estimate[..., 0].numel(),
        }
        return {"n": len(self.codes), **elbo, **rest, **scores}, headline
