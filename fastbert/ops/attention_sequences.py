"""The reference of attention, sequence by sequence: no grid is padded to the longest of a batch.

`attention_varlen` defines the op on a grid. What is here computes the same over the sequences as
they are packed, those of equal lengths stacked, and can drop weights on the way. Training runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastbert.ops.attention_varlen import masked_softmax, thinned

# Scores that are in memory at a time, unless one sequence has more of them.
_MOST_SCORES = 1 << 22


class Group(NamedTuple):
    """Sequences of equal lengths, which are computed together.

    Attributes:
        members: their numbers in the batch.
        queries, keys: the length of each.
    """

    members: tuple[int, ...]
    queries: int
    keys: int


class Packing(NamedTuple):
    """Where the sequences of a batch lie, and which of them are computed together.

    Attributes:
        queries, keys: lengths of the sequences.
        groups: every sequence is in one of them.
    """

    queries: list[int]
    keys: list[int]
    groups: list[Group]

    @classmethod
    def of(cls, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, heads: int) -> Packing:
        """Read the offsets of a batch, as `attention_varlen` takes them."""
        queries = cu_seqlens_q.diff().tolist()
        keys = queries if cu_seqlens_k is cu_seqlens_q else cu_seqlens_k.diff().tolist()
        alike: dict[tuple[int, int], list[int]] = {}
        for member, lengths in enumerate(zip(queries, keys, strict=True)):
            alike.setdefault(lengths, []).append(member)
        groups = []
        for (queries_each, keys_each), members in alike.items():
            most = max(1, _MOST_SCORES // max(1, heads * queries_each * keys_each))
            for first in range(0, len(members), most):
                groups.append(Group(tuple(members[first : first + most]), queries_each, keys_each))
        return cls(queries, keys, groups)


# From a group, its queries (sequences * kv_heads, heads / kv_heads * queries, head_dim), keys and
# values (sequences * kv_heads, keys, head_dim), and key_bias (sequences, keys): what comes of q.
Compute = Callable[[Group, Tensor, Tensor, Tensor, Tensor | None], Tensor]


def over_groups(
    packing: Packing, q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None, compute: Compute
) -> Tensor:
    """Compute (total_q, num_heads, head_dim) from what `compute` makes of each group.

    Differentiable, in any order, where `compute` is.
    """
    kv_heads, heads = k.shape[1], q.shape[1]
    q_parts = torch.split(q, packing.queries)
    k_parts, v_parts = torch.split(k, packing.keys), torch.split(v, packing.keys)
    biases = None if key_bias is None else torch.split(key_bias, packing.keys)
    found: list[Tensor] = [q] * len(q_parts)
    for group in packing.groups:
        context = compute(
            group,
            by_heads(q_parts, group, kv_heads),
            by_heads(k_parts, group, kv_heads),
            by_heads(v_parts, group, kv_heads),
            None if biases is None else torch.stack([biases[m] for m in group.members]),
        )
        for member, part in zip(group.members, by_rows(context, group, heads), strict=True):
            found[member] = part
    return torch.cat(found) if found else q.clone()


def by_heads(parts: Sequence[Tensor], group: Group, kv_heads: int) -> Tensor:
    """Stack (length, heads, dim) of a group's sequences: (sequences * kv_heads, rows, dim)."""
    chosen = [parts[member] for member in group.members]
    stacked = chosen[0][None] if len(chosen) == 1 else torch.stack(chosen)
    return stacked.transpose(1, 2).reshape(len(chosen) * kv_heads, -1, stacked.shape[3])


def by_rows(x: Tensor, group: Group, heads: int) -> tuple[Tensor, ...]:
    """Undo `by_heads`: (length, heads, dim) of each sequence."""
    sequences = len(group.members)
    rows = x.numel() // max(1, sequences * heads * x.shape[2])
    return x.reshape(sequences, heads, rows, x.shape[2]).transpose(1, 2).unbind()


def attention_by_sequence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packing: Packing,
    scale: float,
    causal: bool,
    key_bias: Tensor | None,
    dropout_p: float = 0.0,
    factors: Callable[[Group], Tensor] | None = None,
) -> Tensor:
    """Compute `attention_grouped` without a bias, sequence by sequence.

    Args:
        q: (total_q, num_heads, head_dim).
        k: (total_k, num_kv_heads, head_dim).
        v: (total_k, num_kv_heads, head_dim).
        packing: where the sequences lie.
        scale: multiplies q @ k.T.
        causal: key j is visible to query i iff j <= i + len_k - len_q.
        key_bias: float32 (total_k,).
        dropout_p: probability with which weights are dropped, by torch's generator.
        factors: in its place, what the weights of a group are multiplied with, (sequences * heads *
            queries, keys).

    Returns:
        (total_q, num_heads, head_dim), in the dtype of the products.
    """
    heads = q.shape[1]

    def compute(group: Group, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        products = torch.matmul(q, k.transpose(1, 2))
        scores = products.to(torch.promote_types(products.dtype, torch.float32)) * scale
        scores = scores.reshape(len(group.members), heads, group.queries, group.keys)
        if bias is not None:
            scores = scores + bias[:, None, None, :].to(scores.dtype)
        visible = None
        if causal:
            visible = torch.ones(group.queries, group.keys, dtype=torch.bool, device=q.device)
            visible = visible.tril(group.keys - group.queries)
        probs = masked_softmax(scores, visible) if group.keys else scores
        probs = thinned(probs.to(q.dtype), dropout_p, None)
        if factors is not None:
            probs = probs * factors(group).reshape(probs.shape).to(probs.dtype)
        return torch.matmul(probs.reshape(products.shape), v)

    return over_groups(packing, q, k, v, key_bias, compute)
