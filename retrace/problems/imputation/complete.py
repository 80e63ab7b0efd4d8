"""Fill the missing pixels of images of one's own."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from retrace import load
from retrace.methods import imputation
from retrace.pipeline.params import shown
from retrace.problems.architectures import objection
from retrace.problems.settings import checked
from retrace.types import SIDE, BadInput


class Completion(NamedTuple):
    """What a method makes of images.

    Attributes
    ----------
    image : (28, 28) or (B, 28, 28) float32, as given
        The known pixels, and the estimate in the missing ones, in [0, 1].
    samples : (K, 28, 28) or (B, K, 28, 28) float32, or None
        Plausible completions, likewise; None where the method gives none.
    deviation : (28, 28) or (B, 28, 28) float32, or None
        Standard deviation of each missing pixel, 0 where known; None where the method gives none.
    """

    image: Tensor
    samples: Tensor | None
    deviation: Tensor | None


def complete(
    image: NDArray[Any] | Tensor,
    mask: NDArray[Any] | Tensor | None = None,
    *,
    method: str | Callable[..., Any] = "combined",
    network: nn.Module | str | Path = "prior",
    **settings: Any,
) -> Completion:
    """Fill the missing pixels of images.

    Parameters
    ----------
    image : (28, 28) or (B, 28, 28)
        In [0, 1], white on black; NaN where a pixel is missing.
    mask : (28, 28) or (B, 28, 28) bool, optional
        True where a pixel is missing, beside those that are NaN.
    method : str or function
        Name of a file of retrace/methods/imputation/, or a function like its `reconstruct`.
    network : Module, str or Path
        What the method works with: a `retrace.networks.prior` for `combined` and `posterior`, a
        `retrace.networks.gaussian` for `ridge`. A name or a path is loaded by `retrace.load`.
    **settings
        Of the method, where they differ from its defaults.

    Returns
    -------
    Completion

    Raises
    ------
    BadInput
        When there is no such method or setting, a setting is none that params.yaml could hold, the
        network is of another kind, an image has another shape or range, its mask hides nothing or
        all, the method refuses its input, or its estimate is not finite.
    """
    function = named(method) if isinstance(method, str) else method
    observed = observation(image, mask)
    if not isinstance(network, nn.Module | str | Path):
        raise BadInput(f"network = {shown(network)}: a Module, a name or a path is needed")
    loaded = network if isinstance(network, nn.Module) else load(network)
    if str(getattr(function, "__module__", "")).startswith(imputation.__name__):  # one of ours
        settings = settings_of(function, loaded, settings)
    answer = function(loaded, observed.reshape(-1, SIDE, SIDE), **settings)
    answers: dict[str, Tensor] = answer if isinstance(answer, dict) else {"estimate": answer}
    if not all(bool(torch.isfinite(value).all()) for value in answers.values()):
        raise BadInput("the estimate is not finite; another method may do")

    def filled(key: str, known: Tensor) -> Tensor | None:
        """What is known, and in the missing pixels an answer."""
        if key not in answers:
            return None
        values = answers[key].reshape(*observed.shape[:-2], *answers[key].shape[1:])
        # Samples may come in bytes, which are a quarter of the size.
        scaled = values / 255 if values.dtype == torch.uint8 else values.float()
        bounded = scaled if key == "deviation" else scaled.clamp(0, 1)
        return torch.where(missing.view(known.shape), bounded, known)

    missing = observed.isnan()
    completed = filled("estimate", observed)
    assert completed is not None
    return Completion(
        image=completed,
        samples=filled("samples", observed.unsqueeze(-3)),
        deviation=filled("deviation", torch.zeros_like(observed)),
    )


def named(method: str) -> Callable[..., Any]:
    """The `reconstruct` of a method of imputation."""
    names = sorted(path.stem for path in Path(imputation.__path__[0]).glob("[!_]*.py"))
    if method not in names:
        raise BadInput(f"method = {method!r}: allowed are {', '.join(names)}")
    function: Callable[..., Any] = import_module(f"{imputation.__name__}.{method}").reconstruct
    return function


def settings_of(
    function: Callable[..., Any], network: nn.Module, settings: dict[str, Any]
) -> dict[str, Any]:
    """The settings of one of our methods, see `checked`; refused too where the method cannot work
    with the network's architecture."""
    method = function.__module__.rpartition(".")[2]
    architecture = type(network).__module__.removeprefix("retrace.networks.")
    if wrong := objection("imputation", method, architecture):
        raise BadInput(f"network: {wrong}")
    watched = {key: value for key, value in settings.items() if key == "callback"}
    rest = {key: value for key, value in settings.items() if key not in watched}
    return checked(function, rest) | watched


def tensor_of(name: str, values: Any) -> Tensor:
    """Real numbers, or booleans, as a tensor; the name is for the message."""
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise BadInput(f"{name} is no array of numbers ({' '.join(str(error).split())})") from None
    if tensor.is_complex():
        raise BadInput(f"{name} has type {tensor.dtype}; real numbers are needed")
    return tensor


def observation(image: NDArray[Any] | Tensor, mask: NDArray[Any] | Tensor | None) -> Tensor:
    """An image with NaN where a pixel is missing, see `complete`."""
    observed = tensor_of("image", image).to(torch.float32)
    if observed.dim() not in (2, 3) or observed.shape[-2:] != (SIDE, SIDE) or not len(observed):
        raise BadInput(
            f"image has shape {tuple(observed.shape)}: allowed are ({SIDE}, {SIDE}) and "
            f"(B, {SIDE}, {SIDE})"
        )
    if mask is not None:
        hidden = tensor_of("mask", mask)
        if hidden.dtype != torch.bool or hidden.shape not in (observed.shape, (SIDE, SIDE)):
            raise BadInput(
                f"mask has shape {tuple(hidden.shape)} and type {hidden.dtype}: booleans of the "
                f"image's shape, {tuple(observed.shape)}, or of ({SIDE}, {SIDE}) are needed"
            )
        observed = observed.masked_fill(hidden, torch.nan)
    known = observed[~observed.isnan()]
    if not bool(((known >= 0) & (known <= 1)).all()):
        raise BadInput(
            f"image: values from {known.min():g} to {known.max():g}; 0 to 1 is allowed, white on "
            "black"
        )
    missing = observed.isnan().flatten(-2)
    if bool(missing.all(dim=-1).any()):
        raise BadInput("mask: all pixels of an image are missing; leave at least one known")
    if not bool(missing.any()):
        raise BadInput("mask: no pixel is missing, so that there is nothing to fill in")
    return observed
