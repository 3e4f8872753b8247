"""Every named mutations of every op is caught by the op's own cases and tolerances."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from fastbert.ops import ALL as OPS, Case, Mutation, Op
from fastbert.testing import Verdict, gate, to_float64

ALL = [
    pytest.param(op, mistake, dtype, id=f"{op.name}-{mistake.name}-{dtype}".replace(" ", "_"))
    for op in OPS.values()
    for mistake in op.mutations
    for dtype in mistake.dtypes
]
# The least that each op must guard against; what its file lists beyond these is its own affair.
REQUIRED = {
    "attention_varlen": ["scale missing", "last key ignored", "one future key"],
    "add_layer_norm": ["wrong eps", "bias dropped", "residual dropped", "one-pass variance"],
    "bias_act": ["tanh-gelu for erf-gelu", "bias dropped"],
    "act_layer_norm": ["tanh-gelu for erf-gelu", "wrong eps", "one-pass variance"],
    "linear": ["bias dropped", "residual dropped", "tanh-gelu for erf-gelu"],
    "int8_linear": ["u8s8 compensation missing", "saturate", "tanh-gelu for erf-gelu"],
    "quantize_rows": ["ties rounded away from zero"],
    "embed_layer_norm": ["wrong eps", "positions ignored", "one-pass variance"],
    "segment_sums": ["last row of a segment", "divisors ignored"],
    "rms_norm": ["mean taken out", "eps outside", "residual dropped"],
    "qk_norm_rope": ["before the norm", "neighbours rotated", "over all heads", "wrong eps"],
    "attention_grouped": ["by remainder", "scale missing", "aligned at the start"],
    "linear_w8a16": ["halves swapped", "low half ignored", "zero point", "rows of 8 bits"],
    "depthwise_conv": ["exchanged", "transposed", "turned round", "bias dropped", "last row alone"],
    "channel_gate": ["sigmoid forgotten", "first image", "silu"],
    "xielu": ["beta added twice", "softplus forgotten", "zero belongs", "sign of eps", "exp - 1"],
}


@functools.cache
def prepared(name: str, dtype: torch.dtype) -> list[tuple[Case, dict[str, Any], Any, Any]]:
    """(case, arguments, exact result, eager result) of every case, computed once."""
    op, out = OPS[name], []
    for case in op.cases():
        arguments = case.make(dtype)
        exact = op.reference(**to_float64(arguments))
        out.append((case, arguments, exact, op.reference(**arguments)))
    return out


def verdicts(op: Op, candidate: Any, dtype: torch.dtype) -> Any:
    """(case name, verdict on what the candidate makes of it), lazily."""
    for case, arguments, exact, eager in prepared(op.name, dtype):
        verdict: Verdict = gate(candidate(**arguments), exact, eager, dtype, op.tolerances[dtype])
        yield case.name, verdict


@pytest.mark.parametrize(("op", "mistake", "dtype"), ALL)
def test_mistake_is_caught(op: Op, mistake: Mutation, dtype: torch.dtype) -> None:
    if all(verdict.ok for _, verdict in verdicts(op, mistake.function, dtype)):
        pytest.fail(f"no case of {op.name} tells {mistake.name!r} from the right result in {dtype}")


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_float32_reference_passes_its_own_gate(op: Op) -> None:
    """Otherwise the cases would be unfair, and catching a mistake would prove nothing."""
    for name, verdict in verdicts(op, op.reference, torch.float32):
        assert verdict.ok, f"{name}: {verdict.reason}"


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_float32_inside_passes_the_gate(op: Op, dtype: torch.dtype) -> None:
    """A kernel that computes in float32 and rounds once stays within the 16-bit tolerances."""

    def rounded_once(**arguments: object) -> object:
        wide = {
            name: value.to(torch.float32)
            if isinstance(value, torch.Tensor) and value.is_floating_point()
            else value
            for name, value in arguments.items()
        }
        results = op.reference(**wide)
        if not op.differentiable:
            return results
        # Sums, and means behind maps, are float32 for every dtype.
        kept = torch.float32 if op.name in ("segment_sums", "depthwise_conv") else dtype
        if isinstance(results, tuple):
            return (results[0].to(dtype), *(result.to(kept) for result in results[1:]))
        return results.to(kept)

    for name, verdict in verdicts(op, rounded_once, dtype):
        assert verdict.ok, f"{name}: {verdict.reason}"


@pytest.mark.parametrize("op", OPS)
def test_required_mistakes_are_listed(op: str) -> None:
    names = [mistake.name for mistake in OPS[op].mutations]
    for wanted in REQUIRED[op]:
        assert any(wanted in name for name in names), f"{op} does not list {wanted!r}"


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_cases_are_reproducible_and_named(op: Op) -> None:
    first, second = list(op.cases()), list(op.cases())
    assert len({case.name for case in first}) == len(first)
    for one, other in zip(first, second, strict=True):
        a, b = one.make(torch.float32), other.make(torch.float32)
        for name, value in a.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, b[name]), f"{one.name}.{name}"
