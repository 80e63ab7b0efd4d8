"""What the layers of a trained network hold of each image: its row and its column.

The gradient of the first layer's weights and bias is a sum over the images of g_i [x'_i, 1], x' the
normalised image and g_i the gradient of its loss by what the units add up, whatever the depth, the
loss, the biases and the batches. Momentum and weight decay keep to that span. Where training with a
decay w has come to a standstill,

    n w [W₁, b₁] = −Σᵢ gᵢ [x'ᵢ, 1],    gᵢ = D₁ᵢ W₂ᵀ D₂ᵢ … W_Lᵀ δᵢ

with D the slopes of the activations and δ the gradient of the loss by the outputs: softmax less
the label, of cross-entropy. So each g_i, the column of the image, is known from the weights and the
image alone, and lies in the column space of [W₁, b₁], but for units at whose kink the image lies,
where any slope between the two sides is possible. Other images have columns too, but they lie
elsewhere: the relative distance is what tells members from others.

The rows tell as much. The same holds of every layer, with what it gets of the image, h, in place of
the image: [h, 1] of a training image lies in the row space of [W, b], as long as that is smaller
than what a layer can get, which the second layer of a wide network is even where there are more
images than an image has pixels. What the first layer gets is fixed; what later ones get moves
until training comes to a standstill.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from retrace.types import BadInput

KINK = 1e-2  # |cosine| between an image and a unit below which the unit counts as at its kink
DEAD = 1e-2  # a unit whose row is below this share of the longest takes no part
FLOOR = 4.0  # noise reaches up to so many times its median singular value: 2.8 was seen
RIDGE = 1e-12  # see `Columns`
BLOCK = 256  # images at once
SAME_START = 1e-5  # from 1, within which a share of the start is 1, but for rounding
REPEATED = 1e-4  # by which eigenvalues that are one differ, at most
KINKED = ("relu", "leaky_relu")  # activations with a kink at 0
NEEDED = "a chain of Linear layers, at least one of them hidden"

Duals = Literal["outputs", "free"]


class Chain(NamedTuple):
    """A network as a chain of layers, in float64."""

    weights: list[Tensor]  # (n_l, n_{l-1}), n_0 = d
    biases: list[Tensor]  # (n_l,), 0 where a layer has none
    mean: Tensor  # (d,), subtracted from the pixels
    deviation: Tensor  # (d,), by which they are then divided
    activation: str  # of torch.nn.functional

    def rows(self) -> Tensor:
        """The first layer, its columns in units of pixels: (n_1, d + 1), the last the bias.

        They are combinations of [x − mean, 1] with x in [0, 1].
        """
        return torch.cat([self.weights[0] * self.deviation, self.biases[0][:, None]], dim=1)

    def normalised(self, images: Tensor) -> Tensor:
        """What the first layer sees of pixels (m, d), in float64."""
        return (images.double() - self.mean) / self.deviation

    def received(self, images: Tensor) -> list[Tensor]:
        """What each layer gets of pixels (m, d), with a 1: (m, n_{l-1} + 1); the first one's in
        units of pixels, as `rows` are."""
        one = torch.ones(len(images), 1, dtype=torch.float64, device=self.mean.device)
        found = [torch.cat([images.double() - self.mean, one], dim=1)]
        values = self.normalised(images)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            values, _ = self.slopes(torch.addmm(bias, values, weight.T))
            found.append(torch.cat([values, one], dim=1))
        return found

    def slopes(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Values and slopes of the activation."""
        if self.activation == "relu":  # in place of a graph, which takes four times as long
            return sums.clamp(min=0), (sums > 0).to(sums.dtype)
        activate: Callable[[Tensor], Tensor] = getattr(nn.functional, self.activation)
        with torch.enable_grad():
            at = sums.detach().requires_grad_()
            values = activate(at)
            (slopes,) = torch.autograd.grad(values.sum(), at)
        return values.detach(), slopes


