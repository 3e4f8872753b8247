"""Scaled dot-product attention over packed sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastbert.ops._op import STANDARD_TOLERANCES, Arguments, Case, Mutation, Op, Traits
from fastbert.ops._sample import Sampler, offsets
from fastbert.ops.attention_fused import fused_attention, fuses
from fastbert.ops.operands import Target, by_heads, fits, operand, vector, wrong_kind


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
    """Compute softmax(scale * q @ k.T + key_bias + bias) @ v, for every head of every sequence.

    The softmax is float32 or better. A score of -inf is invisible; one of finfo.min is visible, so
    a row of nothing but those is uniform and finite. A query that sees no key gets zeros.

    Args:
        q: (total_q, num_heads, head_dim), floating; the last dimension contiguous, the other
            strides free (views into a fused projection).
        k: (total_k, num_heads, head_dim), q.dtype.
        v: (total_k, num_heads, head_dim), q.dtype.
        cu_seqlens_q: int32 (batch + 1,), from 0 to the total, never falling; sequence b is rows
            cu_seqlens[b] up to cu_seqlens[b + 1]. Kernels of a GPU, which do not look at the
            values, take offsets that end before the total: rows behind the last are not read, and
            are undefined in the result.
        cu_seqlens_k: the same for keys and values.
        max_seqlen_q: at least the longest length of queries.
        max_seqlen_k: at least the longest length of keys.
        scale: multiplies q @ k.T; usually head_dim ** -0.5.
        causal: key j is visible to query i iff j <= i + len_k - len_q (aligned at the end).
        key_bias: float32 (total_k,), added to every score of that key.
        bias: floating, (batch or 1, num_heads or 1, max_seqlen_q, max_seqlen_k), added to the
            scores, indexed by positions within the sequence.

    Returns:
        (total_q, num_heads, head_dim), q.dtype.

    Source: Vaswani et al. 2017, "Attention is all you need", equation 1.
    """
    if fuses(q, key_bias, bias):
        return fused_attention(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale, causal
        )
    out, _ = attention_with_probs(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        scale,
        causal,
        key_bias,
        bias,
    )
    return out


def attention_with_probs(
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
    *,
    dropout_p: float = 0.0,
    head_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute `attention_varlen` and the weights that multiplied v.

    Arguments that are not described here are those of `attention_varlen`. Weights are dropped with
    probability dropout_p, and after that multiplied by head_mask, which must be broadcastable to
    (batch, num_heads, max_seqlen_q, max_seqlen_k).

    Returns:
        (total_q, num_heads, head_dim) and (batch, num_heads, max_seqlen_q, max_seqlen_k), both
        q.dtype; the weights after dropout and head_mask, zero beyond the end of a sequence.
    """
    probs = attention_probs(
        q, k, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale, causal, key_bias, bias
    )
    probs = thinned(probs, dropout_p, head_mask)
    return attention_context(probs, v, cu_seqlens_q, cu_seqlens_k, q.shape[0]), probs


def thinned(probs: Tensor, dropout_p: float, head_mask: Tensor | None) -> Tensor:
    """Drop weights with a probability, and multiply those of heads by a mask."""
    if dropout_p > 0.0:
        probs = F.dropout(probs, dropout_p, training=True)
    return probs if head_mask is None else probs * head_mask.to(probs.dtype)


