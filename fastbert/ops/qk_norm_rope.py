"""Normalisation of queries and keys head by head, and their rotation by positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastbert.ops._op import STANDARD_TOLERANCES, Arguments, Case, Mutation, Op, Traits
from fastbert.ops._sample import Sampler
from fastbert.ops.operands import Target, by_heads, matrix, operand, vector
from fastbert.ops.rms_norm import rms_norm


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    eps: float,
    cos: Tensor,
    sin: Tensor,
) -> tuple[Tensor, Tensor]:
    """Normalise every head of q and k by its root mean square, then rotate it by its position.

    Column i of a head and column i + head_dim / 2 are one pair: (a, b) becomes (a cos - b sin,
    b cos + a sin). With 16 bits cos and sin are rounded to q.dtype first.

    Args:
        q: (tokens, num_heads, head_dim), floating; the last dimension contiguous, the other
            strides free (views into a fused projection).
        k: (tokens, num_kv_heads, head_dim), q.dtype.
        q_weight: (head_dim,), q.dtype, the gain of q's heads.
        k_weight: (head_dim,), q.dtype, the gain of k's heads.
        eps: added to the mean of the squares.
        cos: float32 (tokens, head_dim / 2), of the angle of every pair.
        sin: float32 (tokens, head_dim / 2), likewise.

    Returns:
        q and k, of the shapes they had.

    Source: Su et al. 2021, "RoFormer: enhanced transformer with rotary position embedding"; Henry
    et al. 2020, "Query-key normalization for transformers".
    """
    c, s = (part.to(q.dtype)[:, None, :] for part in (cos, sin))
    return (
        rotated(rms_norm(q, q_weight, eps)[0], c, s),
        rotated(rms_norm(k, k_weight, eps)[0], c, s),
    )


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + width / 2) of the last dimension; cos and sin are broadcast."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class QkNormRopeOperands(NamedTuple):
    """Checked operands of `qk_norm_rope`.

    Attributes:
        code: of the dtype of q and k.
        tokens, heads, kv_heads, dim: sizes.
        q, k: (tokens, heads or kv_heads, dim), the last dimension contiguous.
        q_weight, k_weight: (dim,).
        eps: added to the mean of the squares.
        cos, sin: float32 (tokens, dim / 2), by rows.
    """

    code: int
    tokens: int
    heads: int
    kv_heads: int
    dim: int
    q: Tensor
    k: Tensor
    q_weight: Tensor
    k_weight: Tensor
    eps: float
    cos: Tensor
    sin: Tensor


def check(
    target: Target,
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    eps: float,
    cos: Tensor,
    sin: Tensor,
) -> QkNormRopeOperands:
    """Return the operands of `qk_norm_rope`.

    Raises:
        TypeError, ValueError: for operands that kernels do not take, with the reason.
    """
    op = "qk_norm_rope"
    q, code = operand(op, "q", q, target)
    if q.dim() != 3 or q.shape[2] % 2:
        raise ValueError(
            f"{op}: q has shape {tuple(q.shape)}, expected (tokens, num_heads, head_dim) with an "
            "even head_dim."
        )
    tokens, heads, dim = q.shape
    dtype, device = q.dtype, q.device
    kv_heads = k.shape[1] if isinstance(k, Tensor) and k.dim() == 3 else 0
    q = by_heads(op, "q", q, (tokens, heads, dim), dtype, device)
    k = by_heads(op, "k", k, (tokens, kv_heads, dim), dtype, device)
    q_weight = vector(op, "q_weight", q_weight, dim, dtype, device)
    k_weight = vector(op, "k_weight", k_weight, dim, dtype, device)
    cos = matrix(op, "cos", cos, tokens, dim // 2, torch.float32, device)
    sin = matrix(op, "sin", sin, tokens, dim // 2, torch.float32, device)
    return QkNormRopeOperands(
        code, tokens, heads, kv_heads, dim, q, k, q_weight, k_weight, eps, cos, sin
    )


def fake(*, q: Tensor, k: Tensor, **_: object) -> tuple[Tensor, Tensor]:
    """Return empty results."""
    return q.new_empty(q.shape), k.new_empty(k.shape)


def supports(backend: str, traits: Traits) -> str | None:
    """Return None, or why the backend's kernel cannot serve these traits."""
    return None


