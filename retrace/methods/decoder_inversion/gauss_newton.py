"""Levenberg-Marquardt in the space of the codes, batched over images and starts."""

from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from retrace.methods._chain import activations, decode
from retrace.methods.decoder_inversion import layerwise
from retrace.methods.decoder_inversion._decoder import (
    jacobian,
    mean_square,
    problem_of,
    pulled_back,
    reproduced,
    slopes,
)
from retrace.types import Callback, Seed, ignore

CHUNK = 32  # images whose Jacobians are there at a time: they stay near the cache
DAMPING = 1e-3  # of the first step, times the diagonal
LARGEST_DAMPING = 1e20  # where no step lowers the objective any more
SMALLEST_DECREASE = 0.1  # the most that one good step lowers the damping
STEP_SHARE = 0.75  # a step below eps^0.75 of the code's norm changes no digit that counts


class Fit(NamedTuple):
    """Codes with what was reached, an entry for each image."""

    codes: Tensor  # (B, d)
    objective: Tensor  # (B,): ‖G(z) − x‖² + λ‖z‖²
    iterations: Tensor  # (B,)
    converged: Tensor  # (B,) bool, False where the iterations ran out


@torch.no_grad()
def reconstruct(
    network: nn.Module,
    observed: Tensor,
    *,
    penalty: Annotated[float, Field(ge=0)] = 0.002,
    starts: Annotated[int, Field(ge=3)] = 4,
    bank: Annotated[int, Field(ge=1)] = 10000,
    screening: Annotated[int, Field(ge=1)] = 5,
    rounds: Annotated[int, Field(ge=1)] = 1,
    iterations: Annotated[int, Field(ge=1)] = 60,
    tolerance: Annotated[float, Field(gt=0)] = 1e-5,
    seed: Seed = 0,
    callback: Callback = ignore,
) -> dict[str, Tensor]:
    """Minimise ‖G(z) − x‖² + λ‖z‖² for all images, again from other starts where that fails.

    The starts of an image are the layerwise inverse, the encoder's mean, zero, and the nearest of
    a bank of decoded codes drawn from the prior. The first round goes on from the start whose
    output is nearest to the image. Where that runs out of iterations, or the image is not
    reproduced within its rounding, all starts are followed for a few iterations in float32, and
    further rounds go on from the best of those; the best objective of all rounds counts. All else
    is in float64, but for the products of `normal_equations`.

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
        λ; the default was chosen on validation images. 0 gives the codes of images that are on the
        decoder's range exactly.
    bank : int
        Codes drawn; at least ``starts - 3``.
    screening : int
        Iterations of each start before a further round.
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
    objective, codes = lowest(weights, images, candidates, penalty=penalty)
    callback(0, objective, codes)
    settings = {"penalty": penalty, "tolerance": tolerance}
    best = levenberg_marquardt(weights, images, codes, iterations=iterations, **settings)
    callback(1, best.objective, best.codes)
    left = torch.arange(len(images))
    for number in range(2, rounds + 1):
        solved = reproduced(decode(weights, best.codes[left]), images[left])
        failed = ~(solved & best.converged[left])
        left = left[failed]
        if not len(left):
            break
        if number == 2:
            ordered = screened(
                weights, images[left], candidates[left], iterations=screening, **settings
            )
        else:
            ordered = ordered[failed]
        start = ordered[:, (number - 2) % starts]
        tried = levenberg_marquardt(weights, images[left], start, iterations=iterations, **settings)
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
    inverse = layerwise.reconstruct(network, observed, weights="none")["estimate"]
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


def lowest(
    weights: list[Tensor], images: Tensor, candidates: Tensor, *, penalty: float
) -> tuple[Tensor, Tensor]:
    """The lowest objective (B,) of an image's candidates (B, S, d), and whose it is (B, d)."""
    objectives = torch.stack(
        [
            objective_of(decode(weights, codes), images, codes, penalty=penalty)
            for codes in candidates.unbind(dim=1)
        ],
        dim=1,
    )  # (B, S)
    objective, chosen = objectives.min(dim=1)
    return objective, candidates[torch.arange(len(images)), chosen]


def screened(
    weights: list[Tensor],
    images: Tensor,
    candidates: Tensor,
    *,
    penalty: float,
    iterations: int,
    tolerance: float,
) -> Tensor:
    """Each start (B, S, d) after a few iterations in float32, the best of an image first."""
    count = candidates.shape[1]
    fit = levenberg_marquardt(
        [weight.float() for weight in weights],
        images.float().repeat_interleave(count, dim=0),
        candidates.flatten(0, 1).float(),
        penalty=penalty,
        iterations=iterations,
        tolerance=tolerance,
    )
    order = fit.objective.unflatten(0, (-1, count)).argsort(dim=1)
    codes = fit.codes.unflatten(0, (-1, count)).double()
    return codes.take_along_dim(order.unsqueeze(2), dim=1)


class State(NamedTuple):
    """What the images that are not done stand at, an entry for each."""

    images: Tensor  # x, (B, P)
    codes: Tensor  # z, (B, d)
    objective: Tensor  # (B,): F(z) = ‖G(z) − x‖² + λ‖z‖²
    normal: Tensor  # (B, d, d): JᵀJ + λI, half of the Gauss-Newton matrix of F
    gradient: Tensor  # (B, d): g = Jᵀ(G(z) − x) + λz, half of the gradient of F
    damping: Tensor  # μ, (B,)
    growth: Tensor  # ν, (B,)


