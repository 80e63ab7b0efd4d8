"""Images that a classifier labels as a wanted class."""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from retrace.methods._chain import decode
from retrace.methods.network_inversion._descent import Function, ascend, nearest_by_planes, prepared
from retrace.methods.network_inversion._nearest import AT_LEAST, PROVED, UNKNOWN
from retrace.types import BadInput, Callback, ignore

BATCH = 200  # images that go through a network together
BLANK = 0.0  # where the image that a class wants starts: black, no digit
ALMOST_FLAT = 1e-6  # rounds the corner of the total variation, whose slope jumps at 0


def reconstruct(
    network: nn.Module,
    observed: Tensor,
    *,
    goal: Literal["nearest", "preferred", "range"] = "nearest",
    images: Annotated[int, Field(ge=1)] | None = None,
    probability: Annotated[float, Field(gt=0, lt=1)] = 0.9,
    prior: Annotated[float, Field(ge=0)] = 0.1,
    steps: Annotated[int, Field(ge=1)] = 200,
    learning_rate: Annotated[float, Field(gt=0)] = 0.05,
    beside: Mapping[str, Tensor] | None = None,
    callback: Callback = ignore,
) -> dict[str, Tensor]:
    """For each class, all at once:

    - ``nearest``: to each image the nearest one in [0, 1]ⁿ whose class probability is at least the
      wanted one, by tangent planes of its log-odds (see `_descent.nearest_by_planes`): a local
      optimum, so that the true distance is at most this one;
    - ``preferred``: the image that the class "wants", by Adam from black on the log-odds less
      `prior` times the total variation, the sum of |differences of neighbouring pixels|;
    - ``range``: what it wants among the images G(z) that a public decoder gives, by Adam on the
      code, from the mean code of images, on the log-odds less `prior` times |z|²/2: with 1 the code
      that is most probable, given the odds, if codes are standard normal, as those of a VAE. (From
      0 some classes end at the negative of a digit: a decoder of tanh layers without biases has
      G(−z) = 1 − G(z), and no code of an image is near those.)

    Parameters
    ----------
    network : Module
        (B, 28, 28) to logits (B, classes).
    observed : (N, 28, 28)
        Images to start from.
    images : int, optional
        The first so many observed images, or all of them, each to all classes; of ``nearest``.
    probability : float
        That the class has to have.
    prior : float
        Weight of the total variation, of ``preferred``, or of |z|²/2, of ``range``; 0 for none.
    learning_rate : float
        Adam's, in pixel units or those of the code; not of ``nearest``.
    beside : mapping, optional
        Of ``range``: the decoder's matrices ``decoder_0``, ``decoder_1``, … (outputs, inputs), from
        the code to the pixels, and ``code`` (d,), the mean code of images.

    Returns
    -------
    dict
        ``estimate`` and ``start`` (B, 28, 28) float64, images outermost, then classes; ``label``
        (B,), the wanted class; ``wanted`` (B,), the probability; ``relation``, ``feasible`` and
        ``iterations`` (B,) as in `hidden_unit.reconstruct`.

    Raises
    ------
    BadInput
        When there are fewer images, or no decoder for ``range``.
    """
    network, chosen = prepared(network, observed, images)
    shape = observed.shape[1:]
    classes = network(chosen[:1]).shape[1]
    pixels: Function = torch.clone  # of what is changed: of pixels themselves, or of a code
    if goal == "nearest":
        origin = chosen.flatten(1)
    elif goal == "preferred":
        origin = torch.full((1, shape.numel()), BLANK, dtype=torch.float64)
    else:
        weights, origin = public_decoder(beside or {})
        pixels = partial(decode, weights)
    start = origin.repeat_interleave(classes, dim=0)  # (B, n) or (B, d)
    label = torch.arange(classes).repeat(len(origin))

    def log_odds(x: Tensor) -> Tensor:
        """log p / (1 − p) of the wanted classes: the logit less the others' log-sum-exp."""
        found = []
        for part, index in zip(x.split(BATCH), label.split(BATCH), strict=True):
            logits = network(part.unflatten(1, shape))
            others = logits.scatter(1, index[:, None], -torch.inf).logsumexp(dim=1)
            found.append(logits.gather(1, index[:, None]).squeeze(1) - others)
        return torch.cat(found)

    def preference(x: Tensor) -> Tensor:
        """The log-odds less what the prior has against an image, or a code."""
        if goal == "range":
            against = x.square().sum(dim=1) / 2
        else:
            against = _total_variation(x.unflatten(1, shape))
        return log_odds(pixels(x)) - prior * against

    def shown(step: int, loss: Tensor, x: Tensor) -> None:
        callback(step, loss, pixels(x).unflatten(1, shape))

    odds = torch.full((len(start),), probability, dtype=torch.float64).logit()
    relation = torch.full_like(label, AT_LEAST)
    if goal == "nearest":
        estimate, reached, iterations = nearest_by_planes(
            log_odds, start, wanted=odds, relation=relation, steps=steps, callback=shown
        )
    else:
        found = ascend(
            preference,
            start,
            steps=steps,
            learning_rate=learning_rate,
            callback=shown,
            box=goal == "preferred",
        )
        estimate = pixels(found)
        reached = log_odds(estimate) >= odds
        iterations = torch.full_like(label, steps)
    return {
        "estimate": estimate.unflatten(1, shape),
        "start": pixels(start).unflatten(1, shape),
        "label": label,
        "wanted": odds.sigmoid(),
        "relation": relation.to(torch.int8),
        "feasible": torch.where(reached, PROVED, UNKNOWN).to(torch.int8),
        "iterations": iterations,
    }


def public_decoder(beside: Mapping[str, Tensor]) -> tuple[list[Tensor], Tensor]:
    """The matrices of the decoder G(z) = σ(W_L tanh(… tanh(W₁ z))) that lies beside the images to
    start from, and the images' mean code (1, d), all in float64."""
    names = sorted(name for name in beside if name.startswith("decoder_"))
    if not names or "code" not in beside:
        raise BadInput("goal = 'range': no decoder was observed")
    return [beside[name].double() for name in names], beside["code"].double().unsqueeze(0)


def _total_variation(images: Tensor) -> Tensor:
    """Sum of the absolute differences of neighbouring pixels: (B, rows, columns) to (B,)."""
    steps = [images.diff(dim=axis).flatten(1) for axis in (1, 2)]
    return (torch.cat(steps, dim=1).square() + ALMOST_FLAT).sqrt().sum(dim=1)
