"""A device that is the processor, but refuses what a GPU would refuse: for machines without one.

Its tensors wrap a tensor of the processor, of the same strides, and every operator is computed by
the processor; so results are the same bytes if all has gone where it should. Refused are

- operators on tensors of both devices, but for what CUDA permits: numbers (0-dimensional tensors)
  in arithmetic, and the processor's indices into the device's tensors;
- draws on the device, whose numbers would be others, and generators of the processor there;
- NumPy arrays of the device's tensors (by PyTorch itself).

It does not emulate kernels: what CUDA lacks or computes otherwise, cuDNN's conditions, memory.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

NAME = "pretend"
aten = torch.ops.aten
# Where tensors of both devices may meet.
TRANSFERS = (aten._to_copy.default, aten.copy_.default, aten._copy_from.default)
INDEXING = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default)


class Pretended(Tensor):
    """A tensor of the device.

    Attributes
    ----------
    raw : Tensor
        The processor's, whose memory it is.
    """

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> "Pretended":
        assert type(raw) is Tensor and raw.device.type == "cpu"
        made: Pretended = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device(NAME, 0),
        )
        made.raw = raw
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return computed(func, args, dict(kwargs or {}))

    @property  # `Module.double` gives a parameter another tensor's memory
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)  # type: ignore[no-any-return, attr-defined]

    @data.setter
    def data(self, value: Tensor) -> None:
        assert isinstance(value, Pretended)
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.raw = value.raw

    def tolist(self) -> Any:  # which PyTorch gives of its own classes only
        return self.raw.tolist()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Pretended({self.raw!r})"


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operator gives, with at least one tensor of the device."""
    given = tree_flatten((args, kwargs))[0]
    refuse_mixtures(func, [value for value in given if isinstance(value, Tensor)])
    drawn = torch.Tag.nondeterministic_seeded in func.tags
    if drawn or any(isinstance(value, torch.Generator) for value in given):
        raise RuntimeError(f"{func}: drawn on the device")
    target = kwargs.get("device")
    if target is not None:
        kwargs["device"] = "cpu"
    owners = {id(value.raw): value for value in given if isinstance(value, Pretended)}
    found = EQUIVALENT.get(func, func)(*tree_map(_raw, args), **tree_map(_raw, kwargs))
    if torch.Tag.inplace_view in func.tags:  # which changes the shape of what it was given
        with torch._C._DisableTorchDispatch():
            func(*args, **kwargs)
    if target is not None and torch.device(target).type == "cpu":
        return found
    return tree_map(lambda value: _owned(value, owners), found)


def refuse_mixtures(func: Any, given: list[Tensor]) -> None:
    """Raise where tensors of both devices meet and CUDA's would not be allowed to."""
    if func in TRANSFERS:
        return
    foreign = [value for value in given if not isinstance(value, Pretended)]
    if func in INDEXING and isinstance(given[0], Pretended):
        foreign = [value for value in foreign if value.dtype not in (torch.int64, torch.bool)]
    numbers = torch.Tag.pointwise in func.tags or func in INDEXING
    if any(value.dim() or not numbers for value in foreign):
        raise RuntimeError(f"{func}: expected all tensors on the same device, {NAME} and cpu found")


def _raw(value: Any) -> Any:
    return value.raw if isinstance(value, Pretended) else value


def _owned(value: Any, owners: dict[int, Pretended]) -> Any:
    """The device's tensor of a result: the one that was given, of an operator in place."""
    if not isinstance(value, Tensor):
        return value
    if (owner := owners.get(id(value))) is None:
        return Pretended(value)
    assert owner.shape == value.shape and owner.dtype == value.dtype, "changed in place"
    return owner


def lstm_cell(
    on_input: Tensor, on_hidden: Tensor, cell: Tensor, *biases: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """CUDA's fused LSTM cell, which the processor has not: (B, 4 H) twice and (B, H)."""
    gates = on_input + on_hidden + sum(bias for bias in biases if bias is not None)
    entering, forget, candidate, out = gates.chunk(4, dim=1)
    parts = [entering.sigmoid(), forget.sigmoid(), candidate.tanh(), out.sigmoid()]
    after = parts[1] * cell + parts[0] * parts[2]
    return parts[3] * after.tanh(), after, torch.cat(parts, dim=1)


def lstm_cell_backward(
    of_hidden: Tensor | None,
    of_cell: Tensor | None,
    cell: Tensor,
    after: Tensor,
    gates: Tensor,
    has_bias: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of the gates (B, 4 H), of the cell before (B, H), and of the bias (4 H,)."""
    entering, forget, candidate, out = gates.chunk(4, dim=1)
    shown = after.tanh()
    of_hidden = torch.zeros_like(cell) if of_hidden is None else of_hidden
    inner = of_hidden * out * (1 - shown.square())
    inner = inner if of_cell is None else inner + of_cell
    of_gates = torch.cat(
        [
            inner * candidate * entering * (1 - entering),
            inner * cell * forget * (1 - forget),
            inner * entering * (1 - candidate.square()),
            of_hidden * shown * out * (1 - out),
        ],
        dim=1,
    )
    return of_gates, inner * forget, of_gates.sum(dim=0) if has_bias else None


EQUIVALENT = {
    aten._thnn_fused_lstm_cell.default: lstm_cell,
    aten._thnn_fused_lstm_cell_backward_impl.default: lstm_cell_backward,
}


class _Backend:
    """What PyTorch asks of a device's module."""

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        pass

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> int:
        return 0


def _factories() -> Iterator[tuple[str, Any]]:
    """Names and overloads of all operators that make a tensor from none."""
    for name in torch._C._dispatch_get_all_op_names():
        if not name.startswith("aten::"):
            continue
        packet, _, overload = name.removeprefix("aten::").partition(".")
        try:
            operator = getattr(getattr(aten, packet), overload or "default")
        except (AttributeError, RuntimeError):
            continue
        arguments = operator._schema.arguments
        if any(argument.name == "device" for argument in arguments) and not any(
            "Tensor" in str(argument.type) for argument in arguments
        ):
            yield name, operator


def _factory(operator: Any) -> Any:
    def make(*args: Any, **kwargs: Any) -> Any:
        if torch.Tag.nondeterministic_seeded in operator.tags:
            raise RuntimeError(f"{operator}: drawn on the device")
        kwargs.pop("pin_memory", None)
        return Pretended(operator(*args, **{**kwargs, "device": "cpu"}))

    return make


_libraries: list[torch.library.Library] = []  # what they register lasts as long as they do


def register() -> torch.device:
    """Make the device known to PyTorch, once, and give it."""
    if not _libraries:
        torch.utils.backend_registration._setup_privateuseone_for_python_backend(
            NAME, backend_module=_Backend()
        )
        library = torch.library.Library("aten", "IMPL")
        _libraries.append(library)
        for name, operator in _factories():
            library.impl(name, _factory(operator), "PrivateUse1")
        # torch.tensor(…, device=…) comes here directly.
        library.impl(
            "_copy_from",
            lambda source, target, non_blocking=False: computed(
                aten.copy_.default, (target, source), {}
            ),
            "PrivateUse1",
        )
    return torch.device(NAME)
