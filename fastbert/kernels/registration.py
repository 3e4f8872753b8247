"""Ops as torch.library knows them: `fastbert::<op>.<backend>`, one overload per backend.

All overloads of an op share its schema, its fake and its backward, which recomputes the op through
the reference; so torch.compile sees one node per op, and gradients through a kernel are right.
`Library.define` and `impl` cost half of what `torch.library.custom_op` does per call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastbert import kernels
from fastbert.ops import ALL
from fastbert.ops._op import FLOATS, Op, Traits

_library = torch.library.Library("fastbert", "DEF")  # type: ignore[no-untyped-call]


def register(op: Op) -> None:
    """Define the overloads of an op."""
    for backend in kernels.NAMES:
        name = f"{op.name}.{backend}"
        _library.define(f"{name}{op.schema}")  # type: ignore[no-untyped-call]
        # Not by device: a tensor on the wrong one gets the kernel's own sentence.
        _library.impl(name, _deferred(op.name, backend), "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"fastbert::{name}", _by_name(op), lib=_library)
        if op.differentiable:
            torch.library.register_autograd(
                f"fastbert::{name}",
                _backward_through(op.reference),
                setup_context=_remember,
                lib=_library,
            )


def overload(op: str, backend: str) -> Callable[..., Any]:
    """Return the registered operator of an op on a backend."""
    found: Callable[..., Any] = getattr(getattr(torch.ops.fastbert, op), backend)
    return found


def _deferred(op: str, backend: str) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        if forward_ad._current_level >= 0:
            raise NotImplementedError(
                f"fastbert::{op}.{backend} has no forward-mode derivative, and cannot see whether "
                "one is wanted here; call the reference of the op within dual numbers and "
                "torch.func.jvp, as models do."
            )
        return kernels.kernel(backend, op)(*arguments)

    return call


def _by_name(op: Op) -> Callable[..., Any]:
    """Return the fake of an op for arguments in order, as torch.library gives them."""

    def fake(*args: Any, **kwargs: Any) -> Any:
        return op.fake(**dict(zip(op.parameters, args, strict=False)), **kwargs)

    return fake


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)))
    ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]
    ctx.tensor_places = [i for i, value in enumerate(inputs) if isinstance(value, Tensor)]


def _backward_through(reference: Callable[..., Any]) -> Callable[..., Any]:
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        arguments = list(ctx.others)
        wanted = []
        for place, tensor in zip(ctx.tensor_places, ctx.saved_tensors, strict=True):
            arguments[place] = tensor
            if ctx.needs_input_grad[place]:
                arguments[place] = tensor.detach().requires_grad_()
                wanted.append(place)
        with torch.enable_grad():
            results = reference(*arguments)
        results = results if isinstance(results, tuple) else (results,)
        pairs = [
            (result, gradient)
            for result, gradient in zip(results, gradients, strict=True)
            if gradient is not None and result.requires_grad
        ]
        out: list[Tensor | None] = [None] * len(arguments)
        if pairs:
            found = torch.autograd.grad(
                [result for result, _ in pairs],
                [arguments[place] for place in wanted],
                [gradient for _, gradient in pairs],
                allow_unused=True,
            )
            for place, gradient in zip(wanted, found, strict=True):
                out[place] = gradient
        return tuple(out)

    return backward


def support_table() -> list[dict[str, str]]:
    """Return one row per op: its name and, per backend, the dtypes of the kernels there are.

    "reference" is every floating dtype. What stands in a cell is what this installation can load,
    whether or not this machine has the device for it.
    """
    dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
    rows = []
    for op in ALL.values():
        row = {"op": op.name, "reference": "any"}
        for backend in kernels.NAMES:
            reason = kernels.refusal(backend, op.name, Traits(), torch.float32)
            row[backend] = dtypes if reason is None else "-"
        rows.append(row)
    return rows


for _op in ALL.values():
    register(_op)
