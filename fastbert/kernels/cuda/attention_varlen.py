"""attention_varlen on CUDA: wgmma on Hopper, mma.sync on what is older or newer."""

from __future__ import annotations

import torch
from torch import Tensor

from fastbert.kernels import _check
from fastbert.kernels.cuda import _native
from fastbert.ops._op import Traits

HEAD_DIMS = (32, 64, 80, 96, 128)


def supports(traits: Traits) -> str | None:
    """None, or why the kernel cannot serve these traits."""
    if traits.head_dim is not None and traits.head_dim not in HEAD_DIMS:
        return (
            f"head_dim is {traits.head_dim}, the CUDA kernels have {', '.join(map(str, HEAD_DIMS))}"
        )
    return None


def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    scale: float,
    causal: bool = False,
    key_bias: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """See `fastbert.ops.attention_varlen`. float32 is exact: never tf32, whatever torch's setting.

    Raises:
        ValueError: also for a head_dim other than 32, 64, 80, 96 or 128, and for scale <= 0.
    """
    o = _check.attention(
        "attention_varlen", _native.DEVICE, q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
        max_seqlen_k, key_bias, bias,
    )  # fmt: skip
    q, k, v = map(_on_16_bytes, (o.q, o.k, o.v))
    out = torch.empty((o.total_q, o.heads, o.dim), dtype=q.dtype, device=q.device)
    _native.extension().attention_varlen(
        (q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr()),
        (o.cu_seqlens_q.data_ptr(), o.cu_seqlens_k.data_ptr()),
        _check.address(o.key_bias), _check.address(o.bias), o.bias_strides,
        (o.total_q, o.total_k), (*q.stride()[:2], *k.stride()[:2], *v.stride()[:2]), o.batch,
        o.heads, o.dim, o.code, causal, scale, *_native.target(q),
    )  # fmt: skip
    return out


def _on_16_bytes(x: Tensor) -> Tensor:
    """x, copied unless every head of every token starts on 16 bytes, as the kernels load them."""
    places = (x.data_ptr(), *(stride * x.element_size() for stride in x.stride()[:2]))
    if all(place % 16 == 0 for place in places):
        return x
    return x.clone(memory_format=torch.contiguous_format)
