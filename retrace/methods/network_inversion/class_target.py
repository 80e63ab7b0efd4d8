"""Images that a classifier labels as a wanted class."""

import copy
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from retrace.methods.network_inversion._descent import ascend, nearest_by_planes
from retrace.methods.network_inversion._nearest import AT_LEAST, PROVED, UNKNOWN
from retrace.pipeline.artifacts import observed_path, read_arrays
from retrace.types import BadInput, Callback

BATCH = 200  # images that go through a network together
BLANK = 0.0  # where the image that a class wants starts: black, no digit
ALMOST_FLAT = 1e-6  # rounds the corner of the total variation, whose slope jumps at 0


def reconstruct(
    network: nn.Module,
    observed: Tensor,
    *,
    goal: Literal["nearest", "preferred", "range"],
    images: Annotated[int, Field(ge=1)],
    probability: Annotated[float, Field(gt=0, lt=1)],
    prior: Annotated[float, Field(ge=0)],
    steps: Annotated[int, Field(ge=1)],
    learning_rate: Annotated[float, Field(gt=0)],
    callback: Callback,
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
    goal : "nearest", "preferred" or "range"
    images : int
        The first so many observed images, each to all classes; of ``nearest``.
    probability : float
        That the class has to have.
    prior : float
        Weight of the total variation, of ``preferred``, or of |z|²/2, of ``range``; 0 for none.
    steps : int
    learning_rate : float
        Adam's, in pixel units or those of the code; not of ``nearest``.
    callback : function
        Called before each step and at the end.

    Returns
    -------
    dict
        ``estimate`` and ``start`` (B, 28, 28) float64, images outermost, then classes; ``label``
        (B,), the wanted class; ``wanted`` (B,), the probability; ``relation``, ``feasible`` and
        ``iterations`` (B,) as in `hidden_unit.reconstruct`.

    Raises
    ------
    BadInput
        When there are fewer images.
    """
    if images > len(observed):
        raise BadInput(f"images = {images}: {len(observed)} are observed")
    network = copy.deepcopy(network).double()
    shape = observed.shape[1:]
    classes = network(observed[:1].double()).shape[1]
    if goal == "nearest":
        chosen = observed[:images].double().flatten(1)
    elif goal == "preferred":
        chosen = torch.full((1, shape.numel()), BLANK, dtype=torch.float64)
    else:
        weights, mean = public_decoder()
        code = mean.repeat(classes, 1)
        chosen = decode(weights, code[:1])
    start = chosen.repeat_interleave(classes, dim=0)  # (B, n)
    label = torch.arange(classes).repeat(len(chosen))

    def log_odds(x: Tensor) -> Tensor:
        """log p / (1 − p) of the wanted classes: the logit less the others' log-sum-exp."""
        found = []
        for part, index in zip(x.split(BATCH), label.split(BATCH), strict=True):
            logits = network(part.unflatten(1, shape))
            others = logits.scatter(1, index[:, None], -torch.inf).logsumexp(dim=1)
            found.append(logits.gather(1, index[:, None]).squeeze(1) - others)
        return torch.cat(found)

    def shown(step: int, loss: Tensor, x: Tensor) -> None:
        images = x if goal != "range" else decode(weights, x)
        callback(step, loss, images.unflatten(1, shape))

    odds = torch.full((len(start),), probability, dtype=torch.float64).logit()
    relation = torch.full_like(label, AT_LEAST)
    if goal == "nearest":
        estimate, reached, iterations = nearest_by_planes(
            log_odds, start, wanted=odds, relation=relation, steps=steps, callback=shown
        )
    elif goal == "range":
        found = ascend(
            lambda z: log_odds(decode(weights, z)) - prior * z.square().sum(dim=1) / 2,
            code,
            steps=steps,
            learning_rate=learning_rate,
            callback=shown,
            box=False,
        )
        estimate = decode(weights, found)
    else:
        estimate = ascend(
            lambda x: log_odds(x) - prior * _total_variation(x.unflatten(1, shape)),
            start,
            steps=steps,
            learning_rate=learning_rate,
            callback=shown,
        )
    if goal != "nearest":
        reached = log_odds(estimate) >= odds
        iterations = torch.full_like(label, steps)
    return {
        "estimate": estimate.unflatten(1, shape),
        "start": start.unflatten(1, shape),
        "label": label,
        "wanted": odds.sigmoid(),
        "relation": relation.to(torch.int8),
        "feasible": torch.where(reached, PROVED, UNKNOWN).to(torch.int8),
        "iterations": iterations,
    }


def public_decoder() -> tuple[list[Tensor], Tensor]:
    """The matrices of the decoder that lies beside the images to start from, G(z) =
    σ(W_L tanh(… tanh(W₁ z))), and the images' mean code (1, d), all in float64."""
    arrays = read_arrays(observed_path("network_inversion"))
    names = sorted(name for name in arrays if name.startswith("decoder_"))
    if not names:
        raise BadInput("goal = 'range': no decoder was observed; run `dvc repro`")
    weights = [torch.as_tensor(arrays[name]).double() for name in names]
    return weights, torch.as_tensor(arrays["code"]).double().unsqueeze(0)


def decode(weights: list[Tensor], codes: Tensor) -> Tensor:
    """(B, d) codes to (B, P) pixels."""
    values = codes
    for weight in weights[:-1]:
        values = (values @ weight.T).tanh()
    return (values @ weights[-1].T).sigmoid()


def _total_variation(images: Tensor) -> Tensor:
    """Sum of the absolute differences of neighbouring pixels: (B, rows, columns) to (B,)."""
    steps = [images.diff(dim=axis).flatten(1) for axis in (1, 2)]
    return (torch.cat(steps, dim=1).square() + ALMOST_FLAT).sqrt().sum(dim=1)
