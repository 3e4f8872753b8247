"""Attention and dropout of a training pass, with gradients: products by torch, rows by kernels.

Which weights and elements are dropped follows from a seed that torch's generator gives and from
their place (csrc/cpu/ops/dropout.h). So `torch.manual_seed` repeats a pass, and
`torch.utils.checkpoint` drops the same again, while no mask is stored. Saved for the backward pass
are queries, keys and values, and two numbers a row of weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from fastbert.kernels import native
from fastbert.kernels.cpu import use_torch_threads
from fastbert.ops.attention_grouped import grouped_with_probs
from fastbert.ops.attention_sequences import (
    Group,
    Packing,
    attention_by_sequence,
    by_heads,
    by_rows,
    over_groups,
)
from fastbert.ops.operands import CODES, address, obstacle

_DTYPES = (torch.float32, torch.bfloat16)
# Random words of a row come in chunks of so many; csrc/cpu/ops/dropout.h.
_CHUNK = 64
# What torch.autograd.grad(..., is_grads_batched=True) hands to a backward pass.
_batched = torch._C._functorch.is_legacy_batchedtensor


class _Dropping(NamedTuple):
    """What decides which elements are dropped.

    Attributes:
        seed: of the random words.
        threshold: 2^24 times the probability.
        drop_scale: multiplies what is kept.
    """

    seed: int
    threshold: float
    drop_scale: float

    @classmethod
    def draw(cls, probability: float, count: int) -> list[_Dropping]:
        """Draw seeds from torch's generator, none where nothing is dropped."""
        if probability == 0.0:
            return [cls(0, 0.0, 1.0)] * count
        threshold = float(round(probability * 2**24))
        scale = 0.0 if probability == 1.0 else 1.0 / (1.0 - probability)
        seeds = torch.randint(2**62, (count,), dtype=torch.int64).tolist()
        return [cls(seed, threshold, scale) for seed in seeds]


class _Attended(NamedTuple):
    """What an attention is computed with, beside its tensors.

    Attributes:
        packing: where the sequences lie.
        heads: of the queries.
        kv_heads: of keys and values.
        scale, causal: as for `attention_varlen`.
        dropping: for each group.
    """

    packing: Packing
    heads: int
    kv_heads: int
    scale: float
    causal: bool
    dropping: list[_Dropping]

    def softmax(
        self, index: int, scores: Tensor, statistics: Tensor, bias: Tensor | None
    ) -> _SoftmaxCall:
        group = self.packing.groups[index]
        return _SoftmaxCall(self, group, self.dropping[index], scores, statistics, bias)


