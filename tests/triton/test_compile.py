"""Every kernel compiled for sm_80 and sm_90a as its launcher would launch it, with no GPU.

The machine code must use tensor cores where it multiplies matrices (HMMA, IMMA; on sm_90 the
warpgroup forms HGMMA, IGMMA), must fit in shared memory, and must keep nothing in local memory. All
of it is said of the triton that is installed. Other versions allocate registers otherwise; tiles
were chosen to spill under neither 3.6 nor 3.9. To see both, put the other one in front:
PYTHONPATH=FOLDER pytest -m slow tests/triton/test_compile.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="the triton package is not installed")

from fastbert import kernels
from fastbert.ops import ALL, IMAGES
from fastbert.testing import triton_aot as aot
from fastbert.triton_kernels.attention_grouped import CHUNK
from fastbert.triton_kernels.attention_varlen import HEAD_DIMS
from fastbert.triton_kernels.configs import FEW_ROWS


def op(name: str) -> Callable[..., Any]:
    """The op, which learns at every call where operands must be: on the CPU while recorded."""
    return lambda *args, **kwargs: kernels.bound("triton", name)(*args, **kwargs)


attention_varlen, linear, int8_linear = op("attention_varlen"), op("linear"), op("int8_linear")
add_layer_norm, act_layer_norm = op("add_layer_norm"), op("act_layer_norm")
embed_layer_norm, quantize_rows, bias_act = (
    op("embed_layer_norm"),
    op("quantize_rows"),
    op("bias_act"),
)
ARCHITECTURES = [80, 90]
HALF = [torch.float16, torch.bfloat16]
# Instruction that multiplies, by (architecture, integer operands?).
TENSOR_CORE = {
    (80, False): "HMMA",
    (80, True): "IMMA",
    (90, False): "HGMMA",
    (90, True): "IGMMA",
}

pytestmark = pytest.mark.parametrize("arch", ARCHITECTURES, ids=["sm_80", "sm_90"])


def checked(call: Callable[[], Any], arch: int, machine: int | None = None) -> aot.Binary:
    """Compiles what `call` launches in the configurations of `arch`, for `machine` or `arch`.

    Returns the last launch, which is the op's main kernel.
    """
    launches = aot.recorded(call, arch)
    assert launches
    for launch in launches:
        binary = aot.compiled(launch, arch if machine is None else machine)
        assert binary.stack == binary.local == 0, f"{launch.kernel.__name__} spills"
        assert binary.shared <= aot.LEAST_SHARED_LIMIT[arch]
        assert binary.blocks_per_sm(arch) >= 1
    return binary


def attention(head_dim: int, dtype: torch.dtype, **options: Any) -> Callable[[], Any]:
    tokens = 64
    qkv = torch.zeros(tokens, 3, 12, head_dim, dtype=dtype)
    cu_seqlens = torch.tensor([0, tokens], dtype=torch.int32)
    if options.pop("key_bias", False):
        options["key_bias"] = torch.zeros(tokens)
    if options.pop("bias", False):
        options["bias"] = torch.zeros(1, 12, tokens, tokens, dtype=dtype)
    return lambda: attention_varlen(
        qkv[:, 0], qkv[:, 1], qkv[:, 2], cu_seqlens, cu_seqlens, tokens, tokens, head_dim**-0.5,
        **options,
    )  # fmt: skip


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_attention(head_dim: int, arch: int) -> None:
    binary = checked(attention(head_dim, torch.float16), arch)
    assert binary.count(TENSOR_CORE[arch, False]) > 0
    # Keys and values reach shared memory asynchronously, through the software pipeline.
    assert binary.count("LDGSTS") > 0
    assert binary.count("MUFU.EX2") > 0


OPTIONS = ("causal", "key_bias", "bias")
SUBSETS = [chosen for n in range(4) for chosen in itertools.combinations(OPTIONS, n)]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=str)
@pytest.mark.parametrize("options", SUBSETS, ids=lambda chosen: "-".join(chosen) or "plain")
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_attention_options(
    head_dim: int, options: tuple[str, ...], dtype: torch.dtype, arch: int
) -> None:
    binary = checked(attention(head_dim, dtype, **dict.fromkeys(options, True)), arch)
    # float32 stays float32: no tf32 instruction unless torch's setting asks for it.
    tensor_core = "wgmma.mma_async" if arch == 90 else "mma.sync"
    assert (tensor_core in binary.ptx) == (dtype != torch.float32)


@pytest.mark.parametrize("option", OPTIONS)
def test_attention_options_at_64(option: str, arch: int) -> None:
    binary = checked(attention(64, torch.bfloat16, **{option: True}), arch)
    assert binary.count(TENSOR_CORE[arch, False]) > 0


def with_rows(name: str, rows: int) -> Callable[[], Any]:
    """A call of an op with so many rows; in attention, that many sequences of a token."""
    x, half = torch.zeros(rows, 768).half(), torch.zeros(768).half()
    square, integers = torch.zeros(768, 768).half(), torch.zeros(768, 768, dtype=torch.int8)
    heads, scales, one = x.view(rows, 12, 64), torch.zeros(768), torch.zeros(1).half()
    angles = torch.zeros(rows, 32)
    cu = torch.arange(rows + 1, dtype=torch.int32)
    arguments: dict[str, tuple[Any, ...]] = {
        "embed_layer_norm": (torch.zeros(rows, dtype=torch.long), square, half, half, 1e-5),
        "linear": (x, square),
        "int8_linear": (x, integers, scales),
        "linear_w8a16": (x, integers, scales),
        "quantize_rows": (x,),
        "bias_act": (x, None, "gelu"),
        "add_layer_norm": (x, half, half, 1e-5, x),
        "act_layer_norm": (x, half, half, half, 1e-5, "gelu"),
        "rms_norm": (x, half, 1e-5, x),
        "xielu": (x, one, one, one, one),
        "qk_norm_rope": (heads, heads[:, :4], half[:64], half[:64], 1e-5, angles, angles),
        "attention_varlen": (heads, heads, heads, cu, cu, 1, 1, 0.125),
        "attention_grouped": (heads, heads[:, :4], heads[:, :4], cu, cu, 1, 1, 0.125),
    }
    return lambda: op(name)(*arguments[name])


def forms(call: Callable[[], Any], arch: int) -> list[Any]:
    """What the launches of a call are compiled for."""
    sources = [aot.source(launch) for launch in aot.recorded(call, arch)]
    return [(each.signature, each.constants, each.attrs) for each in sources]


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("segment_sums", *IMAGES)])
def test_no_number_of_rows_is_compiled_for_itself(name: str, arch: int) -> None:
    found = [forms(with_rows(name, rows), arch) for rows in (1, 16, 17)]
    assert found[0] and found[0] == found[1] == found[2]


def test_no_number_of_chunks_is_compiled_for_itself(arch: int) -> None:
    """A text that is written on passes every number of them, a multiple of 16 among others."""

    def call(chunks: int) -> Callable[[], Any]:
        q, keys = torch.zeros(1, 8, 64).half(), torch.zeros(chunks * CHUNK, 2, 64).half()
        cu_q, cu_k = (torch.tensor([0, n], dtype=torch.int32) for n in (1, len(keys)))
        return lambda: op("attention_grouped")(q, keys, keys, cu_q, cu_k, 1, len(keys), 0.125, True)

    found = [forms(call(chunks), arch) for chunks in (2, 16, 17)]
    assert len(found[0]) == 2 and found[0] == found[1] == found[2]


@pytest.mark.parametrize("rows", [FEW_ROWS, FEW_ROWS + 1], ids=["few", "many"])
@pytest.mark.parametrize("epilogue", ["gelu", "residual"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_linear(dtype: torch.dtype, epilogue: str, rows: int, arch: int) -> None:
    x, weight = torch.zeros(rows, 768, dtype=dtype), torch.zeros(3072, 768, dtype=dtype)
    bias = torch.zeros(3072, dtype=dtype)
    residual = torch.zeros(rows, 3072, dtype=dtype) if epilogue == "residual" else None
    activation = "gelu" if epilogue == "gelu" else "none"
    binary = checked(lambda: linear(x, weight, bias, activation, residual), arch)
    assert (binary.count(TENSOR_CORE[arch, False]) > 0) == (dtype != torch.float32)
    assert binary.count("LDGSTS") > 0


@pytest.mark.parametrize("rows", [FEW_ROWS, FEW_ROWS + 1], ids=["few", "many"])
@pytest.mark.parametrize("epilogue", ["gelu", "residual"])
def test_int8_linear(epilogue: str, rows: int, arch: int) -> None:
    x, weight = torch.zeros(rows, 768).half(), torch.zeros(3072, 768, dtype=torch.int8)
    scale, bias = torch.zeros(3072), torch.zeros(3072).half()
    residual = torch.zeros(rows, 3072).half() if epilogue == "residual" else None
    activation = "gelu" if epilogue == "gelu" else "none"
    binary = checked(lambda: int8_linear(x, weight, scale, bias, activation, residual), arch)
    assert binary.count(TENSOR_CORE[arch, True]) > 0
    assert binary.count("LDGSTS") > 0
    if rows > FEW_ROWS:
        # One block's epilogue (erf) runs while another's tensor cores work.
        assert binary.blocks_per_sm(arch) >= 2


def test_tails_in_depth_still_use_tensor_cores(arch: int) -> None:
    # A multiple of 16 (rows stay aligned) but of no tile.
    x, weight = torch.zeros(608, 1040).half(), torch.zeros(608, 1040).half()
    assert checked(lambda: linear(x, weight), arch).count(TENSOR_CORE[arch, False]) > 0
    quantised = torch.zeros(608, 1040, dtype=torch.int8)
    binary = checked(lambda: int8_linear(x, quantised, torch.zeros(608)), arch)
    assert binary.count(TENSOR_CORE[arch, True]) > 0


@pytest.mark.parametrize("hidden", [768, 1024])
@pytest.mark.parametrize("older", [False, True], ids=["", "sm_75"])
def test_row_ops_move_16_bytes_a_thread(hidden: int, older: bool, arch: int) -> None:
    if older and arch == 90:
        pytest.skip("GPUs before sm_80 take its configurations")
    dtype = torch.float16 if older else torch.bfloat16
    x, vector = torch.zeros(64, hidden, dtype=dtype), torch.zeros(hidden, dtype=dtype)
    ids, table = torch.zeros(64, dtype=torch.int64), torch.zeros(100, hidden, dtype=dtype)
    for call in (
        lambda: add_layer_norm(x, vector, vector, 1e-12, x, vector, True),
        lambda: act_layer_norm(x, vector, vector, vector, 1e-12, "gelu"),
        lambda: embed_layer_norm(ids, table, vector, vector, 1e-12, ids, table, ids, table),
        lambda: quantize_rows(x),
        lambda: bias_act(x, vector, "gelu"),
    ):
        binary = checked(call, arch, 75 if older else arch)
        assert binary.count(r"LDG\.E\.128") > 0 or binary.count(r"LDG\.E\.\S*128") > 0
        # Enough rows in flight to cover the latency of memory.
        assert binary.blocks_per_sm(arch) * binary.warps >= 16


def test_products_have_no_tensor_cores_before_sm_80(arch: int) -> None:
    """Why a T4 multiplies with torch: once Triton can do better, kernels.refusal may ask it to."""
    if arch == 90:
        pytest.skip("GPUs before sm_80 take the configurations of sm_80")
    x, weight = torch.zeros(64, 768).half(), torch.zeros(3072, 768).half()
    binary = aot.compiled(aot.recorded(lambda: linear(x, weight), 80)[-1], 75)
    assert binary.count("HMMA") == 0 and binary.stack > 0
