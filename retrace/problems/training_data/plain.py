"""Networks of Linear layers, as their tensors give them, and the images that they see."""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import get_args

import torch
from torch import Tensor, nn

from retrace.methods._stationarity import chain_of
from retrace.networks.mlp import Activation
from retrace.types import BadInput

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
UNREAD = (
    "only Linear layers, each a `.weight` and perhaps a `.bias`, and a `mean` and `deviation` of "
    "the input are read"
)
KNOWN = ("mean", "deviation", "start_weight", "start_bias")  # what is no layer
CHANNELS = 4  # of an image, at most
ACTIVATIONS = get_args(Activation)

Floats = float | Sequence[float] | Tensor | None


class Plain(nn.Module):
    """A network of Linear layers with an activation in between, as its tensors give it.

    Attributes
    ----------
    layers : ModuleList of Linear
    mean, deviation : (d,)
        What the network subtracts from its input, and divides it by; 0 and 1 where there is none.
    start_weight, start_bias
        Of the first layer before, where it is known.
    activation : str
    shape : tuple of int
        Of an image.
    """

    shape: tuple[int, ...]
    mean: Tensor

    def __init__(self, tensors: Mapping[str, Tensor], *, activation: str = "relu") -> None:
        super().__init__()
        self.activation = activation
        rest = dict(tensors)
        _check_types(rest)
        known = {key: rest.pop(key) for key in KNOWN if key in rest}
        self.layers = nn.ModuleList()
        for key in sorted((key for key in rest if key.endswith("weight")), key=_natural):
            weight = rest.pop(key)
            bias = rest.pop(key.removesuffix("weight") + "bias", None)
            self.layers.append(_linear(key, weight, bias))
        if rest:
            raise BadInput(f"weights: what {min(rest)} is cannot be read; {UNREAD}")
        linear = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        if not linear:
            raise BadInput(f"weights: no layer; {UNREAD}")
        for first, second in pairwise(linear):
            if first.out_features != second.in_features:
                raise BadInput(
                    f"weights: layers of {first.out_features} outputs and {second.in_features} "
                    "inputs follow each other, in the order of their names; this is no chain"
                )
        self.inputs = linear[0].in_features
        self.register_buffer("mean", spread(known.get("mean"), 0.0, self.inputs, name="mean"))
        deviation = spread(known.get("deviation"), 1.0, self.inputs, name="deviation")
        self.register_buffer("deviation", deviation)
        for end, value in (("up", self.mean.max()), ("down", self.mean.min())):
            if value.isfinite() and not 0 <= float(value) <= 1:
                raise BadInput(
                    f"mean goes {end} to {float(value):g}; pixels are in [0, 1], and so is their "
                    "mean (one in bytes is to be divided by 255, and the deviation too)"
                )
        if not bool((deviation > 0).all()):
            raise BadInput(f"deviation goes down to {float(deviation.min()):g}; above 0 is allowed")
        if "start_weight" in known:
            self.take_start(known["start_weight"], known.get("start_bias"))

    def take_start(self, before: Tensor, bias: Tensor | None) -> None:
        """Take these, (n_1, d) and (n_1,), for the first layer before; refused where they are of
        another shape or not finite."""
        bias = before.new_zeros(before.shape[:1]) if bias is None else bias
        _check_types({"start_weight": before, "start_bias": bias})
        weight = self.get_parameter("layers.0.weight")
        if before.shape != weight.shape or bias.shape != weight.shape[:1]:
            raise BadInput(
                f"start: its first layer has shape {tuple(before.shape)}, that of the weights "
                f"{tuple(weight.shape)}"
            )
        if not bool(before.isfinite().all() and bias.isfinite().all()):
            raise BadInput("start: some weights of its first layer are not finite")
        self.register_buffer("start_weight", before.float())
        self.register_buffer("start_bias", bias.float())


