"""What the attentions share on CUDA: one native entry for every form of the kernel."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastbert.kernels.cuda import _native
from fastbert.ops._op import Traits
from fastbert.ops.attention_varlen import AttentionOperands
from fastbert.ops.operands import address

HEAD_DIMS = (32, 64, 80, 96, 128)


class SingleQueries(NamedTuple):
    """Sequences of a single query, apart from the others (csrc/cuda/attention/attention.h)."""

    apart: bool = False
    only: bool = False
    chunks: int = 1
    parts: int = 0  # address


def supports(traits: Traits) -> str | None:
    """Return None, or why the kernels cannot serve these traits."""
    if traits.head_dim is not None and traits.head_dim not in HEAD_DIMS:
        return (
            f"head_dim is {traits.head_dim}, the CUDA kernels have {', '.join(map(str, HEAD_DIMS))}"
        )
    return None


def attention(op: str, o: AttentionOperands, singles: SingleQueries) -> Tensor:
    """Compute attention over packed sequences; `op` names it in messages."""
    q, k, v = map(_on_16_bytes, (o.q, o.k, o.v))
    out = torch.empty((o.total_q, o.heads, o.dim), dtype=q.dtype, device=q.device)
    _native.launch(
        "attention_varlen", q,
        op, (q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr()),
        (o.cu_seqlens_q.data_ptr(), o.cu_seqlens_k.data_ptr()),
        address(o.key_bias), address(o.bias), o.bias_strides, (o.total_q, o.total_k),
        (*q.stride()[:2], *k.stride()[:2], *v.stride()[:2]), o.batch, (o.heads, o.kv_heads), o.dim,
        o.code, o.causal, o.scale, singles,
    )  # fmt: skip
    return out


def _on_16_bytes(x: Tensor) -> Tensor:
    """Return x, copied unless every head of every token starts on 16 bytes, as kernels load it.

    Heads and tokens that lie on each other (strides of 0, of expanded tensors) have no box to load.
    """
    starts = (x.data_ptr(), *(stride * x.element_size() for stride in x.stride()[:2]))
    if all(start > 0 and start % 16 == 0 for start in starts):
        return x
    return x.clone(memory_format=torch.contiguous_format)
