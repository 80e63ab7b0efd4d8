"""Homogeneous binary classifier trained to a KKT point of the maximum-margin problem.

Gradient flow on a homogeneous network drives its direction to a point where

    theta = sum_i lambda_i y_i grad f(theta; x_i),   lambda_i >= 0,
    lambda_i > 0 only where the margin y_i f(x_i) is the smallest

(Lyu & Li 2020, arXiv 1906.05890; Ji & Telgarsky 2020, arXiv 2006.06657). The weights are then a
combination of the training images: what the attacks of retrace/methods/training_data read.
"""

import math
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from retrace.types import BadInput, Seed

Progress = Callable[[dict[str, float]], None]
Split = tuple[Tensor, Tensor]


def training_set(
    split: Split,
    *,
    examples: Literal["parity", "colours"],
    labels: Literal["correct", "random"],
    per_class: int,
    offset: int,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the images that a network is trained on: the truth of the attacks.

    Parameters
    ----------
    split : (images, labels)
        (N, 28, 28) in [0, 1] and (N,) int64: the training split.
    examples : "parity" or "colours"
        Odd digits against even ones; or pure red against pure blue images of 3 x 8 x 8.
    labels : "correct" or "random"
        Random labels are a control: the network then learns no rule, only these images.
    per_class : int
        Images of each class.
    offset : int
        The first image of each class.
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
    shape : list of int
        Of an image, (28, 28) or (channels, rows, columns); d is their product.
    widths : list of int
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
        shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=3)],
        widths: Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=1)],
        first_deviation: Annotated[float, Field(gt=0)],
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

    def parameters_by_layer(self) -> tuple[list[Tensor], Tensor]:
        """The weights (n_l, n_{l-1}) of each layer and the bias (n_1,), not copied."""
        named = dict(self.named_parameters())
        weights = [named[f"layers.{layer}.weight"].data for layer in range(len(self.layers))]
        return weights, named["layers.0.bias"].data

    @torch.no_grad()
    def fit(
        self,
        training: Split,
        validation: Split,
        progress: Progress,
        *,
        examples: Literal["parity", "colours"],
        labels: Literal["correct", "random"],
        per_class: Annotated[int, Field(ge=1)],
        offset: Annotated[int, Field(ge=0)],
        method: Literal["normalised", "gradient_descent", "weight_decay"],
        steps: Annotated[int, Field(ge=0)],
        learning_rate: Annotated[float, Field(gt=0)],
        decay: Annotated[float, Field(gt=0, le=1)],
        margin: Annotated[float, Field(gt=0)],
        sharpening: Annotated[float, Field(ge=1)],
        weight_decay: Annotated[float, Field(ge=0)],
        report_every: Annotated[int, Field(ge=1)],
        seed: Seed,
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
            ``normalised`` ascends the smoothed margin -log sum exp(-y f(x)) by steps relative to
            the norm of the weights (loss-scaled steps, Lyu & Li 2020, section 5), theta <-
            (1 - r) theta + r |theta| G / |G| with G = sum_i p_i y_i grad f(x_i), p the softmax of
            the negative margins, and rescales the weights so that the smallest margin stays at
            `margin`: the direction of a homogeneous network does not depend on its scale, and no
            exponential underflows. ``gradient_descent`` lowers the mean logistic loss by plain
            steps, as published (Haim et al. 2022). ``weight_decay`` lowers it plus
            `weight_decay` |theta|^2, whose minimum fulfils the stationarity condition exactly.
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
        x = images - mean
        weights, bias = self.parameters_by_layer()
        parameters = [*weights, bias]
        history: list[dict[str, float]] = []
        started = time.time()
        for step in range(steps + 1):
            share = step / max(steps, 1)
            rate = learning_rate * decay**share
            activations, logits = forward(weights, bias, x)
            margins = signs * logits
            _check_alive(logits, step=step, learning_rate=learning_rate)
            if step % report_every == 0 or step == steps:
                entry = {
                    "epoch": float(step),
                    "timestamp": time.time(),
                    "elapsed": time.time() - started,
                    "learning_rate": rate,
                    **kkt_measures(weights, bias, x, signs),
                }
                if examples == "parity":
                    wrong = (self(validation[0]) > 0) != (validation[1] % 2 == 1)
                    entry["test_error"] = wrong.double().mean().item()
                history.append(entry)
                progress(entry)
            if step == steps:
                break
            if method == "normalised":
                smallest = float(margins.min())
                if smallest > 0:
                    # A factor on all weights: the direction, which is what is trained, stays.
                    factor = (margin * sharpening**share / smallest) ** (1 / len(weights))
                    factor = min(max(factor, 0.8), 1.25)  # keeps the softmax smooth in time
                    for parameter in parameters:
                        parameter.mul_(factor)
                    margins = margins * factor ** len(weights)
                    activations = [a * factor**layer for layer, a in enumerate(activations)]
                duals = (-margins).softmax(dim=0)
                ascent = gradient(weights, activations, duals * signs)
                length, size = _norm(parameters), _norm(ascent)
                for parameter, direction in zip(parameters, ascent, strict=True):
                    parameter.mul_(1 - rate).add_(direction, alpha=rate * length / size)
            else:
                duals = (-margins).sigmoid() / len(x)
                ascent = gradient(weights, activations, duals * signs)
                shrink = 2 * weight_decay if method == "weight_decay" else 0.0
                for parameter, direction in zip(parameters, ascent, strict=True):
                    parameter.mul_(1 - rate * shrink).add_(direction, alpha=rate)
        return history


def _check_alive(logits: Tensor, *, step: int, learning_rate: float) -> None:
    if not bool(logits.isfinite().all()):
        reason = "the logits are not finite"
    elif not bool(logits.any()):
        reason = "all units are off and have no gradient left"
    else:
        return
    raise BadInput(f"learning_rate = {learning_rate:g}: {reason} at step {step}; lower it")


def _norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors))


