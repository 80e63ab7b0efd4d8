"""How well codes of a decoder's outputs were found: scores, table rows and pictures."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from stages.command import Refusal
from stages.pictures import mosaic, sheet
from stages.scoring import quality

OFF_RANGE = "off_range"
# How far the output of a found code may be from that of the true one, in any pixel: the step that
# the observation was rounded to; for float32 64 of its steps, since every layer rounds.
ROUNDING = {
    "on_range_float64": 2.0**-26,
    "on_range_float32": 2.0**-17,
    "on_range_uint8": 1 / 255,
}
OPTIMUM = 1.01  # times the best known objective counts as solved
SATURATED = 0.999  # a hidden unit beyond it keeps less than 0.2 % of its slope
SHOWN = 5  # images of each kind in the report's picture
COLUMNS = 4  # in a picture for MLflow
Means = Callable[[dict[str, Tensor]], dict[str, float]]
Scores = dict[str, Any]
Arrays = Mapping[str, NDArray[Any]]


def checked(arrays: Arrays, observations: Arrays, codes: Tensor, network: nn.Module) -> Tensor:
    """The estimated codes (groups, n, d), refused where they do not fit.

    Raises
    ------
    Refusal
        When the network has no codes, or the true or the estimated codes are of another number or
        size than the network's, or some are not finite.
    """
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
    """Scores of each group of images, codes and images compared in float64.

    On the decoder's range: ``code_error_median``, ``_p95`` and ``_max`` of ‖z − ẑ‖∞; ``mse`` and
    ``ssim`` of G(ẑ) against G(z), which the observation was rounded from; ``solved``, the share
    whose G(ẑ) is G(z) within that rounding in every pixel.

    Off it: ``mse`` and ``ssim`` of G(ẑ) against the image; ``mse_over_encoder``, to the mean MSE of
    the encoder's means; ``norm_median`` and ``norm_max`` of ẑ; ``solved``, the share of the images
    with a known best objective that are within 1 % of it, left out where none is known for this
    penalty.

    Parameters
    ----------
    estimate : (groups, n, d) float64
    observations : dict
        ``observed`` (groups, n, 28, 28) and ``groups``.
    codes : (n, d) float64
        The true codes of the images on the range.
    optima : dict
        ``penalties`` (P,) and ``objective`` (P, images), of the first images off the range.
    penalty : float
        λ of the run's objective ‖G(z) − x‖² + λ‖z‖².
    network : Module
        In float64.
    means : function
        Takes per-image measures to means with intervals.
    """
    truth = network.decode(codes)  # type: ignore[operator]
    observed = torch.from_numpy(observations["observed"])
    scores: Scores = {}
    for i, group in enumerate(observations["groups"].tolist()):
        decoded = network.decode(estimate[i])  # type: ignore[operator]
        if group == OFF_RANGE:
            scores[group] = _off_range(
                estimate[i],
                decoded,
                observed[i],
                optima=optima,
                penalty=penalty,
                network=network,
                means=means,
            )
            continue
        error = (estimate[i] - codes).abs().amax(dim=1)
        within = (decoded - truth).abs().amax(dim=(1, 2)) <= ROUNDING[group]
        scores[group] = {
            "code_error_median": float(error.quantile(0.5)),
            "code_error_p95": float(error.quantile(0.95)),
            "code_error_max": float(error.max()),
            "solved": float(within.double().mean()),
            **means({"mse": quality.mse(decoded, truth), "ssim": quality.ssim(decoded, truth)}),
        }
    return scores


def _off_range(
    estimate: Tensor,
    decoded: Tensor,
    images: Tensor,
    *,
    optima: Arrays,
    penalty: float,
    network: nn.Module,
    means: Means,
) -> Scores:
    errors = quality.mse(decoded, images)
    encoded = network.decode(network.encode(images)[0])  # type: ignore[operator]
    scores = means({"mse": errors, "ssim": quality.ssim(decoded, images)})
    norms = estimate.norm(dim=1)
    scores |= {
        "mse_over_encoder": scores["mse"] / float(quality.mse(encoded, images).mean()),
        "norm_median": float(norms.quantile(0.5)),
        "norm_max": float(norms.max()),
    }
    known = np.flatnonzero(optima["penalties"] == penalty)
    if len(known):
        best = torch.from_numpy(optima["objective"][known[0]])
        pixels = images[0].numel()
        objective = (errors * pixels + penalty * norms.square())[: len(best)]
        solved = objective <= OPTIMUM * torch.minimum(best, objective)
        scores["solved"] = float(solved.double().mean())
        scores["objective_over_best"] = float(objective.mean() / best.mean())
    return scores


@torch.no_grad()
def certificate(network: nn.Module, codes: Tensor) -> Scores:
    """What says whether the decoder can be inverted layer by layer.

    By layer, from the code to the pixels: ``rank`` and ``columns``, which are equal where the
    layer's pseudo-inverse is exact; ``condition``, by which it amplifies errors at most; and of
    hidden layers ``saturated``, the share of values beyond ±0.999 for these codes, where the
    inverse tanh amplifies errors more than 500 times.

    Parameters
    ----------
    network : Module
        In float64.
    codes : (n, d) float64
    """
    layers: Scores = {}
    values = codes
    weights = network.decoder_weights()  # type: ignore[operator]
    for number, weight in enumerate(weights, start=1):
        spectrum = torch.linalg.svdvals(weight)
        layers[f"layer_{number}"] = {
            "rank": int(torch.linalg.matrix_rank(weight)),
            "columns": weight.shape[1],
            "condition": float(spectrum[0] / spectrum[-1]),
        }
        values = (values @ weight.T).tanh()
        if number < len(weights):
            share = (values.abs() > SATURATED).double().mean()
            layers[f"layer_{number}"]["saturated"] = float(share)
    return layers


@torch.no_grad()
def negative_elbo(network: nn.Module, images: Tensor) -> float:
    """Mean negative evidence lower bound of images (n, 28, 28), nats an image."""
    labels = torch.zeros(len(images))
    return float(network.evaluate(images, labels)["negative_elbo"].mean())  # type: ignore[operator]


def short(name: str) -> str:
    return name.removeprefix("decoder_inversion-")


def on_range_table(runs: Mapping[str, Scores]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: codes of images that the decoder made, by the precision they came in."""
    head = ["run"]
    for kind in ("float64", "float32", "8 bits"):
        head += [f"{kind}: median error", "p95", "largest", "MSE", "solved"]
    rows = []
    for name, scores in runs.items():
        row = [f"`{short(name)}`"]
        for group in ROUNDING:
            found = scores[group]
            keys = ("code_error_median", "code_error_p95", "code_error_max", "mse")
            row += [*(f"{found[key]:.0e}" for key in keys), f"{found['solved']:.1%}"]
        rows.append(row)
    return head, rows