class _SoftmaxCall(NamedTuple):
    """One call of the softmax of a group's scores, in place."""

    attended: _Attended
    group: Group
    dropping: _Dropping
    scores: Tensor
    statistics: Tensor
    bias: Tensor | None

    def arguments(self, gradients: Tensor | None) -> Any:
        attended, group = self.attended, self.group
        return native.library.SoftmaxArgs(
            scores=self.scores.data_ptr(),
            gradients=address(gradients),
            statistics=self.statistics.data_ptr(),
            key_bias=address(self.bias),
            sequences=len(group.members),
            heads=attended.heads,
            queries=group.queries,
            keys=group.keys,
            seed=self.dropping.seed,
            threshold=self.dropping.threshold,
            drop_scale=self.dropping.drop_scale,
            scale=attended.scale,
            causal=attended.causal,
            dtype=CODES[self.scores.dtype],
        )


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None, attended: _Attended
    ) -> Tensor:
        use_torch_threads()
        statistics: list[Tensor] = []

        def compute(group: Group, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
            scores = torch.bmm(q, k.transpose(1, 2))
            rows = scores.new_empty(
                len(group.members) * attended.heads * group.queries, 2, dtype=torch.float32
            )
            call = attended.softmax(len(statistics), scores, rows, bias)
            statistics.append(rows)
            native.library.softmax_dropout(call.arguments(None))
            return torch.bmm(scores, v)

        out = over_groups(attended.packing, q, k, v, key_bias, compute)
        ctx.save_for_backward(q, k, v, key_bias, *statistics)
        ctx.attended = attended
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, key_bias, *statistics = ctx.saved_tensors
        attended: _Attended = ctx.attended
        with torch.autocast("cpu", enabled=False):
            if torch.is_grad_enabled() or not _plain(gradient):
                found = _differentiable(q, k, v, key_bias, attended, gradient, ctx)
                return *found, None, None
            return *_gradients(q, k, v, key_bias, attended, gradient, statistics), None, None


def _gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_bias: Tensor | None,
    attended: _Attended,
    gradient: Tensor,
    statistics: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of an attention, group by group."""
    use_torch_threads()
    queries, keys, groups = attended.packing
    heads, kv_heads = attended.heads, attended.kv_heads
    tensors = ((q, queries), (k, keys), (v, keys), (gradient, queries))
    parts = [torch.split(x, lengths) for x, lengths in tensors]
    biases = None if key_bias is None else torch.split(key_bias, keys)
    found: tuple[list[Tensor], ...] = ([q] * len(queries), [k] * len(keys), [v] * len(keys))
    for index, (group, rows) in enumerate(zip(groups, statistics, strict=True)):
        q_rows, k_rows, v_rows, flowing = (by_heads(part, group, kv_heads) for part in parts)
        scores = torch.bmm(q_rows, k_rows.transpose(1, 2))
        gradients = torch.bmm(flowing, v_rows.transpose(1, 2))
        bias = None if biases is None else torch.stack([biases[m] for m in group.members])
        call = attended.softmax(index, scores, rows, bias)
        native.library.softmax_dropout_backward(call.arguments(gradients))
        results = (
            (torch.bmm(gradients, k_rows), heads),
            (torch.bmm(gradients.transpose(1, 2), q_rows), kv_heads),
            (torch.bmm(scores.transpose(1, 2), flowing), kv_heads),
        )
        for places, (result, count) in zip(found, results, strict=True):
            for member, part in zip(group.members, by_rows(result, group, count), strict=True):
                places[member] = part
    dq, dk, dv = (torch.cat(places) if places else None for places in found)
    assert dq is not None and dk is not None and dv is not None
    return dq, dk, dv


def _differentiable(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_bias: Tensor | None,
    attended: _Attended,
    gradient: Tensor,
    ctx: Any,
) -> tuple[Tensor | None, ...]:
    """Compute the same gradients by torch's own ops.

    So they have gradients themselves, and may be computed for many of `gradient` at once.
    """
    groups = attended.packing.groups

    def factors(group: Group) -> Tensor:
        rows = len(group.members) * attended.heads * group.queries
        chunks = (group.keys + _CHUNK - 1) // _CHUNK
        ones = torch.ones(rows, chunks * _CHUNK, dtype=torch.float32, device="cpu")
        dropping = attended.dropping[groups.index(group)]
        return _dropped(ones, None, dropping, ones.dtype)[:, : group.keys]

    drops = any(dropping.threshold for dropping in attended.dropping)
    twice = torch.is_grad_enabled()
    with torch.enable_grad():
        out = attention_by_sequence(
            q, k, v, attended.packing, attended.scale, attended.causal, key_bias,
            factors=factors if drops else None,
        )  # fmt: skip
    wanted = [x for x, need in zip((q, k, v), ctx.needs_input_grad, strict=False) if need]
    found = iter(torch.autograd.grad(out, wanted, gradient, create_graph=twice))
    return tuple(next(found) if need else None for need in ctx.needs_input_grad[:3])


def attention(
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
    kernels: bool = True,
) -> Tensor:
    """Compute `attention_grouped`, of which `attention_varlen` is a case, with gradients.

    Sequence by sequence, unless a bias is given or the pass is traced or transformed: then on the
    grid. Weights are dropped with probability dropout_p. Without `kernels`, by torch alone.
    """
    if bias is not None or not _plain(q, k, v, key_bias):
        return on_grid(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale, causal,
            key_bias, bias, dropout_p=dropout_p,
        )  # fmt: skip
    packing = Packing.of(cu_seqlens_q, cu_seqlens_k, q.shape[1])
    if torch.is_autocast_enabled("cpu"):
        lower = torch.get_autocast_dtype("cpu")
        q, k, v = (x.to(lower) if x.dtype is torch.float32 else x for x in (q, k, v))
    with torch.autocast("cpu", enabled=False):
        served = {q.dtype, k.dtype, v.dtype} in ({torch.float32}, {torch.bfloat16})
        if not (kernels and served and packing.groups):
            return attention_by_sequence(q, k, v, packing, scale, causal, key_bias, dropout_p)
        dropping = _Dropping.draw(dropout_p, len(packing.groups))
        if key_bias is not None:
            key_bias = key_bias.to(torch.float32)
        attended = _Attended(packing, q.shape[1], k.shape[1], scale, causal, dropping)
        out: Tensor = _Attention.apply(  # type: ignore[no-untyped-call]
            q, k, v, key_bias, attended
        )
        return out


def on_grid(q: Tensor, k: Tensor, v: Tensor, *arguments: Any, dropout_p: float = 0.0) -> Tensor:
    """Compute the same as `attention` by its definition, over a grid padded to the longest."""
    return grouped_with_probs(q, k, v, *arguments, dropout_p=dropout_p)[0]


def _dropped(x: Tensor, residual: Tensor | None, dropping: _Dropping, dtype: torch.dtype) -> Tensor:
    use_torch_threads()
    x = x.contiguous()
    out = torch.empty(x.shape, dtype=dtype)
    residual = None if residual is None else residual.to(dtype).contiguous()
    native.library.dropout_add(
        native.library.DropoutArgs(
            x=x.data_ptr(),
            residual=address(residual),
            out=out.data_ptr(),
            count=x.numel(),
            seed=dropping.seed,
            threshold=dropping.threshold,
            drop_scale=dropping.drop_scale,
            dtype=CODES[x.dtype],
            out_dtype=CODES[dtype],
        )
    )
    return out


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, dropping: _Dropping, dtype: torch.dtype
    ) -> Tensor:
        ctx.dropping, ctx.shape = dropping, x.shape
        ctx.dtypes = x.dtype, None if residual is None else residual.dtype
        return _dropped(x, residual, dropping, dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        dtype, other = ctx.dtypes
        if _plain(gradient):
            # What is dropped of the gradient has gradients of its own.
            dropped = _Dropout.apply(  # type: ignore[no-untyped-call]
                gradient, None, ctx.dropping, dtype
            )
        else:
            ones = torch.ones(ctx.shape, dtype=torch.float32, device="cpu")
            dropped = (gradient * _dropped(ones, None, ctx.dropping, ones.dtype)).to(dtype)
        return dropped, None if other is None else gradient.to(other), None, None


def dropout(x: Tensor, probability: float, residual: Tensor | None = None) -> Tensor:
    """Drop elements with a probability, multiply the others by 1 / (1 - probability), and add.

    Args:
        x: any shape, floating.
        probability: 0 to 1.
        residual: of the same shape, or None.

    Returns:
        The shape of x, in the wider dtype of the two.
    """
    same = residual is None or residual.shape == x.shape
    if not (same and x.dtype in _DTYPES and _plain(x, residual)) or (
        residual is not None and residual.dtype not in _DTYPES
    ):
        return torch_dropout(x, probability, residual)
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    (dropping,) = _Dropping.draw(probability, 1)
    out: Tensor = _Dropout.apply(x, residual, dropping, dtype)  # type: ignore[no-untyped-call]
    return out


def torch_dropout(x: Tensor, probability: float, residual: Tensor | None = None) -> Tensor:
    """Compute `dropout` by torch's own."""
    out = F.dropout(x, probability, training=True)
    return out if residual is None else residual + out


def _plain(*tensors: Tensor | None) -> bool:
    """Whether kernels may compute with these, and nobody traces or transforms the pass."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or any(x is not None and (x.device.type != "cpu" or _batched(x)) for x in tensors)
        or obstacle(tensors, memory=False) is not None
    )


class RowFunctions(NamedTuple):
    """How a pass with gradients or dropout computes what is neither product nor norm.

    Attributes:
        attention: takes what `attention_grouped` takes, and dropout_p.
        dropout: takes x, probability and residual, as `dropout`.
        note: what is to be said of the attention, "" where it is the definition.
    """

    attention: Callable[..., Tensor]
    dropout: Callable[[Tensor, float, Tensor | None], Tensor]
    note: str


BY_DEFINITION = RowFunctions(on_grid, torch_dropout, "")
BY_TORCH = RowFunctions(
    partial(attention, kernels=False), torch_dropout, "sequence by sequence where no bias is given"
)
BY_KERNELS = RowFunctions(
    attention, dropout, f"{BY_TORCH.note}, its softmax and dropout on kernels"
)
