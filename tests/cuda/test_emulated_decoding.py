"""The CUDA kernels of decoders run on the CPU (tests/cuda/emulated), against the reference."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from fastbert import kernels
from fastbert.ops import DECODING, Case, Op
from fastbert.testing import misaligned, parity, poisoned_empty

pytestmark = pytest.mark.usefixtures("on_the_cpu")
OPS = ("rms_norm", "qk_norm_rope", "xielu", "linear_w8a16")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NAN, INF = float("nan"), float("inf")


def run(op: str, *args: Any, **kwargs: Any) -> Any:
    # Not through kernels.kernel, which would remember the patched library.
    return kernels.bound("cuda", op)(*args, **kwargs)


def check(op: str, arguments: dict[str, Any], dtype: torch.dtype) -> None:
    with poisoned_empty():
        verdict = parity(DECODING[op], partial(run, op), arguments, dtype)
    assert verdict.ok, verdict.reason


CASES = [
    pytest.param(
        DECODING[name], case, dtype, id=f"{name}-{case.name}-{str(dtype).removeprefix('torch.')}"
    )
    for name in OPS
    for case in DECODING[name].cases()
    for dtype in DTYPES
]


@pytest.mark.parametrize(("op", "case", "dtype"), CASES)
def test_parity(op: Op, case: Case, dtype: torch.dtype) -> None:
    check(op.name, case.make(dtype), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 7, 1024, 1032, 2049, 5000, 16384])
def test_rms_norm_in_all_widths_and_alignments(width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(width)
    x, residual = torch.randn(5, width).to(dtype), torch.randn(5, width).to(dtype)
    weight = torch.randn(width).to(dtype)
    arguments: dict[str, Any] = {
        "x": x, "weight": weight, "eps": 1e-5, "residual": residual, "return_sum": True,
    }  # fmt: skip
    check("rms_norm", arguments, dtype)
    aligned = run("rms_norm", **arguments)
    # The narrow form reads the same row in the same order.
    for name in ("x", "residual", "weight"):
        narrow = run("rms_norm", **(arguments | {name: misaligned(arguments[name])}))
        assert all(torch.equal(a, b) for a, b in zip(aligned, narrow, strict=True)), name
    fused = torch.randn(5, 2 * width + 3).to(dtype)
    check("rms_norm", arguments | {"x": fused[:, 3 : width + 3]}, dtype)
    # What is added is the row itself, not what was rounded of it.
    assert torch.equal(aligned[1], (x.float() + residual.float()).to(dtype))


def test_a_row_of_rms_norm_is_the_same_in_any_batch() -> None:
    x, vector = torch.randn(9, 768), torch.randn(768)
    together = run("rms_norm", x, vector, 1e-6)[0]
    for row in range(9):
        assert torch.equal(run("rms_norm", x[row : row + 1], vector, 1e-6)[0][0], together[row])


def test_rms_norm_of_nan_and_infinity() -> None:
    x = torch.randn(3, 40)
    x[0, 1], x[1, 2] = NAN, INF
    out = run("rms_norm", x, torch.ones(40), 1e-5)[0]
    assert out[0].isnan().all() and out[1, 2].isnan() and not out[2].isnan().any()


def test_rows_that_no_block_holds_are_refused() -> None:
    x = torch.ones(1, 16385)
    with pytest.raises(ValueError, match=r"^rms_norm: rows have 16385 elements"):
        run("rms_norm", x, x[0], 1e-5)


# Slopes of both signs, and beyond where exp overflows.
NUMBERS = [(0.2, -1.05, 0.5), (-30.0, 3.0, 0.25), (90.0, -90.0, -0.5)]


@pytest.mark.parametrize("numbers", NUMBERS)
def test_xielu_far_out_and_on_both_sides_of_zero(numbers: tuple[float, float, float]) -> None:
    x = torch.tensor([[0.0, -0.0, 1e-7, -1e-7, -5e-7, -1e-6, -2e-6, -1e-3, 3.0, -3.0, -80.0, 80.0,
                       -1e4, 1e4, INF, -INF, NAN]])  # fmt: skip
    parts = [torch.tensor([part]) for part in (*numbers, -1e-6)]
    exact = DECODING["xielu"].reference(x.double(), *(part.double() for part in parts))
    out = run("xielu", x, *parts)
    torch.testing.assert_close(out.double(), exact, rtol=2e-6, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_xielu_with_many_rows_and_any_alignment(dtype: torch.dtype) -> None:
    x = torch.randn(1026, 40).to(dtype)  # more than one row a thread, and a rest
    numbers = [torch.tensor([part], dtype=dtype) for part in (0.2, -1.0, 0.5, -1e-6)]
    arguments = {"x": x, **dict(zip(("alpha_p", "alpha_n", "beta", "eps"), numbers, strict=True))}
    check("xielu", arguments, dtype)
    expected = run("xielu", **arguments)
    assert torch.equal(run("xielu", **(arguments | {"x": misaligned(x)})), expected)
    # A number that stands amid others.
    stored = torch.cat(numbers)
    amid = {name: stored[i] for i, name in enumerate(("alpha_p", "alpha_n", "beta", "eps"))}
    assert torch.equal(run("xielu", x, **amid), expected)


def rope(tokens: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> dict[str, Any]:
    torch.manual_seed(tokens + dim)
    fused = torch.randn(tokens, heads + kv_heads, dim).to(dtype)
    angles = torch.randn(tokens, dim // 2) * 3
    return {
        "q": fused[:, :heads], "k": fused[:, heads:], "q_weight": torch.randn(dim).to(dtype),
        "k_weight": torch.randn(dim).to(dtype), "eps": 1e-5, "cos": angles.cos(),
        "sin": angles.sin(),
    }  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [2, 10, 32, 48, 80, 100, 128, 256])
def test_heads_of_any_width_and_alignment(dim: int, dtype: torch.dtype) -> None:
    for heads, kv_heads in ((32, 8), (5, 1), (0, 3)):
        arguments = rope(3, heads, kv_heads, dim, dtype)
        check("qk_norm_rope", arguments, dtype)
        aligned = run("qk_norm_rope", **arguments)
        for name in ("q", "k", "q_weight", "cos", "sin"):
            if arguments[name].numel() == 0:
                continue
            moved = run("qk_norm_rope", **(arguments | {name: misaligned(arguments[name])}))
            assert all(torch.equal(a, b) for a, b in zip(aligned, moved, strict=True)), name


def test_a_head_is_the_same_in_any_batch() -> None:
    arguments = rope(9, 4, 2, 64, torch.float32)
    together = run("qk_norm_rope", **arguments)
    for token in range(9):
        rows = {name: arguments[name][token : token + 1] for name in ("q", "k", "cos", "sin")}
        alone = run("qk_norm_rope", **(arguments | rows))
        assert all(torch.equal(a[0], b[token]) for a, b in zip(alone, together, strict=True))


def test_one_position_for_all_tokens_and_one_head_for_all() -> None:
    """Views with strides of 0, as expand makes them."""
    arguments = rope(4, 3, 3, 16, torch.float32)
    arguments["q"] = arguments["q"][:, :1].expand(4, 3, 16)
    for name in ("cos", "sin"):
        arguments[name] = arguments[name][:1].expand(4, 8)
    check("qk_norm_rope", arguments, torch.float32)


def test_heads_that_no_warp_holds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^qk_norm_rope: head_dim is 258"):
        run("qk_norm_rope", **rope(1, 1, 1, 258, torch.float32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_keys_and_values_go_into_a_cache(emulated: Any, dtype: torch.dtype) -> None:
    """As a step of several texts writes them: each token to a row of its own, among others'."""
    tokens, heads, kv_heads, dim, size = 5, 4, 2, 32, 11
    arguments = rope(tokens, heads, kv_heads, dim, dtype)
    q, k = arguments["q"], arguments["k"]
    expected_q, expected_k = run("qk_norm_rope", **arguments)
    v = torch.randn(tokens, kv_heads, dim).to(dtype)
    cache = torch.full((2, kv_heads, size, dim), 7.0, dtype=dtype)
    before, q_out = cache.clone(), torch.empty_like(expected_q)
    rows = torch.tensor([3, 10, size, -1, 0])  # two of them are none
    code = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}[dtype]
    of_cache = (dim, size * dim)
    emulated.qk_norm_rope(
        (q.data_ptr(), k.data_ptr(), v.data_ptr(), q_out.data_ptr(),
         cache[0].data_ptr(), cache[1].data_ptr()),
        (*q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *q_out.stride()[:2],
         *of_cache, *of_cache),
        (rows.data_ptr(), size),
        (arguments["q_weight"].data_ptr(), arguments["k_weight"].data_ptr()),
        (arguments["cos"].data_ptr(), arguments["sin"].data_ptr()), (dim // 2, dim // 2),
        tokens, heads, kv_heads, dim, code, 1e-5, 0, 0,
    )  # fmt: skip
    assert torch.equal(q_out, expected_q)
    for token, row in ((0, 3), (1, 10), (4, 0)):
        before[0, :, row], before[1, :, row] = expected_k[token], v[token]
    assert torch.equal(cache, before)


def product(rows: int, inner: int, outer: int, dtype: torch.dtype) -> dict[str, Any]:
    torch.manual_seed(rows + inner + outer)
    return {
        "x": torch.randn(rows, inner).to(dtype),
        "qweight": torch.randint(-128, 128, (outer, inner), dtype=torch.int8),
        "weight_scale": torch.rand(outer) / 100 + 1e-3,
        "bias": torch.randn(outer).to(dtype),
        "activation": "gelu",
        "residual": torch.randn(rows, outer).to(dtype),
    }  # fmt: skip


# Shorter than a warp's turn, ending amid a lane's positions, a warp's turn and the block's; both
# blocks of rows, whole and not.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "inner", "outer"),
    [(1, 1, 1), (8, 16, 16), (9, 48, 17), (3, 61, 40), (33, 528, 7), (70, 1040, 33), (2, 2064, 9)],
)
def test_products_of_any_size_and_alignment(
    rows: int, inner: int, outer: int, dtype: torch.dtype
) -> None:
    arguments = product(rows, inner, outer, dtype)
    check("linear_w8a16", arguments, dtype)
    expected = run("linear_w8a16", **arguments)
    for name in ("x", "qweight", "bias", "residual"):
        moved = arguments | {name: misaligned(arguments[name])}
        assert torch.equal(run("linear_w8a16", **moved), expected), name
    # A row alone, and in the other block of rows.
    for row in {0, rows // 2, rows - 1}:
        own = {name: arguments[name][row : row + 1] for name in ("x", "residual")}
        assert torch.equal(run("linear_w8a16", **(arguments | own))[0], expected[row])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_weight_is_what_it_is(dtype: torch.dtype) -> None:
    """All 256 of them, in every place of a lane's words."""
    qweight = torch.arange(-128, 128, dtype=torch.int8).repeat(2).unfold(0, 64, 1)[:256]
    scale = torch.ones(256)
    out = run("linear_w8a16", torch.eye(64, dtype=dtype), qweight.contiguous(), scale)
    assert torch.equal(out, qweight.t().to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_a_row_that_is_not_finite_is_nan_as_a_whole(
    bad: float, activation: str, dtype: torch.dtype
) -> None:
    arguments = product(5, 67, 41, dtype) | {"activation": activation}
    arguments["qweight"][3, 66] = 0
    arguments["x"][2, 66] = bad
    out = run("linear_w8a16", **arguments)
    assert out[2].isnan().all() and out[[0, 1, 3, 4]].isfinite().all()


def test_a_factor_keeps_what_it_makes_of_16_bits() -> None:
    """Rows that it widened to float32 are multiplied so, and rounded once, to their own dtype."""
    arguments = product(9, 80, 20, torch.bfloat16)
    factor = torch.rand(80) + 0.5
    out = run("linear_w8a16", **arguments, factor=factor)
    wide = {name: part.float() if part.dtype == torch.bfloat16 else part
            for name, part in arguments.items() if isinstance(part, torch.Tensor)}  # fmt: skip
    expected = run("linear_w8a16", **(arguments | wide), factor=factor)
    assert out.dtype == torch.bfloat16
    # GELU for 16 bits is another polynomial: all but a few roundings agree.
    assert (out == expected.bfloat16()).float().mean() > 0.95
    check("linear_w8a16", arguments | {"factor": factor}, torch.bfloat16)
