"""attention_varlen: softmax(q kᵀ · scale + bias) v over packed sequences, with no S x S matrix.

Online softmax (Milakov and Gimelshein 2018; tiled as in FlashAttention-2, Dao 2023): one pass over
the keys in blocks, keeping for every query a running maximum m, a running sum and an accumulator
that are rescaled when m grows. Scores live in units of log2, so that the exponential is the
hardware's exp2 and ``scale * log2(e)`` folds into one fused multiply-add.

A row's result depends only on its own sequence: keys are visited in blocks of BLOCK_N counted from
the start of the sequence, in tiles that depend on architecture, head_dim, dtype, causal and whether
there is a dense bias. A zero key_bias gives the bits of no key_bias: it is added after the
multiply-add, never inside it, and has no say in the tile.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from fastbert.ops._op import Traits
from fastbert.ops.attention_varlen import AttentionOperands
from fastbert.triton_kernels import _common
from fastbert.triton_kernels.configs import Tile, attention_tile

HEAD_DIMS = (32, 64, 80, 96, 128)
LOG2E = tl.constexpr(math.log2(math.e))
_FLOAT_MIN = tl.constexpr(torch.finfo(torch.float32).min)
# One load and one reduction find the sequence of a program for batches up to this size.
_SEARCH = 128


@triton.jit
def _sequence_of(
    cu_ptr, batch, slot, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, SEARCH: tl.constexpr
):
    """Return the sequence that owns a slot of the query grid, and that sequence's first slot.

    Sequence b starts at slot GROUP * cu[b] // BLOCK_M + b. That leaves every sequence a slot for
    each of its blocks, needs no prefix sum over block counts and no host knowledge of the lengths,
    and wastes at most one slot a sequence.
    """
    owner = -1
    first = 0
    for base in range(0, batch, SEARCH):
        b = base + tl.arange(0, SEARCH)
        starts = tl.load(cu_ptr + b, mask=b < batch, other=0)
        starts = starts * GROUP // BLOCK_M + b
        mine = (b < batch) & (starts <= slot)
        owner += tl.sum(tl.where(mine, 1, 0))
        first = tl.maximum(first, tl.max(tl.where(mine, starts, 0)))
    return owner, first


@triton.jit
def fold_keys(
    acc, acc_tail, m, mass, q, q_tail,
    k_ptr, v_ptr, k_stride, v_stride, key_bias_ptr, bias_rows, bias_stride_j,
    start, len_k, visible, scale_log2,
    D: tl.constexpr, D_TAIL: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr,
    CAUSAL: tl.constexpr, KEY_BIAS: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Fold keys start .. start + BLOCK_N into (acc, m, mass).

    MASKED bounds the keys by len_k and, if causal, by each row's ``visible``; without it every key
    of the block must be visible to every row.
    """
    BIASED: tl.constexpr = KEY_BIAS or BIAS
    offs_n = start + tl.arange(0, BLOCK_N)
    # The block's base is 64-bit; offsets inside a block fit in 32.
    local = tl.arange(0, BLOCK_N)[:, None]
    rows_k = k_ptr + tl.cast(start, tl.int64) * k_stride + local * k_stride
    rows_v = v_ptr + tl.cast(start, tl.int64) * v_stride + local * v_stride
    offs_d = tl.arange(0, D)[None, :]
    keep = offs_n < len_k
    if MASKED:
        k = tl.load(rows_k + offs_d, mask=keep[:, None], other=0.0)
    else:
        k = tl.load(rows_k + offs_d)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if D_TAIL > 0:
        offs_tail = D + tl.arange(0, D_TAIL)[None, :]
        if MASKED:
            k_tail = tl.load(rows_k + offs_tail, mask=keep[:, None], other=0.0)
        else:
            k_tail = tl.load(rows_k + offs_tail)
        scores = tl.dot(q_tail, tl.trans(k_tail), scores, input_precision=PRECISION)

    shown = keep[None, :]
    if CAUSAL:
        shown = shown & (offs_n[None, :] < visible[:, None])
    if BIASED:
        added = tl.zeros(scores.shape, tl.float32)
        if KEY_BIAS:
            added += tl.load(key_bias_ptr + offs_n, mask=keep, other=0.0)[None, :]
        if BIAS:
            columns = tl.cast(offs_n, tl.int64)[None, :] * bias_stride_j
            added += tl.load(bias_rows + columns, mask=keep[None, :], other=0.0).to(tl.float32)
        # finfo.min means "worst, but visible": scaled to log2 units it must not become -inf, or a
        # row with nothing better would be empty instead of a uniform average.
        hidden = added == float("-inf")
        if MASKED:
            hidden = hidden | (shown == 0)
        added = tl.maximum(added * LOG2E, _FLOAT_MIN)
        added = tl.where(hidden, float("-inf"), added)
        m_new = tl.maximum(m, tl.max(tl.fma(scores, scale_log2, added), 1))
    else:
        if MASKED:
            scores = tl.where(shown, scores, float("-inf"))
        m_new = tl.maximum(m, tl.max(scores, 1) * scale_log2)
    offset = m_new
    if MASKED or BIASED:
        # A row that has seen no key keeps m = -inf; -inf - -inf would be NaN.
        offset = tl.where(m_new == float("-inf"), 0.0, m_new)
    p = tl.fma(scores, scale_log2, -offset[:, None])
    if BIASED:
        p += added
    p = tl.exp2(p)
    alpha = tl.exp2(m - offset)
    mass = tl.fma(mass, alpha, tl.sum(p, 1))

    acc = acc * alpha[:, None]
    if MASKED:
        # A weight of 0 does not hide a NaN, and past the end stands another sequence's row.
        v = tl.load(rows_v + offs_d, mask=keep[:, None], other=0.0)
    else:
        v = tl.load(rows_v + offs_d)
    p = p.to(v.dtype)
    acc = tl.dot(p, v, acc, input_precision=PRECISION)
    if D_TAIL > 0:
        acc_tail = acc_tail * alpha[:, None]
        if MASKED:
            v_tail = tl.load(rows_v + offs_tail, mask=keep[:, None], other=0.0)
        else:
            v_tail = tl.load(rows_v + offs_tail)
        acc_tail = tl.dot(p, v_tail, acc_tail, input_precision=PRECISION)
    return acc, acc_tail, m_new, mass


