"""Where networks and methods compute: on the processor, or on a GPU.

They do not know. A stage moves the network and its input to the device and computes within
`computing_on`; what a network or a method makes by torch's factory functions, or like its input, is
then there too, and what it draws is drawn by the processor's generators, so that a GPU gets the
same numbers. On the processor nothing at all is changed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from retrace.pipeline.command import Refusal
from retrace.types import Precision

# Draws that make a tensor (those that fill one, as `normal_`, are not covered, nor is dropout), and
# what is unique but for signs, along which others draw or train.
DRAWS = frozenset(
    {torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal, torch.bernoulli}
    | {torch.rand_like, torch.randn_like, torch.multinomial, Tensor.multinomial}
)
UNSIGNED = frozenset({torch.linalg.eigh})
# A number, and what is left of it with the bits of each format: 24, 11 (TF32) and 8 (bfloat16).
PROBE = 1 + 2**-9 + 2**-13
ROUNDED = {"float32": PROBE, "tf32": 1 + 2**-9, "bfloat16": 1.0}
PROBED = 256  # rows: as large as the matrices of a small network
# Which of them take a device.
FACTORIES = frozenset({torch.rand, torch.randn, torch.randint, torch.randperm})


def chosen(name: str) -> torch.device:
    """The device of a name as in params.yaml: ``auto`` is a GPU where there is one; ``cuda`` is
    refused where there is none."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise Refusal("params.yaml: device = 'cuda': there is none here; allowed are auto and cpu")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def described(device: torch.device) -> str:
    """What a record says of a device: ``cpu``, or as in ``cuda: NVIDIA H200``."""
    if device.type != "cuda":
        return device.type
    return f"cuda: {torch.cuda.get_device_name(device)}"


@contextmanager
def computing_on(device: torch.device, precision: Precision = "float32") -> Iterator[None]:
    """Make new tensors on the device, and draw on the processor.

    Parameters
    ----------
    precision : "float32" or "mixed"
        Mixed: products of float32 matrices take factors rounded to 8 bits (bfloat16, on a processor
        that gains by it) or 11 (TF32, on a GPU), and sum in float32; elsewhere it changes nothing,
        see `matmul_precision`. Otherwise TF32 is off, in convolutions always: its bits would be all
        that agrees with the processor.
    """
    mixed = precision == "mixed" and matmul_precision(device, precision) != "float32"
    with _rounded_products(device, mixed):
        if device.type == "cpu":  # without the microseconds that a mode costs each call
            yield
            return
        with _everything_on(device):
            yield


def matmul_precision(device: torch.device, precision: Precision) -> str:
    """What factors of float32 matrix products are rounded to within `computing_on`: "float32" (not
    at all), "bfloat16" or "tf32"."""
    return _probed(device, precision == "mixed")


@cache
def _probed(device: torch.device, mixed: bool) -> str:
    """Told by a product: a processor may have the instructions, and its library not use them, or
    round unasked, by a variable of its own."""
    if device.type not in ("cpu", "cuda"):
        return "float32"
    with _rounded_products(device, mixed):
        left = torch.full((PROBED, PROBED), PROBE, device=device)
        return told_by(left @ torch.ones_like(left))


def told_by(product: Tensor) -> str:
    """What the factors were rounded to of a product of two matrices (`PROBED`, `PROBED`), one of
    `PROBE` and one of 1."""
    entry = float(product[0, 0]) / PROBED
    return min(ROUNDED, key=lambda name: abs(ROUNDED[name] - entry))


def announce(label: str, found: str, precision: Precision) -> None:
    """Say, where mixed precision is asked for, that it is float32 here."""
    if precision == "mixed" and found == "float32":
        print(f"{label}: precision = 'mixed' changes nothing on this machine: it is float32")


@contextmanager
def _rounded_products(device: torch.device, wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    settings: Any
    value: str | bool
    if device.type == "cpu":
        settings, name, value = torch.backends.mkldnn.matmul, "fp32_precision", "bf16"  # type: ignore[attr-defined]
    else:
        settings, name, value = torch.backends.cuda.matmul, "allow_tf32", True
    before = getattr(settings, name)
    setattr(settings, name, value)
    try:
        yield
    finally:
        setattr(settings, name, before)


@contextmanager
def _everything_on(device: torch.device) -> Iterator[None]:
    # The modes are asked from the last to the first: draws have their device before `device` sees
    # them.
    with (
        torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
        device,
        _OnProcessor(device),
    ):
        yield


class _OnProcessor(TorchFunctionMode):
    """Computes `DRAWS` and `UNSIGNED` on the processor, and moves what they give to the device."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if (func not in DRAWS and func not in UNSIGNED) or kwargs.get("device") is not None:
            return func(*args, **kwargs)
        home = next((value.device for value in args if isinstance(value, Tensor)), self.device)
        if func in FACTORIES:
            kwargs = {**kwargs, "device": "cpu"}
        given = [value.cpu() if isinstance(value, Tensor) else value for value in args]
        found = func(*given, **kwargs)
        if isinstance(found, Tensor):
            return found.to(home)
        return type(found)(value.to(home) for value in found)  # of torch.return_types
