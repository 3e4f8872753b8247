"""Attention over packed sequences in which groups of query heads share a key/value head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastbert.ops._op import STANDARD_TOLERANCES, Arguments, Case, Mutation, Op, Traits
from fastbert.ops._sample import Sampler, offsets
from fastbert.ops.attention_varlen import (
    AttentionOperands,
    attention_varlen,
    checked_attention,
    from_grid,
    masked_softmax,
    supports as attention_varlen_supports,
    to_grid,
    visible_keys,
)
from fastbert.ops.operands import Target


def attention_grouped(
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
    """Compute `attention_varlen` where query head h reads key/value head h // (heads / kv_heads).

    Args:
        q: (total_q, num_heads, head_dim), floating; the last dimension contiguous, the other
            strides free.
        k: (total_k, num_kv_heads, head_dim), q.dtype; num_heads is a multiple of num_kv_heads.
        v: (total_k, num_kv_heads, head_dim), q.dtype.
        cu_seqlens_q: int32 (batch + 1,), as in `attention_varlen`, like all that follows.
        cu_seqlens_k: the same for keys and values.
        max_seqlen_q: at least the longest length of queries.
        max_seqlen_k: at least the longest length of keys.
        scale: multiplies q @ k.T.
        causal: key j is visible to query i iff j <= i + len_k - len_q.
        key_bias: float32 (total_k,), added to every score of that key.
        bias: floating, (batch or 1, num_heads or 1, max_seqlen_q, max_seqlen_k), added to the
            scores.

    Returns:
        (total_q, num_heads, head_dim), q.dtype.

    Source: Ainslie et al. 2023, "GQA: training generalized multi-query transformer models".
    """
    out, _ = grouped_with_probs(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale, causal, key_bias,
        bias,
    )  # fmt: skip
    return out


def grouped_with_probs(
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
) -> tuple[Tensor, Tensor]:
    """Compute `attention_grouped` and the weights that multiplied v.

    Weights are dropped with probability dropout_p; they are (batch, num_heads, max_seqlen_q,
    max_seqlen_k), q.dtype, zero beyond the end of a sequence.
    """
    batch, heads, kv_heads = cu_seqlens_q.shape[0] - 1, q.shape[1], k.shape[1]
    wide = torch.promote_types(q.dtype, torch.float32)
    queries = to_grid(q, cu_seqlens_q, max_seqlen_q).transpose(1, 2)
    keys = to_grid(k, cu_seqlens_k, max_seqlen_k).transpose(1, 2)
    values = to_grid(v, cu_seqlens_k, max_seqlen_k).transpose(1, 2)
    # The queries of a group stand below each other, so that no key is copied for each of them.
    group = (batch, kv_heads, heads // kv_heads * max_seqlen_q)
    scores = torch.matmul(queries.reshape(*group, q.shape[2]), keys.transpose(2, 3))
    scores = scores.reshape(batch, heads, max_seqlen_q, max_seqlen_k).to(wide) * scale
    if key_bias is not None:
        scores = scores + to_grid(key_bias, cu_seqlens_k, max_seqlen_k)[:, None, None, :].to(wide)
    if bias is not None:
        scores = scores + bias.to(wide)
    visible = visible_keys(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal)
    probs = masked_softmax(scores, visible).to(q.dtype)
    if dropout_p > 0.0:
        probs = F.dropout(probs, dropout_p, training=True)
    context = torch.matmul(probs.reshape(*group, max_seqlen_k), values)
    context = context.reshape(batch, heads, max_seqlen_q, v.shape[2]).transpose(1, 2)
    return from_grid(context, cu_seqlens_q, q.shape[0]), probs


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
    """Return the operands of `attention_grouped`.

    Raises:
        TypeError, ValueError: for operands that kernels do not take, with the reason.
    """
    return checked_attention(
        "attention_grouped", True, target, q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
        max_seqlen_k, scale, causal, key_bias, bias,
    )  # fmt: skip


def fake(*, q: Tensor, **_: object) -> Tensor:
    """Return an empty result."""
    return q.new_empty(q.shape)


def supports(backend: str, traits: Traits) -> str | None:
    """Return None, or why the backend's kernel cannot serve these traits."""
    return attention_varlen_supports(backend, traits)


def _make(
    dtype: torch.dtype,
    *,
    lengths: list[int],
    key_lengths: list[int] | None = None,
    heads: int = 4,
    kv_heads: int = 2,
    dim: int = 32,
    std: float = 1.0,
    causal: bool = True,
    masked: bool = False,
    bias: tuple[int, int] | None = None,
) -> Arguments:
    """`bias` is (batch or 1, heads or 1)."""
    key_lengths = lengths if key_lengths is None else key_lengths
    sample = Sampler(sum(lengths) * 1009 + sum(key_lengths) * 31 + dim + heads, dtype)
    total_q, total_k = sum(lengths), sum(key_lengths)
    key_bias = None
    if masked:
        hidden = sample.ids(total_k, 3) == 0
        hidden[-1:] = True
        key_bias = torch.zeros(total_k).masked_fill(hidden, torch.finfo(torch.float32).min)
    fused = sample.normal(total_k, 2 * kv_heads * dim, std=std).view(total_k, 2, kv_heads, dim)
    return {
        "q": sample.normal(total_q, heads, dim, std=std),
        "k": fused[:, 0],
        "v": fused[:, 1],
        "cu_seqlens_q": offsets(lengths),
        "cu_seqlens_k": offsets(key_lengths),
        "max_seqlen_q": max(lengths),
        "max_seqlen_k": max(key_lengths),
        "scale": dim**-0.5,
        "causal": causal,
        "key_bias": key_bias,
        "bias": None if bias is None else sample.normal(*bias, max(lengths), max(key_lengths)),
    }


