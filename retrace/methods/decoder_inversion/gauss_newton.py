"""Levenberg-Marquardt in the space of the codes, batched over images and starts."""

from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from retrace.methods.decoder_inversion import layerwise
from retrace.methods.decoder_inversion._decoder import (
    decode,
    jacobian,
    mean_square,
    problem_of,
    reproduced,
)
from retrace.types import Callback, Seed

CHUNK = 64  # images that are solved together: their Jacobians stay near the cache
DAMPING = 1e-3  # of the first step, times the diagonal
LARGEST_DAMPING = 1e20  # where no step lowers the objective any more
SMALLEST_DECREASE = 0.1  # the most that one good step lowers the damping
STEP_SHARE = 0.75  # a step below eps^0.75 of the code's norm changes no digit that counts


class Fit(NamedTuple):
    """Codes with what was reached, an entry for each image.

    Attributes
    ----------
    codes : (B, d)
    objective : (B,)
        ‖G(z) − x‖² + λ‖z‖².
    iterations : (B,)
    converged : (B,) bool
        False where the iterations ran out.
    """

    codes: Tensor
    objective: Tensor
    iterations: Tensor
    converged: Tensor


@torch.no_grad()
def reconstruct(
    network: nn.Module,
    observed: Tensor,
    *,
    penalty: Annotated[float, Field(ge=0)],
    starts: Annotated[int, Field(ge=3)],
    bank: Annotated[int, Field(ge=1)],
    screening: Annotated[int, Field(ge=1)],
    rounds: Annotated[int, Field(ge=1)],
    iterations: Annotated[int, Field(ge=1)],
    tolerance: Annotated[float, Field(gt=0)],
    seed: Seed,
    callback: Callback,
) -> dict[str, Tensor]:
    """Minimise ‖G(z) − x‖² + λ‖z‖² for all images, again from other starts where that fails.

    The starts of an image are the layerwise inverse, the encoder's mean, zero, and the nearest of
    a bank of decoded codes drawn from the prior. The first round goes on from the start whose
    output is nearest to the image. Where that runs out of iterations, or the image is not
    reproduced within its rounding, all starts are followed for a few iterations in float32, and
    further rounds go on from the best of those; the best objective of all rounds counts. All else
    is in float64.

    Without a penalty the objective of an image that no code produces mostly has no minimum: it
    falls as some values of the code grow without bound. With one, ‖z‖ ≤ ‖G(0) − x‖ / √λ for every
    code that is better than 0.

    Parameters
    ----------
    network : Module
        Has ``decoder_weights()`` and ``encode``.
    observed : (B, 28, 28)
        In [0, 1].
    penalty : float
        λ.
    starts : int
    bank : int
        Codes drawn; at least ``starts - 3``.
    screening : int
        Iterations of each start before a further round.
    rounds : int
    iterations : int
        At most, in each round.
    tolerance : float
        An image is done when a step lowers its objective by less than this share.
    seed : int
        Of the bank.
    callback : function
        Called with the objective and the codes of the best starts, and after each round.

    Returns
    -------
    dict
        ``estimate`` (B, d) float64; ``residual`` (B,), the mean squared difference of decoded and
        observed pixels: large where the solution failed; ``converged`` (B,) bool: whether the last
        step was as small as wanted; ``iterations`` (B,) of the round that was kept.
    """
    weights, images = problem_of(network, observed, precision="float64")
    candidates = starting_codes(network, observed, starts=starts, bank=bank, seed=seed)
    errors = torch.stack(
        [_objective(weights, images, codes, penalty) for codes in candidates.unbind(dim=1)], dim=1
    )  # (B, starts)
    objective, chosen = errors.min(dim=1)
    every = torch.arange(len(images))
    codes = candidates[every, chosen]
    callback(0, objective, codes)
    settings = {"penalty": penalty, "tolerance": tolerance}
    best = levenberg_marquardt(weights, images, codes, iterations=iterations, **settings)
    callback(1, best.objective, best.codes)
    left, screened = every, None
    for number in range(2, rounds + 1):
        solved = reproduced(decode(weights, best.codes[left]), images[left])
        kept = ~(solved & best.converged[left])
        left = left[kept]
        if not len(left):
            break
        screened = (
            _screened(weights, images[left], candidates[left], steps=screening, **settings)
            if screened is None
            else screened[kept]
        )
        tried = levenberg_marquardt(
            weights,
            images[left],
            screened[:, (number - 2) % starts],
            iterations=iterations,
            **settings,
        )
        better = tried.objective < best.objective[left]
        for values, new in zip(best, tried, strict=True):
            values[left[better]] = new[better]
        callback(number, best.objective, best.codes)
    return {
        "estimate": best.codes,
        "residual": mean_square(decode(weights, best.codes), images),
        "converged": best.converged,
        "iterations": best.iterations,
    }


