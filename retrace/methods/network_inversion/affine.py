"""Inputs of a linear or sigmoid regression that give wanted outputs."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from retrace.methods.network_inversion._nearest import DISPROVED, EQUAL, PROVED
from retrace.types import BadInput, Callback, Seed, ignore

SHOWN = 8  # targets whose path is kept
RANK = 1e-10  # singular values below this share of the largest are rounding
REACHABLE = 1e-9  # relative distance of an output from the range below which it lies in it
TRUST = 4.0  # longest Gauss-Newton step of a sigmoid network, in units of the logit
HALVINGS = 40
SETTLED = 1e-13  # relative change of the input


def reconstruct(
    network: nn.Module,
    observed: Tensor,
    *,
    wanted: Annotated[list[float | list[float]], Field(min_length=1)],
    more: Annotated[int, Field(ge=0)] = 0,
    start: float = 0.0,
    solver: Literal["gradient", "closed_form", "gauss_newton"] = "closed_form",
    loss: Literal["output", "logit"] = "output",
    steps: Annotated[int, Field(ge=1)] = 200,
    learning_rate: Annotated[float, Field(gt=0)] | None = None,
    seed: Seed = 0,
    callback: Callback = ignore,
) -> dict[str, Tensor]:
    """Find x with f(x) = y for all targets y at once, f(x) = s(W x + b), s the identity or σ.

    - ``gradient``: x ← x − η ∂/∂x |f(x) − y|², or with the loss ``logit`` of |W x + b − s⁻¹(y)|².
      On the quadratic loss the error shrinks by I − 2η WᵀW in each step, so that it converges if
      and only if η < 1/σ², with σ the largest singular value of W (|w| where there is one input
      and one output; the half of this loss, which some write, has 2/σ²). With σ(·) and the loss
      ``output``, the solution attracts if η < 1/(w y (1 − y))², which is refused above, but from
      a saturated start the gradient, which holds the factor f (1 − f), is nearly 0.
    - ``closed_form``: the input nearest to the start, x₀ + W⁺ (s⁻¹(y) − W x₀ − b).
    - ``gauss_newton``: x ← x − t J⁺ (f(x) − y), J the Jacobian of f; the division by f (1 − f)
      undoes the saturation, steps are at most `TRUST` logits long, and t is halved until the error
      does not grow.

    A target is reachable if and only if s⁻¹(y) − b lies in the column space of W: exact but for
    rounding (`REACHABLE`).

    Parameters
    ----------
    network : Module
        See retrace/networks/regression.py.
    observed : (N, 28, 28)
        Not used: these networks have no images.
    wanted : list
        Targets, numbers or lists of as many numbers as the network has outputs.
    more : int
        Further targets between the smallest and the largest number in `wanted`: evenly spaced for
        one output; for several drawn uniformly, every second one moved to the nearest output that
        the network reaches.
    start : float
        Of every input.
    solver, loss
        See above; the loss matters to ``gradient`` only.
    steps : int
        Of ``gradient``; the most that ``gauss_newton`` may take.
    learning_rate : float, optional
        η, of ``gradient``; half of the first that diverges if it is left out.
    seed : int
        Of the targets that are drawn.

    Returns
    -------
    dict
        ``estimate`` (B, inputs) float64, ``start`` alike, ``wanted`` (B, outputs), ``relation``
        (B,) `EQUAL`, ``feasible`` (B,) `PROVED` or `DISPROVED`, ``iterations`` (B,), and of the
        iterative solvers ``trajectory`` (steps + 1, at most `SHOWN`, inputs).

    Raises
    ------
    BadInput
        On a target that is not finite, has another number of outputs than the network or lies
        outside (0, 1) where the output is a sigmoid; on a learning rate with which it diverges.
    """
    weight, bias = (network.get_parameter(name).detach() for name in ("weight", "bias"))
    squashed = network.activation == "sigmoid"
    targets = _targets(wanted, more=more, seed=seed, weight=weight, bias=bias, squashed=squashed)
    logits = targets.logit() if squashed else targets
    origin = torch.full((len(targets), weight.shape[1]), start, dtype=torch.float64)
    iterations = torch.zeros(len(targets), dtype=torch.int64)
    if solver == "closed_form":
        path = [_closed_form(origin, logits, weight, bias)]
    elif solver == "gradient":
        through = squashed and loss == "output"
        path = _descend(
            origin,
            targets if through else logits,
            weight,
            bias,
            through=through,
            steps=steps,
            rate=learning_rate,
            callback=callback,
        )
        iterations.fill_(steps)
    else:
        path, iterations = _gauss_newton(
            origin, targets, weight, bias, squashed=squashed, steps=steps, callback=callback
        )
    reachable = _reachable(logits, weight, bias, origin)
    answer = {
        "estimate": path[-1],
        "start": origin,
        "wanted": targets,
        "relation": torch.full((len(targets),), EQUAL, dtype=torch.int8),
        "feasible": torch.where(reachable, PROVED, DISPROVED).to(torch.int8),
        "iterations": iterations,
    }
    if len(path) > 1:
        answer["trajectory"] = torch.stack([x[:SHOWN] for x in path])
    return answer


def _targets(
    wanted: list[float | list[float]],
    *,
    more: int,
    seed: int,
    weight: Tensor,
    bias: Tensor,
    squashed: bool,
) -> Tensor:
    """The targets (B, outputs), checked."""
    outputs = len(bias)
    rows = [target if isinstance(target, list) else [target] for target in wanted]
    for i, row in enumerate(rows):
        if len(row) != outputs:
            raise BadInput(f"wanted[{i}] has {len(row)} values; the network has {outputs} outputs")
    given = torch.tensor(rows, dtype=torch.float64)
    if not bool(given.isfinite().all()):
        raise BadInput("wanted: a target is not finite")
    low, high = float(given.min()), float(given.max())
    if outputs == 1:
        others = torch.linspace(low, high, more, dtype=torch.float64)[:, None]
    else:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.rand(more, outputs, generator=generator, dtype=torch.float64)
        others = low + (high - low) * drawn
        if not squashed:
            onto_range = weight @ _inverse(weight)
            others[::2] = (others[::2] - bias) @ onto_range.T + bias
    targets = torch.cat([given, others])
    if squashed and not bool(((targets > 0) & (targets < 1)).all()):
        outside = targets[(targets <= 0) | (targets >= 1)][0].item()
        raise BadInput(
            f"wanted: {outside:g} cannot be reached: a sigmoid's outputs lie between 0 "
            "and 1, both excluded"
        )
    return targets


def bound(weight: Tensor, *, targets: Tensor | None) -> float:
    """The learning rate from which on gradient descent on |f(x) − y|² moves away from its solution;
    targets (B, outputs) are given where f has a sigmoid and the loss is of its output."""
    if targets is None:
        return 1 / float(torch.linalg.matrix_norm(weight, 2)) ** 2
    slopes = targets * (1 - targets)  # (B, outputs)
    return 1 / float(torch.linalg.matrix_norm(slopes[..., None] * weight, 2).max()) ** 2


def _reachable(logits: Tensor, weight: Tensor, bias: Tensor, origin: Tensor) -> Tensor:
    """Whether s⁻¹(y) − b lies in the column space of W: (B,) bool."""
    outside = torch.eye(len(bias), dtype=torch.float64) - weight @ _inverse(weight)
    missed = (logits - origin @ weight.T - bias) @ outside.T
    scale = (logits - bias).abs().amax(dim=1).clamp(min=1e-300)
    return missed.abs().amax(dim=1) <= REACHABLE * scale


def _inverse(matrices: Tensor) -> Tensor:
    """W⁺, with rounding taken for 0: (..., m, n) to (..., n, m)."""
    return torch.linalg.pinv(matrices, rtol=RANK)


def _closed_form(x: Tensor, logits: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x₀ + W⁺ (s⁻¹(y) − W x₀ − b), (B, inputs)."""
    inverse = _inverse(weight)
    for _ in range(2):  # the second removes the rounding of the first
        x = x + (logits - x @ weight.T - bias) @ inverse.T
    return x