def _linear(key: str, weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """The layer of these; refused where they are of none."""
    if "lora" in key.lower():
        raise BadInput(f"weights: {key} is of a LoRA adapter; merge it into the network first")
    if weight.dim() != 2 or not weight.numel():
        kind = "a convolution" if weight.dim() in (3, 4, 5) else "no Linear layer"
        raise BadInput(f"weights: {key} has shape {tuple(weight.shape)}, {kind}; {UNREAD}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise BadInput(f"weights: the bias of {key} has shape {tuple(bias.shape)}; {UNREAD}")
    # On `meta`: the given tensors are put in at once.
    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().float(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().float(), requires_grad=False)
    return layer


def _check_types(tensors: Mapping[str, Tensor]) -> None:
    for key, tensor in sorted(tensors.items()):
        if tensor.dtype not in FLOATS:
            raise BadInput(
                f"weights: {key} holds {tensor.dtype}; floats of 16 bits and more are read: "
                "put quantised ones back into floats first, with their scales"
            )


def spread(given: Tensor | None, usual: float, inputs: int, *, name: str) -> Tensor:
    """A number for each input, (d,): of one for all, one for each channel, or all of them."""
    if given is None:
        return torch.full((inputs,), usual)
    flat = given.flatten().float()
    if not bool(flat.isfinite().all()):
        raise BadInput(f"{name}: not finite; numbers are needed")
    if not len(flat) or inputs % len(flat) or (len(flat) > CHANNELS and len(flat) != inputs):
        raise BadInput(
            f"weights: `{name}` has {len(flat)} values; 1, one for each of up to {CHANNELS} "
            f"channels, or {inputs} are allowed"
        )
    return flat.repeat_interleave(inputs // len(flat))


def _natural(key: str) -> list[tuple[int, str]]:
    """Layers 2 and 10 in this order."""
    return [(int(part or 0), rest) for part, rest in re.findall(r"(\d*)(\D*)", key)]


def network_of(
    weights: nn.Module | Mapping[str, Tensor],
    *,
    shape: tuple[int, ...],
    start: nn.Module | Mapping[str, Tensor] | None = None,
    mean: Floats = None,
    deviation: Floats = None,
    activation: str | None = None,
) -> Plain:
    """The network that an attack reads, which sees images of a shape; see `audit`."""
    tensors = tensors_of(weights, name="weights")
    own = getattr(weights, "activation", "relu")
    if activation is not None and activation not in ACTIVATIONS:
        raise BadInput(f"activation = {activation!r}: allowed are {', '.join(ACTIVATIONS)}")
    for name, value in (("mean", mean), ("deviation", deviation)):
        if value is not None:
            if name in tensors:
                raise BadInput(f"{name}: the weights say it already; leave it out")
            tensors[name] = torch.as_tensor(value, dtype=torch.float32)
    network = Plain(tensors, activation=activation or own)
    if start is not None:
        begun = tensors_of(start, name="start")
        names = [key for key in begun if key.endswith("weight") and key not in KNOWN]
        first = min(names, key=_natural, default="")
        bias = begun.get(first.removesuffix("weight") + "bias")
        network.take_start(begun.get(first, torch.zeros(0)), bias)
    wanted = tuple(getattr(weights, "shape", ()))
    network.shape = fitting(shape, inputs=network.inputs, wanted=wanted, name="images")
    channels = network.shape[0] if len(network.shape) == 3 else 1
    for name in ("mean", "deviation"):
        count = tensors[name].numel() if name in tensors else 1
        if count not in (1, channels, network.inputs):
            raise BadInput(
                f"{name} has {count} values; images of shape {list(network.shape)} have "
                f"{channels} channel{'s' if channels > 1 else ''}"
            )
    try:
        chain_of(network)
    except BadInput as error:
        raise BadInput(f"weights: {error}") from None
    return network


def tensors_of(weights: nn.Module | Mapping[str, Tensor], *, name: str) -> dict[str, Tensor]:
    """Tensors by their names; refused where there are none."""
    if isinstance(weights, nn.Module):
        return dict(weights.state_dict())
    if not isinstance(weights, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in weights.items()
    ):
        raise BadInput(
            f"{name} is {type(weights).__name__}: a torch.nn.Module, or a mapping of names to "
            "tensors, is needed"
        )
    return dict(weights)


def fitting(
    given: tuple[int, ...], *, inputs: int, wanted: tuple[int, ...] = (), name: str
) -> tuple[int, ...]:
    """The shape (rows, columns) or (3, rows, columns) in which a network of so many inputs sees
    images, whose pixels keep their order.

    An axis of one channel, first or last, and a row of all pixels are unambiguous. `wanted` is what
    the network says of the shape; without it, a row of pixels is taken for a square. Refused, with
    the name of the images, are other shapes, colours last, since the order of the pixels would be
    another one, and other channels than one or three.
    """
    if len(wanted) == 3 and wanted[0] == 1:
        wanted = wanted[1:]
    side = math.isqrt(inputs)
    usual = wanted or ((side, side) if side**2 == inputs else ())
    if not given and usual:
        return usual
    bare = tuple(size for size in given if size != 1)
    shape = usual if bare == (inputs,) else bare
    if wanted:
        fits = shape in (wanted, tuple(size for size in wanted if size != 1))
    else:
        fits = len(shape) == 2 or (len(shape) == 3 and shape[0] == 3)
    if not fits or math.prod(shape) != inputs:
        if len(usual) == 2:
            size = f"{usual[0]}, {usual[1]}"
            allowed = f"(n, {size}), (n, 1, {size}), (n, {size}, 1) or (n, {inputs})"
        elif usual:
            allowed = f"(n, {', '.join(map(str, usual))}) or (n, {inputs})"
        else:
            allowed = "(n, rows, columns), or (n, 3, rows, columns) of colours, of so many values"
        raise BadInput(
            f"{name} has shape (n, {', '.join(map(str, given))}), {math.prod(given)} values each; "
            f"the network takes {inputs}: allowed are {allowed}"
        )
    return wanted or shape
