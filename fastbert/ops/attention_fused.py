"""torch's own fused attention over packed sequences, for a GPU where no kernel of ours serves.

Gradients, autocast and GPUs without kernels take the reference. With scores in float32 it moves
some eight times (batch, heads, length, length) * 4 bytes; `scaled_dot_product_attention`, which is
what transformers runs, moves queries, keys, values and its result, and keeps no scores for the
backward pass. Both take dropout.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def fuses(q: Tensor, key_bias: Tensor | None, bias: Tensor | None) -> bool:
    """Return whether `fused_attention` is to be preferred: on a GPU, without biases."""
    return q.is_cuda and q.dtype in _DTYPES and key_bias is None and bias is None


def fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    scale: float,
    causal: bool = False,
    *,
    dropout_p: float = 0.0,
) -> Tensor:
    """Compute `attention_varlen` without biases by `scaled_dot_product_attention`.

    Arguments and result are those of `attention_varlen`; weights are dropped with probability
    dropout_p. A query that sees no key gets zeros, and so do its gradients.
    """
    # Imported here, since the reference imports this module.
    from fastbert.ops.attention_varlen import from_grid, is_full, to_grid, visible_keys

    if not q.numel() or not k.numel():
        return torch.zeros_like(q)
    query_grid = to_grid(q, cu_seqlens_q, max_seqlen_q).transpose(1, 2)
    key_grid, value_grid = (to_grid(x, cu_seqlens_k, max_seqlen_k).transpose(1, 2) for x in (k, v))
    full = is_full(q, cu_seqlens_q, max_seqlen_q) and is_full(k, cu_seqlens_k, max_seqlen_k)
    # torch aligns a causal mask at the beginning, which is the end too where lengths are equal.
    aligned = causal and full and max_seqlen_q == max_seqlen_k
    visible = (
        None
        if aligned
        else visible_keys(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, full=full)
    )
    blind = None
    if visible is not None:
        # A row without any visible key would be NaN, in the backward pass for its neighbours too.
        blind = ~visible.any(-1, keepdim=True)
        visible = visible | blind
    out = F.scaled_dot_product_attention(
        query_grid, key_grid, value_grid, visible, dropout_p, is_causal=aligned, scale=scale
    )
    # In self-attention a token sees at least itself: blind are rows that hold no query.
    if blind is not None and cu_seqlens_q is not cu_seqlens_k:
        out = out.masked_fill(blind, 0.0)
    return from_grid(out.transpose(1, 2), cu_seqlens_q, q.shape[0])