def _descend(
    x: Tensor,
    wanted: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    through: bool,
    steps: int,
    rate: float | None,
    callback: Callback,
) -> list[Tensor]:
    """All x (B, inputs) of gradient descent on |W x + b − v|², or `through` a sigmoid on
    |σ(W x + b) − v|²."""
    limit = bound(weight, targets=wanted if through else None)
    if rate is None:
        rate = limit / 2
    if rate >= limit:
        shape = "1/σ², σ the largest singular value of the weights"
        if through:
            shape = "1/(σ y (1 − y))² at the targets y"
        raise BadInput(
            f"learning_rate = {rate:g} diverges: it has to be below {limit:.6g} ({shape})"
        )
    path = [x]
    for step in range(steps + 1):
        z = x @ weight.T + bias
        value = z.sigmoid() if through else z
        error = value - wanted  # (B, outputs)
        callback(step, error.square().sum(dim=1), x)
        if step < steps:
            slope = value * (1 - value) if through else 1
            x = x - 2 * rate * (error * slope) @ weight
            path.append(x)
    return path


def _gauss_newton(
    x: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    squashed: bool,
    steps: int,
    callback: Callback,
) -> tuple[list[Tensor], Tensor]:
    """All x (B, inputs) of damped Gauss-Newton steps, and how many each input took (B,)."""
    path = [x]
    iterations = torch.zeros(len(x), dtype=torch.int64)

    def state(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, error of the output, and its square's sum."""
        z = x @ weight.T + bias
        error = (z.sigmoid() if squashed else z) - targets
        return z, error, error.square().sum(dim=1)

    z, error, square = state(x)
    for step in range(steps + 1):
        callback(step, square, x)
        if step == steps:
            break
        # σ(z) σ(−z) keeps its relative precision where 1 − σ(z) is rounded to 0.
        slope = z.sigmoid() * (-z).sigmoid() if squashed else torch.ones_like(z)
        jacobian = slope[..., None] * weight  # (B, outputs, inputs)
        move = -(_inverse(jacobian) @ error[..., None]).squeeze(-1)
        if squashed:
            length = (move @ weight.T).norm(dim=1)
            move = move * (TRUST / length.clamp(min=TRUST))[:, None]
        moving = (move.abs() > SETTLED * x.abs().clamp(min=1)).any(dim=1)
        if not bool(moving.any()):
            break
        factor = moving.double()
        for _ in range(HALVINGS):
            worse = state(x + factor[:, None] * move)[2] > square
            if not bool(worse.any()):
                break
            factor = torch.where(worse, factor / 2, factor)
        else:
            factor = torch.where(worse, 0, factor)
        x = x + factor[:, None] * move
        iterations += factor > 0
        path.append(x)
        z, error, square = state(x)
    return path, iterations
