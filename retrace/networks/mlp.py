"""Multilayer perceptron as people train one: PyTorch's default start, biases, torch.optim.

What the gradient of the first layer is made of does not depend on how it is trained: see
retrace/methods/_stationarity.py, which reads it from such networks.
"""

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
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
DELTA = 1e-5  # chance that the promise of epsilon does not hold; below 1 / images
LEFT = (
    "_forward_counter",
    "_norm_sample",
    "activations",
    "grad_sample",
    "summed_grad",
)  # by opacus
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
    dropout : float
        Share of the hidden units that are left out in each step of training.
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
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        mean: Annotated[float, Field(ge=0, le=1)] = MNIST_MEAN,
        deviation: Annotated[float, Field(gt=0)] = MNIST_DEVIATION,
        fine_tuned: bool = False,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.activation = activation
        self.dropout = dropout
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
            if self.dropout:
                hidden = nn.functional.dropout(hidden, self.dropout, self.training)
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
        shift: Annotated[int, Field(ge=0)] = 0,
        clip: Annotated[float, Field(ge=0)] = 0.0,
        noise: Annotated[float, Field(ge=0)] = 0.0,
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
        shift : int
            Augmentation: in each step each image is moved by up to so many pixels each way, at
            random; what moves in is 0.
        clip, noise : float
            With a positive `clip`, differential privacy: see `Private`, by the package opacus. The
            gradient of each image is cut to this length, and noise of `noise` times `clip` added to
            their sum; each step takes each image with the same chance, `batch_size` on average.
        others, other_epochs : int
            Of a fine-tuned network, the images of each class that it is trained on before, by Adam,
            and how often each is seen. They are those that follow the training set.
        report_every : int
            Steps between two entries of the history.
        seed : int
            Of the order of the images, their shifts, dropout and noise.

        Returns
        -------
        list of dict
            ``epoch`` (a step), ``timestamp``, ``elapsed``, ``training_loss`` and
            ``training_error`` of the whole set, ``test_loss`` and ``test_error`` of the validation
            images; with noise ``epsilon``, the privacy spent so far.

        Raises
        ------
        BadInput
            When the loss is not finite, the set does not fit the network, or opacus is missing.
        """
        images, labels, _ = training_set(training, per_class=per_class, offset=offset)
        self._check(images, classes=int(training[1].max()) + 1, shift=shift)
        torch.manual_seed(seed)  # of dropout; the weights were drawn before
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
            self._pretrain(training[0][known], training[1][known], other_epochs, generator)
        chosen = _optimiser(
            optimiser,
            self.parameters(),
            rate=learning_rate,
            momentum=momentum,
            weight_decay=weight_decay,
        )
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(chosen, max(steps, 1))
        images = images.unflatten(1, self.shape)
        size = min(batch_size or len(images), len(images))
        private = None
        if clip or noise:
            share = size / len(images)
            private = Private(
                self, chosen, clip=clip, noise=noise, share=share, size=size, seed=seed
            )
            batches = sampled(len(images), share, generator)
        else:
            batches = shuffled(len(images), size, generator)
        step_on = private.step if private else partial(self._step, chosen)
        history: list[dict[str, float]] = []
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
                if noise and private:
                    entry["epsilon"] = private.spent()
                if not math.isfinite(entry["training_loss"]):
                    raise BadInput(
                        f"learning_rate = {learning_rate:g}: the training loss is not finite at "
                        f"step {step}; lower it"
                    )
                history.append(entry)
                progress(entry)
            if step < steps:
                step_on(shifted(images[some], shift, generator), labels[some])
                if schedule == "cosine":
                    scheduler.step()
        if private:
            private.end()
        return history

    def _check(self, images: Tensor, *, classes: int, shift: int) -> None:
        if images.shape[1] != len(self.mean):
            raise BadInput(
                f"shape = {list(self.shape)} has {len(self.mean)} values, the images have "
                f"{images.shape[1]}"
            )
        if classes > (outputs := len(self.layers[-1].bias)):  # type: ignore[arg-type]
            raise BadInput(f"outputs = {outputs}: there are {classes} classes")
        if shift >= min(self.shape[-2:]):
            raise BadInput(f"shift = {shift}: images have {list(self.shape[-2:])} pixels")

    def _pretrain(
        self, images: Tensor, labels: Tensor, epochs: int, generator: torch.Generator
    ) -> None:
        """Train on others by Adam, and keep the first layer."""
        before = torch.optim.Adam(self.parameters(), lr=PRETRAINING_RATE, fused=True)
        batches = shuffled(len(images), PRETRAINING_BATCH, generator)
        for some in islice(batches, epochs * -(-len(images) // PRETRAINING_BATCH)):
            self._step(before, images[some], labels[some])
        first = self.layers[0].state_dict()
        self.start_weight.copy_(first["weight"])
        self.start_bias.copy_(first["bias"])

    def _step(self, optimiser: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
        self.train()
        optimiser.zero_grad()
        self.loss(images, labels).backward()
        optimiser.step()


class Private:
    """Steps in which no single image counts for much: DP-SGD (Abadi et al. 2016, arXiv 1607.00133).

    The gradient of each image is cut to a length, their sum is given normal noise in proportion to
    it, and each step takes each image with the same chance. Then the weights tell apart two
    training sets that differ in one image by no more than a factor of e^epsilon, but for a chance
    of `DELTA`.

    Parameters
    ----------
    network : Classifier
        Its layers get opacus's hooks until `end`.
    optimiser : Optimizer
        Takes the noisy gradient as its own.
    clip, noise : float
        Length of an image's gradient at most, and the noise's deviation in units of it.
    share : float
        Chance of an image to be in a step.
    size : int
        Images in a step on average.
    seed : int
        Of the noise.

    Raises
    ------
    BadInput
        When there is noise without a clip, or opacus is not installed.
    """

    def __init__(
        self,
        network: Classifier,
        optimiser: torch.optim.Optimizer,
        *,
        clip: float,
        noise: float,
        share: float,
        size: int,
        seed: int,
    ) -> None:
        if not clip:
            raise BadInput(f"noise = {noise:g}: needs clip, the length that it is in units of")
        try:
            from opacus.accountants import RDPAccountant  # an extra of the package
            from opacus.grad_sample import GradSampleModuleFastGradientClipping
            from opacus.optimizers import DPOptimizerFastGradientClipping
            from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
        except ImportError:
            raise BadInput(
                f"clip = {clip:g}: needs the package opacus; `pip install '.[privacy]'` installs it"
            ) from None
        self.network, self.noise, self.share = network, noise, share
        # Lengths of gradients without the gradients (Li et al. 2022, arXiv 2110.05679): a twentieth
        # of the time.
        self.hooked = GradSampleModuleFastGradientClipping(
            network, max_grad_norm=clip, use_ghost_clipping=True
        )
        self.optimiser = DPOptimizerFastGradientClipping(
            optimiser,
            noise_multiplier=noise,
            max_grad_norm=clip,
            expected_batch_size=size,
            generator=torch.Generator().manual_seed(seed),
        )
        self.loss = DPLossFastGradientClipping(self.hooked, self.optimiser, nn.CrossEntropyLoss())
        self.accountant = RDPAccountant()

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One step on images (m, *shape) and their labels (m,); none of them where m is 0."""
        self.hooked.train()
        self.optimiser.zero_grad()
        with warnings.catch_warnings():
            # Its hooks watch layers whose inputs, the pixels, need no gradient.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            self.loss(self.hooked(images), labels).backward()
        self.optimiser.step()
        if self.noise:
            self.accountant.step(noise_multiplier=self.noise, sample_rate=self.share)

    def spent(self) -> float:
        """The epsilon so far, at `DELTA`: 0 before the first step."""
        if not self.accountant.history:
            return 0.0
        with warnings.catch_warnings():
            # At little noise the best of its orders is the smallest: an upper bound all the same.
            warnings.filterwarnings("ignore", message="Optimal order is the")
            epsilon = float(self.accountant.get_epsilon(DELTA))
        return epsilon if math.isfinite(epsilon) else math.inf

    def end(self) -> None:
        """Take opacus's hooks off the network."""
        self.hooked.remove_hooks()
        for part in (*self.network.modules(), *self.network.parameters()):
            for name in LEFT:
                vars(part).pop(name, None)


def shuffled(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Positions of so many images in batches, each time all of them in another order, for ever."""
    while True:
        yield from torch.randperm(count, generator=generator).split(size)


def sampled(count: int, share: float, generator: torch.Generator) -> Iterator[Tensor]:
    """Positions of so many images in batches, each image in each batch with the same chance, for
    ever: the sampling that differential privacy counts on."""
    while True:
        yield torch.nonzero(torch.rand(count, generator=generator) < share).flatten()


def shifted(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Images (m, *shape), each moved by up to so many pixels each way; what moves in is 0."""
    if most == 0:
        return images
    height, width = images.shape[-2:]
    planes = nn.functional.pad(images.reshape(len(images), -1, height, width), [most] * 4)
    moves = torch.randint(0, 2 * most + 1, (len(images), 2, 1), generator=generator)
    rows, columns = torch.arange(height) + moves[:, 0], torch.arange(width) + moves[:, 1]
    which, channels = torch.arange(len(images)), torch.arange(planes.shape[1])
    moved: Tensor = planes[
        which[:, None, None, None],
        channels[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
    return moved.reshape(images.shape)


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
