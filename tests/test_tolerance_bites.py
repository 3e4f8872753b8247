"""Every named mistake of every op is caught by the op's own cases and tolerances."""

from __future__ import annotations

import pytest
import torch

from fastbert.ops import REGISTRY, Mistake, Op
from fastbert.testing import parity

ALL = [
    pytest.param(op, mistake, dtype, id=f"{op.name}-{mistake.name}-{dtype}".replace(" ", "_"))
    for op in REGISTRY.values()
    for mistake in op.mistakes
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
}


@pytest.mark.parametrize(("op", "mistake", "dtype"), ALL)
def test_mistake_is_caught(op: Op, mistake: Mistake, dtype: torch.dtype) -> None:
    for case in op.cases():
        arguments = case.make(dtype)
        if not parity(op, mistake.function, arguments, dtype).ok:
            return
    pytest.fail(f"no case of {op.name} tells {mistake.name!r} from the right result in {dtype}")


@pytest.mark.parametrize("op", REGISTRY.values(), ids=REGISTRY)
def test_float32_reference_passes_its_own_gate(op: Op) -> None:
    """Otherwise the cases would be unfair, and catching a mistake would prove nothing."""
    for case in op.cases():
        verdict = parity(op, op.reference, case.make(torch.float32), torch.float32)
        assert verdict.ok, f"{case.name}: {verdict.reason}"


@pytest.mark.parametrize("op", REGISTRY.values(), ids=REGISTRY)
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
        if isinstance(results, tuple):
            return tuple(result.to(dtype) for result in results)
        return results.to(dtype)

    for case in op.cases():
        verdict = parity(op, rounded_once, case.make(dtype), dtype)
        assert verdict.ok, f"{case.name}: {verdict.reason}"


@pytest.mark.parametrize("op", REGISTRY)
def test_required_mistakes_are_listed(op: str) -> None:
    names = [mistake.name for mistake in REGISTRY[op].mistakes]
    for wanted in REQUIRED[op]:
        assert any(wanted in name for name in names), f"{op} does not list {wanted!r}"


@pytest.mark.parametrize("op", REGISTRY.values(), ids=REGISTRY)
def test_cases_are_reproducible_and_named(op: Op) -> None:
    first, second = list(op.cases()), list(op.cases())
    assert len({case.name for case in first}) == len(first)
    for one, other in zip(first, second, strict=True):
        a, b = one.make(torch.float32), other.make(torch.float32)
        for name, value in a.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, b[name]), f"{one.name}.{name}"
