"""The row space of the first layer: what its points and the units' patterns say about images."""

from functools import partial

import torch
from torch import Tensor, nn

from retrace.methods._admm import Map
from retrace.methods.training_data._constants import (
    BATCH,
    DEAD,
    FLOOR,
    INVERSE_ITERATIONS,
    KINK,
    LIVE_SHARE,
    NOISE,
    ONES,
    RIDGE,
    RIGID,
    STRICT,
    TIGHT,
)


def affine(images: Tensor, *, factors: tuple[Tensor, ...], offset: Tensor) -> Tensor:
    """v M + c, M the product of the factors and c the offset (d,)."""
    *others, last = factors
    for factor in others:
        images = images @ factor
    return torch.addmm(offset, images, last)


def smallest_ratio(upper: Tensor, lower: Tensor) -> Tensor:
    """Smallest v^T U v / v^T L v over v, (m,), of symmetric matrices (m, k, k): the smallest
    generalised eigenvalue."""
    root = torch.linalg.cholesky(lower)
    half = torch.linalg.solve_triangular(root, upper, upper=False)
    whole = torch.linalg.solve_triangular(root, half.mT, upper=False)
    return torch.linalg.eigvalsh((whole + whole.mT) / 2)[:, 0]


def gain_drift(wanted: Tensor, reached: Tensor, on: Tensor) -> Tensor:
    """How far the units' gains have drifted, (units,): what is reached over what is wanted, by
    least squares over the images, each of the same weight. Wanted and reached are the patterns
    (k, units) of known images and their fits in the column space; `on` is 1 where the image
    switches the unit on, else 0."""
    weight = on / wanted.square().sum(dim=1, keepdim=True).clamp(min=1e-30)
    share = (weight * wanted.square()).sum(dim=0)
    drift = (weight * reached * wanted).sum(dim=0) / share.clamp(min=1e-30)
    votes = on.sum(dim=0)
    return (drift * votes + 3) / (votes + 3)  # few votes: stay near 1


