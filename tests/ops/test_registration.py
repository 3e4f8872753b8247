"""torch.library knows every op: opcheck, compiled graphs, gradients through a kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastbert import kernels
from fastbert.kernels.registration import overload
from fastbert.ops import ALL, REGISTRY, Op
from fastbert.runtime.plan import Traits, build_plan

OPS = pytest.mark.parametrize("op", REGISTRY.values(), ids=REGISTRY)
DIFFERENTIABLE = pytest.mark.parametrize(
    "op", [op for op in REGISTRY.values() if op.differentiable], ids=lambda op: op.name
)


def samples(op: Op) -> list[tuple[str, dict[str, Any]]]:
    """A few cases of each op: one without rows, some with every argument."""
    # Values of a tail hardly differ: behind a LayerNorm, gradients would amplify their rounding.
    cases = [case for case in op.cases() if not case.name.endswith("-tail")]
    step = max(1, len(cases) // 6)
    return [(case.name, case.make(torch.float32)) for case in cases[::step]]


def with_gradients(arguments: dict[str, Any]) -> dict[str, Any]:
    # Contiguous, because opcheck cannot copy views without elements.
    return {
        name: value.clone(memory_format=torch.contiguous_format).requires_grad_()
        if isinstance(value, Tensor) and value.is_floating_point()
        else value
        for name, value in arguments.items()
    }


def energy(result: Any) -> Tensor:
    parts = result if isinstance(result, tuple) else (result,)
    return sum(part.square().sum() for part in parts)


@OPS
def test_opcheck(op: Op) -> None:
    for _, arguments in samples(op):
        given = with_gradients(arguments) if op.differentiable else arguments
        torch.library.opcheck(overload(op.name, "cpu"), (), given)


@pytest.mark.parametrize("op", ALL.values(), ids=ALL)
def test_fakes_agree_with_the_reference(op: Op) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    for index, case in enumerate(op.cases()):
        arguments = case.make(torch.bfloat16)
        real = op.reference(**arguments)
        backend = kernels.NAMES[index % len(kernels.NAMES)]
        with FakeTensorMode() as mode:
            given = {
                name: mode.from_tensor(value) if isinstance(value, Tensor) else value
                for name, value in arguments.items()
            }
            fake = overload(op.name, backend)(**given)
        pairs = zip(
            real if isinstance(real, tuple) else (real,),
            fake if isinstance(fake, tuple) else (fake,),
            strict=True,
        )
        for one, other in pairs:
            assert (one.shape, one.dtype) == (other.shape, other.dtype), case.name


@DIFFERENTIABLE
def test_gradients_through_the_kernel_are_those_of_the_reference(op: Op) -> None:
    for name, arguments in samples(op):
        given = with_gradients(arguments)
        wanted = [v for v in given.values() if isinstance(v, Tensor) and v.requires_grad]
        ours = torch.autograd.grad(
            energy(overload(op.name, "cpu")(**given)), wanted, allow_unused=True
        )
        theirs = torch.autograd.grad(energy(op.reference(**given)), wanted, allow_unused=True)
        for one, other in zip(ours, theirs, strict=True):
            if other is None:
                assert one is None or not one.any(), name
            else:
                # Where a gradient of 1e5 has elements that cancel, float32 leaves them 1e-2.
                least = 1e-6 * max(100.0, float(other.abs().amax()) if other.numel() else 0.0)
                torch.testing.assert_close(one, other, rtol=1e-4, atol=least, msg=name)


@DIFFERENTIABLE
def test_plan_gives_gradients_even_when_it_was_not_told(op: Op) -> None:
    """A Plan made for inference does not cut the graph of someone who differentiates through it."""
    plan = build_plan(Traits(), "cpu", torch.float32, "cpu")
    name, arguments = samples(op)[-1]
    given = with_gradients(arguments)
    result = getattr(plan, op.name)(**given)
    assert all(
        part.requires_grad
        for part in (result if isinstance(result, tuple) else (result,))
        if part.numel()
    ), name
    with torch.no_grad():
        result = getattr(plan, op.name)(**given)
    assert not any(
        part.requires_grad for part in (result if isinstance(result, tuple) else (result,))
    )


@OPS
def test_compiled_graph_is_whole(op: Op) -> None:
    plan = build_plan(Traits(), "cpu", torch.float32, "cpu")
    function = getattr(plan, op.name)
    for name, arguments in samples(op):
        torch._dynamo.reset()
        compiled = torch.compile(
            lambda **given: function(**given), fullgraph=True, backend="aot_eager"
        )
        with torch.no_grad():
            ours, plain = compiled(**arguments), function(**arguments)
        for one, other in zip(
            ours if isinstance(ours, tuple) else (ours,),
            plain if isinstance(plain, tuple) else (plain,),
            strict=True,
        ):
            assert torch.equal(one, other), name


@DIFFERENTIABLE
def test_compiled_gradients(op: Op) -> None:
    name, arguments = samples(op)[-1]
    given = with_gradients(arguments)
    wanted = [v for v in given.values() if isinstance(v, Tensor) and v.requires_grad]
    torch._dynamo.reset()
    call = overload(op.name, "cpu")
    compiled = torch.compile(
        lambda **args: energy(call(**args)), fullgraph=True, backend="aot_eager"
    )
    ours = torch.autograd.grad(compiled(**given), wanted, allow_unused=True)
    theirs = torch.autograd.grad(energy(op.reference(**given)), wanted, allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        if other is None:
            assert one is None or not one.any(), name
        else:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4, msg=name)


def test_one_graph_serves_every_length() -> None:
    """A second number of rows makes the size symbolic, a third one compiles nothing."""
    plan = build_plan(Traits(), "cpu", torch.float32, "cpu")
    weight, bias = torch.ones(16), torch.zeros(16)

    def block(x: Tensor) -> Tensor:
        out, _ = plan.add_layer_norm(x, weight, bias, 1e-5, residual=x)
        return plan.bias_act(out, bias, "gelu")

    graphs = 0

    def count(graph: torch.fx.GraphModule, _: list[Any]) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend=count)
    with torch.no_grad():
        for rows in (3, 5, 7, 11):
            x = torch.randn(rows, 16)
            torch.testing.assert_close(compiled(x), block(x))
    assert graphs == 2


def test_traced_models_keep_their_ops() -> None:
    plan = build_plan(Traits(), "cpu", torch.float32, "cpu")
    with torch.no_grad():
        traced = torch.jit.trace(lambda x: plan.bias_act(x, None, "gelu"), torch.randn(3, 4))
        x = torch.randn(5, 4)
        assert torch.equal(traced(x), plan.bias_act(x, None, "gelu"))


def test_overloads_have_the_schema_of_their_op() -> None:
    for op in REGISTRY.values():
        for backend in kernels.NAMES:
            schema = str(overload(op.name, backend)._schema)
            assert schema.startswith(f"fastbert::{op.name}.{backend}(")


def test_backend_that_is_not_there_says_so() -> None:
    if kernels.missing("cuda", torch.device("cuda")) is None:
        pytest.skip("there is a GPU here")
    with pytest.raises((kernels.Unavailable, ValueError), match="cuda"):
        overload("bias_act", "cuda")(torch.randn(2, 2), None, "relu")
