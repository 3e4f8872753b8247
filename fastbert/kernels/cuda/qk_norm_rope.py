"""qk_norm_rope on CUDA."""

from __future__ import annotations

import torch
from torch import Tensor

from fastbert.kernels.cuda import _native
from fastbert.ops._op import Traits
from fastbert.ops.operands import row_stride
from fastbert.ops.qk_norm_rope import QkNormRopeOperands

# A head that a warp holds (csrc/cuda/decoding/decoding.h).
HEAD_LIMIT = 256
_ABSENT = (0, 0)


def supports(traits: Traits) -> str | None:
    """Return None, or why the kernel cannot serve these traits."""
    if traits.head_dim is not None and traits.head_dim > HEAD_LIMIT:
        return f"head_dim is {traits.head_dim}, the CUDA kernel holds up to {HEAD_LIMIT}"
    return None


def qk_norm_rope(o: QkNormRopeOperands) -> tuple[Tensor, Tensor]:
    """See `fastbert.ops.qk_norm_rope`; float32 inside, cos and sin included, rounded once.

    Raises:
        ValueError: also for a head_dim above 256.
    """
    q, k = o.q, o.k
    q_out = torch.empty((o.tokens, o.heads, o.dim), dtype=q.dtype, device=q.device)
    k_out = torch.empty((o.tokens, o.kv_heads, o.dim), dtype=q.dtype, device=q.device)
    _native.launch(
        "qk_norm_rope", q,
        (q.data_ptr(), k.data_ptr(), 0, q_out.data_ptr(), k_out.data_ptr(), 0),
        (*q.stride()[:2], *k.stride()[:2], *_ABSENT,
         o.heads * o.dim, o.dim, o.kv_heads * o.dim, o.dim, *_ABSENT),
        _ABSENT, (o.q_weight.data_ptr(), o.k_weight.data_ptr()),
        (o.cos.data_ptr(), o.sin.data_ptr()), (row_stride(o.cos), row_stride(o.sin)),
        o.tokens, o.heads, o.kv_heads, o.dim, o.code, o.eps,
    )  # fmt: skip
    return q_out, k_out
