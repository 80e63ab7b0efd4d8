"""Training images from the weights alone: corners of the box of pixels in the weights' row space.

Facts that the attack rests on, for a homogeneous network with two hidden layers at a KKT point:

1. The row of unit j in [W_1, b_1] is a_j sum_i p_i 1[z_ij > 0] [x_i, 1], with z_ij its input from
   image i and p_i from the dual variables: the row space is the span of the images. Each image is
   a point of that space within the box [0, 1]^d, most of its pixels at 0.
2. So the pattern of the units that an image switches on, times their gains, lies in the column
   space of [W_1, b_1], but for the units at whose kink it lies (z_ij = 0), where any share between
   0 and 1 is a subgradient. Other images do not fulfil this: it certifies a candidate without the
   truth.
3. The pattern gives the dual basis: what image i adds to the rows can be taken away, and its share
   in any other candidate can be read. What remains is a smaller problem.
"""

from functools import partial
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from stages.artifacts import Callback
from stages.methods.training_data.row_differences import (
    differences,
    distinct,
    two_hidden_layers,
    unit_groups,
)

NOISE = 1e-6  # singular values below this share of the largest are float32's noise
SAME_START = 0.93  # normalised cross-correlation at which two starts are one
SAME_IMAGE = 0.96  # the same for two candidates
ANCHORED = 40  # iterations in which a candidate is held to its start
ANCHOR = 0.3  # weight of the start in them
RELAXATION = 1.6  # over-relaxation of ADMM (Boyd et al. 2011, section 3.4.3)
KINK = 1e-2  # |cosine| between an image and a unit below which the unit counts as at its kink
RIDGE = 1e-5  # of the fit of a pattern in the column space
STRICT = 1e3  # weight of the conditions on the duals
LIVE_SHARE = 0.02  # of the second layer's units of one sign, for a candidate to count as passing
# Penalties on the coordinates, by how strongly the weights determine them: a large one is robust
# and finds images with large dual variables, a small one leaves room for the others.
SEARCHES: tuple[tuple[float, ...], ...] = (
    (1e-5, 1e-6, 1e-7, 1e-8),
    (1e-6, 1e-7, 1e-8),
    (1e-7, 1e-8),
)
POLISH = (1e-8, 1e-9, 1e-10)


class Memory(Protocol):
    """Keeps arrays from an interrupted attack for the next one with the same inputs."""

    def load(self) -> dict[str, Any]: ...

    def save(self, arrays: dict[str, Any]) -> None: ...