def chain_of(network: nn.Module) -> Chain:
    """The layers of a network, see `linear_layers`, with its ``mean`` and perhaps ``deviation``
    (d,); ``activation``, "relu" where it says none."""
    linear = linear_layers(network)
    mean: Tensor = network.mean  # type: ignore[assignment]
    return Chain(
        [layer.weight.detach().double() for layer in linear],
        [
            torch.zeros(layer.out_features, dtype=torch.float64, device=mean.device)
            if layer.bias is None
            else layer.bias.detach().double()
            for layer in linear
        ],
        mean.double(),
        getattr(network, "deviation", torch.ones_like(mean)).double(),
        getattr(network, "activation", "relu"),
    )


def linear_layers(network: nn.Module) -> list[nn.Linear]:
    """``layers`` of a network, a ModuleList of at least two Linear, which has the ``mean`` (d,) of
    its input.

    Raises
    ------
    BadInput
        When the network is of another kind, or its weights are not finite.
    """
    layers = getattr(network, "layers", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) == 0:
        raise not_covered("it has no `layers`")
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    if len(linear) < len(layers):
        other = next(type(layer).__name__ for layer in layers if not isinstance(layer, nn.Linear))
        raise not_covered(f"one of its layers is {other}")
    if len(linear) == 1:
        raise not_covered("it has no hidden layer")
    mean = getattr(network, "mean", None)
    if not isinstance(mean, Tensor) or mean.shape != (linear[0].in_features,):
        raise not_covered("its `mean` is not that of its input")
    deviation = getattr(network, "deviation", torch.ones_like(mean))
    tensors = [mean, deviation, *(p for layer in linear for p in layer.parameters())]
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise BadInput("some weights of the network are not finite; train it anew")
    return linear


def not_covered(reason: str, *, needed: str = NEEDED) -> BadInput:
    return BadInput(f"the attack does not cover this network: {reason}; it needs {needed}")


def changed_rows(network: nn.Module, chain: Chain) -> tuple[Tensor, Duals]:
    """What the images have put into the first layer, (n_1, d + 1) in units of pixels, and how their
    columns are to be found: the layer itself, or what training has added to ``start_weight`` and
    ``start_bias``, its first layer before, where the network has them.

    Raises
    ------
    BadInput
        When that is the first layer itself.
    """
    rows = chain.rows()
    start = dict(network.named_buffers())
    if "start_weight" not in start:
        return rows, "outputs"
    weights, biases = ([start[f"start_{key}"].detach().double()] for key in ("weight", "bias"))
    before = chain._replace(weights=weights, biases=biases).rows()
    rows = rows - kept_share(rows, before) * before
    if not bool(rows.any()):
        raise BadInput("start: equals the network's first layer: nothing was learnt from it")
    return rows, "free"


def kept_share(rows: Tensor, before: Tensor) -> float:
    """How much of its start weight decay has left in a layer, in [0, 1], of both (n_1, d + 1).

    rows = a before + a matrix of low rank, so that a is an eigenvalue of rows before^+ as many
    times as there are dimensions without an image: the median, where these are most. Where no
    eigenvalue is repeated so often, nothing is known of a, and 1 is taken.
    """
    if before.shape[0] > before.shape[1]:
        rows, before = rows.T, before.T
    ratio = torch.linalg.lstsq(before.T, rows.T).solution
    shares = torch.linalg.eigvals(ratio).real
    share = shares.median()
    repeated = float(((shares - share).abs() < REPEATED).double().mean()) >= 0.5
    decayed = abs(float(share) - 1) > SAME_START
    return min(max(float(share), 0.0), 1.0) if repeated and decayed else 1.0