def starting_codes(
    network: nn.Module, observed: Tensor, *, starts: int, bank: int, seed: int
) -> Tensor:
    """Codes (B, starts, d) to start from, in float64; see `reconstruct`."""
    inverse = layerwise.reconstruct(
        network,
        observed,
        precision="float64",
        output_clamp=0.0,
        hidden_clamp=0.0,
        weights="none",
        callback=lambda step, loss, estimate: None,
    )["estimate"]
    weights, images = problem_of(network, observed, precision="float32")
    mean = network.encode(images.unflatten(1, observed.shape[1:]))[0]  # type: ignore[operator]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(bank, mean.shape[1], generator=generator)
    outputs = decode(weights, drawn)
    lengths = outputs.square().sum(dim=1)
    # The image's own length does not change which are nearest.
    distances = torch.addmm(lengths, images, outputs.T, alpha=-2)
    nearest = drawn[distances.topk(starts - 3, largest=False).indices]  # (B, starts − 3, d)
    fixed = torch.stack([inverse, mean.double(), torch.zeros_like(inverse)], dim=1)
    return torch.cat([fixed, nearest.double()], dim=1)


def _objective(weights: list[Tensor], images: Tensor, codes: Tensor, penalty: float) -> Tensor:
    misfit = (decode(weights, codes) - images).square().sum(dim=1)
    return misfit + penalty * codes.square().sum(dim=1)


def _screened(
    weights: list[Tensor],
    images: Tensor,
    candidates: Tensor,
    *,
    penalty: float,
    steps: int,
    tolerance: float,
) -> Tensor:
    """Each start (B, S, d) after a few iterations in float32, the best of an image first."""
    count = candidates.shape[1]
    fit = levenberg_marquardt(
        [weight.float() for weight in weights],
        images.float().repeat_interleave(count, dim=0),
        candidates.flatten(0, 1).float(),
        penalty=penalty,
        iterations=steps,
        tolerance=tolerance,
    )
    order = fit.objective.unflatten(0, (-1, count)).argsort(dim=1)
    codes = fit.codes.unflatten(0, (-1, count)).double()
    return codes.take_along_dim(order.unsqueeze(2), dim=1)


def levenberg_marquardt(
    weights: list[Tensor],
    images: Tensor,
    codes: Tensor,
    *,
    penalty: float,
    iterations: int,
    tolerance: float,
) -> Fit:
    """Lower ‖G(z) − x‖² + λ‖z‖² from given codes, each image with a damping of its own.

    Parameters
    ----------
    weights : list of (outputs, inputs)
        The decoder's.
    images : (B, P)
    codes : (B, d)
        Not changed.
    penalty : float
        λ.
    iterations : int
        At most; an iteration is a step that was tried.
    tolerance : float
        Share of the objective; see `reconstruct`.
    """
    parts = zip(images.split(CHUNK), codes.split(CHUNK), strict=True)
    fits = [
        _levenberg_marquardt(
            weights, x, z, penalty=penalty, iterations=iterations, tolerance=tolerance
        )
        for x, z in parts
    ]
    return Fit(*(torch.cat(values) for values in zip(*fits, strict=True)))


