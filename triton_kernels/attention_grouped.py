"""attention_grouped: the kernel of attention_varlen, whose blocks hold all heads of a group.

The heads that share a key/value head stand as rows of one block, so keys and values are read once
for all of them: what a step of decoding costs, where every sequence has a single query.

Such a sequence would keep one program for each key/value head busy, and most of a GPU idle. So the
keys of a single query are cut into chunks, whose programs leave unnormalised sums behind; a second
kernel joins them in order. Which form a sequence takes, and where its chunks end, follows from its
own lengths, and both forms fold blocks of keys in the same tile: bits do not depend on neighbours.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastbert.ops._op import Traits
from fastbert.ops.attention_varlen import AttentionOperands
from fastbert.triton_kernels import _common, attention_varlen
from fastbert.triton_kernels.attention_varlen import fold_keys

# Keys of a program: a multiple of every tile's block. Of 4096 keys and 8 key/value heads these are
# 128 programs, and what a program leaves behind is a fiftieth of what it reads, or less.
CHUNK = 256
_WARPS = 4


@triton.jit
def fold_chunk_kernel(
    q_ptr,  # (total_q, heads, head_dim)
    k_ptr,  # (total_k, kv_heads, head_dim)
    v_ptr,  # (total_k, kv_heads, head_dim)
    acc_ptr,  # (batch, kv_heads, chunks, GROUP, head_dim) float32
    stats_ptr,  # (batch, kv_heads, chunks, GROUP, 2) float32
    cu_q_ptr,  # (batch + 1,) int32
    cu_k_ptr,  # (batch + 1,) int32
    key_bias_ptr,  # (total_k,) float32, if KEY_BIAS
    bias_ptr,  # (batch | 1, heads | 1, max_seqlen_q, max_seqlen_k), if BIAS
    scale_log2,
    q_stride, q_head, k_stride, k_head, v_stride, v_head, bias_batch, bias_head, bias_j,
    D: tl.constexpr, D_TAIL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    KEY_BIAS: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr, GROUP: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Fold one chunk of the keys of a sequence's only query, for the heads of one group."""
    sequence = tl.program_id(0)
    kv_head = tl.program_id(1)
    chunk = tl.program_id(2)
    start_q = tl.load(cu_q_ptr + sequence)
    len_q = tl.load(cu_q_ptr + sequence + 1) - start_q
    start_k = tl.load(cu_k_ptr + sequence)
    len_k = tl.load(cu_k_ptr + sequence + 1) - start_k
    if (len_q != 1) | (chunk * CHUNK >= len_k):
        return
    row = tl.arange(0, BLOCK_M)
    kept = (row < GROUP)[:, None]
    # Rows past the group read its first head: they need an address, and are never stored.
    head = (kv_head * GROUP + tl.where(row < GROUP, row, 0))[:, None]
    rows_q = q_ptr + tl.cast(start_q, tl.int64) * q_stride + head * q_head
    q = tl.load(rows_q + tl.arange(0, D)[None, :], mask=kept, other=0.0)
    acc = tl.zeros([BLOCK_M, D], tl.float32)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    mass = tl.zeros([BLOCK_M], tl.float32)
    if D_TAIL > 0:
        q_tail = tl.load(rows_q + D + tl.arange(0, D_TAIL)[None, :], mask=kept, other=0.0)
        acc_tail = tl.zeros([BLOCK_M, D_TAIL], tl.float32)
    else:
        q_tail = 0
        acc_tail = 0
    base_k = tl.cast(start_k, tl.int64)
    k_ptr += base_k * k_stride + kv_head * k_head
    v_ptr += base_k * v_stride + kv_head * v_head
    if KEY_BIAS:
        key_bias_ptr += base_k
    bias_rows = bias_ptr
    if BIAS:
        own = tl.cast(sequence, tl.int64) * bias_batch + tl.cast(head, tl.int64) * bias_head
        bias_rows += own

    end = tl.minimum(len_k, (chunk + 1) * CHUNK)
    whole = end // BLOCK_N * BLOCK_N
    for start in range(chunk * CHUNK, whole, BLOCK_N):
        acc, acc_tail, m, mass = fold_keys(
            acc, acc_tail, m, mass, q, q_tail,
            k_ptr, v_ptr, k_stride, v_stride, key_bias_ptr, bias_rows, bias_j,
            start, len_k, row, scale_log2,
            D, D_TAIL, BLOCK_N, False, False, KEY_BIAS, BIAS, PRECISION,
        )  # fmt: skip
    for start in range(whole, end, BLOCK_N):
        acc, acc_tail, m, mass = fold_keys(
            acc, acc_tail, m, mass, q, q_tail,
            k_ptr, v_ptr, k_stride, v_stride, key_bias_ptr, bias_rows, bias_j,
            start, len_k, row, scale_log2,
            D, D_TAIL, BLOCK_N, True, False, KEY_BIAS, BIAS, PRECISION,
        )  # fmt: skip

    part = (tl.cast(sequence, tl.int64) * tl.num_programs(1) + kv_head) * tl.num_programs(2) + chunk
    rows = part * GROUP + row
    own_acc = acc_ptr + rows[:, None] * (D + D_TAIL)
    tl.store(own_acc + tl.arange(0, D)[None, :], acc, mask=kept)
    if D_TAIL > 0:
        tl.store(own_acc + D + tl.arange(0, D_TAIL)[None, :], acc_tail, mask=kept)
    tl.store(stats_ptr + rows * 2, m, mask=row < GROUP)
    tl.store(stats_ptr + rows * 2 + 1, mass, mask=row < GROUP)


