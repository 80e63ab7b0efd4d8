"""Training with differential privacy: DP-SGD (Abadi et al. 2016, arXiv 1607.00133), by opacus."""

import math
import warnings

import torch
from torch import Tensor, nn

from retrace.networks._training import Classifier
from retrace.types import BadInput

LEFT = ("_forward_counter", "_norm_sample", "activations", "grad_sample", "summed_grad")
DELTA = 1e-5  # chance that the promise of epsilon does not hold; below 1 / images


class Private:
    """Steps in which no single image counts for much.

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
                f"clip = {clip:g}: needs the package opacus; "
                "`pip install 'retrace-networks[privacy]'` installs it"
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