def _levenberg_marquardt(
    weights: list[Tensor],
    x: Tensor,
    z: Tensor,
    *,
    penalty: float,
    iterations: int,
    tolerance: float,
) -> Fit:
    """`levenberg_marquardt` of one chunk: Nielsen's rule for the damping μ (Madsen, Nielsen &
    Tingleff 2004, algorithm 3.16), which scales the diagonal as Marquardt does. Images that are
    done leave the batch, and only steps that were taken need a new Jacobian."""
    count, size = z.shape
    numbers = torch.finfo(z.dtype)
    smallest_step = numbers.eps**STEP_SHARE
    done = Fit(
        z.clone(),
        torch.zeros(count, dtype=z.dtype),
        torch.full((count,), iterations),
        torch.zeros(count, dtype=torch.bool),
    )
    active = torch.arange(count)
    objective = _objective(weights, x, z, penalty)
    damping, growth = torch.full_like(objective, DAMPING), torch.full_like(objective, 2.0)
    normal, gradient = torch.zeros(count, size, size, dtype=z.dtype), torch.zeros_like(z)
    moved = torch.ones(count, dtype=torch.bool)
    identity = torch.eye(size, dtype=z.dtype)
    for iteration in range(1, iterations + 1):
        if bool(moved.any()):
            pixels, slopes = jacobian(weights, z[moved])  # (M, P), (M, d, P)
            normal[moved] = slopes @ slopes.transpose(1, 2) + penalty * identity
            misfit = (pixels - x[moved]).unsqueeze(2)
            gradient[moved] = (slopes @ misfit).squeeze(2) + penalty * z[moved]
        diagonal = normal.diagonal(dim1=1, dim2=2)
        scale = diagonal + numbers.eps * diagonal.amax(dim=1, keepdim=True) + numbers.tiny
        factor, failed = torch.linalg.cholesky_ex(
            normal + torch.diag_embed(damping.unsqueeze(1) * scale)
        )
        step = -torch.cholesky_solve(gradient.unsqueeze(2), factor).squeeze(2)
        usable = (failed == 0) & step.isfinite().all(dim=1)
        step = torch.where(usable.unsqueeze(1), step, 0.0)
        trial = z + step
        reached = _objective(weights, x, trial, penalty)
        # What the quadratic model promises, of which the step should keep some.
        promised = (step * (damping.unsqueeze(1) * scale * step - gradient)).sum(dim=1)
        decrease = objective - reached
        gain = decrease / promised.clamp(min=numbers.tiny)
        moved = usable & (decrease > 0)
        short = step.norm(dim=1) <= smallest_step * (trial.norm(dim=1) + smallest_step)
        slow = moved & (decrease <= tolerance * objective) & (gain > 0.25)
        z = torch.where(moved.unsqueeze(1), trial, z)
        objective = torch.where(moved, reached, objective)
        better = (1 - (2 * gain.clamp(0, 1) - 1) ** 3).clamp(min=SMALLEST_DECREASE)
        damping = damping * torch.where(moved, better, growth)
        growth = torch.where(moved, 2.0, 2 * growth)
        stuck = damping > LARGEST_DAMPING
        ended = stuck | slow | (short & usable)
        if iteration == iterations or bool(ended.any()):
            leaving = ended if iteration < iterations else torch.ones_like(ended)
            where = active[leaving]
            done.codes[where], done.objective[where] = z[leaving], objective[leaving]
            done.iterations[where], done.converged[where] = iteration, ended[leaving]
            stay = ~leaving
            active, x, z, objective = active[stay], x[stay], z[stay], objective[stay]
            damping, growth, moved = damping[stay], growth[stay], moved[stay]
            normal, gradient = normal[stay], gradient[stay]
            if not len(active):
                break
    return done
