"""qk_norm_rope: heads of queries and keys normalised and rotated, in one launch.

One program per token and block of heads. Both halves of a head are loaded as tiles of their own,
since the rotation pairs column i with column i + head_dim / 2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastbert.ops._op import Traits
from fastbert.ops.qk_norm_rope import QkNormRopeOperands
from fastbert.triton_kernels import _common
from fastbert.triton_kernels.configs import HEAD_LIMIT, HEADS_A_PROGRAM, half_head_block


@triton.jit
def _norm_rope_heads(
    x_ptr, weight_ptr, out_ptr, cos, sin, block, heads, half, eps, head_stride,
    HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Normalise and rotate a block of heads of one token; results lie one head behind the other."""
    head = block * HEADS + tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, HALF)
    inside = column < half
    keep = (head < heads) & inside[None, :]
    x = x_ptr + head.to(tl.int64) * head_stride + column[None, :]
    first = tl.load(x, mask=keep, other=0.0).to(tl.float32)
    second = tl.load(x + half, mask=keep, other=0.0).to(tl.float32)
    scale = _common.rms_scale(tl.sum(first * first + second * second, 1), 2 * half, eps)[:, None]
    gain = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    other_gain = tl.load(weight_ptr + half + column, mask=inside, other=0.0).to(tl.float32)
    a = first * scale * gain[None, :]
    b = second * scale * other_gain[None, :]
    dtype = out_ptr.dtype.element_ty
    out = out_ptr + head * (2 * half) + column[None, :]
    tl.store(out, (a * cos - b * sin).to(dtype), mask=keep)
    tl.store(out + half, (b * cos + a * sin).to(dtype), mask=keep)


@triton.jit
def qk_norm_rope_kernel(
    q_ptr,  # (tokens, heads, 2 * half)
    k_ptr,  # (tokens, kv_heads, 2 * half)
    q_weight_ptr,  # (2 * half,)
    k_weight_ptr,  # (2 * half,)
    cos_ptr,  # (tokens, half) float32
    sin_ptr,  # (tokens, half) float32
    q_out_ptr,  # as q, contiguous
    k_out_ptr,  # as k, contiguous
    heads, kv_heads, half, eps, q_stride, q_head, k_stride, k_head, cos_stride, sin_stride,
    HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Normalise and rotate one block of heads of one token, of q or behind them of k."""
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    column = tl.arange(0, HALF)
    inside = column < half
    cos = tl.load(cos_ptr + token * cos_stride + column, mask=inside, other=0.0)[None, :]
    sin = tl.load(sin_ptr + token * sin_stride + column, mask=inside, other=0.0)[None, :]
    of_queries = tl.cdiv(heads, HEADS)
    if block < of_queries:
        _norm_rope_heads(
            q_ptr + token * q_stride, q_weight_ptr, q_out_ptr + token * heads * (2 * half),
            cos, sin, block, heads, half, eps, q_head, HEADS, HALF,
        )  # fmt: skip
    else:
        _norm_rope_heads(
            k_ptr + token * k_stride, k_weight_ptr, k_out_ptr + token * kv_heads * (2 * half),
            cos, sin, block - of_queries, kv_heads, half, eps, k_head, HEADS, HALF,
        )  # fmt: skip


def qk_norm_rope(o: QkNormRopeOperands) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalise and rotate every head, in float32; see ``fastbert.ops.qk_norm_rope``.

    Raises:
        ValueError: for heads that do not fit in the registers of one program.
    """
    reason = _head_reason(o.dim)
    if reason is not None:
        raise ValueError(f"qk_norm_rope: {reason}; use another backend")
    q_out = torch.empty((o.tokens, o.heads, o.dim), dtype=o.q.dtype, device=o.q.device)
    k_out = torch.empty((o.tokens, o.kv_heads, o.dim), dtype=o.k.dtype, device=o.k.device)
    blocks = triton.cdiv(o.heads, HEADS_A_PROGRAM) + triton.cdiv(o.kv_heads, HEADS_A_PROGRAM)
    if o.tokens == 0 or o.dim == 0 or blocks == 0:
        return q_out, k_out
    half, warps = half_head_block(o.dim)
    with _common.on_device(o.q):
        qk_norm_rope_kernel[(o.tokens, blocks)](
            o.q, o.k, o.q_weight, o.k_weight, o.cos, o.sin, q_out, k_out,
            o.heads, o.kv_heads, o.dim // 2, o.eps, o.q.stride(0), o.q.stride(1), o.k.stride(0),
            o.k.stride(1), o.cos.stride(0), o.sin.stride(0),
            HEADS=HEADS_A_PROGRAM, HALF=half, num_warps=warps, **_common.LAUNCH,
        )  # fmt: skip
    return q_out, k_out


def _head_reason(head_dim: int) -> str | None:
    if head_dim <= HEAD_LIMIT:
        return None
    return f"head_dim is {head_dim}, the triton kernel holds up to {HEAD_LIMIT} in registers"


def supports(traits: Traits) -> str | None:
    """Return None, or why the kernel cannot serve these traits."""
    return None if traits.head_dim is None else _head_reason(traits.head_dim)