class Columns:
    """Columns of images, and their relative distance from the column space of some rows.

    With A = U S the basis of that space, each unit's equation divided by the length of its row, and
    M = 1 − A (AᵀA + ridge)⁻¹ Aᵀ, the distance of a column g is the smallest (g − t)ᵀ M (g − t) over
    t on the units at their kink: gᵀMg − (Mg)ₖᵀ (Mₖₖ)⁻¹ (Mg)ₖ, which costs a small system for each
    image.

    Parameters
    ----------
    chain : Chain
    rows : (n_1, d + 1)
        [W_1, b_1] or, of a fine-tuned network, what has been added to it.
    ridge : float
        In units of the largest squared singular value. Directions that the weights determine
        weakly count less: where training left noise in them, this keeps them from holding anything.

    Raises
    ------
    BadInput
        When all rows are 0.
    """

    def __init__(self, chain: Chain, rows: Tensor, *, ridge: float = RIDGE) -> None:
        self.chain = chain
        lengths = rows.norm(dim=1)
        if not bool(lengths.any()):
            raise BadInput("the first layer is 0 everywhere: it holds nothing")
        self.live = torch.nonzero(lengths > DEAD * lengths.max()).flatten()
        self.lengths = lengths[self.live]
        columns, values, _ = torch.linalg.svd(rows, full_matrices=False)
        rank = rank_above_noise(values)
        self.spectrum = values / values[0]
        self.columns, self.values = columns[:, :rank], values[:rank]
        scaled = self.columns[self.live] * (self.values / values[0]) / self.lengths[:, None]
        # The units' own scale is 1 / length: the ridge is in the scale of the equations.
        normal = scaled.T @ scaled
        normal.diagonal().add_(ridge * normal.diagonal().max())
        factor = torch.linalg.cholesky(normal)
        self.half = torch.linalg.solve_triangular(factor, scaled.T, upper=False)  # M = 1 − HᵀH

    def patterns(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of images (m, d): gains (m, live units, outputs), what each output's δ adds to each
        unit's column, in the units' scale; the units at their kink (m, live units); and the
        logits (m, outputs)."""
        chain = self.chain
        values = chain.normalised(images)
        lengths = torch.cat([values, values.new_ones(len(values), 1)], dim=1).norm(dim=1)
        slopes: list[Tensor] = []
        kinked = torch.zeros(len(images), len(self.live), dtype=torch.bool, device=values.device)
        for weight, bias in zip(chain.weights[:-1], chain.biases[:-1], strict=True):
            sums = torch.addmm(bias, values, weight.T)
            if not slopes and chain.activation in KINKED:
                own = torch.cat([weight, bias[:, None]], dim=1).norm(dim=1)[self.live]
                kinked = sums[:, self.live].abs() <= KINK * own * lengths[:, None]
            values, slope = chain.slopes(sums)
            slopes.append(slope)
        logits = torch.addmm(chain.biases[-1], values, chain.weights[-1].T)
        gains = chain.weights[-1].expand(len(images), -1, -1)
        for weight, slope in zip(chain.weights[-2:0:-1], slopes[:0:-1], strict=True):
            gains = (gains * slope[:, None, :]) @ weight
        gains = gains[:, :, self.live].mT * (slopes[0][:, self.live] / self.lengths)[:, :, None]
        return gains, kinked, logits

    def fit(self, images: Tensor, *, duals: Duals = "outputs") -> tuple[Tensor, Tensor]:
        """How far the columns of images (m, d) lie from the column space, and the nearest in it.

        With the duals of the outputs, δ is the softmax less the likeliest class: what training by
        cross-entropy leaves of an image that it has fitted. Free, it is the one among those that
        sum to 0 whose column is nearest: where the weights add up many steps.

        Returns
        -------
        residuals : (m,) float64
            Relative distances in [0, 1]: near 0 for a training image.
        columns : (m, r) float64
            In the coordinates of the column space; the units at their kink take what fits.
        """
        residuals = [torch.zeros(0, dtype=torch.float64, device=images.device)]
        fitted = [self.values.new_zeros(0, len(self.values))]
        for part in images.split(BLOCK):
            gains, kinked, logits = self.patterns(part)
            if duals == "outputs":
                basis = duals_of(logits)[:, :, None]
            else:
                basis = balanced(logits.shape[1]).to(logits)
            columns = (gains @ basis) * ~kinked[:, :, None]  # (m, units, k)
            inside = self.half @ columns
            outside = columns - self.half.T @ inside
            energy = columns.mT @ columns
            left = energy - inside.mT @ inside
            for column, beyond, rest, kinks in zip(columns, outside, left, kinked, strict=True):
                half = self.half[:, kinks]
                own = torch.eye(half.shape[1]).to(half) - half.T @ half
                column[kinks] = -torch.linalg.solve(own, beyond[kinks])
                rest.addmm_(beyond[kinks].T, column[kinks])
            share, factors = smallest_share(left, energy)
            residuals.append(share.clamp(0, 1).sqrt())
            wanted = (columns @ factors[:, :, None]).squeeze(2) * self.lengths
            fitted.append(wanted @ self.columns[self.live])
        return torch.cat(residuals), torch.cat(fitted)


def row_distances(chain: Chain, rows: Tensor, images: Tensor) -> Tensor:
    """How far what the hidden layers get of images (m, d) lies from their rows: relative distances
    in [0, 1], (m, k), of the k layers whose rows leave room.

    `rows` (n_1, d + 1) are the first layer's, see `changed_rows`. The last layer has as many rows
    as there are classes: it is left out.
    """
    layers = [rows]
    for weight, bias in zip(chain.weights[1:-1], chain.biases[1:-1], strict=True):
        layers.append(torch.cat([weight, bias[:, None]], dim=1))
    bases = []
    for layer in layers:
        _, values, basis = torch.linalg.svd(layer, full_matrices=False)
        bases.append(basis[: rank_above_noise(values)])
    found = []
    for part in images.split(BLOCK):
        received = chain.received(part)
        outside = [
            (got - got @ basis.T @ basis).norm(dim=1) / got.norm(dim=1)
            for got, basis in zip(received, bases, strict=False)
            if len(basis) < basis.shape[1]
        ]
        found.append(torch.stack(outside, dim=1) if outside else part.new_zeros(len(part), 0))
    return torch.cat(found).double() if found else torch.zeros(0, 0, dtype=torch.float64)


def rank_above_noise(values: Tensor) -> int:
    """How many singular values (k,), largest first, stand above the noise: the fixed point of
    calling noise what is below `FLOOR` times the median of what is called noise.

    Rounding to float32, and what is left of the initial weights, has singular values within a
    small factor of their median (Marchenko & Pastur 1967), whatever its scale. Where all are
    within it, as of a layer as it was drawn, nothing can be told apart, and all count.
    """
    rank = 0
    while rank < len(values):
        above = int((values > FLOOR * values[rank:].median()).sum())
        if above <= rank:
            break
        rank = above
    return rank or len(values)


def duals_of(logits: Tensor) -> Tensor:
    """The gradient δ of the cross-entropy by the logits (m, C), divided by its largest entry, the
    likeliest class being the label; of one logit, which only has a sign, 1."""
    if logits.shape[1] == 1:
        return torch.ones_like(logits)
    label = logits.argmax(dim=1, keepdim=True)
    # Not 1 − p of the label, which rounding takes away where the network is sure; and by the
    # largest of the others, since p itself underflows.
    others = logits.scatter(1, label, -torch.inf).softmax(dim=1)
    return others.scatter(1, label, -1.0)


def balanced(count: int) -> Tensor:
    """An orthonormal basis (count, count − 1) of the vectors that sum to 0; of one, itself."""
    if count == 1:
        return torch.ones(1, 1)
    return torch.linalg.svd(torch.eye(count, dtype=torch.float64) - 1 / count).U[:, :-1]


def smallest_share(left: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest vᵀLv / vᵀEv over v, (m,), and that v, (m, k), of symmetric matrices (m, k, k): the
    smallest generalised eigenvalue; 1 where E is 0, as of an image that switches nothing on."""
    scale = energy.diagonal(dim1=1, dim2=2).amax(dim=1)
    empty = scale <= torch.finfo(energy.dtype).tiny
    scale = torch.where(empty, 1.0, scale)[:, None, None]
    unit = torch.eye(energy.shape[1]).to(energy)
    little = 1e-12 * unit  # added to both: the share of a v without energy is 1 too
    root = torch.linalg.cholesky(torch.where(empty[:, None, None], unit, energy / scale) + little)
    half = torch.linalg.solve_triangular(root, left / scale + little, upper=False)
    whole = torch.linalg.solve_triangular(root, half.mT, upper=False)
    shares, vectors = torch.linalg.eigh((whole + whole.mT) / 2)
    best = torch.linalg.solve_triangular(root.mT, vectors[:, :, :1], upper=True).squeeze(2)
    return torch.where(empty, 1.0, shares[:, 0]), best
