"""The Plan: who serves what, why not the others, and what it says about it."""

from __future__ import annotations

import logging

import pytest
import torch

from fastbert.kernels import native
from fastbert.kernels.registration import support_table
from fastbert.ops import ALL, REGISTRY
from fastbert.ops.add_layer_norm import layer_norm
from fastbert.ops.bias_act import bias_act
from fastbert.runtime.plan import (
    BACKENDS,
    Traits,
    Unavailable,
    _announce,
    build_plan,
    forced_backend,
    use_backend,
)

TRAITS = Traits(
    num_heads=12,
    head_dim=64,
    hidden_size=768,
    intermediate_size=3072,
    embedding_size=768,
    activation="gelu",
)


def test_cpu_kernels_are_chosen_on_the_cpu() -> None:
    plan = build_plan(TRAITS, "cpu", torch.float32)
    assert [choice.op for choice in plan.choices] == list(REGISTRY)
    for choice in plan.choices:
        assert (choice.backend, choice.isa) == ("cpu", native.isa())
        assert {name for name, _ in choice.passed_over} == {"cuda", "triton"}
        assert all(reason for _, reason in choice.passed_over)


def test_every_line_names_op_backend_and_instruction_set(isa: str) -> None:
    lines = build_plan(TRAITS, "cpu", torch.float32).lines()
    for op, line in zip(REGISTRY, lines, strict=False):
        assert line.split() == [op, "cpu", isa]
    assert any("not cuda: " in line for line in lines)
    assert any("not triton: " in line for line in lines)


def test_instruction_set_is_asked_again(isa: str) -> None:
    assert build_plan(TRAITS, "cpu", torch.float32).choice("linear").isa == isa


def test_same_question_same_plan() -> None:
    assert build_plan(TRAITS, "cpu", torch.float32) is build_plan(TRAITS, "cpu", torch.float32)


def test_reference_on_request() -> None:
    plan = build_plan(TRAITS, "cpu", torch.float32, "reference", strict=True)
    for choice in plan.choices:
        assert choice.backend == "reference"
        assert choice.function is REGISTRY[choice.op].reference
        assert dict(choice.passed_over)["cpu"] == "the reference was asked for"
    assert plan.prepack("linear", torch.randn(3, 4)) is None


def test_float64_runs_on_the_reference() -> None:
    plan = build_plan(TRAITS, "cpu", torch.float64)
    for choice in plan.choices:
        assert choice.backend == "reference"
        assert "float64" in dict(choice.passed_over)["cpu"]


def test_gradients_run_on_the_reference() -> None:
    plan = build_plan(TRAITS, "cpu", torch.float32, needs_grad=True)
    for choice in plan.choices:
        assert choice.backend == "reference"
        assert "gradients" in dict(choice.passed_over)["cpu"]


def test_autocast_runs_on_the_reference() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        plan = build_plan(TRAITS, "cpu", torch.float32)
    assert {choice.backend for choice in plan.choices} == {"reference"}
    assert build_plan(TRAITS, "cpu", torch.float32).choice("linear").backend == "cpu"


def test_dropout_of_attention_runs_on_the_reference() -> None:
    plan = build_plan(Traits(attention_dropout=0.1), "cpu", torch.float32)
    choice = plan.choice("attention_varlen")
    assert choice.backend == "reference" and "dropout" in dict(choice.passed_over)["cpu"]
    assert plan.choice("linear").backend == "cpu"


def test_float16_is_computed_in_float32_and_says_so() -> None:
    plan = build_plan(TRAITS, "cpu", torch.float16)
    assert all("float32 is computed" in line for line in plan.lines()[: len(REGISTRY)])


