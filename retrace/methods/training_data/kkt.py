"""Training images from the weights alone: candidates that fulfil the KKT conditions."""

import math
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from retrace.types import BadInput, Callback, Seed

MOMENTUM = 0.9
Chain = tuple[Tensor, ...]  # matrices whose product is a layer's weights
Bounds = tuple[Tensor, Tensor]  # (d,) each: what x is penalised beyond
MULTIPLIER_PENALTY = 5.0  # weight of the multipliers below their minimum, as published
SEARCHED_FACTOR = 10.0  # how far, either way, the search goes from a given setting
SEARCHED_MINIMUM = (0.01, 0.5)  # range of the searched multiplier_minimum, as published
ROUNDING = 100  # steps of the precision: smaller singular values are what training rounded off
WORTHWHILE = 0.9  # share of a matrix's entries that two factors may have


class Setting(NamedTuple):
    """What the published attack searches over: see `reconstruct`."""

    deviation: float
    learning_rate: float
    multiplier_minimum: float
    sharpness: float


def reconstruct(
    network: nn.Module,
    observed: Tensor,
    *,
    candidates: Annotated[int, Field(ge=2, multiple_of=2)],
    deviation: Annotated[float, Field(gt=0)],
    learning_rate: Annotated[float, Field(gt=0)],
    multiplier_rate: Annotated[float, Field(gt=0)],
    multiplier_minimum: Annotated[float, Field(ge=0)],
    sharpness: Annotated[float, Field(gt=0)],
    steps: Annotated[int, Field(ge=1)],
    trials: Annotated[int, Field(ge=1)],
    search_steps: Annotated[int, Field(ge=1)],
    bounds: Literal["published", "pixels"],
    seed: Seed,
    callback: Callback,
) -> Tensor:
    """Optimise candidates and their multipliers to explain the weights (Haim et al. 2022).

    A network trained far enough fulfils θ = Σᵢ λᵢ yᵢ ∇f(θ; xᵢ) up to scale, with λ ≥ 0: the KKT
    conditions of the maximum-margin problem (arXiv 2206.07758, after Lyu & Li 2020). The attack
    draws x ~ N(0, deviation²), with the mean image subtracted, and λ uniform in [0, 1), gives
    half of them the label +1, half −1, and lowers `value_and_gradients` by gradient descent with
    momentum 0.9.

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
    steps : int
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
    box = None if bounds == "published" else (-mean, 1 - mean)
    setting = Setting(deviation, learning_rate, multiplier_minimum, sharpness)
    chains = factored(weights)
    if trials > 1:
        setting = search(
            weights,
            bias,
            setting,
            candidates=candidates,
            multiplier_rate=multiplier_rate,
            trials=trials,
            search_steps=search_steps,
            seed=seed,
            bounds=box,
            chains=chains,
        )

    def images(x: Tensor) -> Tensor:
        return (x + mean).clamp_(0, 1).unflatten(1, shape).float()

    x, multipliers, _ = extract(
        weights,
        bias,
        setting,
        candidates=candidates,
        multiplier_rate=multiplier_rate,
        steps=steps,
        seed=seed,
        bounds=box,
        chains=chains,
        watch=lambda step, loss, x: callback(step, loss.float().expand(len(x)), images(x)),
    )
    return images(x[multipliers.argsort(descending=True, stable=True)])


def homogeneous_layers(network: nn.Module) -> tuple[list[Tensor], Tensor]:
    """Read the weights of a homogeneous binary ReLU network, or say why it is not one.

    Parameters
    ----------
    network : Module
        ``layers``, a ModuleList of at least two Linear, the first with a bias, the others
        without, the last with one output; ``mean`` (d,) and ``shape`` of the input.

    Returns
    -------
    weights : list of (n_l, n_{l-1})
        n_0 = d and n_L = 1; detached.
    bias : (n_1,)
        Of the first layer.

    Raises
    ------
    BadInput
        When the network is of another kind, or its weights are not finite.
    """
    layers = getattr(network, "layers", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) == 0:
        raise _not_covered("it has no `layers`")
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    if len(linear) < len(layers):
        other = next(type(layer).__name__ for layer in layers if not isinstance(layer, nn.Linear))
        raise _not_covered(f"one of its layers is {other}")
    if len(linear) == 1:
        raise _not_covered("it has no hidden layer")
    if linear[0].bias is None:
        raise _not_covered("its first layer has no bias")
    if any(layer.bias is not None for layer in linear[1:]):
        raise _not_covered("a later layer has a bias")
    if linear[-1].out_features != 1:
        raise _not_covered(f"it has {linear[-1].out_features} outputs")
    inputs = linear[0].in_features
    mean, shape = getattr(network, "mean", None), getattr(network, "shape", ())
    if not isinstance(mean, Tensor) or mean.shape != (inputs,) or math.prod(shape) != inputs:
        raise _not_covered("its `mean` and `shape` are not those of its input")
    weights = [layer.weight.detach() for layer in linear]
    bias = linear[0].bias.detach()
    if not all(bool(tensor.isfinite().all()) for tensor in (*weights, bias, mean)):
        raise BadInput("some weights of the network are not finite; train it anew")
    return weights, bias


def factored(weights: list[Tensor]) -> list[Chain]:
    """Write each layer of low rank as a product of two thin matrices.

    Training leaves the first layer in the span of the images, and a second one with rank two, up
    to the rounding of its many steps. Where two factors hold fewer numbers than the layer itself,
    products with them are that much cheaper, and differ by rounding.

    Parameters
    ----------
    weights : list of (n_l, n_{l-1})

    Returns
    -------
    list of tuple
        (n_l, r) and (r, n_{l-1}), r singular values being above `ROUNDING`; or the weights alone.
    """
    chains: list[Chain] = []
    for weight in weights:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        rank = int((values > ROUNDING * torch.finfo(weight.dtype).eps * values[0]).sum())
        pair = (left[:, :rank] * values[:rank]).contiguous(), right[:rank].contiguous()
        fewer = sum(factor.numel() for factor in pair) < WORTHWHILE * weight.numel()
        chains.append(pair if fewer else (weight,))
    return chains


def _not_covered(reason: str) -> BadInput:
    return BadInput(
        f"the attack does not cover this network: {reason}; it needs a ReLU network of Linear "
        "layers, a bias in the first only, at least one hidden layer and one output"
    )


def search(
    weights: list[Tensor],
    bias: Tensor,
    given: Setting,
    *,
    candidates: int,
    multiplier_rate: float,
    trials: int,
    search_steps: int,
    seed: int,
    bounds: Bounds | None = None,
    chains: list[Chain] | None = None,
) -> Setting:
    """Choose the setting whose own loss is the smallest after `search_steps`.

    The loss is all that an attacker sees: the truth has no part in it. A trial that diverges
    loses.

    Parameters
    ----------
    weights, bias
        See `homogeneous_layers`.
    given : Setting
        The first trial, and the middle of the others: see `settings_to_try`.
    candidates, multiplier_rate, trials, search_steps, seed
        See `reconstruct`.
    chains
        See `value_and_gradients`.

    Raises
    ------
    BadInput
        When all trials diverge.
    """
    best, smallest = given, math.inf
    for setting in settings_to_try(given, trials=trials, seed=seed):
        try:
            _, _, loss = extract(
                weights,
                bias,
                setting,
                candidates=candidates,
                multiplier_rate=multiplier_rate,
                steps=search_steps,
                seed=seed,
                bounds=bounds,
                chains=chains,
            )
        except BadInput:
            continue
        if float(loss) < smallest:
            best, smallest = setting, float(loss)
    if math.isinf(smallest):
        raise BadInput(
            f"the attack's loss is not finite in any of {trials} trials around "
            f"learning_rate = {given.learning_rate:g}; lower it"
        )
    return best


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
    weights: list[Tensor],
    bias: Tensor,
    setting: Setting,
    *,
    candidates: int,
    multiplier_rate: float,
    steps: int,
    seed: int,
    bounds: Bounds | None = None,
    chains: list[Chain] | None = None,
    watch: Callable[[int, Tensor, Tensor], None] = lambda step, loss, x: None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw x and λ, and lower the loss by gradient descent with momentum.

    Parameters
    ----------
    weights, bias
        See `homogeneous_layers`.
    setting : Setting
    candidates, multiplier_rate, steps, seed
        See `reconstruct`.
    chains
        See `value_and_gradients`.
    watch : function
        Called with the step 0..steps, the loss () and x (m, d), which it must not keep.

    Returns
    -------
    x : (m, d)
        Candidates, the mean image subtracted; the first half has the label +1.
    multipliers : (m,)
    loss : ()

    Raises
    ------
    BadInput
        As soon as the loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    dtype = bias.dtype
    x = torch.randn(candidates, weights[0].shape[1], generator=generator, dtype=dtype)
    x *= setting.deviation
    multipliers = torch.rand(candidates, generator=generator, dtype=dtype)
    signs = torch.ones(candidates, dtype=dtype)
    signs[candidates // 2 :] = -1
    velocities = torch.zeros_like(x), torch.zeros_like(multipliers)
    for step in range(steps + 1):
        loss, *gradients = value_and_gradients(
            weights,
            bias,
            x,
            multipliers,
            signs,
            sharpness=setting.sharpness,
            multiplier_minimum=setting.multiplier_minimum,
            bounds=bounds,
            chains=chains,
        )
        if not bool(loss.isfinite()):
            raise BadInput(
                f"the attack's loss is {float(loss)} at step {step} with "
                f"learning_rate = {setting.learning_rate:g}; lower it"
            )
        watch(step, loss, x)
        if step < steps:
            for variable, velocity, gradient, rate in zip(
                (x, multipliers),
                velocities,
                gradients,
                (setting.learning_rate, multiplier_rate),
                strict=True,
            ):
                velocity.mul_(MOMENTUM).add_(gradient)
                variable.sub_(velocity, alpha=rate)
    return x, multipliers, loss


def value_and_gradients(
    weights: list[Tensor],
    bias: Tensor,
    x: Tensor,
    multipliers: Tensor,
    signs: Tensor,
    *,
    sharpness: float,
    multiplier_minimum: float,
    bounds: Bounds | None = None,
    chains: list[Chain] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of the attack and its gradients, layer by layer, with no second backward pass.

    With A_0 = x, Z_l = A_{l−1} W_lᵀ (+ b for l = 1), A_l = relu(Z_l), S_l = σ(αZ_l) and
    c_i = λ_i y_i / m, the gradient of Σ c_i f(x_i) is, layer by layer from the last one,

        D_L = c,   D_l = (D_{l+1} W_{l+1}) ∘ S_l,   G_l = D_lᵀ A_{l−1},   g = Σ_i D_1,

    and the loss is, with the residuals R_l = W_l − G_l and r = b − g,

        Σ_l ‖R_l‖² + ‖r‖² + Σ |x − clamp(x)|² + 5 Σ max(multiplier_minimum − λ, 0)².

    The first two terms depend on x through the A_l and the D_l. Their derivatives, both over −2,
    are found in the reverse of the order in which those were: first P_l, that of D_l, up,

        P_1 = A_0 R_1ᵀ + r,   P_l = A_{l−1} R_lᵀ + (P_{l−1} ∘ S_{l−1}) W_lᵀ,

    then Q_l, that of A_l, down, E_l being that of Z_l, with S′ = α S (1 − S),

        Q_{l−1} = D_l R_l + E_l W_l,   E_l = Q_l ∘ S_l + P_l ∘ (D_{l+1} W_{l+1}) ∘ S′_l,   E_L = 0.

    So the gradient with respect to x is −2 Q_0, and to λ it is −2 y P_L / m, plus those of the
    penalties. As in the authors' code (CreateModel.py, ModifiedRelu), S stands for the step
    function wherever ReLU is differentiated, in ∇f too; A is exact.

    Parameters
    ----------
    weights : list of (n_l, n_{l-1})
    bias : (n_1,)
    x : (m, d)
        The mean image subtracted.
    multipliers : (m,)
        λ.
    signs : (m,)
        y, +1 or −1.
    sharpness : float
        α.
    multiplier_minimum : float
    bounds : (low, high), optional
        What x is clamped to in the penalty; by default −1 and 1, as published.
    chains : list of tuple of Tensor, optional
        Of each layer the matrices whose product is its weights, see `factored`; by default the
        weights themselves.

    Returns
    -------
    loss : ()
    gradient of x : (m, d)
    gradient of the multipliers : (m,)
    """
    m, last = len(x), len(weights) - 1
    downs = [(weight,) for weight in weights] if chains is None else chains
    ups = [tuple(matrix.T for matrix in reversed(down)) for down in downs]
    # Position l of each list is layer l + 1 above, so that `inputs[l]` goes into `weights[l]`.
    inputs: list[Tensor] = [x]
    slopes: list[Tensor] = []
    for up in ups[:-1]:
        z = _times(inputs[-1], up) if slopes else _times(x, up, onto=bias)
        slopes.append((z * sharpness).sigmoid_())
        inputs.append(z.relu_())  # (m, n_l)

    deltas = [(multipliers * signs / m).unsqueeze(1)]  # (m, 1), then (m, n_l) in front of it
    for down, slope in zip(downs[:0:-1], slopes[::-1], strict=True):
        deltas.insert(0, _times(deltas[0], down).mul_(slope))

    residuals = [
        torch.addmm(weight, delta.T, entering, alpha=-1)
        for weight, delta, entering in zip(weights, deltas, inputs, strict=True)
    ]
    bias_residual = bias - deltas[0].sum(dim=0)

    back = torch.addmm(bias_residual, x, residuals[0].T)  # P, of D_1
    bends = []  # P ∘ D_{l+1} W_{l+1} ∘ S′ / α, in which (D_{l+1} W_{l+1}) ∘ S is D_l
    for layer in range(last):
        delta, slope = deltas[layer], slopes[layer]
        bends.append(torch.addcmul(delta, delta, slope, value=-1).mul_(back))
        passed = back.mul_(slope)
        back = inputs[layer + 1] @ residuals[layer + 1].T
        back = _times(passed, ups[layer + 1], onto=back)

    along = _times(deltas[last], (residuals[last],))  # Q, of A_{L-1}
    for layer in reversed(range(last)):
        through = along.mul_(slopes[layer]).add_(bends[layer], alpha=sharpness)  # E
        along = deltas[layer] @ residuals[layer]
        along = _times(through, downs[layer], onto=along)

    outside = x - (x.clamp(-1, 1) if bounds is None else x.clamp(*bounds))
    lacking = (multiplier_minimum - multipliers).relu_()
    loss = _squares(bias_residual) + _squares(outside) + MULTIPLIER_PENALTY * _squares(lacking)
    for residual in residuals:
        loss += _squares(residual)
    gradient = along.sub_(outside).mul_(-2)
    multiplier_gradient = back.squeeze(1) * signs * (-2 / m) - 2 * MULTIPLIER_PENALTY * lacking
    return loss, gradient, multiplier_gradient


def _times(left: Tensor, chain: Chain, *, onto: Tensor | None = None) -> Tensor:
    """left @ the matrices of the chain, one after the other, added to `onto` where that is given,
    in its place if it is as large; with one column at the left, the outer product, which
    broadcasting does faster."""
    *others, final = chain
    for matrix in others:
        left = left @ matrix
    if onto is not None:
        return onto.addmm_(left, final) if onto.dim() == 2 else torch.addmm(onto, left, final)
    return left * final if left.shape[1] == 1 else left @ final


def _squares(tensor: Tensor) -> Tensor:
    """Sum of squares, without a tensor of squares."""
    flat = tensor.flatten()
    return flat.dot(flat)
