"""Homogeneous binary classifier trained to a KKT point of the maximum-margin problem.

Gradient flow on a homogeneous network drives its direction to a point where

    theta = sum_i lambda_i y_i grad f(theta; x_i),   lambda_i >= 0,
    lambda_i > 0 only where the margin y_i f(x_i) is the smallest

(Lyu & Li 2020, arXiv 1906.05890; Ji & Telgarsky 2020, arXiv 2006.06657). The weights are then a
combination of the training images: what the attacks of retrace/methods/training_data read.
"""

import copy
import math
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from retrace.networks._training import Progress, unwatched
from retrace.types import BadInput, Seed, Split


def training_set(
    split: Split,
    *,
    examples: Literal["parity", "colours"] = "parity",
    labels: Literal["correct", "random"] = "correct",
    per_class: int = 250,
    offset: int = 0,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the images that a network is trained on: the truth of the attacks.

    Parameters
    ----------
    split : (images, labels)
        The training split.
    examples : "parity" or "colours"
        Odd digits against even ones; or pure red against pure blue images of 3 x 8 x 8.
    labels : "correct" or "random"
        Random labels are a control: the network then learns no rule, only these images.
    per_class, offset : int
        Images of each class, and the first of them.
    seed : int
        Of the random labels.

    Returns
    -------
    images : (2 per_class, d) float32
        In [0, 1], flattened; the first half is odd (or red).
    signs : (2 per_class,) float32
        +1 and -1, as many of each.
    mean : (d,) float32
        Mean of all images of the split outside this set: public, part of the checkpoint.

    Raises
    ------
    BadInput
        When the split holds too few images of a class.
    """
    if examples == "colours":
        coloured = torch.zeros(2, per_class, 3, 8, 8)
        coloured[0, :, 0] = 1
        coloured[1, :, 2] = 1
        images = coloured.flatten(0, 1).flatten(1)
        mean = torch.full((images.shape[1],), 0.5)  # the middle of the range: nothing is public
    else:
        everything, digits = split
        of_class = [torch.nonzero(digits % 2 == parity).flatten() for parity in (1, 0)]
        smallest = min(map(len, of_class))
        if offset + per_class > smallest:
            raise BadInput(
                f"offset + training.per_class = {offset + per_class}: the training split "
                f"holds {smallest} images of the smaller class"
            )
        chosen = torch.cat([members[offset : offset + per_class] for members in of_class])
        outside = torch.ones(len(everything), dtype=torch.bool)
        outside[chosen] = False
        images = everything[chosen].flatten(1)
        mean = everything[outside].flatten(1).mean(dim=0)
    signs = torch.ones(2 * per_class)
    signs[per_class:] = -1
    if labels == "random":
        signs = signs[torch.randperm(len(signs), generator=torch.Generator().manual_seed(seed))]
    return images, signs, mean


class Network(nn.Module):
    """ReLU network with one output and a bias in the first layer only: homogeneous in its weights.

    Parameters
    ----------
    shape : sequence of int
        Of an image, (28, 28) or (channels, rows, columns); d is their product.
    widths : sequence of int
        Units of each hidden layer.
    first_deviation : float
        Standard deviation of the first layer's initial weights. A small one (1e-4) leaves nothing
        of the initialisation in the trained layer: the whole of it comes from the images.

    Attributes
    ----------
    layers : ModuleList of Linear
        The first with a bias, the others without.
    mean : (d,)
        Public mean image, subtracted from the input.
    """

    mean: Tensor

    def __init__(
        self,
        *,
        shape: Annotated[
            Sequence[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=3)
        ] = (28, 28),
        widths: Annotated[Sequence[Annotated[int, Field(ge=2)]], Field(min_length=1)] = (
            1000,
            1000,
        ),
        first_deviation: Annotated[float, Field(gt=0)] = 1e-4,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        sizes = [math.prod(shape), *widths, 1]
        self.layers = nn.ModuleList(
            nn.Linear(inputs, outputs, bias=position == 0)
            for position, (inputs, outputs) in enumerate(pairwise(sizes))
        )
        for parameter in self.layers[0].parameters():
            nn.init.normal_(parameter, std=first_deviation)
        self.register_buffer("mean", torch.zeros(sizes[0]))

    def forward(self, images: Tensor) -> Tensor:
        """(B, *shape) images in [0, 1] to logits (B,): positive for odd digits, or for red."""
        hidden = images.flatten(1) - self.mean
        for layer in self.layers[:-1]:
            hidden = layer(hidden).relu()
        return self.layers[-1](hidden).squeeze(1)

    def fit(
        self,
        training: Split,
        validation: Split,
        progress: Progress = unwatched,
        *,
        examples: Literal["parity", "colours"] = "parity",
        labels: Literal["correct", "random"] = "correct",
        per_class: Annotated[int, Field(ge=1)] = 250,
        offset: Annotated[int, Field(ge=0)] = 0,
        method: Literal["normalised", "gradient_descent", "weight_decay"] = "normalised",
        steps: Annotated[int, Field(ge=0)] = 2200,
        learning_rate: Annotated[float, Field(gt=0)] = 0.05,
        decay: Annotated[float, Field(gt=0, le=1)] = 0.014,
        margin: Annotated[float, Field(gt=0)] = 5.0,
        sharpening: Annotated[float, Field(ge=1)] = 24.0,
        weight_decay: Annotated[float, Field(ge=0)] = 0.0,
        report_every: Annotated[int, Field(ge=1)] = 200,
        seed: Seed = 0,
    ) -> list[dict[str, float]]:
        """Train on a small set, all of it in every step, towards a KKT point.

        Parameters
        ----------
        training, validation : (images, labels)
            The splits. `training_set` chooses from the first; the second gives the test error.
        progress : function
            Called with the history's entry after each report.
        examples, labels, per_class, offset
            See `training_set`.
        method : str
            ``normalised``: see `normalised_step`. ``gradient_descent`` lowers the mean logistic
            loss by plain steps, as published (Haim et al. 2022, arXiv 2206.07758).
            ``weight_decay`` lowers it plus `weight_decay` |theta|^2, whose minimum fulfils the
            stationarity condition exactly.
        steps : int
            0 leaves the network as it was drawn: a control.
        learning_rate : float
            r of ``normalised``, the step size of the others.
        decay : float
            The last learning rate as a share of the first, geometrically in between; 1: constant.
        margin : float
            ``normalised`` only: the smallest margin at the start, in units of the logit.
        sharpening : float
            ``normalised`` only: how many times larger the margin is at the end. The larger it is,
            the nearer p comes to the dual variables of the hard maximum margin.
        weight_decay : float
            ``weight_decay`` only.
        report_every : int
            Steps between two entries of the history.
        seed : int
            Of random labels.

        Returns
        -------
        list of dict
            ``epoch`` (a step on the whole set), ``timestamp``, ``learning_rate`` and the measures
            of `kkt_measures`, with ``test_error`` (share of wrong validation images).

        Raises
        ------
        BadInput
            When the weights are not finite, or the set does not fit the network.
        """
        images, signs, mean = training_set(
            training,
            examples=examples,
            labels=labels,
            per_class=per_class,
            offset=offset,
            seed=seed,
        )
        if images.shape[1] != len(self.mean):
            raise BadInput(
                f"examples = {examples!r}: its images have {images.shape[1]} values, "
                f"shape = {list(self.shape)} has {len(self.mean)}"
            )
        self.mean.copy_(mean)
        images = images.unflatten(1, self.shape)
        parameters = list(self.parameters())
        history: list[dict[str, float]] = []
        started = time.time()
        for step in range(steps + 1):
            share = step / max(steps, 1)
            rate = learning_rate * decay**share
            logits = self(images)
            _check_alive(logits, step=step, learning_rate=learning_rate)
            if step % report_every == 0 or step == steps:
                entry = {
                    "epoch": float(step),
                    "timestamp": time.time(),
                    "elapsed": time.time() - started,
                    "learning_rate": rate,
                    **kkt_measures(self, images, signs),
                }
                if examples == "parity":
                    with torch.no_grad():
                        wrong = (self(validation[0]) > 0) != (validation[1] % 2 == 1)
                    entry["test_error"] = wrong.double().mean().item()
                history.append(entry)
                progress(entry)
            if step == steps:
                break
            if method == "normalised":
                wanted = margin * sharpening**share
                normalised_step(parameters, signs * logits, rate=rate, wanted=wanted)
            else:
                shrink = weight_decay if method == "weight_decay" else 0.0
                descent_step(parameters, signs * logits, rate=rate, weight_decay=shrink)
        return history


@torch.no_grad()
def normalised_step(
    parameters: list[nn.Parameter], margins: Tensor, *, rate: float, wanted: float
) -> None:
    """Ascend the smoothed margin -log sum_i exp(-q_i) by a step relative to the weights' norm.

    With G = sum_i p_i grad q_i, p the softmax of the negative margins q_i = y_i f(x_i), (n,) with
    the graph behind them, the parameters theta, of each layer the weights, and one bias, change in
    place at the rate r:

        theta <- (1 - r) theta + r |theta| G / |G|

    (loss-scaled steps, Lyu & Li 2020, section 5). Before it the weights are rescaled so that the
    smallest margin is `wanted`: the direction of a homogeneous network does not depend on its
    scale, and no exponential underflows.
    """
    depth, smallest = len(parameters) - 1, float(margins.min())
    factor = 1.0
    if smallest > 0:
        # Not all at once, which keeps the softmax smooth in time.
        factor = min(max((wanted / smallest) ** (1 / depth), 0.8), 1.25)
    # A factor on all weights multiplies f by factor^L and all gradients by factor^(L - 1).
    duals = (-margins * factor**depth).softmax(dim=0)
    ascent = torch.autograd.grad(margins, parameters, duals)
    step = rate * _norm(parameters) / _norm(ascent)
    for parameter, direction in zip(parameters, ascent, strict=True):
        parameter.mul_(factor * (1 - rate)).add_(direction, alpha=factor * step)


@torch.no_grad()
def descent_step(
    parameters: list[nn.Parameter], margins: Tensor, *, rate: float, weight_decay: float
) -> None:
    """A step of gradient descent on mean_i log(1 + exp(-q_i)) + weight_decay |theta|^2; see
    `normalised_step`."""
    ascent = torch.autograd.grad(margins, parameters, (-margins).sigmoid() / len(margins))
    for parameter, direction in zip(parameters, ascent, strict=True):
        parameter.mul_(1 - 2 * rate * weight_decay).add_(direction, alpha=rate)


def _check_alive(logits: Tensor, *, step: int, learning_rate: float) -> None:
    if not bool(logits.isfinite().all()):
        reason = "the logits are not finite"
    elif not bool(logits.any()):
        reason = "all units are off and have no gradient left"
    else:
        return
    raise BadInput(f"learning_rate = {learning_rate:g}: {reason} at step {step}; lower it")


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors))


def gradient_factors(
    network: Network, images: Tensor, signs: Tensor
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Factors of the gradients of the margins: that of a layer's weights is delta_i a_i^T.

    Of images (n, *shape) and signs (n,): the margins q_i = y_i f(x_i), (n,); a, (n, n_{l-1}), what
    goes into each layer, first the images less the mean; and the derivatives (n, n_l) of q_i with
    respect to what comes out of each layer.
    """
    activations, sums = [images.flatten(1) - network.mean], []
    for layer in network.layers[:-1]:
        sums.append(layer(activations[-1]))
        activations.append(sums[-1].relu())
    margins = signs * network.layers[-1](activations[-1]).squeeze(1)
    deltas = [*torch.autograd.grad(margins.sum(), sums), signs[:, None]]
    return margins.detach(), [activation.detach() for activation in activations], deltas


def kkt_measures(network: Network, images: Tensor, signs: Tensor) -> dict[str, float]:
    """How near the weights are to a KKT point of the maximum-margin problem, for images (n, *shape)
    and signs (n,). In float64.

    The Gram matrix of the gradients of f is the sum over layers of the elementwise product of two
    Gram matrices, of the activations and of the deltas; with Euler's identity
    <theta, grad f> = L f (L layers), the best dual variables are a non-negative least squares
    problem of the size of the training set.

    Gives ``smallest_margin`` (logits), ``normalised_margin`` (divided by |theta|^L), ``norm``
    (|theta|), ``stationarity_residual`` (|theta - sum lambda_i y_i grad f(x_i)| / |theta| with
    the best lambda >= 0), ``complementary_slackness`` (mean of margin / smallest - 1, weighted
    by lambda), ``support_vectors`` ((sum lambda)^2 / sum lambda^2), ``training_error``, and of
    each layer ``rank_<layer>``, the number of singular values above 1e-4 of the largest.
    """
    from scipy.optimize import nnls  # here: it takes 0.4 s

    network = copy.deepcopy(network).double().requires_grad_()
    margins, activations, deltas = gradient_factors(network, images.double(), signs.double())
    gram = deltas[0] @ deltas[0].T  # of the bias, whose input is 1
    for delta, activation in zip(deltas, activations, strict=True):
        gram += (delta @ delta.T) * (activation @ activation.T)
    parameters = [parameter.detach() for parameter in network.parameters()]
    length, depth = _norm(parameters), len(deltas)
    values, vectors = torch.linalg.eigh(gram)
    root = values.clamp(min=values.max() * 1e-12).sqrt()
    # |root^T lambda - target|^2 differs from the residual's square by a constant.
    target = (vectors.T @ (depth * margins)) / root
    duals, _ = nnls(
        (root[:, None] * vectors.T).cpu().numpy(), target.cpu().numpy(), maxiter=50 * len(images)
    )
    best = torch.as_tensor(duals)
    residual = length**2 - 2 * depth * float(best @ margins) + float(best @ (gram @ best))
    smallest = float(margins.min())
    total = float(best.sum())
    measures = {
        "smallest_margin": smallest,
        "normalised_margin": smallest / length**depth,
        "norm": length,
        "stationarity_residual": math.sqrt(max(residual, 0.0)) / length,
        "training_error": float((margins <= 0).double().mean()),
    }
    if total > 0:
        measures["support_vectors"] = total**2 / float(best.square().sum())
        if smallest > 0:
            measures["complementary_slackness"] = float(best @ margins) / total / smallest - 1
    for layer in range(depth - 1):
        spectrum = torch.linalg.svdvals(network.get_parameter(f"layers.{layer}.weight").detach())
        measures[f"rank_{layer + 1}"] = float((spectrum > 1e-4 * spectrum[0]).sum())
    return measures
