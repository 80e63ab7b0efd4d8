"""A denoiser: the mean of an image given a noisy one, at any noise level; that is, the score."""

import time
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import layer_norm, silu

from retrace.networks._training import EVALUATION_SEED, Progress, Schedule, train, unwatched
from retrace.types import PIXELS, BadInput, Seed, Split

LEVELS = 25  # noise levels at which the remaining error is measured, evenly spaced in log σ
LOWEST, HIGHEST = 0.01, 10.0  # of them, in pixel units
MEASURED = 4000  # validation images that it is measured on
FEATURES = 16  # of the noise level that the layers see
CONDITIONS = 64  # units of the layer behind them


class Network(nn.Module):
    """Residual layers that correct the best linear denoiser.

    Wanted is D(x; σ) = E[image | image + σ n = x], n standard normal. By Tweedie's formula the
    score of the noisy images is (D(x; σ) − x) / σ² (Vincent 2011, "A connection between score
    matching and denoising autoencoders"). In the coordinates of the training images' principal
    components, with their variances v,

        D(x; σ) = v / (v + σ²) x + √(v σ² / (v + σ²)) F(s x; σ).

    That is the preconditioning of Karras et al. 2022 (arXiv 2206.00364, equation 7 and appendix
    B.6), derived as there with the data's covariance in place of one σ_data: the first term is the
    best linear denoiser, and F has to give what it lacks, in units of its error. With F = 0, where
    the training starts, D is exact for Gaussian data. Karras scales the input to unit variance;
    here s is v / (v + σ²), over the root of the mean square: whitened, the many components that are
    noise alone would drown the others.

    Parameters
    ----------
    axes : int
        p, the largest principal components, which F sees and corrects; of the others only the
        linear term is left.
    width : int
        Units of each layer.
    blocks : int
        Residual blocks of two layers, each with its noise level's scale and shift (Perez et al.
        2018, arXiv 1709.07871).
    """

    mean_image: Tensor  # (28, 28) float32, of the training images
    basis: Tensor  # (784, 784) float32, orthonormal components as columns, the largest first
    variances: Tensor  # (784,) float32, of the coordinates, squared pixel units
    # (LEVELS, 784) float32: mean squared error of D in each coordinate as a share of the linear
    # denoiser's, measured on validation images, at `LEVELS` from `LOWEST` to `HIGHEST`.
    remaining: Tensor

    def __init__(
        self,
        *,
        axes: Annotated[int, Field(ge=1, le=PIXELS)] = 300,
        width: Annotated[int, Field(ge=1, le=8192)] = 1024,
        blocks: Annotated[int, Field(ge=1, le=16)] = 1,
    ) -> None:
        super().__init__()
        self.axes, self.width = axes, width
        # Set by the training, with the noise levels of its loss.
        self.noise_median, self.noise_spread = 1.0, 1.0
        self.first = nn.Linear(axes, width)
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.outer = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.last = nn.Linear(width, axes)
        self.condition = nn.Sequential(nn.Linear(FEATURES, CONDITIONS), nn.SiLU())
        self.scales = nn.Linear(CONDITIONS, 2 * width * (blocks + 1))
        # Blocks that add nothing at first, and F = 0: the linear denoiser is where it starts.
        for layer in (*self.outer, self.last, self.scales):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.register_buffer("mean_image", torch.zeros(28, 28))
        self.register_buffer("basis", torch.eye(PIXELS))
        self.register_buffer("variances", torch.ones(PIXELS))
        self.register_buffer("remaining", torch.ones(LEVELS, PIXELS))

    def coordinates(self, images: Tensor) -> Tensor:
        """(..., 28, 28) images to (..., 784) coordinates."""
        return (images - self.mean_image).flatten(-2) @ self.basis

    def images(self, coordinates: Tensor) -> Tensor:
        """(..., 784) coordinates to (..., 28, 28) images."""
        return (coordinates @ self.basis.T).unflatten(-1, (28, 28)) + self.mean_image

    def denoise(self, noisy: Tensor, noise: Tensor) -> Tensor:
        """D(x; σ) of the first q coordinates (B, q), q from p to 784, of images plus noise, σ in
        pixel units, (B, 1) or (1, 1)."""
        variances = self.variances[: noisy.shape[1]]
        share = variances / (variances + noise.square())  # of the signal, (B or 1, q)
        linear = noisy * share
        signal = (variances * share)[:, : self.axes].mean(dim=1, keepdim=True)
        inputs = linear[:, : self.axes] * signal.rsqrt()
        deviations = noise * share[:, : self.axes].sqrt()
        linear[:, : self.axes] += self._corrections(inputs, noise.log()) * deviations
        return linear

    def _corrections(self, inputs: Tensor, log_noise: Tensor) -> Tensor:
        """F, (B, p), of inputs (B, p) and log σ (B, 1) or (1, 1)."""
        centres = torch.linspace(-4, 3, FEATURES)
        features = (-2 * (log_noise - centres).square()).exp()
        scales = self.scales(self.condition(features)).chunk(2 * len(self.inner) + 2, dim=1)
        hidden = silu(self.first(inputs) * (1 + scales[0]) + scales[1])
        for i, (inner, outer) in enumerate(zip(self.inner, self.outer, strict=True), start=1):
            normed = layer_norm(hidden, (self.width,))
            hidden = hidden + outer(silu(inner(normed) * (1 + scales[2 * i]) + scales[2 * i + 1]))
        corrections: Tensor = self.last(hidden)
        return corrections

    def error_variances(self, noise: float) -> Tensor:
        """Mean squared error (784,) of D in each coordinate at noise σ, in squared pixel units.

        `remaining`, linearly interpolated in log σ, times the linear denoiser's.
        """
        position = torch.tensor(noise / LOWEST).log() / torch.tensor(HIGHEST / LOWEST).log()
        exact = float((position * (LEVELS - 1)).clamp(0, LEVELS - 1))
        below = min(int(exact), LEVELS - 2)
        share = torch.lerp(self.remaining[below], self.remaining[below + 1], exact - below)
        return share * self.variances * noise**2 / (self.variances + noise**2)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 28, 28) images, noise of 0.5 pixel units on them, to denoised ones."""
        return self.images(self.denoise(self.coordinates(images), torch.full((1, 1), 0.5)))

    def relative_errors(self, coordinates: Tensor, noise: Tensor, drawn: Tensor) -> Tensor:
        """Squared error (B,) of D as a share of the linear denoiser's, of the first coordinates (B,
        p) of images, under noise (B, 1) in pixel units times drawn standard normals (B, p)."""
        error = self.denoise(coordinates + noise * drawn, noise) - coordinates
        variances = self.variances[: self.axes]
        linear = variances * noise.square() / (variances + noise.square())
        return error.square().sum(dim=1) / linear.sum(dim=1)

    def loss(self, coordinates: Tensor, labels: Tensor) -> Tensor:
        """Mean relative error of (B, p) coordinates at log-normal noise levels."""
        noise = self._levels(torch.randn(len(coordinates), 1))
        return self.relative_errors(coordinates, noise, torch.randn(coordinates.shape)).mean()

    def evaluate(self, coordinates: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Relative error of each of (B, p) coordinates, (B,), under fixed noise."""
        generator = torch.Generator().manual_seed(EVALUATION_SEED)
        noise = self._levels(torch.randn(len(coordinates), 1, generator=generator))
        drawn = torch.randn(coordinates.shape, generator=generator)
        return {"relative_error": self.relative_errors(coordinates, noise, drawn)}

    def _levels(self, normal: Tensor) -> Tensor:
        return self.noise_median * (self.noise_spread * normal).exp()

    def fit(
        self,
        training: Split,
        validation: Split,
        progress: Progress = unwatched,
        *,
        epochs: Annotated[int, Field(ge=1)] = 24,
        batch_size: Annotated[int, Field(ge=1)] = 512,
        learning_rate: Annotated[float, Field(gt=0)] = 0.002,
        schedule: Schedule = "cosine",
        noise_median: Annotated[float, Field(gt=0)] = 0.6,
        noise_spread: Annotated[float, Field(gt=0)] = 1.0,
        seed: Seed = 0,
    ) -> list[dict[str, float]]:
        """Take the principal components, train F with Adam, and measure the remaining error.

        Parameters
        ----------
        epochs, batch_size, learning_rate, schedule
            Of Adam (see `_training.train`).
        noise_median, noise_spread : float
            Of the log-normal noise levels of the loss: their median in pixel units, and the
            standard deviation of log σ (Karras et al. 2022, table 1: exp(P_mean) and P_std).
        seed : int
            Of batches and noise.

        Returns
        -------
        list of dict
            See `_training.train`; the last entry also has ``cpu_seconds`` of all of the fit.

        Raises
        ------
        BadInput
            When there are fewer images than axes, whose directions would be arbitrary.
        """
        started = time.process_time()
        images, labels = training
        if len(images) < self.axes:
            raise BadInput(f"axes = {self.axes}: {len(images)} training images")
        self.noise_median, self.noise_spread = noise_median, noise_spread
        self.mean_image = images.mean(dim=0)
        centred = (images - self.mean_image).flatten(1).double()
        variances, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
        self.variances = variances.flip(0).clamp(min=0).float()
        self.basis = vectors.flip(1).float().contiguous()
        coordinates, held_out = (self.coordinates(x) for x in (images, validation[0]))
        history = train(
            self,
            (coordinates[:, : self.axes].contiguous(), labels),
            (held_out[:, : self.axes].contiguous(), validation[1]),
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            schedule=schedule,
            grace=epochs,
            seed=seed,
            progress=progress,
        )
        self.eval()
        self._measure(held_out[:MEASURED])
        history[-1] |= {"cpu_seconds": time.process_time() - started}
        return history

    @torch.no_grad()
    def _measure(self, coordinates: Tensor) -> None:
        """Set `remaining`, the same noise at all levels, from (n, 784) coordinates."""
        generator = torch.Generator().manual_seed(EVALUATION_SEED)
        drawn = torch.randn(coordinates.shape, generator=generator)
        levels = torch.linspace(
            torch.tensor(LOWEST).log().item(), torch.tensor(HIGHEST).log().item(), LEVELS
        ).exp()
        remaining = torch.ones(LEVELS, PIXELS)
        for share, level in zip(remaining, levels, strict=True):
            noise = level.reshape(1, 1)
            error = self.denoise(coordinates + noise * drawn, noise) - coordinates
            linear = self.variances * level**2 / (self.variances + level**2)
            measured = error.square().mean(dim=0)[: self.axes]
            share[: self.axes] = measured / linear[: self.axes].clamp(min=1e-12)
        self.remaining = remaining