# A text that is written on passes every number of chunks; some would be compiled for themselves.
@triton.jit(do_not_specialize=["chunks"])
def join_chunks_kernel(
    acc_ptr,  # as fold_chunk_kernel leaves it, with `stats`
    stats_ptr,
    out_ptr,  # (total_q, heads, head_dim)
    cu_q_ptr,  # (batch + 1,) int32
    cu_k_ptr,  # (batch + 1,) int32
    chunks, out_stride, out_head,
    D: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Join the chunks of a sequence's only query, for one head."""
    sequence = tl.program_id(0)
    head = tl.program_id(1)
    start_q = tl.load(cu_q_ptr + sequence)
    len_q = tl.load(cu_q_ptr + sequence + 1) - start_q
    if len_q != 1:
        return
    len_k = tl.load(cu_k_ptr + sequence + 1) - tl.load(cu_k_ptr + sequence)
    column = tl.arange(0, BLOCK_D)
    inside = column < D
    kv_heads = tl.num_programs(1) // GROUP
    part = (tl.cast(sequence, tl.int64) * kv_heads + head // GROUP) * chunks
    acc = tl.zeros([BLOCK_D], tl.float32)
    m = -float("inf")
    mass = 0.0
    for chunk in range(0, tl.cdiv(len_k, CHUNK)):
        row = (part + chunk) * GROUP + head % GROUP
        other_m = tl.load(stats_ptr + row * 2)
        other_mass = tl.load(stats_ptr + row * 2 + 1)
        other = tl.load(acc_ptr + row * D + column, mask=inside, other=0.0)
        m_new = tl.maximum(m, other_m)
        # As in fold_keys: what has seen no key keeps m = -inf.
        offset = tl.where(m_new == float("-inf"), 0.0, m_new)
        alpha = tl.exp2(m - offset)
        beta = tl.exp2(other_m - offset)
        acc = tl.fma(acc, alpha, other * beta)
        mass = tl.fma(mass, alpha, other_mass * beta)
        m = m_new
    norm = tl.where(mass == 0.0, 1.0, 1.0 / mass)
    own_out = out_ptr + tl.cast(start_q, tl.int64) * out_stride + head * out_head
    tl.store(own_out + column, (acc * norm).to(out_ptr.dtype.element_ty), mask=inside)


def attention_grouped(o: AttentionOperands) -> torch.Tensor:
    """Compute attention with grouped key/value heads; see ``fastbert.ops.attention_grouped``.

    Raises:
        ValueError: for a head_dim that the kernel has not, and for scale <= 0.
    """
    out = attention_varlen.prepared("attention_grouped", o)
    if out.numel() == 0 or o.batch < 1:
        return out
    # With a single chunk, and for no query at all, both forms give the same bits.
    split = o.max_seqlen_k > CHUNK and o.heads // o.kv_heads <= attention_varlen.tile_of(o).m
    if not split or o.max_seqlen_q > 1:
        attention_varlen.launch(o, out, single_queries=not split)
    if split:
        _launch_chunks(o, out)
    return out


def _launch_chunks(o: AttentionOperands, out: torch.Tensor) -> None:
    """Compute the rows of all sequences that have a single query."""
    q, k, v = o.q, o.k, o.v
    chunks, group = triton.cdiv(o.max_seqlen_k, CHUNK), o.heads // o.kv_heads
    parts = (o.batch, o.kv_heads, chunks, group)
    acc = torch.empty((*parts, o.dim), dtype=torch.float32, device=q.device)
    stats = torch.empty((*parts, 2), dtype=torch.float32, device=q.device)
    config = attention_varlen.tile_of(o)
    d, d_tail = attention_varlen.split_head_dim(o.dim)
    bias_batch, bias_head, _ = o.bias_strides
    with _common.on_device(q):
        fold_chunk_kernel[(o.batch, o.kv_heads, chunks)](
            q, k, v, acc, stats, o.cu_seqlens_q, o.cu_seqlens_k,
            q if o.key_bias is None else o.key_bias,
            q if o.bias is None else o.bias,
            o.scale * attention_varlen.LOG2E.value,
            q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
            bias_batch, bias_head, 0 if o.bias is None else 1,
            D=d, D_TAIL=d_tail, BLOCK_M=config.m, BLOCK_N=config.n,
            KEY_BIAS=o.key_bias is not None, BIAS=o.bias is not None,
            PRECISION=_common.dot_precision(q.dtype), GROUP=group, CHUNK=CHUNK,
            **config.options, **_common.LAUNCH,
        )  # fmt: skip
        join_chunks_kernel[(o.batch, o.heads)](
            acc, stats, out, o.cu_seqlens_q, o.cu_seqlens_k, chunks, out.stride(0), out.stride(1),
            D=o.dim, BLOCK_D=triton.next_power_of_2(o.dim), GROUP=group, CHUNK=CHUNK,
            num_warps=_WARPS, **_common.LAUNCH,
        )  # fmt: skip


def supports(traits: Traits) -> str | None:
    """Return None, or why the kernel cannot serve these traits."""
    return attention_varlen.supports(traits)
