"""Checks of tensors before kernels take their addresses; each failure is a sentence.

Each op declares one structure of operands and one function `check` that makes it, for all compiled
backends. The function holds every argument against the first one (its device and dtype) and returns
them in a layout whose addresses may be taken: columns adjacent, rows not overlapping, copied where
that was not so. Native drivers check sizes, strides and offsets again.

The structures are named tuples: a frozen dataclass of 12 fields takes 1.9 us to make, a named tuple
0.4 us, and a small op takes 10 us in all.
"""

from __future__ import annotations

from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

# As in csrc/common/types.h.
CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


# Others may compute or keep their values elsewhere: quantised, sharded, not there at all.
_PLAIN = (Tensor, nn.Parameter)
_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def batched(x: Tensor) -> bool:
    """Return whether torch.vmap maps over a tensor, so that no value of it can be looked at."""
    while _wrapped(x):
        if torch._C._functorch.is_batchedtensor(x):
            return True
        x = torch._C._functorch.get_unwrapped(x)
    return False


def transformed() -> bool:
    """Return whether this is called within a transform of torch.func."""
    return torch._C._functorch.peek_interpreter_stack() is not None


class NotPlain(TypeError):
    """An operand whose values do not lie at its address, so that only torch can compute with it."""


class Mixed(NotPlain):
    """An operand of another precision than the first; torch says what it computes of the two."""


class Target(NamedTuple):
    """Whose operands are checked.

    Attributes:
        backend: its name, for messages.
        device: type of the devices that its tensors are on, "cpu" or "cuda".
    """

    backend: str
    device: str


def operand(op: str, name: str, x: object, target: Target) -> tuple[Tensor, int]:
    """Return an op's first argument, known to be on the backend's devices, and its dtype's code."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(x).__name__}.")
    if x.device.type != target.device:
        raise ValueError(
            f"{op}: the {target.backend} kernels take {target.device.upper()} tensors, {name} is "
            f"on {x.device}; move it, or choose another backend."
        )
    code = CODES.get(x.dtype)
    if code is None:
        names = ", ".join(map(short, CODES))
        raise TypeError(
            f"{op}: the {target.backend} kernels compute {names}, {name} is {short(x.dtype)}; "
            "convert it, or use the reference."
        )
    if x.layout is not torch.strided:
        raise wrong_kind(op, name, x, x.dtype, x.device)
    return x, code


def two_dimensional(op: str, name: str, x: Tensor) -> tuple[int, int]:
    """Return the shape of a tensor that must be a matrix."""
    if x.dim() != 2:
        raise ValueError(
            f"{op}: {name} has shape {tuple(x.shape)}, expected two dimensions; flatten the "
            "leading ones into rows."
        )
    return x.shape[0], x.shape[1]


def channels_last(op: str, name: str, x: Tensor) -> tuple[int, int, int, int]:
    """Return the shape of a tensor that must be maps (batch, height, width, channels)."""
    if x.dim() != 4:
        raise ValueError(
            f"{op}: {name} has shape {tuple(x.shape)}, expected (batch, height, width, channels)."
        )
    batch, height, width, channels = x.shape
    return batch, height, width, channels


def matrix(
    op: str, name: str, x: object, rows: int, columns: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return x, known to be a matrix of this shape, dtype and device, by rows."""
    if not fits(x, dtype, device):
        raise wrong_kind(op, name, x, dtype, device)
    if x.shape != (rows, columns):
        raise ValueError(f"{op}: {name} has shape {tuple(x.shape)}, expected ({rows}, {columns}).")
    return by_rows(x)


def by_rows(x: Tensor) -> Tensor:
    """Return x itself when its columns are adjacent and its rows do not overlap, else a copy."""
    row_stride, column_stride = x.stride()
    if column_stride == 1 and row_stride >= x.shape[1]:
        return x
    return x.contiguous()


def row_stride(x: Tensor | None) -> int:
    """Return the elements between rows, 0 without x; torch may say anything of a single row."""
    return 0 if x is None else max(x.stride(0), x.shape[1])