class RowSpace:
    """The row space of [W_1, b_1]: the span of the images, each with a 1.

    Coordinates z (r,) of a centred image with its 1, [x - mean, 1] = z V, V from the singular value
    decomposition U S V of the rows. All in float64.

    Parameters
    ----------
    rows : (n_1, d + 1)
        The last column belongs to the 1; 0 throughout, where the layer has no bias.
    mean : (d,)
    rank : int, optional
        How many singular values count; those down to `NOISE` where it is not given.
    """

    def __init__(self, rows: Tensor, mean: Tensor, rank: int | None = None) -> None:
        self.mean, self.rows = mean.float(), rows
        columns, values, basis = torch.linalg.svd(rows, full_matrices=False)
        rank = int((values > NOISE * values[0]).sum()) if rank is None else rank
        self.columns, self.values, self.basis = columns[:, :rank], values[:rank], basis[:rank]
        self.spread = self.values / values[0]
        lengths = rows.norm(dim=1)
        self.live = torch.nonzero(lengths > DEAD * lengths.max()).flatten()
        self.lengths = lengths[self.live]
        self.none = self.basis.new_zeros(0, rank)  # duals, of no known image

    def extended(self, images: Tensor) -> Tensor:
        """[x - mean, 1] in float64: (m, d) to (m, d + 1)."""
        centred = (images - self.mean).double()
        return torch.cat([centred, centred.new_ones(len(centred), 1)], dim=1)

    def projection(self, strength: float, duals: Tensor, weight: float) -> Map:
        """To the nearest point of the row space, small coordinates and no known image preferred: a
        function in float32, by two thin factors where they hold fewer numbers than their product.

        argmin over z, z b = 1, of |z V_pixels - v|^2 + strength sum (z_k / s_k)^2 + weight |D z|^2
        for v less the mean is affine in v. The strength is of the penalty on coordinates that the
        weights determine weakly (s_k = S_k / S_1); the rows of D, the duals (k, r), read the share
        of each known image from the coordinates.
        """
        pixels, ones = self.basis[:, :-1], self.basis[:, -1]
        normal = pixels @ pixels.T + (strength / self.spread**2).diag() + weight * duals.T @ duals
        inverse = torch.linalg.inv(normal)
        origin = torch.zeros_like(ones)
        if bool(ones.any()):  # else the layer has no bias, and z no condition
            towards = inverse @ ones
            reach = ones @ towards
            inverse = inverse - torch.outer(towards, towards) / reach
            origin = towards / reach
        left, mean = pixels.T @ inverse, self.mean.double()
        offset = mean + (origin - mean @ left) @ pixels
        few = 2 * len(self.values) < len(mean)
        factors = (left, pixels) if few else (left @ pixels,)
        single = tuple(factor.float() for factor in factors)
        return partial(affine, factors=single, offset=offset.float())

    def _tight(self, images: Tensor) -> Tensor:
        """Normal matrices (m, r, r) of the rows that hold a point: those of its tight pixels, at 0
        or 1, of the last coordinate, and a little of each direction."""
        pixels, ones = self.basis[:, :-1], self.basis[:, -1]
        # Of all pixels, less the free ones, which are fewer than the tight ones.
        whole = (FLOOR / self.spread**2).diag() + ONES * torch.outer(ones, ones) + pixels @ pixels.T
        normal = whole.repeat(len(images), 1, 1)
        for matrix, free in zip(normal, (images >= TIGHT) & (images <= 1 - TIGHT), strict=True):
            loose = pixels[:, free]
            matrix.addmm_(loose, loose.T, alpha=-1)
        return normal

    def held(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Whether the pixels at the ends of their range hold an image (m, d) in its place, (m,)
        bool; and of those that are not held, directions in which they move freely, in pixels.

        A point of the row space is a vertex of the polytope that the box of pixels cuts out of it
        when no direction leaves all its tight pixels (at 0 or 1) as they are: the smallest singular
        value of their rows is above `RIGID`. A training image has hundreds of them; a mixture of
        images can still move along their difference. The direction is random among the free ones.
        """
        found = [torch.zeros(0, dtype=torch.bool)]
        directions = [images[:0].float()]
        for part in images.split(BATCH):
            normal = self._tight(part)
            shifted = normal.clone()
            shifted.diagonal(dim1=1, dim2=2).sub_(RIGID**2)
            # Positive definite still, which costs less to find out than the eigenvalue.
            rigid = torch.linalg.cholesky_ex(shifted).info == 0
            found.append(rigid)
            if rigid.all():
                continue
            factor = torch.linalg.cholesky(normal[~rigid])
            free = torch.randn(*factor.shape[:2], 1, generator=generator, dtype=torch.float64)
            for _ in range(INVERSE_ITERATIONS):
                free = nn.functional.normalize(torch.cholesky_solve(free, factor), dim=1)
            directions.append((free.squeeze(2) @ self.basis[:, :-1]).float())
        return torch.cat(found), torch.cat(directions)

    def rigid(self, images: Tensor) -> Tensor:
        """Whether images (m, d) are vertices, (m,) bool: see `held`."""
        return self.held(images, torch.Generator().manual_seed(0))[0]

    def objectives(self, found: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Random directions (count, d) float32 of mean absolute value 1 that say nothing of the
        images found (k, d), to search the others along.

        Differences of two units' rows, which weigh the images by how differently the two see
        them, made orthogonal to the images found.
        """
        units = nn.functional.normalize((self.columns * self.values)[self.live])
        first, second = torch.randint(len(units), (2, count), generator=generator)
        return self._apart(units[first] - units[second], found)

    def isotropic(
        self, found: Tensor, count: int, generator: torch.Generator, *, power: float
    ) -> Tensor:
        """The same of normal coordinates, times a power of the singular values (0: none counts more
        than another)."""
        normal = torch.randn(count, len(self.values), generator=generator, dtype=torch.float64)
        return self._apart(normal * self.spread**power, found)

    def _apart(self, directions: Tensor, found: Tensor) -> Tensor:
        """Coordinates (count, r), made orthogonal to images, as directions in pixels."""
        if len(found):
            known, _ = torch.linalg.qr((self.extended(found) @ self.basis.T).T)
            directions = directions - directions @ known @ known.T
        pixels = (directions @ self.basis[:, :-1]).float()
        return pixels / pixels.abs().mean(dim=1, keepdim=True).clamp(min=1e-12)


class MarginSpace(RowSpace):
    """The same of a homogeneous network at a KKT point of the maximum margin, and what the pattern
    of active units says about a candidate.

    Made of the weights and the bias that `kkt.homogeneous_layers` gives of three layers, and the
    mean (d,).
    """

    def __init__(self, weights: list[Tensor], bias: Tensor, mean: Tensor) -> None:
        self.first, self.second, last = (weight.double() for weight in weights)
        self.bias = bias.double()
        super().__init__(torch.cat([self.first, self.bias[:, None]], dim=1), mean)
        # Units of the second layer push the output up or down; an image may pass both groups.
        self.up, self.down = last[0] > 0, last[0] < 0
        gains = torch.stack(
            [last[0].clamp(min=0) @ self.second, last[0].clamp(max=0) @ self.second], dim=1
        )
        # Every unit's equation in its own scale, so that none dominates the fit.
        self.gains = gains[self.live] / self.lengths[:, None]
        self.scaled = self.columns[self.live] * self.spread / self.lengths[:, None]

    def patterns(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What candidates (m, d) switch on: [x - mean, 1] (m, d + 1); cosines (m, units) between
        them and the live units; and whether the second layer's units that push up, and down, are
        active (m, 2)."""
        extended = self.extended(images)
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
        normal = whole.repeat(len(cosines), 1, 1)
        for matrix, kink in zip(normal, cosines.abs() <= KINK, strict=True):
            rows = self.scaled[kink]
            matrix.addmm_(rows.T, rows, alpha=-1)
        return normal

    def certify(self, images: Tensor, chunk: int = 64) -> Tensor:
        """Relative residual (m,) float32 of the candidates' (m, d) patterns in the column space of
        the weights: near 0 for a training image, whatever its dual variable is."""
        residuals = [torch.zeros(0)]
        for part in images.split(chunk):
            _, cosines, passing = self.patterns(part)
            used = (cosines > KINK).double()
            patterns = self.gains * used[:, :, None] * passing[:, None, :]  # (m, units, 2)
            factor = torch.linalg.cholesky(self._normal(cosines))
            mixed = self.scaled.T @ patterns  # (m, r, 2)
            energy = patterns.mT @ patterns  # (m, 2, 2)
            left = energy - mixed.mT @ torch.cholesky_solve(mixed, factor)
            both = passing.all(dim=1)
            scale = energy.diagonal(dim1=1, dim2=2)
            single = (left.diagonal(dim1=1, dim2=2) / scale.clamp(min=1e-30)).where(
                passing, torch.ones(())
            )
            value = single.min(dim=1).values
            # An image that passes both groups has two dual factors: the best of all.
            value[both] = smallest_ratio(left[both], energy[both])
            residuals.append(value.clamp(min=0).sqrt().float())
        return torch.cat(residuals)

    def deflate(self, found: Tensor, iterations: int = 4) -> tuple[Tensor, Tensor]:
        """Dual basis (k, r) of known images (k, d), which reads the share of each from coordinates
        z, and the rows (n_1, d + 1) without what those images add to them.

        For each image the nearest vector of the column space to its pattern is found, under the
        condition that its dual reads 1 from the image itself and 0 from the other known ones. The
        units' gains drift from the KKT point by about 1 %, alike for all images, so they are
        estimated with it, in turns (`iterations`).
        """
        count = len(found)
        if count == 0:
            return self.none, self.rows
        extended, cosines, passing = self.patterns(found)
        coordinates = extended @ self.basis.T
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
            drift = gain_drift(wanted, reached, on)
        # In units of the rows the fit's columns carry S_k / S_1, and reading 1 costs S_1.
        taken = (self.columns * self.values) @ fitted.T @ extended
        return fitted, self.rows - taken
