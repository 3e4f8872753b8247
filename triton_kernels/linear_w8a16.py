"""linear_w8a16: the gemm of `linear` over int8 weights, which are widened on the way in.

Integers up to 127 are exact in all three dtypes, so the product is that of `linear` and the scale
of a weight's row comes behind the sum.
"""

from __future__ import annotations

import torch

from fastbert.ops._op import Traits
from fastbert.ops.int8_linear import Int8LinearOperands, widened
from fastbert.ops.operands import by_rows
from fastbert.triton_kernels.linear import multiplied, supports as linear_supports


def linear_w8a16(o: Int8LinearOperands) -> torch.Tensor:
    """See ``fastbert.ops.linear_w8a16``; sums are float32 and rounded once.

    Rows keep their precision as it is. Where a sum is no finite float32, it becomes NaN: in a row
    with a NaN or an infinity that holds for all of them. ``packed`` is not looked at.
    """
    x = by_rows(widened(o.x, o.factor, o.repeated))
    # tf32 would keep less of a row than the 16 bits that the op promises.
    return multiplied(
        x, by_rows(o.qweight), o.weight_scale, o.bias, o.activation, o.residual, o.x.dtype, "ieee"
    )


def supports(traits: Traits) -> str | None:
    """Return None, or why the kernel cannot serve these traits."""
    return linear_supports(traits)