def vector(
    op: str, name: str, x: object, length: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return x, known to be a vector of this length, dtype and device, with adjacent elements."""
    if not fits(x, dtype, device):
        raise wrong_kind(op, name, x, dtype, device)
    if x.shape != (length,):
        raise ValueError(f"{op}: {name} has shape {tuple(x.shape)}, expected ({length},).")
    return x.contiguous()


def by_heads(
    op: str,
    name: str,
    x: object,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Return x, known to be a tensor (tokens, heads, dim) whose last dimension is contiguous."""
    if not fits(x, dtype, device):
        raise wrong_kind(op, name, x, dtype, device)
    if x.shape != shape:
        raise ValueError(f"{op}: {name} has shape {tuple(x.shape)}, expected {tuple(shape)}.")
    return x if x.stride(2) == 1 else x.contiguous()


def weight_rows(
    op: str, name: str, weight: object, inner: int, dtype: torch.dtype, device: torch.device
) -> int:
    """Return N of a weight that must be (N, inner)."""
    if not fits(weight, dtype, device):
        raise wrong_kind(op, name, weight, dtype, device)
    if weight.dim() != 2 or weight.shape[1] != inner:
        raise ValueError(
            f"{op}: {name} has shape {tuple(weight.shape)}, expected (N, {inner}) to go with the "
            f"{inner} columns of x."
        )
    return int(weight.shape[0])


def bytes_(op: str, name: str, x: object, device: torch.device) -> Tensor:
    """Return x, known to be a contiguous vector of bytes."""
    if not fits(x, torch.uint8, device):
        raise wrong_kind(op, name, x, torch.uint8, device)
    if x.dim() != 1:
        raise ValueError(
            f"{op}: {name} has shape {tuple(x.shape)}; pass the result of {op}_prepack as it is."
        )
    return x.contiguous()


def address(x: Tensor | None) -> int:
    """Return where x begins, 0 without x."""
    return 0 if x is None else x.data_ptr()


def fits(x: object, dtype: torch.dtype, device: torch.device) -> TypeGuard[Tensor]:
    """Tell whether x is a strided tensor of this dtype and device."""
    return (
        isinstance(x, Tensor)
        and x.dtype is dtype
        and x.device == device
        and x.layout is torch.strided
    )


def obstacle(*operands: object, memory: bool = True) -> str | None:
    """Return None where the values of all tensors lie at their addresses, else what one is.

    This is the one gate before every address that native code is given.

    Args:
        operands: tensors, tuples of such, and anything else.
        memory: whether to ask for the memory too. False asks for the kind of tensor alone, whose
            device then need not have addresses.
    """
    pending = list(operands)
    for x in pending:
        if isinstance(x, tuple):
            pending += x
        if not isinstance(x, Tensor):
            continue
        if type(x) not in _PLAIN:
            return f"a {type(x).__name__}"
        if _wrapped(x):
            return "wrapped by a transform of torch.func"
        if x.layout is not torch.strided:
            return str(x.layout)
        if x.is_neg():
            return "a view that negates another tensor"
        if not memory:
            continue
        end = x.storage_offset() + 1
        for size, step in zip(x.shape, x.stride(), strict=True):
            end += (size - 1) * step
        needed, held = end * x.element_size(), x.untyped_storage().nbytes()
        if (held < needed or x.data_ptr() == 0) and x.numel() > 0:
            if torch._is_zerotensor(x):
                return "a tensor of zeros without memory"
            return f"{_LOST}: its storage holds {held} bytes of {needed}"
    return None


_LOST = "without its memory"


def unreadable(op: str, operands: dict[str, object]) -> Exception:
    """Return the error that names the operand with an `obstacle`, and what to do."""
    name, reason = next((n, told) for n, v in operands.items() if (told := obstacle(v)))
    if reason.startswith(_LOST):
        return ValueError(
            f"{op}: {name} is {reason}; whoever freed it, as FSDP and offloading do, must bring it "
            "back before the model is called."
        )
    return NotPlain(f"{op}: {name} is {reason}, which only the reference computes with.")


def wrong_kind(
    op: str, name: str, x: object, dtype: torch.dtype, device: torch.device
) -> Exception:
    """Return the error that says why x does not fit."""
    if not isinstance(x, Tensor):
        return TypeError(f"{op}: {name} must be a tensor, got {type(x).__name__}.")
    if x.device != device:
        return ValueError(f"{op}: {name} is on {x.device}, expected {device} like the others.")
    if x.layout is not torch.strided:
        return NotPlain(f"{op}: {name} is {x.layout}; pass {name}.to_dense().")
    kind = Mixed if x.is_floating_point() and dtype.is_floating_point else TypeError
    return kind(f"{op}: {name} is {short(x.dtype)}, expected {short(dtype)}; convert it first.")


def refuse_mixture(op: str, x: Tensor, **others: Tensor | None) -> None:
    """Refuse operands that torch multiplies with none of another precision.

    Under autocast, torch converts them itself.

    Raises:
        TypeError: saying which differs, and what to do.
    """
    for name, other in others.items():
        if other is None or other.dtype is x.dtype or not x.is_floating_point():
            continue
        kind = x.device.type
        if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
            raise TypeError(
                f"{op}: x is {short(x.dtype)}, but {name} {tuple(other.shape)} is "
                f"{short(other.dtype)}. The parts of a model share one precision: convert the "
                f"whole model, such as model.to(torch.{short(x.dtype)}), or call it under "
                "torch.autocast."
            )


def short(dtype: torch.dtype) -> str:
    """Return the name of a dtype without the module."""
    return str(dtype).removeprefix("torch.")
