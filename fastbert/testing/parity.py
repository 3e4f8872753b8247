"""Measure how far a result is from the exact one, and judge whether it may be.

The exact result is the op's reference in float64. A kernel passes when its error stays under the
absolute bound of its dtype, and under twice the error that the reference makes in that same dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastbert.ops._op import Arguments, Op, Tolerance

UNIT_ROUNDOFF = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}
# A single error may be this many times the bound that holds for their root mean square.
_WORST = 8.0


@dataclass(frozen=True)
class Errors:
    """The error of a result, relative to the root mean square of the exact one.

    Attributes:
        rms: root mean square of the error.
        worst: largest error.
        peak: largest absolute value of the exact result.
        count: number of elements.
    """

    rms: float
    worst: float
    peak: float
    count: int


@dataclass(frozen=True)
class Verdict:
    """The outcome of a parity check.

    Attributes:
        ok: whether it passed.
        reason: why not; empty when it passed.
        ours: error of the candidate.
        eager: error of the reference in the same dtype.
    """

    ok: bool
    reason: str
    ours: Errors
    eager: Errors


def to_float64(arguments: Arguments) -> Arguments:
    """Return the arguments with every floating tensor in float64."""
    return {
        name: value.to(torch.float64)
        if isinstance(value, Tensor) and value.is_floating_point()
        else value
        for name, value in arguments.items()
    }


def measure(result: Tensor, exact: Tensor) -> Errors:
    """Measure the error of a result.

    A NaN or infinity that the exact result does not have counts as an infinite error.

    Args:
        result: any dtype and device.
        exact: the exact result, of the same shape.

    Raises:
        ValueError: when the shapes differ.
    """
    if result.shape != exact.shape:
        raise ValueError(
            f"A result of shape {tuple(exact.shape)} was expected, got {tuple(result.shape)}."
        )
    count = exact.numel()
    if count == 0:
        return Errors(0.0, 0.0, 0.0, 0)
    exact = exact.detach().to("cpu", torch.float64)
    difference = result.detach().to("cpu", torch.float64) - exact
    same = (torch.isnan(exact) & torch.isnan(result.detach().cpu())) | (
        result.detach().to("cpu", torch.float64) == exact
    )
    difference = torch.where(same, 0.0, difference).abs()
    difference = torch.where(torch.isnan(difference), math.inf, difference)
    finite = torch.where(torch.isfinite(exact), exact, 0.0)
    size = math.sqrt(float(finite.square().mean())) or 1.0
    return Errors(
        rms=math.sqrt(float((difference / size).square().mean())),
        worst=float(difference.max()) / size,
        peak=float(finite.abs().max()) / size,
        count=count,
    )


def judge(ours: Errors, eager: Errors, dtype: torch.dtype, tolerance: Tolerance) -> str:
    """Judge an error.

    Args:
        ours: error of the candidate.
        eager: error of the reference in the same dtype.
        dtype: of both results.
        tolerance: what is allowed.

    Returns:
        The reason why it is not allowed; empty when it is.
    """
    unit = UNIT_ROUNDOFF[dtype]
    # Eager's own error is one draw: among few elements it may by chance be next to nothing, so a
    # rounding or two are always allowed there; among many the ratio stands almost by itself.
    slack = unit * (0.25 + 4.0 / math.sqrt(max(ours.count, 1)))
    if ours.rms > tolerance.bound:
        return f"error {ours.rms:.2e} exceeds the bound {tolerance.bound:.1e}"
    # Rounding the largest value alone may cost unit / 2 of it, whatever the others are like.
    worst = max(_WORST * tolerance.bound, unit * ours.peak) if tolerance.bound else 0.0
    if ours.worst > worst:
        return f"largest error {ours.worst:.2e} exceeds {worst:.2e}"
    if tolerance.factor and ours.rms > tolerance.factor * eager.rms + slack:
        return f"error {ours.rms:.2e} exceeds {tolerance.factor:g} x eager's {eager.rms:.2e}"
    if tolerance.factor and ours.worst > tolerance.factor * (eager.worst + unit * ours.peak):
        return (
            f"largest error {ours.worst:.2e} exceeds {tolerance.factor:g} x eager's "
            f"{eager.worst:.2e}"
        )
    return ""


def gate(results: Any, exact: Any, eager: Any, dtype: torch.dtype, tolerance: Tolerance) -> Verdict:
    """Judge results against the exact and the eager ones.

    Args:
        results: a tensor or a tuple of them.
        exact: the exact results.
        eager: those of the reference in the candidate's dtype.
        dtype: of the results.
        tolerance: what is allowed.
    """
    verdict = None
    for mine, truth, plain in zip(_tuple(results), _tuple(exact), _tuple(eager), strict=True):
        if mine.dtype != plain.dtype:
            errors = measure(mine, truth)
            return Verdict(False, f"result is {mine.dtype}, not {plain.dtype}", errors, errors)
        ours, theirs = measure(mine, truth), measure(plain, truth)
        reason = judge(ours, theirs, dtype, tolerance)
        if verdict is None or reason:
            verdict = Verdict(not reason, reason, ours, theirs)
        if reason:
            break
    assert verdict is not None
    return verdict


def parity(
    op: Op,
    candidate: Callable[..., Any],
    arguments: Mapping[str, Any],
    dtype: torch.dtype,
) -> Verdict:
    """Judge an implementation of an op by its results for some arguments.

    Args:
        op: the op, whose reference gives the exact and the eager results.
        candidate: the implementation, called with the arguments by name.
        arguments: of the op.
        dtype: of the arguments' floating tensors.
    """
    given = dict(arguments)
    with torch.no_grad():
        exact = op.reference(**to_float64(given))
        eager = op.reference(**given)
        results = candidate(**given)
    return gate(results, exact, eager, dtype, op.tolerances[dtype])


def _tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)