def off_range_table(runs: Mapping[str, Scores]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: codes for real test images."""
    head = ["run", "MSE", "95 % interval", "÷ encoder", "SSIM", "median ‖z‖", "largest ‖z‖"]
    head += ["÷ best known", "solved", "seconds / 1,000"]
    rows = []
    for name, scores in sorted(runs.items(), key=lambda item: item[1][OFF_RANGE]["mse"]):
        found = scores[OFF_RANGE]
        rows.append(
            [
                f"`{short(name)}`",
                f"{found['mse']:.4f}",
                f"{found['mse_low']:.4f} to {found['mse_high']:.4f}",
                f"{found['mse_over_encoder']:.2f}",
                f"{found['ssim']:.3f}",
                f"{found['norm_median']:.1f}",
                f"{found['norm_max']:.0f}",
                f"{found['objective_over_best']:.3f}" if "solved" in found else "",
                f"{found['solved']:.0%}" if "solved" in found else "",
                f"{scores['seconds_per_1000']:.1f}",
            ]
        )
    return head, rows


def report_picture(
    estimates: Mapping[str, NDArray[Any]],
    observations: Arrays,
    *,
    network: nn.Module,
    title: str,
) -> Image.Image:
    """Images on the range (float64) and off it side by side, and what each run decodes to."""
    groups = observations["groups"].tolist()
    shown = [groups.index("on_range_float64"), groups.index(OFF_RANGE)]
    rows = {"image": np.concatenate([observations["observed"][i][:SHOWN] for i in shown])}
    for name, estimate in estimates.items():
        rows[short(name)] = np.concatenate([decoded(network, estimate[i][:SHOWN]) for i in shown])
    captions = ["", "", "on range", "", "", "", "", "off range", "", ""]
    return sheet(rows, title=title, columns=captions, scale=2)


def pictures(
    arrays: Arrays, observations: Arrays, network: nn.Module
) -> Iterator[tuple[str, int, NDArray[np.uint8]]]:
    """Pictures of one run with their key and step: of each group the rows given, re-decoded and
    error; of images off the range also along the iterations."""
    groups = observations["groups"].tolist()

    def picture(group: int, codes: NDArray[Any]) -> NDArray[np.uint8]:
        given = observations["observed"][group][:COLUMNS]
        output = decoded(network, codes[:COLUMNS])
        return mosaic([given, output, abs(output - given)])

    for i, group in enumerate(groups):
        yield f"{group}/decoded", 0, picture(i, arrays["estimate"][i])
    if "snapshots" in arrays:
        off = groups.index(OFF_RANGE)
        steps = arrays["snapshot_steps"].tolist()
        for step, snapshot in zip(steps, arrays["snapshots"], strict=True):
            yield f"{OFF_RANGE}/iterations", step, picture(off, snapshot[off])


@torch.no_grad()
def decoded(network: nn.Module, codes: NDArray[Any]) -> NDArray[Any]:
    """(n, d) codes to (n, 28, 28) images by a network in float64."""
    decoded: Tensor = network.decode(torch.from_numpy(codes).double())  # type: ignore[operator]
    return decoded.numpy()
