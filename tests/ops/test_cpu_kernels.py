"""Every CPU kernel on every instruction set: parity, memory layouts, bit-identity."""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from fastbert import kernels
from fastbert.ops import ALL, REGISTRY, Case, Op
from fastbert.testing import gate, misaligned, poisoned_empty, strided, to_float64

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OPS = pytest.mark.parametrize("op", ALL.values(), ids=ALL)
PROJECTIONS = [op for op in ALL.values() if "linear" in op.name]
DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
# Arguments whose rows may lie apart; the others are vectors, or packed by their own rules.
MATRICES = {"x", "residual", "weight", "word", "position_table", "type_table", "language_table"}
MATRICES |= {"inputs_embeds", "qweight", "q", "k", "v"}


@functools.cache
def prepared(op: str, dtype: torch.dtype) -> list[tuple[Case, dict[str, Any], Any, Any]]:
    """(case, arguments, exact result, eager result) of every case, computed once."""
    spec, out = ALL[op], []
    for case in spec.cases():
        arguments = case.make(dtype)
        exact = spec.reference(**to_float64(arguments))
        out.append((case, arguments, exact, spec.reference(**arguments)))
    return out


def run(op: Op, arguments: dict[str, Any]) -> Any:
    with torch.no_grad(), poisoned_empty():
        return kernels.kernel("cpu", op.name)(**arguments)


