"""The host side of the CUDA attention: tiles as pure functions, what it refuses, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastbert.kernels import cuda
from fastbert.kernels.cuda import _native, attention_grouped
from fastbert.kernels.cuda.attention_varlen import HEAD_DIMS, supports
from fastbert.ops._op import Traits
from fastbert.ops.attention_varlen import check

module, reason = _native.load()
if module is None:
    pytest.skip(reason, allow_module_level=True)
_cuda: Any = module

F32, BF16 = 0, 1
SOMEWHERE = 1 << 20
needs_no_device = pytest.mark.skipif(
    torch.cuda.is_available(), reason="this machine has a CUDA device"
)


@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_the_sm90_plan_fits_a_multiprocessor(dim: int) -> None:
    warpgroups, stages, row_bytes, threads, shared = _cuda.attention_plan_sm90(dim)
    assert shared <= 227 * 1024
    # What a block must hold: its ring of keys and values, and 64 queries a warpgroup.
    assert shared >= (stages * 2 * 128 + warpgroups * 64) * dim * 2
    assert threads == 128 * (warpgroups + 1) <= 1024
    assert dim * 2 % row_bytes == 0 and row_bytes in (32, 64, 128)
    # Boxes start where their swizzle repeats.
    assert 64 * row_bytes % 1024 == 0 and 64 * dim * 2 % (8 * row_bytes) == 0
    # The usual sequences stay in shared memory, keys and values, until they are done with.
    assert stages * 128 >= (512 if dim < 128 else 384)


@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_the_other_forms_fit(dim: int) -> None:
    # sm_86 and sm_89 have the least of what the form runs on: 99 KiB a block.
    assert _cuda.attention_shared_sm80(dim) <= 99 * 1024
    assert _cuda.attention_shared_f32(dim) <= 99 * 1024
    # An odd number of 16-byte units a row: eight rows in eight different banks.
    assert _cuda.attention_shared_sm80(dim) // (64 + 4 * 64) // 16 % 2 == 1


@pytest.mark.parametrize("lengths", [[1], [64], [65], [0, 0, 1], [63] * 7, [64, 1, 200, 0, 128]])
def test_every_tile_has_a_slot(lengths: list[int]) -> None:
    slots = _cuda.attention_slots(sum(lengths), len(lengths))
    start, free = 0, 0
    for b, length in enumerate(lengths):
        first = start // 64 + b
        assert first >= free, "a sequence's slots begin after those of the one before"
        free = first + -(-length // 64)
        start += length
    assert free <= slots <= free + 2 * len(lengths)


def call(**changes: Any) -> None:
    s = SOMEWHERE
    arguments: dict[str, Any] = {
        "op": "attention_varlen", "operands": [s, s, s, s], "offsets": [s, s], "key_bias": 0,
        "bias": 0, "bias_strides": [0, 0, 0], "totals": [4, 4], "strides": [128, 64] * 3,
        "batch": 1, "heads": [2, 2], "dim": 64, "dtype": BF16, "causal": False, "scale": 0.125,
        "singles": (False, False, 1, 0), "device": 0, "stream": 0,
    }  # fmt: skip
    _cuda.attention_varlen(*(arguments | changes).values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 48}, "head_dim is 48"),
        ({"dtype": 3}, "dtype"),
        ({"scale": 0.0}, "scale is 0"),
        ({"scale": float("nan")}, "scale is -?nan"),
        ({"heads": [0, 1]}, "there are 0 heads"),
        ({"heads": [6, 4]}, "4 key/value heads, expected a divisor of the 6"),
        ({"heads": [6, 0]}, "0 key/value heads"),
        ({"singles": (True, True, 2, 0)}, "the chunks' parts are missing"),
        ({"singles": (True, True, 65536, SOMEWHERE)}, "65536 chunks of 256 keys"),
        ({"singles": (True, False, 0, SOMEWHERE)}, "0 chunks"),
        ({"totals": [-1, 4]}, "total_q"),
        ({"totals": [1 << 31, 4]}, "2\\^31 tokens"),
        ({"batch": -1}, "batch"),
        ({"offsets": [0, SOMEWHERE]}, "cu_seqlens"),
        ({"operands": [SOMEWHERE, 0, SOMEWHERE, SOMEWHERE]}, "k is missing"),
        ({"operands": [SOMEWHERE + 2, *[SOMEWHERE] * 3]}, "q has heads that do not start on 16"),
        ({"strides": [128, 64, 128, 64, 132, 64]}, "v has heads that do not start on 16"),
    ],
)
def test_descriptions_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^attention_varlen: .*{message}"):
        call(**changes)


@needs_no_device
def test_without_a_device_it_says_so() -> None:
    for dtype, strides in ((BF16, [128, 64] * 3), (F32, [128, 64] * 3)):
        with pytest.raises(RuntimeError, match=r"^attention_varlen: no CUDA device can be used"):
            call(dtype=dtype, strides=strides)


def test_empty_calls_need_no_device() -> None:
    call(totals=[0, 4])
    call(batch=0)
    call(batch=0, singles=(True, True, 1, 0))


def test_the_form_of_single_queries_is_told_its_sizes() -> None:
    assert _cuda.decode_chunk == attention_grouped.CHUNK
    assert [_cuda.decode_part_floats(dim) for dim in HEAD_DIMS] == [dim + 2 for dim in HEAD_DIMS]


def test_cpu_tensors_are_refused_by_name() -> None:
    q = torch.zeros(4, 2, 64)
    cu = torch.tensor([0, 4], dtype=torch.int32)
    with pytest.raises(ValueError, match="cuda"):
        check(cuda.target(), q, q, q, cu, cu, 4, 4, 0.125)


def test_supports() -> None:
    for dim in HEAD_DIMS:
        assert supports(Traits(head_dim=dim)) is None
    assert "head_dim is 72" in (supports(Traits(head_dim=72)) or "")
