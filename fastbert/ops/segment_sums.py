"""Sums of the rows of each segment of a packed matrix: how the tokens of a text are pooled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastbert.ops._op import FLOATS, Arguments, Case, Mutation, Op, Tolerance, Traits
from fastbert.ops._sample import Sampler, offsets
from fastbert.ops.operands import Target, by_rows, operand, two_dimensional, vector


def segment_sums(x: Tensor, bounds: Tensor, divisors: Tensor | None = None) -> Tensor:
    """Sum the rows of each segment, and divide the sum by the segment's divisor.

    Args:
        x: (rows, columns), floating.
        bounds: int64 (segments + 1,), never falling; segment s is rows bounds[s] up to
            bounds[s + 1].
        divisors: float32 (segments,), or None for plain sums.

    Returns:
        (segments, columns), float32, or float64 for such an x. Rows are added one after the other
        in that precision, so that a segment has the same bits whatever stands beside it; a segment
        without rows gives zeros.
    """
    sums = weighted_sums(x, bounds, None)
    return sums if divisors is None else sums / divisors[:, None]


def weighted_sums(x: Tensor, bounds: Tensor, weights: Tensor | None) -> Tensor:
    """Sum the rows of each segment, each times its weight where weights are given.

    Args:
        x: (rows, columns), floating.
        bounds: int64 (segments + 1,), never falling.
        weights: (rows,), float32 (float64 for such an x), or None.

    Returns:
        As for `segment_sums`.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if x.numel() == 0 or bounds.shape[0] == 1:
        # The sum of no rows is zero, and belongs to the graph of x.
        return x.new_zeros(bounds.shape[0] - 1, x.shape[1]) + x.sum(0)
    # embedding_bag adds the rows of a bag one after the other, without a temporary; a sum(0) for
    # each segment may take another order for another number of threads or columns.
    every = torch.arange(x.shape[0], device=x.device)
    return F.embedding_bag(every, x, bounds[:-1], mode="sum", per_sample_weights=weights)


class SegmentOperands(NamedTuple):
    """Checked operands of `segment_sums`.

    Attributes:
        code: of the dtype of x.
        rows, columns: shape of x.
        segments: how many there are.
        x: by rows.
        bounds: int64 (segments + 1,).
        divisors: float32 (segments,) or None.
    """

    code: int
    rows: int
    columns: int
    segments: int
    x: Tensor
    bounds: Tensor
    divisors: Tensor | None


def check(
    target: Target, x: Tensor, bounds: Tensor, divisors: Tensor | None = None
) -> SegmentOperands:
    """Return the operands of `segment_sums`.

    Raises:
        TypeError, ValueError: for operands that kernels do not take, with the reason.
    """
    op = "segment_sums"
    x, code = operand(op, "x", x, target)
    rows, columns = two_dimensional(op, "x", x)
    segments = max(bounds.numel() - 1, 0) if isinstance(bounds, Tensor) else 0
    bounds = vector(op, "bounds", bounds, segments + 1, torch.int64, x.device)
    if divisors is not None:
        divisors = vector(op, "divisors", divisors, segments, torch.float32, x.device)
    return SegmentOperands(code, rows, columns, segments, by_rows(x), bounds, divisors)


def fake(*, x: Tensor, bounds: Tensor, **_: object) -> Tensor:
    """Return an empty result."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty((bounds.shape[0] - 1, x.shape[1]), dtype=dtype)


def supports(backend: str, traits: Traits) -> str | None:
    """Return None: shapes and habits of a caller do not matter."""
    return None


def _make(
    dtype: torch.dtype, *, lengths: list[int], columns: int, divided: bool = False, mean: float = 0
) -> Arguments:
    sample = Sampler(sum(lengths) * 1009 + columns, dtype)
    counts = torch.tensor(lengths, dtype=torch.float32)
    return {
        "x": sample.normal(sum(lengths), columns, mean=mean),
        "bounds": offsets(lengths).to(torch.int64),
        "divisors": counts.clamp(min=1) if divided else None,
    }


def cases() -> Iterator[Case]:
    """Yield the sample calls."""
    yield Case("no-rows", partial(_make, lengths=[0, 0], columns=8))
    yield Case("one-row", partial(_make, lengths=[1], columns=1))
    for columns in (1, 7, 8, 9, 15, 16, 17, 31, 33, 127, 384, 768, 1031):
        make = partial(_make, lengths=[3, 0, 40, 1, 17], columns=columns)
        yield Case(f"sums-{columns}", make)
        yield Case(f"means-{columns}", partial(make, divided=True))
    yield Case("long", partial(_make, lengths=[512, 300], columns=64, divided=True))
    # Rows far from zero: a sum kept in 16 bits stops growing.
    yield Case("far", partial(_make, lengths=[257, 3], columns=33, divided=True, mean=3.0))


def _with_bounds(change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def mutated(x: Tensor, bounds: Tensor, divisors: Tensor | None) -> Tensor:
        lengths = change(bounds.diff()).clamp(min=0)
        starts = bounds[:-1]
        parts = [
            x[start : start + length].to(torch.promote_types(x.dtype, torch.float32)).sum(0)
            for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)
        ]
        sums = torch.stack(parts)
        return sums if divisors is None else sums / divisors[:, None]

    return mutated


def _divisors_ignored(x: Tensor, bounds: Tensor, divisors: Tensor | None) -> Tensor:
    return segment_sums(x, bounds)


def _narrow_sums(x: Tensor, bounds: Tensor, divisors: Tensor | None) -> Tensor:
    sums = torch.zeros(bounds.shape[0] - 1, x.shape[1])
    for segment, (start, end) in enumerate(
        zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    ):
        for row in x[start:end].to(torch.float32):
            sums[segment] = (sums[segment] + row).to(torch.bfloat16).to(torch.float32)
    return sums if divisors is None else sums / divisors[:, None]


def _empty_segments_left(x: Tensor, bounds: Tensor, divisors: Tensor | None) -> Tensor:
    sums = segment_sums(x, bounds, divisors)
    return torch.where((bounds.diff() > 0)[:, None], sums, 1.0)


OP = Op(
    name="segment_sums",
    reference=segment_sums,
    check=check,
    fake=fake,
    supports=supports,
    # The result is float32 whatever x is; 512 additions stay below this.
    tolerances={dtype: Tolerance(1e-5) for dtype in FLOATS},
    cases=cases,
    mutations=(
        Mutation("last row of a segment ignored", _with_bounds(lambda lengths: lengths - 1)),
        Mutation("one row too many added", _with_bounds(lambda lengths: lengths + 1)),
        Mutation("divisors ignored", _divisors_ignored),
        Mutation("sums rounded to bfloat16", _narrow_sums),
        Mutation("empty segments left as they were", _empty_segments_left),
    ),
    reference_suffices=True,
)