def tensors(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def assert_same_bits(one: Any, other: Any, what: str) -> None:
    for a, b in zip(tensors(one), tensors(other), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape, what
        same = (a == b) | (torch.isnan(a) & torch.isnan(b)) if a.is_floating_point() else a == b
        assert bool(same.all()), f"{what}: {int((~same).sum())} of {a.numel()} elements differ"


@OPS
@DTYPE
def test_parity(op: Op, dtype: torch.dtype, isa: str) -> None:
    for case, arguments, exact, eager in prepared(op.name, dtype):
        result = run(op, arguments)
        verdict = gate(result, exact, eager, dtype, op.tolerances[dtype])
        assert verdict.ok, f"{case.name} on {isa}: {verdict.reason}"


@pytest.mark.parametrize("op", PROJECTIONS, ids=lambda op: op.name)
@DTYPE
def test_prepacked_weights_change_nothing(op: Op, dtype: torch.dtype, isa: str) -> None:
    packer = kernels.packer("cpu", op.name)
    assert packer is not None
    for case, arguments, _, _ in prepared(op.name, dtype):
        weight = arguments["weight" if op.name == "linear" else "qweight"]
        packed = packer(weight)
        assert packed.dtype == torch.uint8
        result = run(op, {**arguments, "packed": packed})
        assert_same_bits(result, run(op, arguments), case.name)


@OPS
@DTYPE
def test_place_in_memory_changes_nothing(op: Op, dtype: torch.dtype, isa: str) -> None:
    """Neither misaligned data, nor rows that lie apart, nor columns that do."""
    for case, arguments, _, _ in prepared(op.name, dtype):
        plain = run(op, arguments)
        floats = {
            name: value
            for name, value in arguments.items()
            if isinstance(value, Tensor) and value.numel() and name != "packed"
        }
        for offset in (1, 3):
            moved = {name: misaligned(value, offset) for name, value in floats.items()}
            assert_same_bits(
                run(op, {**arguments, **moved}), plain, f"{case.name} + {offset} elements"
            )
        # Different gaps: a stride taken for another's would show.
        spread = {
            name: strided(value, gap)
            for gap, (name, value) in enumerate(floats.items(), start=3)
            if name in MATRICES and value.dim() > 1
        }
        assert_same_bits(run(op, {**arguments, **spread}), plain, f"{case.name} with row gaps")
        turned = {
            name: value.transpose(0, 1).contiguous().transpose(0, 1)
            for name, value in floats.items()
            if name in MATRICES and value.dim() == 2
        }
        assert_same_bits(run(op, {**arguments, **turned}), plain, f"{case.name} by columns")


@OPS
@DTYPE
def test_arguments_are_left_alone(op: Op, dtype: torch.dtype) -> None:
    for case, arguments, _, _ in prepared(op.name, dtype):
        before = {n: v.clone() for n, v in arguments.items() if isinstance(v, Tensor)}
        for result in tensors(run(op, arguments)):
            for name, value in before.items():
                assert torch.equal(arguments[name], value), f"{case.name} changed {name}"
                shared = result.numel() and result.data_ptr() == arguments[name].data_ptr()
                assert not shared, f"{case.name} returned {name} itself"


ROWS = (
    "gates",
    "x",
    "residual",
    "inputs_embeds",
    "input_ids",
    "position_ids",
    "token_type_ids",
    "language_ids",
    "q",
    "k",
    "cos",
    "sin",
)
SEQUENCES = ("attention_varlen", "attention_grouped", "segment_sums")


@pytest.mark.parametrize(
    "op",
    [op for op in ALL.values() if op.name not in SEQUENCES],
    ids=lambda op: op.name,
)
@DTYPE
def test_a_row_alone_has_the_bits_it_has_in_a_batch(op: Op, dtype: torch.dtype, isa: str) -> None:
    for case, arguments, _, _ in prepared(op.name, dtype):
        whole = tensors(run(op, arguments))
        rows = whole[0].shape[0]
        for first, last in {(0, 1), (rows // 2, rows // 2 + 1), (rows // 3, rows - 1)}:
            if not 0 <= first < last <= rows:
                continue
            part = {
                name: value[first:last] if name in ROWS and isinstance(value, Tensor) else value
                for name, value in arguments.items()
            }
            expected = tuple(r if r.shape == (0,) else r[first:last] for r in whole)
            assert_same_bits(tensors(run(op, part)), expected, f"{case.name} rows {first}:{last}")


@DTYPE
def test_a_segment_alone_has_the_bits_it_has_among_others(dtype: torch.dtype, isa: str) -> None:
    op = REGISTRY["segment_sums"]
    for case, arguments, _, _ in prepared(op.name, dtype):
        x, bounds, divisors = (arguments[name] for name in ("x", "bounds", "divisors"))
        together = run(op, arguments)
        for segment, (begin, end) in enumerate(pairwise(bounds.tolist())):
            one = {"x": x[begin:end], "bounds": torch.tensor([0, end - begin])}
            one["divisors"] = None if divisors is None else divisors[segment : segment + 1]
            assert_same_bits(run(op, one), together[segment : segment + 1], case.name)


@DTYPE
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_a_sequence_alone_has_the_bits_it_has_in_a_batch(
    dtype: torch.dtype, causal: bool, masked: bool, isa: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = [5, 0, 64, 1, 131, 17, 63, 200]
    cu = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    for heads, kv_heads, dim in ((2, 2, 64), (3, 3, 32), (1, 1, 80), (6, 2, 32)):
        op = ALL["attention_varlen" if heads == kv_heads else "attention_grouped"]
        qkv = torch.randn(sum(lengths), heads + 2 * kv_heads, dim, generator=generator).to(dtype)
        q, k, v = qkv.split((heads, kv_heads, kv_heads), dim=1)
        key_bias = None
        if masked:
            key_bias = torch.zeros(sum(lengths))
            key_bias[torch.randperm(sum(lengths), generator=generator)[:100]] = torch.finfo(
                torch.float32
            ).min
        shared = {"scale": dim**-0.5, "causal": causal}
        lens = {"cu_seqlens_q": cu, "cu_seqlens_k": cu, "max_seqlen_q": 200, "max_seqlen_k": 200}
        whole = run(op, {"q": q, "k": k, "v": v, "key_bias": key_bias, **lens, **shared})
        for b, length in enumerate(lengths):
            own = slice(int(cu[b]), int(cu[b + 1]))
            alone = torch.tensor([0, length], dtype=torch.int32)
            lens = {"cu_seqlens_q": alone, "cu_seqlens_k": alone}
            lens |= {"max_seqlen_q": length, "max_seqlen_k": length}
            rows = {"q": q[own], "k": k[own], "v": v[own]}
            rows["key_bias"] = None if key_bias is None else key_bias[own]
            out = run(op, {**rows, **lens, **shared})
            assert_same_bits(out, whole[own], f"{heads}x{dim}, sequence of {length}")


@OPS
@DTYPE
def test_threads_change_nothing(op: Op, dtype: torch.dtype, isa: str) -> None:
    before = torch.get_num_threads()
    try:
        for case, arguments, _, _ in prepared(op.name, dtype):
            torch.set_num_threads(1)
            one = run(op, arguments)
            for threads in (2, 5):
                torch.set_num_threads(threads)
                assert_same_bits(run(op, arguments), one, f"{case.name}, {threads} threads")
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "op",
    [ALL[name] for name in ("int8_linear", "linear_w8a16", "quantize_rows")],
    ids=lambda op: op.name,
)
@DTYPE
def test_integer_kernels_agree_between_instruction_sets(op: Op, dtype: torch.dtype) -> None:
    from fastbert.kernels import native

    before = native.isa()
    try:
        native.set_isa("scalar")
        expected = [run(op, arguments) for _, arguments, _, _ in prepared(op.name, dtype)]
        for name in native.usable_isas():
            native.set_isa(name)
            for (case, arguments, _, _), plain in zip(
                prepared(op.name, dtype), expected, strict=True
            ):
                assert_same_bits(run(op, arguments), plain, f"{case.name} on {name}")
    finally:
        native.set_isa(before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "op",
    [
        "add_layer_norm",
        "bias_act",
        "act_layer_norm",
        "linear",
        "int8_linear",
        "linear_w8a16",
        "embed_layer_norm",
        "attention_varlen",
    ],
)
def test_what_is_not_finite_shows(op: str, bad: float, isa: str) -> None:
    """Where the reference is not finite the kernel is not, and only there. gelu of infinity is NaN
    in torch and infinity in the kernels, so NaN and infinity count alike."""
    spec = ALL[op]
    name = {"embed_layer_norm": "inputs_embeds", "attention_varlen": "k"}.get(op, "x")
    for case, arguments, _, _ in prepared(op, torch.float32):
        value = arguments.get(name)
        if value is None or value.shape[0] < 3 or value.numel() < 8:
            continue
        if (
            op == "linear"
            and bad == float("inf")
            and arguments["activation"] not in ("none", "relu")
        ):
            continue  # gelu of minus infinity is NaN in torch, and its limit 0 in the kernels
        spoiled = value.clone()
        spoiled.view(-1)[value.numel() // 2] = bad
        given = {**arguments, name: spoiled}
        ours, plain = tensors(run(spec, given))[0], tensors(spec.reference(**given))[0]
        same = torch.isfinite(ours) == torch.isfinite(plain)
        assert bool(same.all()), f"{case.name} with {bad}"


@DTYPE
def test_a_hidden_first_key_changes_no_bits(dtype: torch.dtype, isa: str) -> None:
    """A padded first column is kept for poolers: the others must not notice it."""
    generator = torch.Generator().manual_seed(3)
    attend = kernels.kernel("cpu", "attention_varlen")

    def rows(count: int) -> Tensor:
        return torch.randn(count, 4, 24, generator=generator).to(dtype)

    for length in (1, 5, 24, 64, 100, 600):
        alone, padding = [rows(length) for _ in range(3)], [rows(1) for _ in range(3)]
        padded = [torch.cat(pair) for pair in zip(padding, alone, strict=True)]
        hidden = torch.zeros(length + 1)
        hidden[0] = torch.finfo(torch.float32).min
        found = []
        for given, key_bias in ((alone, None), (padded, hidden)):
            total = given[0].shape[0]
            bounds = torch.tensor([0, total], dtype=torch.int32)
            found.append(attend(*given, bounds, bounds, total, total, 0.35, key_bias=key_bias))
        assert torch.equal(found[1][1:], found[0]), length


@DTYPE
def test_a_single_key_gives_its_value(dtype: torch.dtype, isa: str) -> None:
    generator = torch.Generator().manual_seed(4)
    q, k, v = (torch.randn(1, 4, 24, generator=generator).to(dtype) * 9 for _ in range(3))
    bounds = torch.tensor([0, 1], dtype=torch.int32)
    attend = kernels.kernel("cpu", "attention_varlen")
    assert torch.equal(attend(q, k, v, bounds, bounds, 1, 1, 0.35), v)