def reconstruct(
    network: nn.Module,
    observed: Tensor,
    *,
    candidates: Annotated[int, Field(ge=8)],
    starts: Annotated[int, Field(ge=8)],
    public_starts: Annotated[int, Field(ge=0)],
    neighbours: Annotated[int, Field(ge=1)],
    rounds: Annotated[int, Field(ge=1)],
    passes: Annotated[int, Field(ge=1)],
    iterations: Annotated[int, Field(ge=1)],
    penalty: Annotated[float, Field(ge=0)],
    faint: Annotated[float, Field(gt=0, lt=1)],
    trusted: Annotated[float, Field(gt=0, lt=1)],
    deflation: Annotated[float, Field(ge=0)],
    callback: Callback,
    memory: Memory,
) -> Tensor:
    """Search the row space for images, certify them, take them away, search what is left.

    Parameters
    ----------
    network : Module
        Homogeneous, two hidden layers: see `row_differences.two_hidden_layers`.
    observed : (N, *shape)
        Public images; only with `public_starts`.
    candidates : int
        At most so many are returned.
    starts : int
        Row differences (see `row_differences`) that a search starts from.
    public_starts : int
        So many public images as further starts; 0 keeps to the weights alone.
    neighbours : int
        Units that each unit is compared with in the first round; each later round takes more.
    rounds : int
        Searches; between two, certified candidates are taken out of the problem.
    passes : int
        Times that a search looks anew which pixels are nearly 0, for each penalty.
    iterations : int
        Of ADMM in a pass.
    penalty : float
        On pixels that look empty, in pixel units.
    faint : float
        A pixel looks empty where the 3 x 3 average is below this.
    trusted : float
        A candidate with a smaller certificate residual is taken out of the problem.
    deflation : float
        Weight of the condition that the images already found have no share in a candidate.
    callback : function
        Called after each round with the certificate residuals (K,) and the candidates.
    memory : Memory
        Keeps the pool after each round; an interrupted attack goes on from there.

    Returns
    -------
    (K, *shape) float32
        In [0, 1], smallest certificate residual first.

    Raises
    ------
    Refusal
        When the network is not covered.
    """
    weights, bias = two_hidden_layers(network)
    mean: Tensor = network.get_buffer("mean")
    shape: tuple[int, ...] = network.shape  # type: ignore[assignment]
    space = RowSpace(weights, bias, mean)
    groups = unit_groups(weights)
    kept = memory.load()
    begin = int(kept.get("round", 0))
    pool = torch.from_numpy(kept["pool"]) if kept else torch.zeros(0, len(mean))
    residual = torch.from_numpy(kept["residual"]) if kept else torch.zeros(0)
    search_from = partial(
        solve, mean=mean, passes=passes, iterations=iterations, penalty=penalty, shape=shape
    )
    for number in range(begin, rounds):
        certain = residual < trusted
        found = pool[certain]
        duals, rows = space.deflate(found)
        begun = differences(
            rows,
            groups,
            mean,
            neighbours=neighbours * (1 + number % 3),
            limit=starts,
            duplicate=SAME_START,
        )
        if number == 0:
            public = observed[:public_starts].flatten(1)
            begun, searches = torch.cat([begun, public]), SEARCHES
        else:
            begun = torch.cat([begun, pool[~certain][:starts]])
            searches = SEARCHES[1 + number % 2 :][:1]
        fresh = [pool]
        for search in searches:
            maps = [space.projection(strength, duals, deflation) for strength in search]
            reached = search_from(maps, starts=begun, faint=faint, anchored=ANCHORED)
            # The flattest first: pixels at the ends of their range are what an image has.
            flat = (reached - reached.round()).abs() < 5e-3
            order = flat.sum(dim=1).argsort(descending=True, stable=True)
            reached = reached[order]
            reached = reached[distinct(reached.clamp(0, 1) - mean, at=SAME_IMAGE)]
            # Without the deflation: the shares of the images found are known only roughly.
            maps = [space.projection(strength, duals, 0.0) for strength in POLISH]
            polished = search_from(maps, starts=reached, faint=faint / 2, anchored=0)
            fresh.append(polished.clamp_(0, 1))
        pool = torch.cat(fresh)
        residual = torch.cat([residual, space.certify(torch.cat(fresh[1:]))])
        order = residual.argsort(stable=True)
        order = order[distinct(pool[order] - mean, at=SAME_IMAGE)]
        pool, residual = pool[order], residual[order]
        memory.save(
            {"pool": pool.numpy(), "residual": residual.numpy(), "round": np.array(number + 1)}
        )
        callback(number + 1, residual, pool.unflatten(1, shape))
    return pool[:candidates].unflatten(1, shape)