def cases() -> Iterator[Case]:
    """Yield the sample calls."""
    yield Case("empty", partial(_make, lengths=[0, 0]))
    yield Case("single", partial(_make, lengths=[1], heads=2, kv_heads=1))
    for heads, kv_heads in ((3, 3), (4, 1), (6, 2), (8, 4)):
        make = partial(_make, heads=heads, kv_heads=kv_heads)
        yield Case(f"heads-{heads}-{kv_heads}", partial(make, lengths=[13, 1, 29]))
    for dim in (8, 16, 64, 80, 128):
        yield Case(f"dim-{dim}", partial(_make, lengths=[17, 40], dim=dim))
    ragged = [3, 0, 40, 1, 0, 65, 17]
    yield Case("ragged", partial(_make, lengths=ragged))
    yield Case("ragged-both-ways", partial(_make, lengths=ragged, causal=False))
    yield Case("ragged-masked", partial(_make, lengths=ragged, masked=True))
    later = [9, 3, 3, 41, 130]
    yield Case("continued", partial(_make, lengths=[5, 2, 1, 7, 33], key_lengths=later))
    yield Case("one-token", partial(_make, lengths=[1, 1, 1], key_lengths=[9, 40, 257]))
    for batch, heads in ((1, 1), (1, 4), (3, 1), (3, 4)):
        make = partial(_make, lengths=[19, 5, 33], bias=(batch, heads))
        yield Case(f"bias-{batch}x{heads}", partial(make, causal=False))
    yield Case("everything", partial(_make, lengths=[19, 5, 33], bias=(3, 4), masked=True))
    # Scores of several hundred: exp overflows unless the maximum is taken out first.
    yield Case("peaked", partial(_make, lengths=[21, 70], std=6.0))


def _expanded(choose: Callable[[int, int], Tensor], **arguments: Any) -> Tensor:
    """Compute attention with as many key heads, the one of each query head as it is chosen."""
    chosen = choose(arguments["q"].shape[1], arguments["k"].shape[1])
    arguments["k"], arguments["v"] = arguments["k"][:, chosen], arguments["v"][:, chosen]
    return attention_varlen(**arguments)


def _by_remainder(heads: int, kv_heads: int) -> Tensor:
    return torch.arange(heads) % kv_heads


def _first_only(heads: int, kv_heads: int) -> Tensor:
    return torch.zeros(heads, dtype=torch.int64)


def _changed(**changes: Callable[[Any], Any]) -> Callable[..., Tensor]:
    def mutated(**arguments: Any) -> Tensor:
        return attention_grouped(
            **{name: changes.get(name, lambda v: v)(value) for name, value in arguments.items()}
        )

    return mutated


def _neighbours_seen(**arguments: Any) -> Tensor:
    for side in ("q", "k"):
        cu_seqlens = arguments[f"cu_seqlens_{side}"]
        arguments[f"cu_seqlens_{side}"] = cu_seqlens[[0, -1]]
        arguments[f"max_seqlen_{side}"] = int(cu_seqlens[-1])
    return attention_grouped(**{**arguments, "bias": None})


def _aligned_at_start(**arguments: Any) -> Tensor:
    if not arguments["causal"]:
        return attention_grouped(**arguments)
    rows = torch.arange(arguments["max_seqlen_q"])[:, None]
    later = torch.arange(arguments["max_seqlen_k"])[None, :] > rows
    hidden = torch.zeros(later.shape).masked_fill(later, float("-inf"))
    bias = arguments["bias"]
    given = hidden[None, None] if bias is None else bias + hidden
    return attention_grouped(**{**arguments, "causal": False, "bias": given})


OP = Op(
    name="attention_grouped",
    reference=attention_grouped,
    check=check,
    fake=fake,
    supports=supports,
    tolerances=STANDARD_TOLERANCES,
    cases=cases,
    mutations=(
        Mutation("key head by remainder", partial(_expanded, _by_remainder)),
        Mutation("first key head for all", partial(_expanded, _first_only)),
        Mutation("scale missing", _changed(scale=lambda _: 1.0)),
        Mutation("causal mask ignored", _changed(causal=lambda _: False)),
        Mutation("causal mask aligned at the start", _aligned_at_start),
        Mutation("keys of other sequences seen", _neighbours_seen),
        Mutation("key_bias ignored", _changed(key_bias=lambda _: None)),
        Mutation("bias ignored", _changed(bias=lambda _: None)),
        Mutation("values of other heads", _changed(v=lambda v: v.roll(1, dims=1))),
    ),
)
