"""The CUDA attention kernels run on the CPU (tests/cuda/emulated), in all their forms.

What the emulation watches over: fragments, descriptors, swizzles, every barrier's phases, what an
asynchronous copy or product may not yet see. What it cannot: the ordering of single accesses, the
machine's own exp2, time. Those wait for test_on_device.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastbert import kernels
from fastbert.kernels.cuda.attention_varlen import HEAD_DIMS
from fastbert.ops import REGISTRY, Case
from fastbert.testing import misaligned, parity, poisoned_empty

pytestmark = pytest.mark.usefixtures("on_the_cpu")
OP = REGISTRY["attention_varlen"]


def attention_varlen(**arguments: Any) -> Tensor:
    # Not through kernels.kernel, which would remember the patched library.
    out: Tensor = kernels.bound("cuda", "attention_varlen")(**arguments)
    return out


INF = float("inf")
# Major compute capability, which picks the form, and dtype. The first three are the forms; types
# differ only in how elements are widened and narrowed.
FORMS = [
    pytest.param(("9", torch.bfloat16), id="sm90-bfloat16"),
    pytest.param(("8", torch.float16), id="sm80-float16"),
    pytest.param(("9", torch.float32), id="float32"),
    pytest.param(("9", torch.float16), id="sm90-float16"),
    pytest.param(("8", torch.bfloat16), id="sm80-bfloat16"),
]


@pytest.fixture(params=FORMS[:3])
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """The dtype of a form, which is then the one that runs."""
    return choose(request.param, monkeypatch)


@pytest.fixture(params=FORMS)
def any_dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """As dtype, with every form in every dtype."""
    return choose(request.param, monkeypatch)


def choose(form: tuple[str, torch.dtype], monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    monkeypatch.setenv("FASTBERT_EMULATION_MAJOR", form[0])
    return form[1]


def offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def make(
    dtype: torch.dtype, lengths: list[int], key_lengths: list[int], dim: int, heads: int = 2
) -> dict[str, Any]:
    torch.manual_seed(sum(lengths) + dim)
    total_q, total_k = sum(lengths), sum(key_lengths)
    q = torch.randn(total_q, heads, dim).to(dtype)
    k, v = torch.randn(total_k, 2, heads, dim).to(dtype).unbind(1)
    return {
        "q": q, "k": k, "v": v, "cu_seqlens_q": offsets(lengths),
        "cu_seqlens_k": offsets(key_lengths), "max_seqlen_q": max(lengths),
        "max_seqlen_k": max(key_lengths), "scale": dim**-0.5,
    }  # fmt: skip


def check(arguments: dict[str, Any]) -> None:
    with poisoned_empty():
        verdict = parity(OP, attention_varlen, arguments, arguments["q"].dtype)
    assert verdict.ok, verdict.reason


@pytest.mark.parametrize("case", list(OP.cases()), ids=lambda case: case.name)
def test_parity(case: Case, any_dtype: torch.dtype) -> None:
    arguments = case.make(any_dtype)
    if arguments["q"].shape[2] not in HEAD_DIMS:
        with pytest.raises(ValueError, match="head_dim is"):
            attention_varlen(**arguments)
        return
    check(arguments)


# Longer than the ring of stages and shorter, ending at every place within a block of keys; queries
# and keys of different lengths; empty on either side.
LENGTHS = [
    ([500], [900]),
    ([200, 130], [512, 512]),
    ([70, 3, 770], [770, 3, 200]),
    ([130, 0, 1, 300], [5, 0, 900, 131]),
    ([65, 64, 63], [128, 129, 127]),
    ([70, 9], [0, 33]),
]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize(
    ("dim", "causal"), [(32, True), (64, False), (64, True), (80, False), (96, True), (128, False)]
)
def test_lengths(
    dtype: torch.dtype,
    lengths: tuple[list[int], list[int]],
    dim: int,
    causal: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The order in which threads run differs from case to case.
    monkeypatch.setenv("FASTBERT_EMULATION_SEED", str(dim // 16 + causal))
    check(make(dtype, *lengths, dim, heads=1) | {"causal": causal})


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_threads_gives_the_same_bits(
    seed: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = make(dtype, [150, 20, 64], [150, 20, 64], 64)
    expected = attention_varlen(**arguments)
    monkeypatch.setenv("FASTBERT_EMULATION_SEED", str(seed + 1))
    assert torch.equal(attention_varlen(**arguments), expected)


@pytest.mark.parametrize("dim", [64, 80, 128])
def test_a_sequence_is_the_same_in_any_batch(dim: int, dtype: torch.dtype) -> None:
    lengths = [1, 63, 64, 65, 0, 128, 200, 7]
    arguments = make(dtype, lengths, lengths, dim, heads=1)
    together = attention_varlen(**arguments)
    key_bias = torch.zeros(sum(lengths))
    assert torch.equal(attention_varlen(**arguments, key_bias=key_bias), together)
    start = 0
    for length in lengths:
        own = {name: arguments[name][start : start + length] for name in "qkv"}
        own |= {"cu_seqlens_q": offsets([length]), "cu_seqlens_k": offsets([length])}
        own |= {"max_seqlen_q": length, "max_seqlen_k": length}
        alone = attention_varlen(**(arguments | own))
        assert torch.equal(alone, together[start : start + length]), length
        start += length


@pytest.mark.parametrize(("value", "seed"), [(float("nan"), 0), (float("nan"), 7), (INF, 3)])
def test_neighbours_stay_out(
    value: float, seed: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another sequence holds never shows, not even through a weight of 0. With seed 7 the warp
    that clears values past a sequence's end is the slow one of a block that needs it."""
    monkeypatch.setenv("FASTBERT_EMULATION_SEED", str(seed))
    for length in (1, 17, 31, 97, 130):
        arguments = make(dtype, [length, 40], [length, 40], 64)
        expected = attention_varlen(**arguments)[:length]
        for name in "qkv":
            arguments[name] = arguments[name].clone()
            arguments[name][length:] = value
        assert torch.equal(attention_varlen(**arguments)[:length], expected)