class RowSpace:
    """The row space of [W_1, b_1], and what the pattern of active units says about a candidate.

    Coordinates z (r,) of a centred image with its 1, [x, 1] = z V, V from the singular value
    decomposition U S V of [W_1, b_1], singular values down to `NOISE`. All in float64.

    Parameters
    ----------
    weights, bias
        Of the three layers: see `kkt.homogeneous_layers`.
    mean : (d,)
    """

    def __init__(self, weights: list[Tensor], bias: Tensor, mean: Tensor) -> None:
        self.mean = mean
        self.first, self.second, last = (weight.double() for weight in weights)
        self.bias = bias.double()
        self.rows = torch.cat([self.first, self.bias[:, None]], dim=1)
        lengths = self.rows.norm(dim=1)
        self.live = torch.nonzero(lengths > 1e-2 * lengths.max()).flatten()
        self.lengths = lengths[self.live]
        columns, values, basis = torch.linalg.svd(self.rows, full_matrices=False)
        rank = int((values > NOISE * values[0]).sum())
        self.columns, self.values, self.basis = columns[:, :rank], values[:rank], basis[:rank]
        self.spread = self.values / values[0]
        # Units of the second layer push the output up or down; an image may pass both groups.
        self.up, self.down = last[0] > 0, last[0] < 0
        gains = torch.stack(
            [last[0].clamp(min=0) @ self.second, last[0].clamp(max=0) @ self.second], dim=1
        )
        # Every unit's equation in its own scale, so that none dominates the fit.
        self.gains = gains[self.live] / self.lengths[:, None]
        self.scaled = self.columns[self.live] * self.spread / self.lengths[:, None]

    def projection(self, strength: float, duals: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        """The nearest point of the row space, small coordinates and no known image preferred.

        argmin over z, z b = 1, of |z V_pixels - v|^2 + strength sum (z_k / s_k)^2 + weight |D z|^2
        is affine in v: v M + m.

        Parameters
        ----------
        strength : float
            Of the penalty on coordinates that the weights determine weakly (s_k = S_k / S_1).
        duals : (k, r)
            D: the rows read the share of each known image from the coordinates.
        weight : float

        Returns
        -------
        M : (d, d) float32
        m : (d,) float32
        """
        pixels, ones = self.basis[:, :-1], self.basis[:, -1]
        normal = pixels @ pixels.T + (strength / self.spread**2).diag() + weight * duals.T @ duals
        inverse = torch.linalg.inv(normal)
        towards = inverse @ ones
        reach = ones @ towards
        inverse = inverse - torch.outer(towards, towards) / reach
        return (pixels.T @ inverse @ pixels).float(), (pixels.T @ towards / reach).float()

    def patterns(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What candidates switch on.

        Parameters
        ----------
        images : (m, d)

        Returns
        -------
        extended : (m, d + 1)
            [x - mean, 1].
        cosines : (m, units)
            Between the candidates and the live units.
        passing : (m, 2)
            Whether the second layer's units that push up, and down, are active.
        """
        centred = (images - self.mean).double()
        extended = torch.cat([centred, centred.new_ones(len(centred), 1)], dim=1)
        inputs = extended @ self.rows.T
        cosines = inputs[:, self.live] / self.lengths / extended.norm(dim=1, keepdim=True)
        active = inputs.clamp_(min=0) @ self.second.T > 0
        passing = torch.stack(
            [
                (active & group).sum(dim=1) > LIVE_SHARE * group.sum()
                for group in (self.up, self.down)
            ],
            dim=1,
        )
        return extended, cosines, passing

    def _normal(self, cosines: Tensor) -> Tensor:
        """Normal matrices (m, r, r) of the fits in which the units at their kink are left out."""
        whole = self.scaled.T @ self.scaled
        whole.diagonal().add_(RIDGE)
        kinks = cosines.abs() <= KINK
        return torch.stack([whole - self.scaled[kink].T @ self.scaled[kink] for kink in kinks])

    def certify(self, images: Tensor, chunk: int = 64) -> Tensor:
        """Relative residual of a candidate's pattern in the column space of the weights.

        Parameters
        ----------
        images : (m, d)

        Returns
        -------
        (m,) float32
            Near 0 for a training image, whatever its dual variable is.
        """
        residuals = [torch.zeros(0)]
        for part in images.split(chunk):
            _, cosines, passing = self.patterns(part)
            used = (cosines > KINK).double()
            patterns = self.gains * used[:, :, None] * passing[:, None, :]  # (m, units, 2)
            factor = torch.linalg.cholesky(self._normal(cosines))
            mixed = self.scaled.T @ patterns  # (m, r, 2)
            energy = patterns.mT @ patterns  # (m, 2, 2)
            left = energy - mixed.mT @ torch.cholesky_solve(mixed, factor)
            # An image that passes both groups has two dual factors: the best ratio of them is the
            # smaller generalised eigenvalue of a 2 x 2 problem.
            both = passing.all(dim=1)
            scale = energy.diagonal(dim1=1, dim2=2)
            single = (left.diagonal(dim1=1, dim2=2) / scale.clamp(min=1e-30)).where(
                passing, torch.ones(())
            )
            value = single.min(dim=1).values
            if bool(both.any()):
                root = torch.linalg.cholesky(energy[both])
                half = torch.linalg.solve_triangular(root, left[both], upper=False)
                whole = torch.linalg.solve_triangular(root, half.mT, upper=False)
                value[both] = torch.linalg.eigvalsh((whole + whole.mT) / 2)[:, 0]
            residuals.append(value.clamp(min=0).sqrt().float())
        return torch.cat(residuals)

    def deflate(self, found: Tensor, iterations: int = 4) -> tuple[Tensor, Tensor]:
        """Dual basis of known images, and the rows without what those images add to them.

        For each image the nearest vector of the column space to its pattern is found, under the
        condition that its dual reads 1 from the image itself and 0 from the other known ones. The
        units' gains drift from the KKT point by about 1 %, alike for all images, so they are
        estimated with it, in turns.

        Parameters
        ----------
        found : (k, d)
        iterations : int
            Turns.

        Returns
        -------
        duals : (k, r)
            Reads the share of each image from coordinates z.
        rows : (n_1, d + 1)
        """
        count = len(found)
        if count == 0:
            return self.basis.new_zeros(0, len(self.values)), self.rows
        extended, cosines, passing = self.patterns(found)
        coordinates = extended @ self.basis.T
        used = cosines.abs() > KINK
        on = (cosines > KINK).double()
        normal = self._normal(cosines) + STRICT * coordinates.T @ coordinates
        factor = torch.linalg.cholesky(normal)
        unbiased = torch.cholesky_solve(STRICT * coordinates[:, :, None], factor)  # (k, r, 1)
        drift = torch.ones_like(self.lengths)
        for _ in range(iterations):
            patterns = self.gains * (on * drift)[:, :, None] * passing[:, None, :]
            mixed = self.scaled.T @ patterns
            solved = torch.cholesky_solve(mixed, factor)
            energy = patterns.mT @ patterns - mixed.mT @ solved
            energy.diagonal(dim1=1, dim2=2).add_(1e-12 * energy.abs().amax(dim=(1, 2))[:, None])
            # A group that the image does not pass has no factor: its row is 0, its pivot 1.
            energy.diagonal(dim1=1, dim2=2).add_((~passing).double())
            factors = torch.linalg.solve(energy, mixed.mT @ unbiased)
            fitted = (solved @ factors + unbiased).squeeze(2)  # (k, r)
            own = (fitted * coordinates).sum(dim=1, keepdim=True)
            fitted, factors = fitted / own, factors / own[:, :, None]
            wanted = (self.gains * on[:, :, None] * passing[:, None, :] @ factors).squeeze(2)
            reached = fitted @ self.scaled.T
            weight = used * on / (wanted.square() * used).sum(dim=1, keepdim=True).clamp(min=1e-30)
            share = (weight * wanted.square()).sum(dim=0)
            drift = (weight * reached * wanted).sum(dim=0) / share.clamp(min=1e-30)
            votes = (used * on).sum(dim=0)
            drift = (drift * votes + 3) / (votes + 3)  # few votes: stay near 1
        # In units of the rows the fit's columns carry S_k / S_1, and reading 1 costs S_1.
        taken = (self.columns * self.values) @ fitted.T @ extended
        return fitted, self.rows - taken


def solve(
    maps: list[tuple[Tensor, Tensor]],
    *,
    mean: Tensor,
    starts: Tensor,
    passes: int,
    iterations: int,
    penalty: float,
    faint: float,
    anchored: int,
    shape: tuple[int, ...],
) -> Tensor:
    """Alternate between the row space and the box of pixels, all candidates at once (ADMM).

    Pixels that look empty pay a constant price for not being 0; the others are free within
    [0, 1]. Which look empty is decided anew in each pass, by the local average: a plain l1 norm
    would prefer images with little ink.

    Parameters
    ----------
    maps : list of (M, m)
        Projections, see `RowSpace.projection`, used one after the other.
    mean : (d,)
    starts : (m, d)
    passes, iterations, penalty, faint
        See `reconstruct`.
    anchored : int
        Iterations at the first projection in which a candidate is held to its start.
    shape : tuple of int
        Of an image.

    Returns
    -------
    (m, d) float32
        In the row space, not clamped.
    """
    x, box, dual = starts, starts.clamp(0, 1), torch.zeros_like(starts)
    matrix, offset = maps[0]
    for _ in range(anchored):
        aim = (box - dual + ANCHOR * starts) / (1 + ANCHOR)
        x = torch.addmm(mean + offset, aim - mean, matrix)
        wished = x + dual
        box = wished.clamp(0, 1)
        dual = wished - box
    for matrix, offset in maps:
        for _ in range(passes):
            box = x.clamp(0, 1)
            price = penalty * (local_average(box, shape) < faint).float()
            dual.zero_()
            for _ in range(iterations):
                x = torch.addmm(mean + offset, box - dual - mean, matrix)
                wished = torch.lerp(box, x, RELAXATION).add_(dual)
                box = (wished - price).clamp_(0, 1)
                dual = wished.sub_(box)
    return x


def local_average(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Average over 3 x 3 pixels with binomial weights: (m, d) to (m, d)."""
    line = torch.tensor([0.25, 0.5, 0.25])
    kernel = torch.outer(line, line).expand(1, 1, 3, 3)
    planes = images.reshape(-1, 1, *shape[-2:])
    return nn.functional.conv2d(planes, kernel, padding=1).reshape(images.shape)