def levenberg_marquardt(
    weights: list[Tensor],
    images: Tensor,
    codes: Tensor,
    *,
    penalty: float,
    iterations: int,
    tolerance: float,
) -> Fit:
    """Lower F(z) = ‖G(z) − x‖² + λ‖z‖² from codes (B, d), which stay, for images (B, P), each with
    a damping of its own.

    Algorithm 3.16 of Madsen, Nielsen & Tingleff 2004 for all images at once. Those that are done
    leave the batch, and only steps that were taken need a new Jacobian. An iteration is a step that
    was tried; for the tolerance see `reconstruct`.
    """
    numbers = torch.finfo(codes.dtype)
    smallest_step = numbers.eps**STEP_SHARE
    layers = activations(weights, codes)
    objective = objective_of(layers[-1], images, codes, penalty=penalty)
    state = State(
        images,
        codes,
        objective,
        *normal_equations(weights, layers, images, codes, penalty=penalty),
        torch.full_like(objective, DAMPING),
        torch.full_like(objective, 2.0),
    )
    left = torch.arange(len(codes))
    done = Fit(codes.clone(), objective.clone(), torch.zeros_like(left), left < 0)
    for iteration in range(1, iterations + 1):
        step, promised, solved = damped_step(state)
        trial = state.codes + step
        layers = activations(weights, trial)
        reached = objective_of(layers[-1], state.images, trial, penalty=penalty)
        decrease = state.objective - reached
        gain = decrease / promised.clamp(min=numbers.tiny)
        taken = solved & (decrease > 0)
        slow = taken & (decrease <= tolerance * state.objective) & (gain > 0.25)
        short = step.norm(dim=1) <= smallest_step * (trial.norm(dim=1) + smallest_step)
        damping, growth = nielsen(state.damping, state.growth, gain=gain, taken=taken)
        ended = slow | (short & solved) | (damping > LARGEST_DAMPING)
        state = state._replace(
            codes=torch.where(taken.unsqueeze(1), trial, state.codes),
            objective=torch.where(taken, reached, state.objective),
            damping=damping,
            growth=growth,
        )
        done.codes[left], done.objective[left] = state.codes, state.objective
        done.iterations[left], done.converged[left] = iteration, ended
        if iteration == iterations or bool(ended.all()):
            break
        left, moved = left[~ended], taken[~ended]
        state = State(*(values[~ended] for values in state))
        state.normal[moved], state.gradient[moved] = normal_equations(
            weights,
            [values[~ended & taken] for values in layers],
            state.images[moved],
            state.codes[moved],
            penalty=penalty,
        )
    return done


def objective_of(pixels: Tensor, images: Tensor, codes: Tensor, *, penalty: float) -> Tensor:
    """F of codes (B, d) that decode to the pixels (B, P): (B,)."""
    return (pixels - images).square().sum(dim=1) + penalty * codes.square().sum(dim=1)


def normal_equations(
    weights: list[Tensor], layers: list[Tensor], images: Tensor, codes: Tensor, *, penalty: float
) -> tuple[Tensor, Tensor]:
    """JᵀJ + λI, (B, d, d), and Jᵀ(G(z) − x) + λz, (B, d), of codes z with their `activations`.

    The layers of the Jacobian are multiplied in float32, whatever the precision of the rest: that
    halves nearly all of the work. Where the codes end is set by the gradient, which is exact, and
    by the objective. The error of J is some 2⁻²⁴ of its largest singular value; the smallest is
    above a ten-thousandth of that for trained decoders.
    """
    by_layer = slopes(layers)
    gradient = pulled_back(weights, by_layer, layers[-1] - images) + penalty * codes
    single = [weight.float() for weight in weights]
    normal = penalty * torch.eye(codes.shape[1], dtype=codes.dtype).repeat(len(codes), 1, 1)
    for part, *some in zip(normal.split(CHUNK), *(x.split(CHUNK) for x in by_layer), strict=True):
        j = jacobian(single, [slope.float() for slope in some]).to(codes.dtype)  # (C, d, P)
        part.baddbmm_(j, j.mT)
    return normal, gradient


def damped_step(state: State) -> tuple[Tensor, Tensor, Tensor]:
    """The step h, (B, d), of (JᵀJ + λI + μD) h = −g, D the diagonal of JᵀJ + λI, as Marquardt
    scales; by how much the quadratic model of F falls, hᵀ(μDh − g), (B,); and whether the equations
    could be solved, (B,): elsewhere the step is 0."""
    numbers = torch.finfo(state.codes.dtype)
    diagonal = state.normal.diagonal(dim1=1, dim2=2)
    scale = diagonal + numbers.eps * diagonal.amax(dim=1, keepdim=True) + numbers.tiny
    damped = state.damping.unsqueeze(1) * scale
    factor, failed = torch.linalg.cholesky_ex(state.normal + torch.diag_embed(damped))
    step = -torch.cholesky_solve(state.gradient.unsqueeze(2), factor).squeeze(2)
    solved = (failed == 0) & step.isfinite().all(dim=1)
    step = torch.where(solved.unsqueeze(1), step, 0.0)
    return step, (step * (damped * step - state.gradient)).sum(dim=1), solved


def nielsen(
    damping: Tensor, growth: Tensor, *, gain: Tensor, taken: Tensor
) -> tuple[Tensor, Tensor]:
    """Nielsen's rule for μ and ν: after a step that was taken, μ falls the more the
    better the model was, which the gain says, its share of the promise; otherwise it grows, faster
    each time."""
    fallen = (1 - (2 * gain.clamp(0, 1) - 1) ** 3).clamp(min=SMALLEST_DECREASE)
    damping = damping * torch.where(taken, fallen, growth)
    return damping, torch.where(taken, 2.0, 2 * growth)
