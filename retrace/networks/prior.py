"""What images look like, learnt from complete ones: a VAE, a Gaussian mixture, and their moments.

One checkpoint for all methods of imputation that combine them.
"""

import math
import time
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from retrace.networks._training import (
    Progress,
    Schedule,
    Variational,
    rectified,
    train,
    unwatched,
)
from retrace.types import PIXELS, BadInput, Seed, Split

BATCH = 4000  # images that go through the encoder and the decoder at once
POINTS = 250  # whose densities under all components of the mixture are taken at once
FLOOR = 1e-3  # squared pixel units, added to the variances of every component
TOLERANCE = 1e-3  # nats
NEGLIGIBLE = 1e-12  # of a point's share in a component


class Network(Variational):
    """Variational autoencoder of ReLU layers, and a Gaussian mixture of the training images.

    The VAE has a standard normal prior of its code z, and pixels that are independent given z, of
    mean G(z) = σ(decoder(z)); its loss is the negative evidence lower bound with the Bernoulli
    cross-entropy (Kingma & Welling 2014, arXiv 1312.6114).

    The mixture is one of Gaussians for the first `axes` principal components, each with a full
    covariance; the remaining components are Gaussian, independent of them and the same for all. So
    with one component it is the Gaussian with the training images' mean and covariance.

    Parameters
    ----------
    code_size : int
        d, the values in a code.
    widths : sequence of int
        Units of the encoder's hidden layers; the decoder mirrors them.
    components : int
        K of the mixture.
    axes : int
        p, the principal components that the mixture describes.
    """

    mean: Tensor  # (28, 28) float32, of the training images x; all else in float64
    covariance: Tensor  # (784, 784)
    residual_mean: Tensor  # (784,), of x - G(E(x)), E being the mean of the encoder
    residual_covariance: Tensor  # (784, 784)
    basis: Tensor  # (784, p), orthonormal principal components, the largest first
    # The mixture in the coordinates of `basis`, the mean image subtracted.
    weights: Tensor  # (K,)
    means: Tensor  # (K, p)
    covariances: Tensor  # (K, p, p)

    def __init__(
        self,
        *,
        code_size: Annotated[int, Field(ge=1)] = 32,
        widths: Annotated[Sequence[Annotated[int, Field(ge=1, le=4096)]], Field(min_length=1)] = (
            512,
            256,
        ),
        components: Annotated[int, Field(ge=1, le=1000)] = 60,
        axes: Annotated[int, Field(ge=1, le=PIXELS)] = 80,
    ) -> None:
        super().__init__()
        self.code_size = code_size
        self.encoder = rectified([PIXELS, *widths, 2 * code_size])
        self.decoder = rectified([code_size, *reversed(widths), PIXELS])
        zeros = torch.zeros(PIXELS, dtype=torch.float64)
        identity = torch.eye(PIXELS, dtype=torch.float64)
        of_axes = torch.eye(axes, dtype=torch.float64)
        self.register_buffer("mean", torch.zeros(28, 28))
        self.register_buffer("covariance", identity)
        self.register_buffer("residual_mean", zeros)
        self.register_buffer("residual_covariance", identity.clone())
        self.register_buffer("basis", torch.eye(PIXELS, axes, dtype=torch.float64))
        self.register_buffer("weights", torch.full((components,), 1 / components).double())
        self.register_buffer("means", torch.zeros(components, axes, dtype=torch.float64))
        self.register_buffer("covariances", of_axes.expand(components, -1, -1).contiguous())

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 28, 28) images to means and log-variances (B, d) of their codes."""
        mean, log_variance = self.encoder(images.flatten(1)).chunk(2, dim=1)
        return mean, log_variance

    def logits(self, codes: Tensor) -> Tensor:
        return self.decoder(codes)

    def decode(self, codes: Tensor) -> Tensor:
        """(B, d) codes to (B, 28, 28) images in (0, 1)."""
        return self.logits(codes).sigmoid().unflatten(1, (28, 28))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 28, 28) images to the decoded means of their codes."""
        return self.decode(self.encode(images)[0])

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The negative evidence lower bound, with one sample of each code."""
        noise = torch.randn(len(images), self.code_size)
        entropy, divergence = self.terms(images, noise)
        return (entropy + divergence).mean()

    def fit(
        self,
        training: Split,
        validation: Split,
        progress: Progress = unwatched,
        *,
        epochs: Annotated[int, Field(ge=1)] = 40,
        batch_size: Annotated[int, Field(ge=1)] = 128,
        learning_rate: Annotated[float, Field(gt=0)] = 0.001,
        schedule: Schedule = "cosine",
        mixture_iterations: Annotated[int, Field(ge=1)] = 12,
        mixture_images: Annotated[int, Field(ge=1)] = 48000,
        seed: Seed = 0,
    ) -> list[dict[str, float]]:
        """Train the VAE with Adam (see `_training.train`), fit the mixture and take moments.

        Parameters
        ----------
        epochs, batch_size, learning_rate, schedule
            Of Adam.
        mixture_iterations : int
            Steps of expectation-maximisation at most.
        mixture_images : int
            The first so many training images are what the mixture is fitted to.
        seed : int
            Of batches, noise, and the mixture's start.

        Returns
        -------
        list of dict
            See `_training.train`; the last entry also has ``mixture_nats``, the mean
            log-density of the mixture's coordinates on validation images, and ``cpu_seconds`` of
            all of the fit.

        Raises
        ------
        BadInput
            When there are fewer images than components.
        """
        started = time.process_time()
        images = training[0]
        if len(images) < len(self.weights):
            raise BadInput(f"components = {len(self.weights)}: {len(images)} training images")
        history = train(
            self,
            training,
            validation,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            schedule=schedule,
            grace=epochs,
            seed=seed,
            progress=progress,
        )
        self.eval()
        pixels = images.flatten(1).double()
        mean, self.covariance = _moments(pixels)
        self.mean = mean.float().reshape(28, 28)
        outputs = [self(batch).detach() for batch in images.split(BATCH)]
        residuals = (images - torch.cat(outputs)).flatten(1).double()
        self.residual_mean, self.residual_covariance = _moments(residuals)
        self.basis = torch.linalg.eigh(self.covariance).eigenvectors.flip(1)[:, : len(self.basis.T)]
        coordinates, held_out = (
            (x.flatten(1).double() - mean) @ self.basis
            for x in (images[:mixture_images], validation[0])
        )
        mixture = fit_mixture(coordinates, len(self.weights), mixture_iterations, seed=seed)
        self.weights, self.means, self.covariances = mixture
        nats = log_densities(held_out, mixture).logsumexp(dim=1).mean().item()
        history[-1] |= {"mixture_nats": nats, "cpu_seconds": time.process_time() - started}
        return history


class Mixture(NamedTuple):
    """K Gaussians in p coordinates: weights (K,), means (K, p) and covariances (K, p, p)."""

    weights: Tensor
    means: Tensor
    covariances: Tensor


def fit_mixture(points: Tensor, components: int, iterations: int, *, seed: int) -> Mixture:
    """Expectation-maximisation (Bishop 2006, "Pattern Recognition and Machine Learning", 9.2.2) on
    points (n, p) in float64.

    It starts from k-means++ centres, which the seed draws, and ends after so many iterations, or
    when the mean log-density gains less than `TOLERANCE`, as scikit-learn's ``GaussianMixture``
    does.
    """
    from sklearn.cluster import kmeans_plusplus

    _, chosen = kmeans_plusplus(points.cpu().numpy(), components, random_state=seed)
    means = points[torch.as_tensor(chosen, dtype=torch.int64)]
    floor = FLOOR * torch.eye(points.shape[1], dtype=points.dtype)
    mixture = Mixture(
        torch.full((components,), 1 / components, dtype=points.dtype),
        means,
        floor.repeat(components, 1, 1),
    )
    before = -torch.inf
    for _ in range(iterations):
        scores = log_densities(points, mixture)
        evidence = scores.logsumexp(dim=1)
        mixture = maximised(points, (scores - evidence.unsqueeze(1)).exp_())
        reached = evidence.mean().item()
        if abs(reached - before) < TOLERANCE:
            break
        before = reached
    return mixture


def log_densities(points: Tensor, mixture: Mixture) -> Tensor:
    """log π_c N(x | μ_c, Σ_c), (n, K) of points (n, p)."""
    factors = torch.linalg.cholesky(mixture.covariances)
    identity = torch.eye(points.shape[1], dtype=points.dtype)
    whitening = torch.linalg.solve_triangular(factors, identity, upper=False)  # (K, p, p)
    centres = (whitening @ mixture.means.unsqueeze(2)).flatten()  # (K p,)
    scale = factors.diagonal(dim1=1, dim2=2).log().sum(dim=1)
    constants = mixture.weights.log() - scale - points.shape[1] * math.log(2 * math.pi) / 2
    squares = [
        # All components in one product: (b, K p).
        torch.addmm(centres, part, whitening.flatten(0, 1).T, beta=-1)
        .square_()
        .unflatten(1, mixture.means.shape)
        .sum(dim=2)
        for part in points.split(POINTS)
    ]
    return constants - torch.cat(squares) / 2


def maximised(points: Tensor, shares: Tensor) -> Mixture:
    """The mixture of points (n, p) whose shares in the components are (n, K)."""
    counts = shares.sum(dim=0) + 10 * torch.finfo(shares.dtype).eps
    means = shares.T @ points / counts.unsqueeze(1)
    covariances = []
    for share, mean, count in zip(shares.T, means, counts, strict=True):
        # Most points have no share in a component: their products would be most of the work.
        rows = (share > NEGLIGIBLE).nonzero().flatten()
        centred = points[rows] - mean
        covariances.append((share[rows] * centred.T) @ centred / count)
    floor = FLOOR * torch.eye(points.shape[1], dtype=points.dtype)
    return Mixture(counts / len(points), means, torch.stack(covariances) + floor)


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (p,) and covariance (p, p), divided by n, of (n, p)."""
    mean = values.mean(dim=0)
    centred = values - mean
    return mean, centred.T @ centred / len(values)