def attention_probs(
    q: Tensor,
    k: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    scale: float,
    causal: bool = False,
    key_bias: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Compute softmax(scale * q @ k.T + key_bias + bias) on a grid.

    The result is (batch, num_heads, max_seqlen_q, max_seqlen_k).

    Zero where either position lies beyond the end of its sequence or the key is not visible.
    Arguments are those of `attention_varlen`; the result has q.dtype.
    """
    query_grid = to_grid(q, cu_seqlens_q, max_seqlen_q).transpose(1, 2)
    key_grid = to_grid(k, cu_seqlens_k, max_seqlen_k).transpose(1, 2)
    scores = torch.matmul(query_grid, key_grid.transpose(2, 3))
    scores = scores.to(torch.promote_types(q.dtype, torch.float32)) * scale
    if key_bias is not None:
        scores = scores + to_grid(key_bias, cu_seqlens_k, max_seqlen_k)[:, None, None, :].to(
            scores.dtype
        )
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    visible = visible_keys(
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        causal,
        full=is_full(q, cu_seqlens_q, max_seqlen_q) and is_full(k, cu_seqlens_k, max_seqlen_k),
    )
    return masked_softmax(scores, visible).to(q.dtype)


def masked_softmax(scores: Tensor, visible: Tensor | None) -> Tensor:
    """Compute softmax of the visible scores above -inf; zeros where there is none in a row."""
    if visible is not None:
        scores = scores.masked_fill(~visible, float("-inf"))
    blind = (scores == float("-inf")).all(dim=-1, keepdim=True)
    return torch.softmax(scores.masked_fill(blind, 0.0), dim=-1).masked_fill(blind, 0.0)


def attention_context(
    probs: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, total_q: int
) -> Tensor:
    """Compute probs @ v: (batch, heads, max_seqlen_q, max_seqlen_k) -> (total_q, heads, dim)."""
    value_grid = to_grid(v, cu_seqlens_k, probs.shape[3]).transpose(1, 2)
    context = torch.matmul(probs.to(v.dtype), value_grid).transpose(1, 2)
    return from_grid(context, cu_seqlens_q, total_q)


def visible_keys(
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool,
    full: bool = False,
) -> Tensor | None:
    """Return bool (batch, 1, max_seqlen_q or 1, max_seqlen_k): which keys a query sees.

    None stands for all of them. With `full`, every sequence is known to have the maximal length.
    """
    if full and not causal:
        return None
    device = cu_seqlens_k.device
    keys = torch.arange(max_seqlen_k, device=device)[None, None, None, :]
    len_k = _lengths(cu_seqlens_k)[:, None, None, None]
    visible = keys < len_k
    if causal:
        queries = torch.arange(max_seqlen_q, device=device)[None, None, :, None]
        len_q = _lengths(cu_seqlens_q)[:, None, None, None]
        visible = visible & (keys <= queries + len_k - len_q)
    return visible


def to_grid(x: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """Scatter (total, ...) to (batch, max_seqlen, ...), zeros beyond the end of a sequence."""
    batch = cu_seqlens.shape[0] - 1
    if is_full(x, cu_seqlens, max_seqlen):
        return x.reshape(batch, max_seqlen, *x.shape[1:])
    grid = x.new_zeros((batch * max_seqlen, *x.shape[1:]))
    grid = grid.index_copy(0, _grid_positions(cu_seqlens, max_seqlen, x.shape[0]), x)
    return grid.reshape(batch, max_seqlen, *x.shape[1:])


def from_grid(grid: Tensor, cu_seqlens: Tensor, total: int) -> Tensor:
    """Gather (batch, max_seqlen, ...) into (total, ...), contiguous: the inverse of `to_grid`."""
    batch, max_seqlen = grid.shape[:2]
    flat = grid.reshape(batch * max_seqlen, *grid.shape[2:])
    if batch * max_seqlen == total:
        return flat.contiguous()
    return flat.index_select(0, _grid_positions(cu_seqlens, max_seqlen, total))


def is_full(x: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> bool:
    """Return whether every sequence has the maximal length."""
    # No length exceeds max_seqlen, so this total is reached only when all of them equal it.
    return x.shape[0] == (cu_seqlens.shape[0] - 1) * max_seqlen


def _lengths(cu_seqlens: Tensor) -> Tensor:
    return cu_seqlens[1:] - cu_seqlens[:-1]


def _grid_positions(cu_seqlens: Tensor, max_seqlen: int, total: int) -> Tensor:
    rows = torch.arange(total, device=cu_seqlens.device)
    starts = cu_seqlens.to(torch.int64)
    sequence = torch.searchsorted(starts[1:].contiguous(), rows, right=True)
    return sequence * max_seqlen + rows - starts[sequence]


class AttentionOperands(NamedTuple):
    """Checked operands of `attention_varlen` and `attention_grouped`.

    Attributes:
        code: of the dtype of q, k and v.
        total_q, total_k, heads, kv_heads, dim, batch: sizes.
        q, k, v: (tokens, heads or kv_heads, dim), the last dimension contiguous.
        cu_seqlens_q, cu_seqlens_k: int32 (batch + 1,); their values are not looked at, which would
            wait for the device.
        max_seqlen_q, max_seqlen_k, scale, causal: as for `attention_varlen`.
        key_bias: float32 (total_k,) or None.
        bias: float32 (batch or 1, heads or 1, max_seqlen_q, max_seqlen_k), keys adjacent, or None.
        bias_strides: over sequences, heads and queries, 0 where the bias is broadcast.
    """

    code: int
    total_q: int
    total_k: int
    heads: int
    kv_heads: int
    dim: int
    batch: int
    q: Tensor
    k: Tensor
    v: Tensor
    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    scale: float
    causal: bool
    key_bias: Tensor | None
    bias: Tensor | None
    bias_strides: tuple[int, int, int]


def check(
    target: Target,
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
) -> AttentionOperands:
    """Return the operands of `attention_varlen`.

    Raises:
        TypeError, ValueError: for operands that kernels do not take, with the reason.
    """
    return checked_attention(
        "attention_varlen", False, target, q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
        max_seqlen_k, scale, causal, key_bias, bias,
    )  # fmt: skip


def checked_attention(
    op: str,
    grouped: bool,
    target: Target,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    scale: float,
    causal: bool,
    key_bias: Tensor | None,
    bias: Tensor | None,
) -> AttentionOperands:
    """Return the operands of `op`, which takes those of `attention_varlen`.

    Where it is grouped, k and v may have fewer heads than q, a divisor of theirs.

    Raises:
        TypeError, ValueError: for operands that kernels do not take, with the reason.
    """
    q, code = operand(op, "q", q, target)
    if q.dim() != 3:
        raise ValueError(
            f"{op}: q has shape {tuple(q.shape)}, expected (total_q, num_heads, head_dim)."
        )
    total_q, heads, dim = q.shape
    dtype, device = q.dtype, q.device
    total_k = k.shape[0] if isinstance(k, Tensor) and k.dim() else 0
    kv_heads = k.shape[1] if grouped and isinstance(k, Tensor) and k.dim() == 3 else heads
    if kv_heads != heads and (not kv_heads or heads % kv_heads):
        raise ValueError(
            f"{op}: k has {kv_heads} heads; the {heads} heads of q must be a multiple of them."
        )
    q = by_heads(op, "q", q, (total_q, heads, dim), dtype, device)
    k = by_heads(op, "k", k, (total_k, kv_heads, dim), dtype, device)
    v = by_heads(op, "v", v, (total_k, kv_heads, dim), dtype, device)
    batch = max(cu_seqlens_q.numel() - 1, 0) if isinstance(cu_seqlens_q, Tensor) else 0
    cu_seqlens_q = vector(op, "cu_seqlens_q", cu_seqlens_q, batch + 1, torch.int32, device)
    cu_seqlens_k = vector(op, "cu_seqlens_k", cu_seqlens_k, batch + 1, torch.int32, device)
    if key_bias is not None:
        key_bias = vector(op, "key_bias", key_bias, total_k, torch.float32, device)
    strides = (0, 0, 0)
    if bias is not None:
        bias, strides = score_bias(op, bias, (batch, heads, max_seqlen_q, max_seqlen_k), device)
    return AttentionOperands(
        code, total_q, total_k, heads, kv_heads, dim, batch, q, k, v, cu_seqlens_q, cu_seqlens_k,
        max_seqlen_q, max_seqlen_k, scale, causal, key_bias, bias, strides,
    )  # fmt: skip


def score_bias(
    op: str, bias: object, shape: tuple[int, int, int, int], device: torch.device
) -> tuple[Tensor, tuple[int, int, int]]:
    """Return a bias of attention scores as float32 with adjacent keys, and its strides.

    Strides are over sequences, heads and queries, 0 where the bias is broadcast.
    """
    batch, heads, queries, keys = shape
    if not (
        isinstance(bias, Tensor) and bias.is_floating_point() and fits(bias, bias.dtype, device)
    ):
        raise wrong_kind(op, "bias", bias, torch.float32, device)
    allowed = ((1, batch), (1, heads), (queries,), (keys,))
    if bias.dim() != 4 or any(n not in ok for n, ok in zip(bias.shape, allowed, strict=True)):
        raise ValueError(
            f"{op}: bias has shape {tuple(bias.shape)}, expected ({batch} or 1, {heads} or 1, "
            f"{queries}, {keys})."
        )
    bias = bias.to(torch.float32)
    if bias.stride(3) != 1:
        bias = bias.contiguous()
    strides = bias.stride()
    over_batch = 0 if bias.shape[0] == 1 else strides[0]
    over_heads = 0 if bias.shape[1] == 1 else strides[1]
    return bias, (over_batch, over_heads, strides[2])


def fake(*, q: Tensor, **_: object) -> Tensor:
    """Return an empty result."""
    return q.new_empty(q.shape)


def supports(backend: str, traits: Traits) -> str | None:
    """Return None, or why the backend's kernel cannot serve these traits."""
    if traits.attention_dropout > 0.0:
        return "no kernel drops attention weights, and dropout is active"
    return None


def _make(
    dtype: torch.dtype,
    *,
    lengths: list[int],
    key_lengths: list[int] | None = None,
    heads: int = 2,
    dim: int = 64,
    std: float = 1.0,
    causal: bool = False,
    masked: bool = False,
    bias: tuple[int, int] | None = None,
    spare: int = 0,
) -> Arguments:
    """`spare` widens the declared maximal lengths; `bias` is (batch or 1, heads or 1)."""
    key_lengths = lengths if key_lengths is None else key_lengths
    sample = Sampler(sum(lengths) * 1009 + sum(key_lengths) * 31 + dim, dtype)
    total_q, total_k = sum(lengths), sum(key_lengths)
    max_q, max_k = max(lengths) + spare, max(key_lengths) + spare
    if key_lengths == lengths:
        # Views into one projection, as models make them.
        q, k, v = (
            sample.normal(total_q, 3 * heads * dim, std=std).view(total_q, 3, heads, dim).unbind(1)
        )
    else:
        q = sample.normal(total_q, heads, dim, std=std)
        k = sample.normal(total_k, heads, dim, std=std)
        v = sample.normal(total_k, heads, dim)
    key_bias = None
    if masked:
        hidden = sample.ids(total_k, 3) == 0
        hidden[-1:] = True
        key_bias = torch.zeros(total_k).masked_fill(hidden, torch.finfo(torch.float32).min)
    return {
        "q": q,
        "k": k,
        "v": v,
        "cu_seqlens_q": offsets(lengths),
        "cu_seqlens_k": offsets(key_lengths),
        "max_seqlen_q": max_q,
        "max_seqlen_k": max_k,
        "scale": dim**-0.5,
        "causal": causal,
        "key_bias": key_bias,
        "bias": None if bias is None else sample.normal(*bias, max_q, max_k),
    }


def _make_all_masked(dtype: torch.dtype) -> Arguments:
    out = _make(dtype, lengths=[5, 9])
    out["key_bias"] = torch.zeros(14)
    out["key_bias"][:5] = torch.finfo(torch.float32).min
    return out


def cases() -> Iterator[Case]:
    """Yield the sample calls."""
    yield Case("empty", partial(_make, lengths=[0, 0]))
    yield Case("single", partial(_make, lengths=[1], heads=1))
    for dim in (1, 8, 20, 31, 32, 64, 80, 96, 128):
        yield Case(f"dim-{dim}", partial(_make, lengths=[13, 1, 37], dim=dim))
    for length in (2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 131, 257):
        yield Case(f"length-{length}", partial(_make, lengths=[length], heads=3))
    ragged = [3, 0, 40, 1, 0, 129, 17]
    yield Case("ragged", partial(_make, lengths=ragged, heads=3))
    yield Case("ragged-wide", partial(_make, lengths=ragged, spare=5))
    yield Case("ragged-causal", partial(_make, lengths=ragged, causal=True))
    yield Case("ragged-masked", partial(_make, lengths=ragged, masked=True))
    yield Case("all-masked", _make_all_masked)
    cross = [5, 2, 0, 70, 33]
    other = [9, 0, 3, 41, 130]
    yield Case("cross", partial(_make, lengths=cross, key_lengths=other))
    yield Case("cross-causal", partial(_make, lengths=cross, key_lengths=other, causal=True))
    yield Case("decode", partial(_make, lengths=[1, 1], key_lengths=[9, 40], causal=True))
    for batch, heads in ((1, 1), (1, 2), (3, 1), (3, 2)):
        yield Case(
            f"bias-{batch}x{heads}",
            partial(_make, lengths=[19, 5, 66], bias=(batch, heads), spare=batch - 1),
        )
    yield Case(
        "everything",
        partial(_make, lengths=[19, 5, 66], bias=(3, 2), masked=True, causal=True, dim=32),
    )
    # Scores of several hundred: exp overflows unless the maximum is taken out first.
    yield Case("peaked", partial(_make, lengths=[21, 70], std=6.0))


def _changed(**changes: Callable[[Any], Any]) -> Callable[..., Tensor]:
    def mutated(**arguments: Any) -> Tensor:
        return attention_varlen(
            **{name: changes.get(name, lambda v: v)(value) for name, value in arguments.items()}
        )

    return mutated


def _with_visibility(
    visibility: Callable[[Tensor, Tensor, Tensor, Tensor, bool], Tensor],
) -> Callable[..., Tensor]:
    """Return the op with another rule, of (query, key, len_q, len_k, causal), for visibility."""

    def mutated(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        scale: float,
        causal: bool,
        key_bias: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        queries = torch.arange(max_seqlen_q)[None, None, :, None]
        keys = torch.arange(max_seqlen_k)[None, None, None, :]
        len_q = _lengths(cu_seqlens_q)[:, None, None, None]
        len_k = _lengths(cu_seqlens_k)[:, None, None, None]
        visible = visibility(queries, keys, len_q, len_k, causal)
        query_grid = to_grid(q, cu_seqlens_q, max_seqlen_q).transpose(1, 2)
        key_grid = to_grid(k, cu_seqlens_k, max_seqlen_k).transpose(1, 2)
        scores = torch.matmul(query_grid, key_grid.transpose(2, 3)).float() * scale
        if key_bias is not None:
            scores = scores + to_grid(key_bias, cu_seqlens_k, max_seqlen_k)[:, None, None, :]
        if bias is not None:
            scores = scores + bias
        probs = masked_softmax(scores, visible).to(q.dtype)
        return attention_context(probs, v, cu_seqlens_q, cu_seqlens_k, q.shape[0])

    return mutated


def _one_future_key(i: Tensor, j: Tensor, len_q: Tensor, len_k: Tensor, causal: bool) -> Tensor:
    return (j < len_k) & ((j <= i + len_k - len_q + 1) if causal else (j >= 0))


def _aligned_at_start(i: Tensor, j: Tensor, len_q: Tensor, len_k: Tensor, causal: bool) -> Tensor:
    return (j < len_k) & ((j <= i) if causal else (j >= 0))


def _last_key_ignored(i: Tensor, j: Tensor, len_q: Tensor, len_k: Tensor, causal: bool) -> Tensor:
    return (j < len_k - 1) & ((j <= i + len_k - len_q) if causal else (j >= 0))


def _padding_seen(i: Tensor, j: Tensor, len_q: Tensor, len_k: Tensor, causal: bool) -> Tensor:
    return (j <= len_k) & ((j <= i + len_k - len_q) if causal else (j >= 0))


def _neighbours_seen(**arguments: Any) -> Tensor:
    for side in ("q", "k"):
        cu_seqlens = arguments[f"cu_seqlens_{side}"]
        arguments[f"cu_seqlens_{side}"] = cu_seqlens[[0, -1]]
        arguments[f"max_seqlen_{side}"] = int(cu_seqlens[-1])
    arguments["bias"] = None
    return attention_varlen(**arguments)


def _no_maximum(**arguments: Any) -> Tensor:
    q, k = arguments["q"].float(), arguments["k"].float()
    if q.shape != k.shape or q.shape[0] == 0:
        return attention_varlen(**arguments)
    overflowed = torch.exp(torch.einsum("ihd,jhd->hij", q, k) * arguments["scale"])
    finite = torch.isfinite(overflowed).all()
    out = attention_varlen(**arguments)
    return out if finite else torch.full_like(out, float("nan"))


def _heads_swapped(**arguments: Any) -> Tensor:
    arguments["v"] = arguments["v"].roll(1, dims=1)
    return attention_varlen(**arguments)


def _bias_transposed(**arguments: Any) -> Tensor:
    bias = arguments["bias"]
    arguments["bias"] = None if bias is None else bias.transpose(2, 3)
    return attention_varlen(**arguments)


OP = Op(
    name="attention_varlen",
    reference=attention_varlen,
    check=check,
    fake=fake,
    supports=supports,
    tolerances=STANDARD_TOLERANCES,
    cases=cases,
    mutations=(
        Mutation("scale missing", _changed(scale=lambda _: 1.0)),
        Mutation("causal mask shows one future key", _with_visibility(_one_future_key)),
        Mutation("causal mask aligned at the start", _with_visibility(_aligned_at_start)),
        Mutation("causal mask ignored", _changed(causal=lambda _: False)),
        Mutation("last key ignored", _with_visibility(_last_key_ignored)),
        Mutation("one key of padding seen", _with_visibility(_padding_seen)),
        Mutation("keys of other sequences seen", _neighbours_seen),
        Mutation("key_bias ignored", _changed(key_bias=lambda _: None)),
        Mutation("bias ignored", _changed(bias=lambda _: None)),
        Mutation("bias transposed", _bias_transposed),
        Mutation("maximum not taken out of the exponent", _no_maximum),
        Mutation("heads swapped", _heads_swapped),
    ),
)
