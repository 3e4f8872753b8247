"""linear on CUDA."""

from __future__ import annotations

from torch import Tensor

from fastbert.kernels.cuda import _gemm
from fastbert.ops._op import Traits
from fastbert.ops.activations import unsupported_activation
from fastbert.ops.linear import LinearOperands


def supports(traits: Traits) -> str | None:
    """Return None, or why the kernel cannot serve these traits."""
    return unsupported_activation(traits.activation)


def linear(o: LinearOperands) -> Tensor:
    """See `fastbert.ops.linear`. float32 is exact, never tf32; `packed` belongs to other backends.

    A row has the same bits whatever the other rows are and however many.
    """
    return _gemm.gemm("linear", o, o.x, o.weight)
