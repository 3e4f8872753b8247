"""The Triton and CUDA kernels on a GPU: parity in every dtype, bit-identity, streams.

bfloat16 is judged only here: neither the interpreter nor a compiler can say anything of its values.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fastbert import kernels
from fastbert.ops import ALL, DECODING, REGISTRY, Case, Op
from fastbert.testing import parity, poisoned_empty

if not torch.cuda.is_available():
    pytest.skip("this machine has no CUDA device", allow_module_level=True)

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda", 0)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BACKENDS = ("triton", "cuda")


def has_kernel(backend: str, op: str) -> bool:
    try:
        kernels.kernel(backend, op)
    except kernels.Unavailable:
        return False
    return True


KERNELS = [(backend, op) for backend in BACKENDS for op in ALL if has_kernel(backend, op)]


def every_case() -> Iterator[Any]:
    for backend, op in KERNELS:
        for case in ALL[op].cases():
            for dtype in DTYPES:
                name = f"{backend}-{op}-{case.name}-{str(dtype).removeprefix('torch.')}"
                yield pytest.param(backend, ALL[op], case, dtype, id=name)


def on_device(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.to(DEVICE) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }


def test_both_backends_have_kernels() -> None:
    for name in BACKENDS:
        assert {op for backend, op in KERNELS if backend == name} == {*REGISTRY, *DECODING} - {
            "segment_sums"
        }


@pytest.mark.parametrize(("backend", "op", "case", "dtype"), every_case())
def test_parity(backend: str, op: Op, case: Case, dtype: torch.dtype) -> None:
    kernel = kernels.kernel(backend, op.name)
    arguments = on_device(case.make(dtype))
    if op.name.startswith("attention"):
        from fastbert.triton_kernels.attention_varlen import HEAD_DIMS

        if arguments["q"].shape[2] not in HEAD_DIMS:
            with pytest.raises(ValueError, match="head_dim is"):
                kernel(**arguments)
            return
    with poisoned_empty():
        verdict = parity(op, kernel, arguments, dtype)
    assert verdict.ok, verdict.reason


def row_calls(backend: str, dtype: torch.dtype) -> dict[str, Callable[[Tensor], Any]]:
    """Ops over rows of 768 as functions of x alone, for those that the backend has."""
    torch.manual_seed(0)
    vector = torch.randn(768, device=DEVICE, dtype=dtype)
    weight = torch.randn(1536, 768, device=DEVICE, dtype=dtype) / 28
    integer = torch.randint(-127, 128, (1536, 768), device=DEVICE, dtype=torch.int8)
    scale = torch.rand(1536, device=DEVICE) / 500
    slopes = torch.tensor([0.2, -1.0, 0.5, -1e-6], device=DEVICE, dtype=dtype)
    calls: dict[str, Callable[[Any, Tensor], Any]] = {
        "add_layer_norm": lambda f, x: f(x, vector, vector, 1e-12, x, vector)[0],
        "act_layer_norm": lambda f, x: f(x, vector, vector, vector, 1e-12, "gelu"),
        "bias_act": lambda f, x: f(x, vector, "gelu"),
        "quantize_rows": lambda f, x: f(x)[0],
        "linear": lambda f, x: f(x, weight, None, "gelu"),
        "int8_linear": lambda f, x: f(x, integer, scale, None, "gelu"),
        "rms_norm": lambda f, x: f(x, vector, 1e-6, x)[0],
        "xielu": lambda f, x: f(x, *slopes.unbind()),
        "linear_w8a16": lambda f, x: f(x, integer, scale, None, "gelu"),
    }
    return {
        name: (lambda x, name=name, call=call: call(kernels.kernel(backend, name), x))
        for name, call in calls.items()
        if (backend, name) in KERNELS
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_is_the_same_in_any_batch(backend: str, dtype: torch.dtype) -> None:
    x = torch.randn(2000, 768, device=DEVICE).to(dtype)
    for name, call in row_calls(backend, dtype).items():
        together = call(x)
        # Fewer rows also means the other tile of the products.
        for rows in (slice(0, 1), slice(777, 778), slice(130, 400), slice(0, 513)):
            assert torch.equal(call(x[rows]), together[rows]), (name, rows)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [32, 64, 80, 96, 128])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sequence_is_the_same_in_any_batch(
    backend: str, head_dim: int, dtype: torch.dtype
) -> None:
    kernel = kernels.kernel(backend, "attention_varlen")
    lengths = [1, 63, 64, 65, 0, 128, 200, 512, 7]
    offsets = torch.tensor([0, *lengths], device=DEVICE).cumsum(0).to(torch.int32)
    qkv = torch.randn(sum(lengths), 3, 12, head_dim, device=DEVICE).to(dtype)
    q, k, v = qkv.unbind(1)
    scale = head_dim**-0.5
    together = kernel(q, k, v, offsets, offsets, 512, 512, scale)
    key_bias = torch.zeros(sum(lengths), device=DEVICE)
    biased = kernel(q, k, v, offsets, offsets, 512, 512, scale, False, key_bias)
    assert torch.equal(together, biased)
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        own = torch.tensor([0, length], device=DEVICE, dtype=torch.int32)
        alone = kernel(q[rows], k[rows], v[rows], own, own, length, length, scale)
        assert torch.equal(alone, together[rows]), length
        start += length


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_behind_the_last_offset_are_nobody_s(backend: str, dtype: torch.dtype) -> None:
    if (backend, "attention_varlen") not in KERNELS:
        pytest.skip(f"there is no attention of {backend}")
    kernel = kernels.kernel(backend, "attention_varlen")
    q, k, v = torch.randn(400, 3, 12, 64, device=DEVICE).to(dtype).unbind(1)
    offsets = torch.tensor([0, 9, 9, 30, 290], device=DEVICE, dtype=torch.int32)
    exact = kernel(q[:290], k[:290], v[:290], offsets, offsets, 260, 260, 0.125)
    for spoiled in (q, k, v):
        spoiled[290:] = float("nan")
    padded = torch.cat([offsets, offsets.new_full((4,), 290)])
    assert torch.equal(kernel(q, k, v, padded, padded, 512, 512, 0.125)[:290], exact)


def attention_arguments(
    lengths: list[int], key_lengths: list[int], head_dim: int, dtype: torch.dtype
) -> dict[str, Any]:
    def offsets(sizes: list[int]) -> Tensor:
        return torch.tensor([0, *sizes], device=DEVICE).cumsum(0).to(torch.int32)

    torch.manual_seed(0)
    q = torch.randn(sum(lengths), 12, head_dim, device=DEVICE).to(dtype)
    k, v = torch.randn(sum(key_lengths), 2, 12, head_dim, device=DEVICE).to(dtype).unbind(1)
    return {
        "q": q, "k": k, "v": v, "cu_seqlens_q": offsets(lengths),
        "cu_seqlens_k": offsets(key_lengths), "max_seqlen_q": max(lengths),
        "max_seqlen_k": max(key_lengths), "scale": head_dim**-0.5,
    }  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [32, 64, 80, 96, 128])
@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_at_every_length(
    backend: str, head_dim: int, causal: bool, dtype: torch.dtype
) -> None:
    """As many tiles as keep every multiprocessor busy several times over, and rings that wrap."""
    kernel = kernels.kernel(backend, "attention_varlen")
    for lengths, key_lengths in (
        ([512] * 32, [512] * 32),
        ([2000, 1, 0, 700], [2000, 1, 0, 700]),
        (list(range(1, 200, 3)), list(range(1, 200, 3))),
        ([130, 0, 1, 700], [5, 0, 900, 131]),
    ):
        arguments = attention_arguments(lengths, key_lengths, head_dim, dtype)
        arguments["causal"] = causal
        with poisoned_empty():
            verdict = parity(REGISTRY["attention_varlen"], kernel, arguments, dtype)
        assert verdict.ok, (lengths, verdict.reason)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_gives_the_same_bits_every_time(dtype: torch.dtype) -> None:
    """A race between copies, products and stores would show as a result that moves."""
    kernel = kernels.kernel("cuda", "attention_varlen")
    lengths = [512, 40, 1, 300, 64, 129] * 8
    arguments = attention_arguments(lengths, lengths, 64, dtype)
    expected = kernel(**arguments)
    for _ in range(50):
        assert torch.equal(kernel(**arguments), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group", [1, 4, 6])
@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_over_long_caches(backend: str, group: int, dtype: torch.dtype) -> None:
    """Single queries of several sequences, prompts among them: right, and the same every time."""
    op = DECODING["attention_grouped"]
    kernel = kernels.kernel(backend, op.name)
    lengths, key_lengths = [1, 1, 70, 0, 1, 1], [4096, 1, 300, 9, 257, 0]
    arguments = attention_arguments(lengths, key_lengths, 64, dtype) | {"causal": True}
    arguments |= {name: arguments[name][:, : 12 // group] for name in "kv"}
    with poisoned_empty():
        verdict = parity(op, kernel, arguments, dtype)
    assert verdict.ok, verdict.reason
    expected = kernel(**arguments)
    for _ in range(20):
        assert torch.equal(kernel(**arguments), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_neighbours_stay_out(dtype: torch.dtype) -> None:
    kernel = kernels.kernel("cuda", "attention_varlen")
    for length in (1, 17, 31, 97, 130):
        arguments = attention_arguments([length, 40], [length, 40], 64, dtype)
        expected = kernel(**arguments)[:length].clone()
        for name in "qkv":
            arguments[name] = arguments[name].clone()
            arguments[name][length:] = float("nan")
        assert torch.equal(kernel(**arguments)[:length], expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_run_on_the_current_stream(backend: str) -> None:
    x = torch.randn(4096, 768, device=DEVICE)
    stream = torch.cuda.Stream(DEVICE)
    for name, call in row_calls(backend, torch.float32).items():
        expected = call(x)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            # The stream is busy: a launch elsewhere would read x before it is filled.
            late = torch.zeros_like(x)
            torch.cuda._sleep(20_000_000)
            late.copy_(x)
            result = call(late)
        stream.synchronize()
        assert torch.equal(result, expected), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_can_be_captured(backend: str) -> None:
    x = torch.randn(64, 768, device=DEVICE).half()
    for name, call in row_calls(backend, torch.float16).items():
        call(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        static = x.clone()
        with torch.cuda.graph(graph):
            result = call(static)
        static.copy_(x.flip(0))
        graph.replay()
        assert torch.equal(result, call(x.flip(0))), name


def test_rows_past_32_bit_offsets() -> None:
    if torch.cuda.mem_get_info(DEVICE)[0] < 24 << 30:
        pytest.skip("needs 24 GiB of free device memory")
    rows = 2**31 // 768 + 5
    x = torch.empty(rows, 768, device=DEVICE, dtype=torch.float16)
    x[-4:] = torch.randn(4, 768, device=DEVICE).half()
    for backend in BACKENDS:
        for name in ("add_layer_norm", "bias_act"):
            call = row_calls(backend, torch.float16)[name]
            assert torch.equal(call(x)[-4:], call(x[-4:])), (backend, name)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="this machine has one CUDA device")
@pytest.mark.parametrize("backend", BACKENDS)
def test_tensors_on_another_device(backend: str) -> None:
    x = torch.randn(10, 768, device=DEVICE)
    other = torch.device("cuda", 1)
    bias = torch.randn(768)
    kernel = kernels.kernel(backend, "bias_act")
    assert "activation" in inspect.signature(kernel).parameters
    here = kernel(x, bias.to(DEVICE), "gelu")
    there = kernel(x.to(other), bias.to(other), "gelu")
    assert there.device == other and torch.equal(there.cpu(), here.cpu())
    assert torch.cuda.current_device() == 0