# A batch of one, or of a multiple of 16, would be compiled for itself, seconds in service.
@triton.jit(do_not_specialize=["batch"])
def attention_varlen_kernel(
    q_ptr,  # (total_q, heads, head_dim)
    k_ptr,  # (total_k, heads, head_dim)
    v_ptr,  # (total_k, heads, head_dim)
    out_ptr,  # (total_q, heads, head_dim)
    cu_q_ptr,  # (batch + 1,) int32
    cu_k_ptr,  # (batch + 1,) int32
    key_bias_ptr,  # (total_k,) float32
    bias_ptr,  # (batch | 1, heads | 1, max_seqlen_q, max_seqlen_k)
    batch, scale_log2,
    q_stride, q_head, k_stride, k_head, v_stride, v_head, out_stride, out_head,
    bias_batch, bias_head, bias_i, bias_j,
    D: tl.constexpr, D_TAIL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, KEY_BIAS: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
    GROUP: tl.constexpr, SINGLE: tl.constexpr, SEARCH: tl.constexpr,
):  # fmt: skip
    """Compute the context of one block of queries of the heads that share a key/value head.

    Of GROUP heads that share one, row r is query r // GROUP of head r % GROUP, so that a block
    reads its keys once for all of them. With a GROUP of 1 rows are queries. Unless SINGLE,
    sequences of one query are left to others.
    """
    slot = tl.program_id(0)
    kv_head = tl.program_id(1)
    sequence, first_slot = _sequence_of(cu_q_ptr, batch, slot, GROUP, BLOCK_M, SEARCH)
    start_q = tl.load(cu_q_ptr + sequence)
    len_q = tl.load(cu_q_ptr + sequence + 1) - start_q
    row = (slot - first_slot) * BLOCK_M
    beyond = row >= len_q * GROUP
    if not SINGLE:
        beyond = beyond | (len_q == 1)
    if beyond:
        return
    start_k = tl.load(cu_k_ptr + sequence)
    len_k = tl.load(cu_k_ptr + sequence + 1) - start_k

    first = row // GROUP
    base_q = tl.cast(start_q + first, tl.int64)
    if GROUP == 1:
        head = kv_head
        offs_m = row + tl.arange(0, BLOCK_M)
        local = tl.arange(0, BLOCK_M)[:, None]
    else:
        rows = row + tl.arange(0, BLOCK_M)
        head = (kv_head * GROUP + rows % GROUP)[:, None]
        offs_m = rows // GROUP
        local = (offs_m - first)[:, None]
    rows_kept = (offs_m < len_q)[:, None]
    rows_q = q_ptr + base_q * q_stride + head * q_head + local * q_stride
    q = tl.load(rows_q + tl.arange(0, D)[None, :], mask=rows_kept, other=0.0)
    acc = tl.zeros([BLOCK_M, D], tl.float32)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    mass = tl.zeros([BLOCK_M], tl.float32)
    if D_TAIL > 0:
        q_tail = tl.load(rows_q + D + tl.arange(0, D_TAIL)[None, :], mask=rows_kept, other=0.0)
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
        # Rows past the end read row 0: they need an address, and are never stored.
        i = tl.cast(tl.where(offs_m < len_q, offs_m, 0), tl.int64)[:, None]
        own = tl.cast(sequence, tl.int64) * bias_batch + tl.cast(head, tl.int64) * bias_head
        bias_rows += own + i * bias_i

    end = len_k
    whole = len_k // BLOCK_N * BLOCK_N
    visible = offs_m
    if CAUSAL:
        # Bottom-right: query i sees keys j <= i + len_k - len_q.
        visible = offs_m + (len_k - len_q + 1)
        end = tl.minimum(end, (row + BLOCK_M - 1) // GROUP + 1 + len_k - len_q)
        shown_to_all = tl.maximum(first + len_k - len_q + 1, 0)
        whole = tl.minimum(whole, shown_to_all // BLOCK_N * BLOCK_N)
    for start in range(0, whole, BLOCK_N):
        acc, acc_tail, m, mass = fold_keys(
            acc, acc_tail, m, mass, q, q_tail,
            k_ptr, v_ptr, k_stride, v_stride, key_bias_ptr, bias_rows, bias_j,
            start, len_k, visible, scale_log2,
            D, D_TAIL, BLOCK_N, False, CAUSAL, KEY_BIAS, BIAS, PRECISION,
        )  # fmt: skip
    for start in range(whole, end, BLOCK_N):
        acc, acc_tail, m, mass = fold_keys(
            acc, acc_tail, m, mass, q, q_tail,
            k_ptr, v_ptr, k_stride, v_stride, key_bias_ptr, bias_rows, bias_j,
            start, len_k, visible, scale_log2,
            D, D_TAIL, BLOCK_N, True, CAUSAL, KEY_BIAS, BIAS, PRECISION,
        )  # fmt: skip

    # No visible key: mass = 0 and acc = 0, and the row is zeros. NaN passes this test and stays.
    norm = tl.where(mass == 0.0, 1.0, 1.0 / mass)[:, None]
    rows_out = out_ptr + base_q * out_stride + head * out_head + local * out_stride
    out = (acc * norm).to(out_ptr.dtype.element_ty)
    tl.store(rows_out + tl.arange(0, D)[None, :], out, mask=rows_kept)
    if D_TAIL > 0:
        out_tail = (acc_tail * norm).to(out_ptr.dtype.element_ty)
        tl.store(rows_out + D + tl.arange(0, D_TAIL)[None, :], out_tail, mask=rows_kept)


def split_head_dim(head_dim: int) -> tuple[int, int]:
    """Split into powers of two, as tiles are: 80 = 64 + 16, 96 = 64 + 32, not a padded 128."""
    return (64, head_dim - 64) if head_dim in (80, 96) else (head_dim, 0)


def query_slots(total_rows: int, batch: int, block_m: int) -> int:
    """Return how many programs to start along the query axis, from sizes that the host knows."""
    return total_rows // block_m + batch


def attention_varlen(o: AttentionOperands) -> torch.Tensor:
    """Compute softmax(q kᵀ · scale + key_bias + bias) v; see ``fastbert.ops.attention_varlen``.

    Sums and softmax are float32 (tf32 only where torch's matmul setting allows it). Lengths stay on
    the device: nothing waits for it.

    Raises:
        ValueError: for a head_dim outside HEAD_DIMS, and for scale <= 0.
    """
    out = prepared("attention_varlen", o)
    if out.numel() > 0 and o.batch > 0:
        launch(o, out)
    return out


def prepared(op: str, o: AttentionOperands) -> torch.Tensor:
    """Return memory for the result.

    Args:
        op: the name that messages begin with.
        o: operands.

    Raises:
        ValueError: as `attention_varlen` does.
    """
    if o.dim not in HEAD_DIMS:
        raise ValueError(f"{op}: {_head_dim_reason(o.dim)}; use another backend")
    if not o.scale > 0:
        raise ValueError(f"{op}: scale is {o.scale}, expected a positive number")
    return torch.empty((o.total_q, o.heads, o.dim), dtype=o.q.dtype, device=o.q.device)


def tile_of(o: AttentionOperands) -> Tile:
    """Return the tile of the kernel for these operands."""
    return attention_tile(
        _common.architecture(o.q.device),
        o.dim,
        o.q.dtype != torch.float32,
        o.causal or o.bias is not None,
    )


def launch(o: AttentionOperands, out: torch.Tensor, single_queries: bool = True) -> None:
    """Compute attention whose heads may share those of keys and values.

    Args:
        o: operands; ``heads`` is a multiple of ``kv_heads``.
        out: (total_q, heads, dim), where the result goes.
        single_queries: whether sequences of one query are computed too.
    """
    q, k, v = o.q, o.k, o.v
    config = tile_of(o)
    d, d_tail = split_head_dim(o.dim)
    group = o.heads // o.kv_heads
    with _common.on_device(q):
        attention_varlen_kernel[(query_slots(o.total_q * group, o.batch, config.m), o.kv_heads)](
            q, k, v, out, o.cu_seqlens_q, o.cu_seqlens_k,
            q if o.key_bias is None else o.key_bias,
            q if o.bias is None else o.bias,
            o.batch, o.scale * LOG2E.value,
            q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
            out.stride(0), out.stride(1), *o.bias_strides, 0 if o.bias is None else 1,
            D=d, D_TAIL=d_tail, BLOCK_M=config.m, BLOCK_N=config.n, CAUSAL=o.causal,
            KEY_BIAS=o.key_bias is not None, BIAS=o.bias is not None,
            PRECISION=_common.dot_precision(q.dtype), GROUP=group, SINGLE=single_queries,
            SEARCH=_SEARCH, **config.options, **_common.LAUNCH,
        )  # fmt: skip


def _head_dim_reason(head_dim: int) -> str:
    return f"head_dim is {head_dim}, the triton kernel has {', '.join(map(str, HEAD_DIMS))}"


def supports(traits: Traits) -> str | None:
    """Return None, or why the kernel cannot serve these traits."""
    if traits.head_dim is not None and traits.head_dim not in HEAD_DIMS:
        return _head_dim_reason(traits.head_dim)
    if traits.attention_dropout > 0.0:
        return "attention dropout exists only in the reference"
    return None
