"""The ops of decoders compiled for every GPU they are said to run on, with no GPU.

As in test_compile.py: tensor cores where matrices are multiplied, nothing in local memory, and no
more shared memory than the smallest GPU has that takes these tiles. sm_75 has 64 KiB of it, no
bfloat16 and no products of Triton's own; sm_100 takes the tiles of sm_90.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="the triton package is not installed")

from fastbert import kernels
from fastbert.testing import triton_aot as aot
from fastbert.triton_kernels.configs import FEW_ROWS

# Machine -> the configurations that it takes, and its instruction for products.
TILES = {75: 80, 80: 80, 90: 90, 100: 90}
TENSOR_CORE = {80: "HMMA", 90: "HGMMA", 100: r"UTC\w*MMA"}


def slow(value: object) -> Any:
    """A parameter that only the slow tests take."""
    return pytest.param(value, marks=pytest.mark.slow)


def run(name: str, *args: Any, **kwargs: Any) -> Callable[[], Any]:
    """A call of the op, which learns when it is made where operands must be."""
    return lambda: kernels.bound("triton", name)(*args, **kwargs)


def checked(call: Callable[[], Any], machine: int) -> list[aot.Binary]:
    """Compile the launches of a call as the launcher would for this machine."""
    binaries = []
    for launch in aot.recorded(call, TILES[machine]):
        binary = aot.compiled(launch, machine)
        assert binary.stack == binary.local == 0, f"{launch.kernel.__name__} spills"
        assert binary.shared <= aot.LEAST_SHARED_LIMIT[machine]
        assert binary.blocks_per_sm(machine) >= 1
        binaries.append(binary)
    return binaries


def machines(*shown: int, slowly: tuple[int, ...]) -> pytest.MarkDecorator:
    """Parametrise a test by machines, of which some are left to the slow tests."""
    values = [*shown, *map(slow, slowly)]
    names = [f"sm_{machine}" for machine in (*shown, *slowly)]
    return pytest.mark.parametrize("machine", values, ids=names)


@machines(75, 90, slowly=(80, 100))
def test_row_ops(machine: int) -> None:
    dtype = torch.float16 if machine == 75 else torch.bfloat16
    x, gain, number = torch.zeros(64, 4096, dtype=dtype), torch.zeros(4096, dtype=dtype), 1
    slope = torch.zeros(number, dtype=dtype)
    fused, half = torch.zeros(64, 40, 128, dtype=dtype), torch.zeros(64, 64)
    for call in (
        run("rms_norm", x, gain, 1e-5, x, True),
        run("xielu", x, slope, slope, slope, slope),
        run("qk_norm_rope", fused[:, :32], fused[:, 32:], gain[:128], gain[:128], 1e-5, half, half),
    ):
        (binary,) = checked(call, machine)
        assert binary.shared <= 48 * 1024  # what no GPU has to be asked for
        assert binary.count(r"LDG\.E\.\S*(64|128)") > 0
        # Enough rows in flight to cover the latency of memory.
        assert binary.blocks_per_sm(machine) * binary.warps >= 16


@machines(90, slowly=(80, 100))
@pytest.mark.parametrize("dtype", [slow(torch.float16), torch.bfloat16], ids=str)
@pytest.mark.parametrize("queries", [1, slow(64)], ids=["decoding", "prompt"])
def test_attention(queries: int, dtype: torch.dtype, machine: int) -> None:
    keys = 4096 if queries == 1 else queries
    q, kv = torch.zeros(queries, 32, 128, dtype=dtype), torch.zeros(keys, 2, 8, 128, dtype=dtype)
    cu_q, cu_k = (torch.tensor([0, tokens], dtype=torch.int32) for tokens in (queries, keys))
    call = run(
        "attention_grouped", q, kv[:, 0], kv[:, 1], cu_q, cu_k, queries, keys, 128**-0.5, True
    )
    binaries = checked(call, machine)
    # One query a sequence: chunks of keys, and what joins them.
    assert len(binaries) == (2 if queries == 1 else 1)
    assert binaries[0].count(TENSOR_CORE[machine]) > 0
    assert all(binary.count("MUFU.EX2") > 0 for binary in binaries)


@machines(90, 100, slowly=(80,))
@pytest.mark.parametrize("rows", [1, slow(FEW_ROWS + 1)], ids=["few", "many"])
@pytest.mark.parametrize(
    "dtype", [slow(torch.float16), torch.bfloat16, slow(torch.float32)], ids=str
)
def test_linear_w8a16(dtype: torch.dtype, rows: int, machine: int) -> None:
    x, weight = torch.zeros(rows, 4096, dtype=dtype), torch.zeros(1024, 4096, dtype=torch.int8)
    residual = torch.zeros(rows, 1024, dtype=dtype)
    (binary,) = checked(
        run("linear_w8a16", x, weight, torch.zeros(1024), None, "none", residual), machine
    )
    assert (binary.count(TENSOR_CORE[machine]) > 0) == (dtype != torch.float32)
