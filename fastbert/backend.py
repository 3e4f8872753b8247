"""The Plan: which backend serves which op, chosen once, with a reason for each one passed over."""

from __future__ import annotations

import contextlib
import contextvars
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from fastbert.ops._op import Traits
from fastbert.ops.act_layer_norm import act_layer_norm
from fastbert.ops.add_layer_norm import add_layer_norm
from fastbert.ops.attention_varlen import attention_varlen
from fastbert.ops.bias_act import bias_act
from fastbert.ops.embed_layer_norm import embed_layer_norm
from fastbert.ops.int8_linear import int8_linear
from fastbert.ops.linear import linear
from fastbert.ops.quantize_rows import quantize_rows

__all__ = ["BACKENDS", "Choice", "Plan", "Traits", "build_plan", "forced_backend", "use_backend"]

BACKENDS = ("auto", "reference", "cpu", "cuda", "triton")
_REFERENCES: dict[str, Callable[..., Any]] = {
    "embed_layer_norm": embed_layer_norm,
    "linear": linear,
    "int8_linear": int8_linear,
    "quantize_rows": quantize_rows,
    "attention_varlen": attention_varlen,
    "add_layer_norm": add_layer_norm,
    "bias_act": bias_act,
    "act_layer_norm": act_layer_norm,
}
_log = logging.getLogger("fastbert")
_forced: contextvars.ContextVar[str | None] = contextvars.ContextVar("backend", default=None)


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the block, every model uses this backend, whatever it was loaded with.

    Raises:
        ValueError: for a name that is not one of BACKENDS.
    """
    token = _forced.set(_known(name))
    try:
        yield
    finally:
        _forced.reset(token)


def forced_backend() -> str | None:
    """The backend of the innermost `use_backend` block, None outside of one."""
    return _forced.get()


@dataclass(frozen=True)
class Choice:
    """The backend of one op.

    Attributes:
        op: name of the op.
        backend: "reference", "cpu", "cuda" or "triton".
        isa: the instruction set of the kernel, "" for the reference.
        passed_over: (backend, reason) of every better one that does not serve.
        function: the callable, with the signature of the op's reference.
    """

    op: str
    backend: str
    isa: str
    passed_over: tuple[tuple[str, str], ...]
    function: Callable[..., Any]


@dataclass(frozen=True)
class Plan:
    """One callable per op, and why it was chosen. Layers receive it as an argument."""

    device: torch.device
    dtype: torch.dtype
    choices: tuple[Choice, ...]
    embed_layer_norm: Callable[..., Any]
    linear: Callable[..., Any]
    int8_linear: Callable[..., Any]
    quantize_rows: Callable[..., Any]
    attention_varlen: Callable[..., Any]
    add_layer_norm: Callable[..., Any]
    bias_act: Callable[..., Any]
    act_layer_norm: Callable[..., Any]

    def choice(self, op: str) -> Choice:
        """The choice made for an op, by its name."""
        return next(choice for choice in self.choices if choice.op == op)

    def lines(self) -> list[str]:
        """One line per op: its name, backend, instruction set, and who was passed over and why."""
        lines = []
        for choice in self.choices:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in choice.passed_over)
            head = f"{choice.op:<17} {choice.backend:<10} {choice.isa:<12}"
            lines.append(f"{head} {reasons}".rstrip())
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())


def build_plan(
    traits: Traits,
    device: torch.device | str,
    dtype: torch.dtype,
    backend: str = "auto",
    strict: bool = False,
    needs_grad: bool = False,
) -> Plan:
    """Chooses the backend of every op."""
    _known(_forced.get() or backend)
    reason = (
        "kernels have no backward pass yet, and gradients are needed"
        if needs_grad
        else "not connected"
    )
    choices = tuple(
        Choice(name, "reference", "", (("cpu", reason),), function)
        for name, function in _REFERENCES.items()
    )
    return Plan(torch.device(device), dtype, choices, **_REFERENCES)


def _known(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"There is no backend {name!r}; choose one of {', '.join(BACKENDS)}.")
    return name
