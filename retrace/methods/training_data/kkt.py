"""Training images from the weights alone: candidates that fulfil the KKT conditions."""

import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from retrace.methods._stationarity import linear_layers, not_covered
from retrace.types import BadInput, Callback, Seed, ignore

MOMENTUM = 0.9
Chain = tuple[Tensor, ...]  # matrices whose product is a layer's weights
MULTIPLIER_PENALTY = 5.0  # weight of the multipliers below their minimum, as published
SEARCHED_FACTOR = 10.0  # how far, either way, the search goes from a given setting
SEARCHED_MINIMUM = (0.01, 0.5)  # range of the searched multiplier_minimum, as published
ROUNDING = 100  # steps of the precision: smaller singular values are what training rounded off
WORTHWHILE = 0.9  # share of a matrix's entries that two factors may have
HOMOGENEOUS = (
    "a ReLU network of Linear layers, a bias in the first only, at least one hidden layer and one "
    "output"
)


class Setting(NamedTuple):
    """What the published attack searches over: see `reconstruct`."""

    deviation: float
    learning_rate: float
    multiplier_minimum: float
    sharpness: float


class Target(NamedTuple):
    """What candidates have to explain, and where they may lie."""

    weights: list[Tensor]  # (n_l, n_{l-1}), n_0 = d and n_L = 1
    bias: Tensor  # (n_1,)
    chains: list[Chain]  # of each layer the matrices whose product is its weights: see `factored`
    low: Tensor  # (d,); x is penalised outside
    high: Tensor


def reconstruct(
    network: nn.Module,
    observed: Tensor,
    *,
    candidates: Annotated[int, Field(ge=2, multiple_of=2)] = 1000,
    deviation: Annotated[float, Field(gt=0)] = 0.00174,
    learning_rate: Annotated[float, Field(gt=0)] = 0.28,
    multiplier_rate: Annotated[float, Field(gt=0)] = 1e-4,
    multiplier_minimum: Annotated[float, Field(ge=0)] = 0.415,
    sharpness: Annotated[float, Field(gt=0)] = 19.2,
    steps: Annotated[int, Field(ge=1)] = 2400,
    trials: Annotated[int, Field(ge=1)] = 1,
    search_steps: Annotated[int, Field(ge=1)] = 50,
    bounds: Literal["published", "pixels"] = "published",
    seed: Seed = 0,
    callback: Callback = ignore,
) -> Tensor:
    """Optimise candidates and their multipliers to explain the weights (Haim et al. 2022).

    A network trained far enough fulfils θ = Σᵢ λᵢ yᵢ ∇f(θ; xᵢ) up to scale, with λ ≥ 0: the KKT
    conditions of the maximum-margin problem (arXiv 2206.07758, after Lyu & Li 2020). The attack
    draws x ~ N(0, deviation²), with the mean image subtracted, and λ uniform in [0, 1), gives
    half of them the label +1, half −1, and lowers `unexplained` by gradient descent with momentum
    0.9.

    What the authors' code computes is followed where it is more than the paper's equations
    (github.com/nivha/dataset_reconstruction, extraction.py): the sum over candidates is divided
    by their number m, so that λ is m times as large, and the published rates and minima go with
    that. Their two settings for MNIST are, with m = 1000, multiplier_rate 1e-4 and 50,000 steps,

        deviation 0.00174, learning_rate 0.28, multiplier_minimum 0.415, sharpness 19.2
        deviation 0.035, learning_rate 0.031, multiplier_minimum 0.447, sharpness 149.9

    The authors chose them with the training images at hand; here `search` goes by the attack's
    own loss. They compute in float64; this computes in the type of the weights.

    Parameters
    ----------
    network : Module
        Homogeneous, see `homogeneous_layers`, with the public ``mean`` (d,) and the ``shape``
        of an image.
    observed : Tensor
        Public images, which this attack does not use.
    candidates : int
        m, even.
    deviation : float
        Of the initial x, in pixel units.
    learning_rate : float
        Of x.
    multiplier_rate : float
        Of λ.
    multiplier_minimum : float
        λ below it is penalised: the trivial λ = 0 is no training image.
    sharpness : float
        α of σ(αz), which stands for the derivative of ReLU in ∇f and in the gradients.
    trials : int
        Settings that `search` compares; with 1, the given one is taken.
    search_steps : int
        Of each trial.
    bounds : "published" or "pixels"
        x is penalised outside [-1, 1], or outside the range that pixels have once the mean image
        is subtracted, which is public and narrower.
    seed : int
        Of the initial x and λ, the same in all trials, and of the settings tried.
    callback : function
        Called before each step and at the end, steps + 1 times, with the one loss that all
        candidates share. A row is the same candidate every time: they are not sorted yet.

    Returns
    -------
    (m, *shape) float32
        Candidates in [0, 1], largest λ first.

    Raises
    ------
    BadInput
        When the network is not covered, or the loss is not finite.
    """
    weights, bias = homogeneous_layers(network)
    mean: Tensor = network.get_buffer("mean")
    shape: tuple[int, ...] = network.shape  # type: ignore[assignment]
    end = torch.ones_like(mean)
    low, high = (-end, end) if bounds == "published" else (-mean, end - mean)
    target = Target(weights, bias, factored(weights), low, high)
    run = partial(
        extract, target, candidates=candidates, multiplier_rate=multiplier_rate, seed=seed
    )
    setting = Setting(deviation, learning_rate, multiplier_minimum, sharpness)
    if trials > 1:
        tried = settings_to_try(setting, trials=trials, seed=seed)
        setting = search(partial(run, steps=search_steps), tried)

    def images(x: Tensor) -> Tensor:
        return (x + mean).clamp_(0, 1).unflatten(1, shape).float()

    x, multipliers, _ = run(
        setting,
        steps=steps,
        watch=lambda step, loss, x: callback(step, loss.float().expand(len(x)), images(x)),
    )
    return images(x[multipliers.argsort(descending=True, stable=True)])


