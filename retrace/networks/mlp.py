"""Multilayer perceptron as people train one: PyTorch's default start, biases, torch.optim.

What the gradient of the first layer is made of does not depend on how it is trained: see
retrace/methods/_stationarity.py, which reads it from such networks.
"""

import math
import time
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from retrace.networks._training import Classifier, Progress, evaluate, unwatched
from retrace.types import BadInput, Seed, Split

Activation = Literal["relu", "leaky_relu", "gelu", "tanh"]
Optimiser = Literal["sgd", "adam", "adamw"]

MNIST_MEAN, MNIST_DEVIATION = 0.1307, 0.3081  # of its pixels, as published with every tutorial
PRETRAINING_RATE, PRETRAINING_BATCH = 1e-3, 128  # of Adam, PyTorch's defaults otherwise


def training_set(
    split: Split, *, per_class: int = 10, offset: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the images that a network is trained on: the truth of the attacks.

    Parameters
    ----------
    split : (images, labels)
        The training split.
    per_class, offset : int
        Images of each class, and the first of them.

    Returns
    -------
    images : (n, d) float32
        In [0, 1], flattened, ordered by their classes.
    labels : (n,) int64
    mean : (d,) float32
        Mean of all images of the split outside this set: public.

    Raises
    ------
    BadInput
        When the split holds too few images of a class.
    """
    everything, labels = split
    chosen = _members(labels, first=offset, count=per_class, name="offset + training.per_class")
    outside = torch.ones(len(labels), dtype=torch.bool)
    outside[chosen] = False
    mean = everything[outside].flatten(1).mean(dim=0)
    return everything[chosen].flatten(1), labels[chosen], mean


def _members(labels: Tensor, *, first: int, count: int, name: str) -> Tensor:
    """Positions of so many images of each class, from its first-th on, ordered by class."""
    of_class = [torch.nonzero(labels == label).flatten() for label in labels.unique()]
    smallest = min(map(len, of_class))
    if first + count > smallest:
        raise BadInput(
            f"{name} = {first + count}: the training split holds {smallest} images of the "
            "smallest class"
        )
    return torch.cat([members[first : first + count] for members in of_class])


class Network(Classifier):
    """Linear layers with an activation between them; logits of the classes at the end.

    Parameters
    ----------
    shape : sequence of int
        Of an image, (28, 28) or (channels, rows, columns); d is their product.
    widths : sequence of int
        Units of each hidden layer.
    outputs : int
        Classes.
    activation : "relu", "leaky_relu", "gelu" or "tanh"
    mean, deviation : float
        Subtracted from the pixels, which are then divided: MNIST's by default.
    fine_tuned : bool
        Whether the checkpoint also holds the first layer from which training on the set began, as
        whoever fine-tunes a public model has it.

    Attributes
    ----------
    layers : ModuleList of Linear
        All with a bias.
    mean, deviation : (d,)
        Of the normalisation.
    start_weight, start_bias : (widths[0], d), (widths[0],)
        Of a fine-tuned network, the first layer before.
    """

    mean: Tensor
    deviation: Tensor
    start_weight: Tensor
    start_bias: Tensor

    def __init__(
        self,
        *,
        shape: Annotated[
            Sequence[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=3)
        ] = (28, 28),
        widths: Annotated[Sequence[Annotated[int, Field(ge=2)]], Field(min_length=1)] = (500, 500),
        outputs: Annotated[int, Field(ge=2)] = 10,
        activation: Activation = "relu",
        mean: Annotated[float, Field(ge=0, le=1)] = MNIST_MEAN,
        deviation: Annotated[float, Field(gt=0)] = MNIST_DEVIATION,
        fine_tuned: bool = False,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.activation = activation
        sizes = [math.prod(shape), *widths, outputs]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.register_buffer("mean", torch.full((sizes[0],), mean))
        self.register_buffer("deviation", torch.full((sizes[0],), deviation))
        self.fine_tuned = fine_tuned
        if fine_tuned:
            self.register_buffer("start_weight", torch.zeros(sizes[1], sizes[0]))
            self.register_buffer("start_bias", torch.zeros(sizes[1]))

    def forward(self, images: Tensor) -> Tensor:
        """(B, *shape) images in [0, 1] to (B, outputs) logits."""
        activate = getattr(nn.functional, self.activation)
        hidden = (images.flatten(1) - self.mean) / self.deviation
        for layer in self.layers[:-1]:
            hidden = activate(layer(hidden))
        return self.layers[-1](hidden)

    def fit(
        self,
        training: Split,
        validation: Split,
        progress: Progress = unwatched,
        *,
        per_class: Annotated[int, Field(ge=1)] = 10,
        offset: Annotated[int, Field(ge=0)] = 0,
        optimiser: Optimiser = "sgd",
        learning_rate: Annotated[float, Field(gt=0)] = 0.05,
        momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9,
        weight_decay: Annotated[float, Field(ge=0)] = 0.002,
        batch_size: Annotated[int, Field(ge=0)] = 32,
        schedule: Literal["constant", "cosine"] = "constant",
        steps: Annotated[int, Field(ge=0)] = 16000,
        others: Annotated[int, Field(ge=0)] = 2000,
        other_epochs: Annotated[int, Field(ge=1)] = 3,
        report_every: Annotated[int, Field(ge=1)] = 1000,
        seed: Seed = 0,
    ) -> list[dict[str, float]]:
        """Train on a small set by an optimiser of torch.optim, from PyTorch's default start.

        Parameters
        ----------
        training, validation : (images, labels)
            The splits. `training_set` chooses from the first; the second gives the test error.
        progress : function
            Called with the history's entry after each report.
        per_class, offset
            See `training_set`.
        optimiser : "sgd", "adam" or "adamw"
            `weight_decay` is part of the gradient but for AdamW, which decays the weights apart
            (Loshchilov & Hutter 2019, arXiv 1711.05101). Momentum is SGD's.
        batch_size : int
            0: all images in every step.
        schedule : "constant" or "cosine"
            Cosine takes the learning rate down to 0.
        steps : int
            0 leaves the network as it was drawn, or pretrained: a control.
        others, other_epochs : int
            Of a fine-tuned network, the images of each class that it is trained on before, by Adam,
            and how often each is seen. They are those that follow the training set.
        report_every : int
            Steps between two entries of the history.
        seed : int
            Of the order of the images.

        Returns
        -------
        list of dict
            ``epoch`` (a step), ``timestamp``, ``elapsed``, ``training_loss`` and
            ``training_error`` of the whole set, ``test_loss`` and ``test_error`` of the validation
            images.

        Raises
        ------
        BadInput
            When the loss is not finite, or the set does not fit the network.
        """
        images, labels, _ = training_set(training, per_class=per_class, offset=offset)
        if images.shape[1] != len(self.mean):
            raise BadInput(
                f"shape = {list(self.shape)} has {len(self.mean)} values, the images have "
                f"{images.shape[1]}"
            )
        classes, outputs = (
            int(training[1].max()) + 1,
            len(self(images[:1].unflatten(1, self.shape))[0]),
        )
        if classes > outputs:
            raise BadInput(f"outputs = {outputs}: there are {classes} classes")
        generator = torch.Generator().manual_seed(seed)
        if self.fine_tuned:
            if others == 0:
                raise BadInput("others = 0: a fine-tuned network is trained on others before")
            known = _members(
                training[1],
                first=offset + per_class,
                count=others,
                name="offset + training.per_class + training.others",
            )
            before = torch.optim.Adam(self.parameters(), lr=PRETRAINING_RATE, fused=True)
            batches = shuffled(len(known), PRETRAINING_BATCH, generator)
            for some in islice(batches, other_epochs * -(-len(known) // PRETRAINING_BATCH)):
                self._step(before, training[0][known[some]], training[1][known[some]])
            first = self.layers[0].state_dict()
            self.start_weight.copy_(first["weight"])
            self.start_bias.copy_(first["bias"])
        chosen = _optimiser(
            optimiser,
            self.parameters(),
            rate=learning_rate,
            momentum=momentum,
            weight_decay=weight_decay,
        )
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(chosen, max(steps, 1))
        history: list[dict[str, float]] = []
        images = images.unflatten(1, self.shape)
        batches = shuffled(len(images), batch_size or len(images), generator)
        started = time.time()
        for step, some in enumerate(islice(batches, steps + 1)):
            if step % report_every == 0 or step == steps:
                now = time.time()
                entry = {"epoch": float(step), "timestamp": now, "elapsed": now - started}
                entry["learning_rate"] = chosen.param_groups[0]["lr"]
                for name, split in (("training", (images, labels)), ("test", validation)):
                    measures = evaluate(self, *split)
                    entry[f"{name}_loss"] = measures["cross_entropy"]
                    entry[f"{name}_error"] = measures["error"]
                if not math.isfinite(entry["training_loss"]):
                    raise BadInput(
                        f"learning_rate = {learning_rate:g}: the training loss is not finite at "
                        f"step {step}; lower it"
                    )
                history.append(entry)
                progress(entry)
            if step < steps:
                self._step(chosen, images[some], labels[some])
                if schedule == "cosine":
                    scheduler.step()
        return history

    def _step(self, optimiser: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
        optimiser.zero_grad()
        self.loss(images, labels).backward()
        optimiser.step()


def shuffled(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Positions of so many images in batches, each time all of them in another order, for ever."""
    while True:
        yield from torch.randperm(count, generator=generator).split(size)


def _optimiser(
    name: Optimiser,
    parameters: Iterator[nn.Parameter],
    *,
    rate: float,
    momentum: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=momentum, weight_decay=weight_decay)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    return kind(parameters, lr=rate, weight_decay=weight_decay, fused=True)