def _make(
    dtype: torch.dtype,
    *,
    tokens: int,
    heads: int = 4,
    kv_heads: int = 2,
    dim: int = 16,
    std: float = 1.0,
    other: bool = False,
) -> Arguments:
    sample = Sampler(tokens * 1009 + heads * 31 + dim, dtype)
    # Views into one projection, as models make them.
    fused = sample.normal(tokens, (heads + kv_heads) * dim, std=std).view(
        tokens, heads + kv_heads, dim
    )
    angles = sample.normal32(tokens, dim // 2, std=3.0)
    return {
        "q": fused[:, :heads],
        "k": fused[:, heads:],
        "q_weight": sample.around_one(dim),
        "k_weight": sample.around_one(dim),
        "eps": 1e-6 if other else 1e-5,
        "cos": angles.cos(),
        "sin": angles.sin(),
    }


def cases() -> Iterator[Case]:
    """Yield the sample calls."""
    for tokens, dim in [
        (0, 16),
        (1, 2),
        (3, 4),
        (2, 6),
        (5, 8),
        (4, 32),
        (3, 64),
        (2, 128),
        (1, 80),
    ]:
        yield Case(f"{tokens}x{dim}", partial(_make, tokens=tokens, dim=dim))
    yield Case("equal-heads", partial(_make, tokens=7, heads=3, kv_heads=3))
    yield Case("one-key-head", partial(_make, tokens=7, heads=6, kv_heads=1))
    yield Case("small", partial(_make, tokens=7, std=1e-3))
    yield Case("small-other-eps", partial(_make, tokens=7, std=1e-3, other=True))


Pair = tuple[Tensor, Tensor]


def _changed(**changes: Callable[[Any], Any]) -> Callable[..., Pair]:
    def mutated(**arguments: Any) -> Pair:
        return qk_norm_rope(
            **{name: changes.get(name, lambda v: v)(value) for name, value in arguments.items()}
        )

    return mutated


def _each(
    function: Callable[[Tensor, Tensor, float, Tensor, Tensor], Tensor],
) -> Callable[..., Pair]:
    """Return the op with another function of (heads, gain, eps, cos, sin)."""

    def mutated(
        q: Tensor,
        k: Tensor,
        q_weight: Tensor,
        k_weight: Tensor,
        eps: float,
        cos: Tensor,
        sin: Tensor,
    ) -> Pair:
        c, s = cos.to(q.dtype)[:, None, :], sin.to(q.dtype)[:, None, :]
        return function(q, q_weight, eps, c, s), function(k, k_weight, eps, c, s)

    return mutated


def _rope_first(x: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    return rms_norm(rotated(x, cos, sin), weight, eps)[0]


def _interleaved(x: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    normed = rms_norm(x, weight, eps)[0]
    a, b = normed[..., ::2], normed[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


def _all_heads(x: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    gains = weight.repeat(x.shape[1])
    normed = rms_norm(x.reshape(x.shape[0], gains.shape[0]), gains, eps)[0].reshape(x.shape)
    return rotated(normed, cos, sin)


def _not_normed(x: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    return rotated(x * weight, cos, sin)


def _queries_only(**arguments: Any) -> Pair:
    q, _ = qk_norm_rope(**arguments)
    return q, rms_norm(arguments["k"], arguments["k_weight"], arguments["eps"])[0]


def _one_gain(**arguments: Any) -> Pair:
    return qk_norm_rope(**{**arguments, "k_weight": arguments["q_weight"]})


def _next_position(angles: Tensor) -> Tensor:
    return angles.roll(1, dims=0)


OP = Op(
    name="qk_norm_rope",
    reference=qk_norm_rope,
    check=check,
    fake=fake,
    supports=supports,
    tolerances=STANDARD_TOLERANCES,
    cases=cases,
    mutations=(
        Mutation("rotated before the norm", _each(_rope_first)),
        Mutation("neighbours rotated as pairs", _each(_interleaved)),
        Mutation("norm over all heads", _each(_all_heads)),
        Mutation("not normalised", _each(_not_normed)),
        Mutation("wrong eps", _changed(eps=lambda eps: 1e-6 if eps == 1e-5 else 1e-5)),
        Mutation("gain of q dropped", _changed(q_weight=torch.ones_like)),
        Mutation("gain of q used for k", _one_gain),
        Mutation("keys not rotated", _queries_only),
        Mutation("rotated backwards", _changed(sin=torch.neg)),
        Mutation("cos of another token", _changed(cos=_next_position)),
    ),
)