def homogeneous_layers(network: nn.Module) -> tuple[list[Tensor], Tensor]:
    """The weights (n_l, n_{l-1}), n_0 = d and n_L = 1, and the first bias (n_1,) of a homogeneous
    binary ReLU network: see `linear_layers`; the first with a bias, the others without, the last
    with one output; and the ``shape`` of the input.

    Raises
    ------
    BadInput
        When the network is of another kind, or its weights are not finite.
    """
    first, *later = linear_layers(network)
    if first.bias is None:
        raise not_covered("its first layer has no bias", needed=HOMOGENEOUS)
    if any(layer.bias is not None for layer in later):
        raise not_covered("a later layer has a bias", needed=HOMOGENEOUS)
    if later[-1].out_features != 1:
        raise not_covered(f"it has {later[-1].out_features} outputs", needed=HOMOGENEOUS)
    if math.prod(getattr(network, "shape", ())) != first.in_features:
        raise not_covered("its `shape` is not that of its input", needed=HOMOGENEOUS)
    return [layer.weight.detach() for layer in (first, *later)], first.bias.detach()


def factored(weights: list[Tensor]) -> list[Chain]:
    """Write each layer of low rank as a product of two thin matrices, (n_l, r) and (r, n_{l-1}), r
    singular values being above `ROUNDING`; others stay as they are.

    Training leaves the first layer in the span of the images, and a second one with rank two, up
    to the rounding of its many steps. Where two factors hold fewer numbers than the layer itself,
    products with them are that much cheaper, and differ by rounding.
    """
    chains: list[Chain] = []
    for weight in weights:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        rank = int((values > ROUNDING * torch.finfo(weight.dtype).eps * values[0]).sum())
        pair = (left[:, :rank] * values[:rank]).contiguous(), right[:rank].contiguous()
        fewer = sum(factor.numel() for factor in pair) < WORTHWHILE * weight.numel()
        chains.append(pair if fewer else (weight,))
    return chains


Extracted = tuple[Tensor, Tensor, Tensor]  # see `extract`


def search(attack: Callable[[Setting], Extracted], settings: list[Setting]) -> Setting:
    """Choose the setting with which the attack's own loss, after a short `extract`, ends smallest.

    The loss is all that an attacker sees: the truth has no part in it. A trial that diverges
    loses; refused where all diverge.
    """
    losses = {}
    for setting in settings:
        with suppress(BadInput):
            losses[setting] = float(attack(setting)[2])
    if not losses:
        raise BadInput(
            f"learning_rate = {settings[0].learning_rate:g}: the attack's loss is not finite in "
            f"any of {len(settings)} trials around it; lower it"
        )
    return min(losses, key=lambda setting: losses[setting])


def settings_to_try(given: Setting, *, trials: int, seed: int) -> list[Setting]:
    """The given setting, then random ones around it.

    Log-uniform within a factor of 10 either way, but for multiplier_minimum, which is uniform in
    the range 0.01 to 0.5 of the authors' search.
    """
    draws = torch.rand(
        trials - 1, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).tolist()
    low, high = SEARCHED_MINIMUM
    return [given] + [
        Setting(
            deviation=given.deviation * SEARCHED_FACTOR ** (2 * first - 1),
            learning_rate=given.learning_rate * SEARCHED_FACTOR ** (2 * second - 1),
            multiplier_minimum=low + (high - low) * third,
            sharpness=given.sharpness * SEARCHED_FACTOR ** (2 * fourth - 1),
        )
        for first, second, third, fourth in draws
    ]