def forward(weights: list[Tensor], bias: Tensor, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Activations of every layer and the logits.

    Parameters
    ----------
    weights : list of (n_l, n_{l-1})
        n_0 = d, the last n_L = 1.
    bias : (n_1,)
    x : (B, d)
        The mean image subtracted.

    Returns
    -------
    activations : list of (B, n_l)
        x first, then the output of every ReLU.
    logits : (B,)
    """
    activations = [x]
    for position, weight in enumerate(weights[:-1]):
        inputs = activations[-1]
        z = inputs @ weight.T if position else torch.addmm(bias, inputs, weight.T)
        activations.append(z.relu_())
    return activations, (activations[-1] @ weights[-1].T).squeeze(1)


def deltas(weights: list[Tensor], activations: list[Tensor], outer: Tensor) -> list[Tensor]:
    """Derivative of sum_i outer_i f(x_i) with respect to what goes into each layer's ReLU.

    Parameters
    ----------
    weights, activations
        See `forward`.
    outer : (B,)

    Returns
    -------
    list of (B, n_l)
        For the layers 1 to L, the last of width 1.
    """
    found = [outer[:, None]]
    for weight, activation in zip(reversed(weights[1:]), reversed(activations[1:]), strict=True):
        found.append((found[-1] @ weight).mul_(activation > 0))
    return found[::-1]


def gradient(weights: list[Tensor], activations: list[Tensor], outer: Tensor) -> list[Tensor]:
    """Gradient of sum_i outer_i f(x_i) with respect to the weights, then the bias: by layers,
    without autograd."""
    steps = deltas(weights, activations, outer)
    return [*(d.T @ a for d, a in zip(steps, activations, strict=True)), steps[0].sum(dim=0)]


def kkt_measures(weights: list[Tensor], bias: Tensor, x: Tensor, signs: Tensor) -> dict[str, float]:
    """How near the weights are to a KKT point of the maximum-margin problem.

    The Gram matrix of the gradients of f is the sum over layers of the elementwise product of two
    Gram matrices, of the activations and of the deltas; with Euler's identity
    <theta, grad f> = L f (L layers), the best dual variables are a non-negative least squares
    problem of the size of the training set.

    Parameters
    ----------
    weights, bias, x
        See `forward`.
    signs : (n,)

    Returns
    -------
    dict
        ``smallest_margin`` (logits), ``normalised_margin`` (divided by |theta|^L), ``norm``
        (|theta|), ``stationarity_residual`` (|theta - sum lambda_i y_i grad f(x_i)| / |theta| with
        the best lambda >= 0), ``complementary_slackness`` (mean of margin / smallest - 1, weighted
        by lambda), ``support_vectors`` ((sum lambda)^2 / sum lambda^2), ``training_error``, and of
        each layer ``rank_<layer>``, the number of singular values above 1e-4 of the largest.
    """
    from scipy.optimize import nnls  # here: it takes 0.4 s

    weights = [weight.double() for weight in weights]
    activations, logits = forward(weights, bias.double(), x.double())
    margins = signs.double() * logits
    steps = deltas(weights, activations, signs.double())
    gram = steps[0] @ steps[0].T  # of the bias, whose input is 1
    for step, activation in zip(steps, activations, strict=True):
        gram += (step @ step.T) * (activation @ activation.T)
    length = _norm([*weights, bias.double()])
    depth = len(weights)
    values, vectors = torch.linalg.eigh(gram)
    root = values.clamp(min=values.max() * 1e-12).sqrt()
    # |root^T lambda - target|^2 differs from the residual's square by a constant.
    target = (vectors.T @ (depth * margins)) / root
    duals, _ = nnls(
        (root[:, None] * vectors.T).cpu().numpy(), target.cpu().numpy(), maxiter=50 * len(x)
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
    for layer, weight in enumerate(weights[:-1], start=1):
        spectrum = torch.linalg.svdvals(weight)
        measures[f"rank_{layer}"] = float((spectrum > 1e-4 * spectrum[0]).sum())
    return measures
