"""The training loop of most networks: one for all, since each network owns its loss."""

import copy
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from retrace.types import BadInput, Seed, Split

EVALUATION_BATCH = 2000
EVALUATION_SEED = 0  # the same noise in every epoch, so that epochs are compared on equal terms

Schedule = Literal["constant", "cosine"]
Progress = Callable[[dict[str, float]], None]
"""What a training calls with the history's entry after each epoch."""


def rectified(sizes: Sequence[int], *, dropout: float | None = None) -> nn.Sequential:
    """Linear layers with ReLU between them, each followed by dropout unless it is None."""
    first, *rest = pairwise(sizes)
    layers: list[nn.Module] = [nn.Linear(*first)]
    for inputs, outputs in rest:
        layers += [nn.ReLU(), *([] if dropout is None else [nn.Dropout(dropout)])]
        layers.append(nn.Linear(inputs, outputs))
    return nn.Sequential(*layers)


class Classifier(nn.Module):
    """The training objective of classifiers: (B, 28, 28) images to (B, classes) logits."""

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy in nats."""
        return nn.functional.cross_entropy(self(images), labels)

    def evaluate(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Per-image measures, each (B,)."""
        logits = self(images)
        return {
            "cross_entropy": nn.functional.cross_entropy(logits, labels, reduction="none"),
            "error": (logits.argmax(dim=1) != labels).to(torch.float32),
        }


class Autoencoder(nn.Module):
    """The training objective of autoencoders: (B, 28, 28) images to (B, 28, 28) images."""

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Mean squared error over pixels and images."""
        return nn.functional.mse_loss(self(images), images)

    def evaluate(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Per-image measures, each (B,)."""
        return {"mse": (self(images) - images).square().mean(dim=(1, 2))}


class Variational(nn.Module):
    """The evidence lower bound of variational autoencoders of binary pixels (Kingma & Welling 2014,
    arXiv 1312.6114).

    A network has ``encode``, images to means and log-variances (B, d) of their codes, and
    ``logits``, codes to (B, 784) of their pixels.
    """

    code_size: int
    encode: Callable[[Tensor], tuple[Tensor, Tensor]]
    logits: Callable[[Tensor], Tensor]

    def terms(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy and divergence of each image (B, 28, 28) in [0, 1], both (B,) in nats; the
        code is mean + standard deviation · noise, (B, d) and standard normal."""
        mean, log_variance = self.encode(images)
        logits = self.logits(mean + (log_variance / 2).exp() * noise)
        entropy = binary_cross_entropy_with_logits(logits, images.flatten(1), reduction="none")
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance) / 2
        return entropy.sum(dim=1), divergence.sum(dim=1)

    def evaluate(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The negative evidence lower bound of each image and its two terms, (B,) in nats."""
        generator = torch.Generator().manual_seed(EVALUATION_SEED)
        noise = torch.randn(len(images), self.code_size, generator=generator, dtype=images.dtype)
        entropy, divergence = self.terms(images, noise)
        return {
            "negative_elbo": entropy + divergence,
            "cross_entropy": entropy,
            "divergence": divergence,
        }


def unwatched(entry: dict[str, float]) -> None:
    """The progress of whoever does not want to watch."""


@torch.no_grad()
def evaluate(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Means over all images of what `network.evaluate` measures."""
    network.eval()
    measures: dict[str, list[Tensor]] = {}
    for batch, targets in zip(
        images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True
    ):
        for key, value in network.evaluate(batch, targets).items():  # type: ignore[operator]
            measures.setdefault(key, []).append(value)
    return {key: torch.cat(values).double().mean().item() for key, values in measures.items()}


def train(
    network: nn.Module,
    training: Split,
    validation: Split,
    *,
    epochs: Annotated[int, Field(ge=1)] = 20,
    batch_size: Annotated[int, Field(ge=1)] = 128,
    learning_rate: Annotated[float, Field(gt=0)] = 0.002,
    schedule: Schedule = "cosine",
    grace: Annotated[int, Field(ge=1)] = 3,
    seed: Seed = 0,
    progress: Progress = unwatched,
) -> list[dict[str, float]]:
    """Train with Adam; leave the weights of the best validated epoch in the network.

    Parameters
    ----------
    network : Module
        Has ``loss(images, labels)`` and ``evaluate(images, labels)``; the first measure of the
        latter chooses the best epoch.
    training, validation : (images, labels)
        (n, 28, 28) float32 and (n,) int64.
    epochs, batch_size, learning_rate
        The usual; the learning rate is Adam's.
    schedule : "constant" or "cosine"
        Cosine takes the learning rate down to 0 over all steps (Loshchilov & Hutter 2017, arXiv
        1608.03983, without restarts).
    grace : int
        An autoencoder whose validation MSE is not below half the mean image's after so many
        epochs has collapsed and is stopped.
    seed : int
        Seeds the order of the batches and dropout (the weights are drawn by the caller).
    progress : function
        Called with the history's entry after each epoch.

    Returns
    -------
    list of dict
        One entry for each epoch: ``epoch`` (from 1), ``timestamp`` (seconds since 1970),
        ``training_loss``, ``validation_<measure>`` and ``learning_rate``.

    Raises
    ------
    BadInput
        When a loss is not finite, or when the network has collapsed.
    """
    images, labels = training
    torch.manual_seed(seed)
    optimiser = torch.optim.Adam(network.parameters(), lr=learning_rate, fused=True)
    steps = epochs * -(-len(images) // batch_size)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    mean = images.mean(dim=0)
    if "mean" in dict(network.named_buffers()):
        network.mean.copy_(mean)  # type: ignore[operator]
    mean_image_mse = (validation[0] - mean).square().mean().item()
    history: list[dict[str, float]] = []
    best, best_state = float("inf"), copy.deepcopy(network.state_dict())
    for epoch in range(1, epochs + 1):
        network.train()
        total = 0.0
        rate = optimiser.param_groups[0]["lr"]
        for indices in torch.randperm(len(images)).split(batch_size):
            loss = network.loss(images[indices], labels[indices])  # type: ignore[operator]
            if not torch.isfinite(loss):
                raise BadInput(
                    f"learning_rate = {rate:g}: the training loss is {loss.item()} in epoch "
                    f"{epoch}; lower it"
                )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if schedule == "cosine":
                scheduler.step()
            total += loss.item() * len(indices)
        measures = evaluate(network, *validation)
        entry = {
            "epoch": float(epoch),
            "timestamp": time.time(),
            "learning_rate": rate,
            "training_loss": total / len(images),
            **{f"validation_{key}": value for key, value in measures.items()},
        }
        history.append(entry)
        progress(entry)
        criterion = next(iter(measures.values()))
        if criterion < best:
            best, best_state = criterion, copy.deepcopy(network.state_dict())
        if epoch == min(grace, epochs) and best > mean_image_mse / 2 and "mse" in measures:
            raise BadInput(
                f"the network collapsed: validation MSE {best:.4f} after {epoch} epochs, where the "
                f"mean image has {mean_image_mse:.4f} and less than half of that is expected; "
                "change learning_rate, seed or the initialisation"
            )
    network.load_state_dict(best_state)
    return history