def extract(
    target: Target,
    setting: Setting,
    *,
    candidates: int,
    multiplier_rate: float,
    steps: int,
    seed: int,
    watch: Callable[[int, Tensor, Tensor], None] = ignore,
) -> Extracted:
    """Draw x and λ, and lower `unexplained` by gradient descent with momentum.

    Gives candidates x (m, d), the mean image subtracted, the first half of which has the label +1;
    multipliers (m,); and the loss. `watch` is called with the step 0..steps, the loss () and x,
    which it must not keep.

    Raises
    ------
    BadInput
        As soon as the loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    dtype = target.bias.dtype
    x = torch.randn(candidates, len(target.low), generator=generator, dtype=dtype)
    x *= setting.deviation
    multipliers = torch.rand(candidates, generator=generator, dtype=dtype)
    signs = torch.ones(candidates, dtype=dtype)
    signs[candidates // 2 :] = -1
    optimiser = torch.optim.SGD(
        [
            {"params": [x.requires_grad_()], "lr": setting.learning_rate},
            {"params": [multipliers.requires_grad_()], "lr": multiplier_rate},
        ],
        momentum=MOMENTUM,
    )
    for step in range(steps + 1):
        loss = unexplained(target, x, multipliers, signs, setting)
        if not bool(loss.isfinite()):
            raise BadInput(
                f"learning_rate = {setting.learning_rate:g}: the attack's loss is "
                f"{float(loss.detach())} at step {step}; lower it"
            )
        watch(step, loss.detach(), x.detach())
        if step < steps:
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return x.detach(), multipliers.detach(), loss.detach()


class ModifiedRelu(torch.autograd.Function):
    """ReLU with another derivative, that of the authors' code (CreateModel.py)."""

    @staticmethod
    def forward(context: Any, z: Tensor, slope: Tensor) -> Tensor:
        context.save_for_backward(slope)
        return z.relu()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (slope,) = context.saved_tensors
        return gradient * slope, None


def unexplained(
    target: Target, x: Tensor, multipliers: Tensor, signs: Tensor, setting: Setting
) -> Tensor:
    """Loss of the attack: what of the weights is not Σᵢ λᵢ yᵢ ∇f(θ; xᵢ) / m, and penalties.

    With A_0 = x, Z_l = A_{l−1} W_lᵀ (+ b for l = 1), A_l = relu(Z_l), S_l = σ(αZ_l) and
    c_i = λ_i y_i / m, the gradient of Σ c_i f(x_i) is, layer by layer from the last one,

        D_L = c,   D_l = (D_{l+1} W_{l+1}) ∘ S_l,   G_l = D_lᵀ A_{l−1},   g = Σ_i D_1,

    and the loss is

        Σ_l ‖W_l − G_l‖² + ‖b − g‖² + Σ |x − clamp(x)|² + 5 Σ max(multiplier_minimum − λ, 0)².

    As in the authors' code, S stands for the step function wherever ReLU is differentiated, in ∇f
    too; A is exact. With D written out, one backward pass is enough, no gradient of the weights is
    computed, and the products with W_l may be those with its factors.

    Parameters
    ----------
    x : (m, d)
        The mean image subtracted.
    multipliers : (m,)
        λ.
    signs : (m,)
        y, +1 or −1.
    setting : Setting
        Of which the sharpness, α, and the minimum.

    Returns
    -------
    ()
    """
    inputs = [x]  # A_0 to A_{L−1}, (m, n_l)
    slopes: list[Tensor] = []  # S_1 to S_{L−1}
    for chain in target.chains[:-1]:
        z = _times(inputs[-1], tuple(matrix.T for matrix in reversed(chain)))
        z = z if slopes else z + target.bias
        slopes.append((setting.sharpness * z).sigmoid())
        inputs.append(ModifiedRelu.apply(z, slopes[-1]))
    deltas = [(multipliers * signs / len(x)).unsqueeze(1)]  # D_L, (m, 1), then those before it
    for chain, slope in zip(target.chains[:0:-1], reversed(slopes), strict=True):
        deltas.insert(0, _times(deltas[0], chain) * slope)

    loss = (target.bias - deltas[0].sum(dim=0)).square().sum()
    for weight, delta, entering in zip(target.weights, deltas, inputs, strict=True):
        loss = loss + torch.addmm(weight, delta.T, entering, alpha=-1).square().sum()
    outside = x - x.clamp(target.low, target.high)
    lacking = (setting.multiplier_minimum - multipliers).relu()
    return loss + outside.square().sum() + MULTIPLIER_PENALTY * lacking.square().sum()


def _times(left: Tensor, chain: Chain) -> Tensor:
    """left @ the matrices of the chain, one after the other."""
    for matrix in chain:
        left = left @ matrix
    return left