def test_unknown_activation_follows_the_product() -> None:
    plan = build_plan(Traits(activation="mish"), "cpu", torch.float32)
    assert plan.choice("bias_act").backend == "reference"
    assert "mish" in dict(plan.choice("bias_act").passed_over)["cpu"]
    choice = plan.choice("linear")
    assert choice.backend == "cpu" and "mish" in choice.note
    x, weight, bias, residual = (torch.randn(*s) for s in ((5, 8), (3, 8), (3,), (5, 3)))
    expected = bias_act(x @ weight.t(), bias, "mish") + residual
    with torch.no_grad():
        out = plan.linear(x, weight, bias, "mish", residual)
        torch.testing.assert_close(out, expected)
        out = plan.linear(x, weight, bias, "gelu", residual)
        torch.testing.assert_close(out, bias_act(x @ weight.t(), bias, "gelu") + residual)
        torch.testing.assert_close(plan.linear(x, weight), x @ weight.t())


def test_strict_names_every_reason() -> None:
    build_plan(TRAITS, "cpu", torch.float32, strict=True)
    with pytest.raises(Unavailable, match=r"strict=True.*every op.*float64"):
        build_plan(TRAITS, "cpu", torch.float64, strict=True)
    with pytest.raises(Unavailable, match=r"attention_varlen.*dropout"):
        build_plan(Traits(attention_dropout=0.1), "cpu", torch.float32, strict=True)
    with pytest.raises(Unavailable, match="mish"):
        build_plan(Traits(activation="mish"), "cpu", torch.float32, strict=True)


def test_fallback_is_announced_once(caplog: pytest.LogCaptureFixture) -> None:
    _announce.cache_clear()
    with caplog.at_level(logging.WARNING, logger="fastbert"):
        for _ in range(3):
            build_plan(TRAITS, "cpu", torch.float64)
        build_plan(TRAITS, "cpu", torch.float32)
        build_plan(TRAITS, "cpu", torch.float64, "reference")
    assert len(caplog.messages) == 1
    assert "float64" in caplog.messages[0] and "\n" not in caplog.messages[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_forced_backend_that_cannot_run_is_refused(backend: str) -> None:
    with pytest.raises(Unavailable, match=rf"{backend}.*cannot run here: .*use backend="):
        build_plan(TRAITS, "cpu", torch.float32, backend)


def test_native_library_that_cannot_load_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_load", lambda: (None, "no such file; build it"))
    from fastbert.runtime import plan as backend

    backend._build.cache_clear()
    try:
        plan = build_plan(TRAITS, "cpu", torch.float32)
        for choice in plan.choices:
            assert choice.backend == "reference"
            assert "no such file" in dict(choice.passed_over)["cpu"]
        with pytest.raises(Unavailable, match="no such file; build it"):
            build_plan(TRAITS, "cpu", torch.float32, "cpu")
    finally:
        backend._build.cache_clear()


@pytest.mark.parametrize(
    "call",
    [
        lambda: build_plan(TRAITS, "cpu", torch.float32, "gpu"),
        lambda: use_backend("gpu").__enter__(),
    ],
)
def test_unknown_backend_lists_the_known_ones(call: object) -> None:
    with pytest.raises(ValueError, match="reference, cpu, cuda, triton"):
        call()


def test_use_backend_goes_first_and_ends() -> None:
    assert forced_backend() is None
    with use_backend("reference"):
        assert forced_backend() == "reference"
        assert (
            build_plan(TRAITS, "cpu", torch.float32, "cpu").choice("linear").backend == "reference"
        )
        with use_backend("cpu"):
            assert build_plan(TRAITS, "cpu", torch.float32).choice("linear").backend == "cpu"
        assert forced_backend() == "reference"
    assert forced_backend() is None


def test_support_table_covers_all_ops() -> None:
    rows = support_table()
    assert [row["op"] for row in rows] == list(ALL)
    for row in rows:
        assert row["reference"] == "any"
        assert row["cpu"] == "float32, bfloat16, float16"
    assert set(rows[0]) == {"op", *BACKENDS[1:]}


def test_plan_is_callable_with_the_reference_signatures() -> None:
    plan = build_plan(TRAITS, "cpu", torch.float32)
    x, weight, bias = torch.randn(4, 8), torch.randn(8), torch.randn(8)
    with torch.no_grad():
        out, total = plan.add_layer_norm(x, weight, bias, 1e-5, residual=x, return_sum=True)
    torch.testing.assert_close(total, x + x)
    torch.testing.assert_close(out, layer_norm(x + x, weight, bias, 1e-5))