def test_causal_neighbours_stay_out(dtype: torch.dtype) -> None:
    """A share that ends before its sequence does reaches past the sequence's end all the same."""
    lengths = [65, 129, 250]
    arguments = make(dtype, [*lengths, 40], [*lengths, 40], 64) | {"causal": True}
    expected = attention_varlen(**arguments)[:-40]
    arguments["v"] = arguments["v"].clone()
    arguments["v"][-40:] = float("nan")
    assert torch.equal(attention_varlen(**arguments)[:-40], expected)


def test_heads_off_16_bytes_are_copied(dtype: torch.dtype) -> None:
    arguments = make(dtype, [33, 4], [33, 4], 32)
    expected = attention_varlen(**arguments)
    for name in "qkv":
        moved = arguments | {name: misaligned(arguments[name])}
        assert torch.equal(attention_varlen(**moved), expected)


def test_scores_beyond_the_range_of_exp(dtype: torch.dtype) -> None:
    arguments = make(dtype, [140], [140], 64)
    check(arguments | {"q": arguments["q"] * 8, "k": arguments["k"] * 8})


def test_invisible_and_worst_scores(dtype: torch.dtype) -> None:
    """A bias of -inf hides a key; finfo.min does not, and rows of nothing else are uniform."""
    arguments = make(dtype, [70, 140], [70, 140], 64)
    bias = torch.zeros(2, 1, 140, 140)
    bias[0, :, 3] = float("-inf")
    bias[1, :, 5] = torch.finfo(torch.float32).min
    bias[1, :, :, ::2] = float("-inf")
    check(arguments | {"bias": bias})
    out = attention_varlen(**arguments, bias=bias)
    assert (out[3] == 0).all()


@pytest.mark.parametrize("side", ["heads", "tokens"])
def test_expanded_operands_are_copied(side: str, dtype: torch.dtype) -> None:
    """Heads that all read one, as views with a stride of 0, have no place of their own to load."""
    torch.manual_seed(0)
    shape, whole = ((9, 1, 64) if side == "heads" else (1, 3, 64)), (9, 3, 64)
    q, k, v = (torch.randn(shape).to(dtype).expand(whole) for _ in range(3))
    assert 0 in k.stride()
    cu = offsets([9])
    arguments = {"q": q, "k": k, "v": v, "cu_seqlens_q": cu, "cu_seqlens_k": cu,
                 "max_seqlen_q": 9, "max_seqlen_k": 9, "scale": 0.125}  # fmt: skip
    verdict = parity(OP, attention_varlen, arguments, dtype)
    assert verdict.ok, verdict.reason
