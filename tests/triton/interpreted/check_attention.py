"""attention_varlen beyond the op's own cases: head dims with every option, and independence."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from fastbert.kernels import kernel
from fastbert.ops.attention_varlen import OP
from fastbert.testing import parity, poisoned_empty
from fastbert.triton_kernels.attention_varlen import HEAD_DIMS, query_slots

attention_varlen = kernel("triton", "attention_varlen")

LENGTHS_Q = [5, 0, 1, 70, 33]
LENGTHS_K = [5, 3, 0, 71, 90]
HEADS = 2


def offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def arguments(
    dtype: torch.dtype,
    head_dim: int,
    lengths_q: list[int],
    lengths_k: list[int],
    **options: object,
) -> dict[str, object]:
    torch.manual_seed(head_dim)
    # q as a view into a fused projection: rows lie 3 * heads * head_dim apart.
    q = torch.randn(sum(lengths_q), 3, HEADS, head_dim).to(dtype)[:, 1]
    k = torch.randn(sum(lengths_k), HEADS, head_dim).to(dtype)
    v = torch.randn(sum(lengths_k), HEADS, head_dim).to(dtype)
    return {
        "q": q, "k": k, "v": v,
        "cu_seqlens_q": offsets(lengths_q), "cu_seqlens_k": offsets(lengths_k),
        "max_seqlen_q": max(lengths_q), "max_seqlen_k": max(lengths_k), "scale": head_dim**-0.5,
        **options,
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("added", ["none", "key_bias", "bias"])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def check_option(head_dim: int, added: str, causal: bool, dtype: torch.dtype) -> None:
    options: dict[str, object] = {"causal": causal}
    if added == "key_bias":
        key_bias = torch.zeros(sum(LENGTHS_K))
        key_bias[::3] = torch.finfo(torch.float32).min
        key_bias[: LENGTHS_K[0]] = torch.finfo(torch.float32).min
        options["key_bias"] = key_bias
    if added == "bias":
        shape = (len(LENGTHS_Q), 1, max(LENGTHS_Q), max(LENGTHS_K))
        options["bias"] = torch.randn(shape).to(dtype)
    given = arguments(dtype, head_dim, LENGTHS_Q, LENGTHS_K, **options)
    with poisoned_empty():
        verdict = parity(OP, attention_varlen, given, dtype)
    assert verdict.ok, verdict.reason


def check_rows_do_not_depend_on_the_batch() -> None:
    given = arguments(torch.float16, 64, LENGTHS_K, LENGTHS_K)
    together = attention_varlen(**given)
    key_bias = torch.zeros(sum(LENGTHS_K))
    assert torch.equal(together, attention_varlen(**given, key_bias=key_bias))
    start = 0
    for length in LENGTHS_K:
        rows = slice(start, start + length)
        alone = attention_varlen(
            given["q"][rows], given["k"][rows], given["v"][rows],  # type: ignore[index]
            offsets([length]), offsets([length]), length, length, 0.125,
        )  # fmt: skip
        assert torch.equal(alone, together[rows])
        start += length


@pytest.mark.parametrize("causal", [False, True])
def check_nan_stays_in_its_sequence(causal: bool) -> None:
    given = arguments(torch.float32, 32, [40, 17, 70], [40, 17, 70], causal=causal)
    clean = attention_varlen(**given)
    for name in ("q", "k", "v"):
        given[name] = given[name].clone()  # type: ignore[attr-defined]
        given[name][40:57] = float("nan")  # type: ignore[index]
    dirty = attention_varlen(**given)
    assert dirty[40:57].isnan().all()
    assert torch.equal(dirty[:40], clean[:40]) and torch.equal(dirty[57:], clean[57:])


def check_more_sequences_than_one_search() -> None:
    lengths = [(7 * i) % 5 for i in range(140)]
    given = arguments(torch.float32, 32, lengths, lengths)
    verdict = parity(OP, attention_varlen, given, torch.float32)
    assert verdict.ok, verdict.reason


def check_slots_suffice_and_waste_little() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        batch = int(torch.randint(1, 40, (1,), generator=generator))
        lengths = torch.randint(0, 700, (batch,), generator=generator).tolist()
        block = 128
        needed = sum(-(-length // block) for length in lengths)
        slots = query_slots(sum(lengths), batch, block)
        assert needed <= slots <= needed + batch
        starts = [start // block + b for b, start in enumerate(offsets(lengths)[:-1].tolist())]
        ends = [*starts[1:], slots]
        for length, start, end in zip(lengths, starts, ends, strict=True):
            assert end - start >= -(-length // block)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict.fromkeys("qkv", torch.zeros(4, 2, 48)), "head_dim is 48"),
        ({"q": torch.zeros(4, 64)}, "q has shape .4, 64., expected"),
        ({"k": torch.zeros(4, 3, 64)}, "k has shape"),
        ({"v": torch.zeros(4, 2, 64, dtype=torch.float16)}, "v is float16"),
        ({"cu_seqlens_q": torch.tensor([0, 4])}, "cu_seqlens_q is int64"),
        ({"cu_seqlens_k": torch.tensor([0, 2, 4], dtype=torch.int32)}, "cu_seqlens_k has shape"),
        ({"key_bias": torch.zeros(3)}, "key_bias has shape"),
        ({"bias": torch.zeros(2, 2, 4, 4)}, "bias has shape"),
        ({"scale": 0.0}, "scale is 0.0"),
    ],
)  # fmt: skip
def check_bad_input(change: dict[str, object], message: str) -> None:
    given = arguments(torch.float32, 64, [4], [4]) | change
    with pytest.raises((TypeError, ValueError), match=message):
        attention_varlen(**given)
