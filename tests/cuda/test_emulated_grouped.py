"""Attention with grouped heads on CUDA, run on the CPU (tests/cuda/emulated), in all its forms.

Single queries have a form of their own, in chunks of 256 keys; all others those of
attention_varlen, which test_emulated_attention.py looks at more closely.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastbert import kernels
from fastbert.kernels.cuda.attention_varlen import HEAD_DIMS
from fastbert.ops import DECODING, Case
from fastbert.testing import misaligned, parity, poisoned_empty

pytestmark = pytest.mark.usefixtures("on_the_cpu")
OP = DECODING["attention_grouped"]
NAN, INF = float("nan"), float("inf")
# Major compute capability, which picks the form of several queries, and dtype.
FORMS = [
    pytest.param(("9", torch.bfloat16), id="sm90-bfloat16"),
    pytest.param(("8", torch.float16), id="sm80-float16"),
    pytest.param(("9", torch.float32), id="float32"),
    pytest.param(("8", torch.bfloat16), id="sm80-bfloat16"),
    pytest.param(("9", torch.float16), id="sm90-float16"),
]


def attention_grouped(**arguments: Any) -> Tensor:
    # Not through kernels.kernel, which would remember the patched library.
    out: Tensor = kernels.bound("cuda", "attention_grouped")(**arguments)
    return out


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
    dtype: torch.dtype, lengths: list[int], key_lengths: list[int], dim: int, heads: int,
    kv_heads: int,
) -> dict[str, Any]:  # fmt: skip
    torch.manual_seed(sum(key_lengths) + dim)
    q = torch.randn(sum(lengths), heads, dim).to(dtype)
    k, v = torch.randn(sum(key_lengths), 2, kv_heads, dim).to(dtype).unbind(1)
    return {
        "q": q, "k": k, "v": v, "cu_seqlens_q": offsets(lengths),
        "cu_seqlens_k": offsets(key_lengths), "max_seqlen_q": max(lengths),
        "max_seqlen_k": max(key_lengths), "scale": dim**-0.5, "causal": True,
    }  # fmt: skip


def check(arguments: dict[str, Any]) -> None:
    with poisoned_empty():
        verdict = parity(OP, attention_grouped, arguments, arguments["q"].dtype)
    assert verdict.ok, verdict.reason


@pytest.mark.parametrize("case", list(OP.cases()), ids=lambda case: case.name)
def test_parity(case: Case, any_dtype: torch.dtype) -> None:
    arguments = case.make(any_dtype)
    if arguments["q"].shape[2] not in HEAD_DIMS:
        with pytest.raises(ValueError, match=r"^attention_grouped: head_dim is"):
            attention_grouped(**arguments)
        return
    check(arguments)


# Within a chunk, at its end, beyond it, several of them; no keys.
KEYS = [1, 5, 255, 256, 257, 0, 600]


@pytest.mark.parametrize("dim", HEAD_DIMS)
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (6, 2), (4, 1), (8, 1), (9, 1), (20, 2)])
def test_single_queries(
    heads: int, kv_heads: int, dim: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTBERT_EMULATION_SEED", str(dim // 16 + heads))
    check(make(dtype, [1] * len(KEYS), KEYS, dim, heads, kv_heads))


@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (6, 2), (4, 1)])
@pytest.mark.parametrize("dim", [64, 80])
def test_prompts_beside_single_queries(
    dim: int, heads: int, kv_heads: int, dtype: torch.dtype
) -> None:
    check(make(dtype, [1, 70, 0, 1, 3, 1], [300, 200, 4, 0, 130, 9], dim, heads, kv_heads))


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_threads_gives_the_same_bits(
    seed: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = make(dtype, [1, 1], [300, 20], 64, 4, 1)
    expected = attention_grouped(**arguments)
    monkeypatch.setenv("FASTBERT_EMULATION_SEED", str(seed + 1))
    assert torch.equal(attention_grouped(**arguments), expected)


def test_a_sequence_is_the_same_in_any_batch(dtype: torch.dtype) -> None:
    lengths, keys = [1, 40, 1, 1, 1], [300, 90, 256, 7, 513]
    arguments = make(dtype, lengths, keys, 64, 4, 2)
    together = attention_grouped(**arguments)
    key_bias = torch.zeros(sum(keys))
    assert torch.equal(attention_grouped(**arguments, key_bias=key_bias), together)
    start, start_k = 0, 0
    for length, key_length in zip(lengths, keys, strict=True):
        rows, rows_k = slice(start, start + length), slice(start_k, start_k + key_length)
        own = {"q": arguments["q"][rows], "k": arguments["k"][rows_k],
               "v": arguments["v"][rows_k], "cu_seqlens_q": offsets([length]),
               "cu_seqlens_k": offsets([key_length]), "max_seqlen_q": length,
               "max_seqlen_k": key_length}  # fmt: skip
        alone = attention_grouped(**(arguments | own))
        assert torch.equal(alone, together[rows]), (length, key_length)
        # What is said of the longest is an upper bound, and changes nothing.
        loose = own | {"max_seqlen_q": 9 * length, "max_seqlen_k": 1000}
        assert torch.equal(attention_grouped(**(arguments | loose)), alone)
        start, start_k = start + length, start_k + key_length


def test_neighbours_stay_out(dtype: torch.dtype) -> None:
    for keys in (1, 17, 255, 300):
        arguments = make(dtype, [1, 1], [keys, 40], 64, 4, 2)
        expected = attention_grouped(**arguments)[:1]
        for name in "kv":
            arguments[name] = arguments[name].clone()
            arguments[name][keys:] = NAN
        assert torch.equal(attention_grouped(**arguments)[:1], expected), keys


def test_biases_of_single_queries(dtype: torch.dtype) -> None:
    """A bias of -inf hides a key; finfo.min does not, and rows of nothing else are uniform."""
    keys = [300, 9, 256]
    arguments = make(dtype, [1] * 3, keys, 64, 4, 2)
    bias = torch.randn(3, 4, 1, 300)
    bias[0, :, :, 3], bias[1] = -INF, -INF
    bias[2] = torch.finfo(torch.float32).min
    bias[2, :, :, ::2] = -INF
    check(arguments | {"bias": bias})
    assert (attention_grouped(**arguments, bias=bias)[1] == 0).all()
    # One whole chunk hidden, and the other.
    for hidden in (slice(0, 256), slice(256, 300)):
        key_bias = torch.randn(sum(keys))
        key_bias[hidden] = -INF
        check(arguments | {"key_bias": key_bias})


def test_nan_stays_in_its_head(dtype: torch.dtype) -> None:
    arguments = make(dtype, [1], [300], 64, 4, 2)
    for name in "kv":
        spoiled = arguments[name].clone()
        spoiled[280, 1, 5] = NAN
        out = attention_grouped(**(arguments | {name: spoiled}))
        assert not out[:, :2].isnan().any() and out[:, 2:, 5].isnan().all()


def test_scores_beyond_the_range_of_exp(dtype: torch.dtype) -> None:
    arguments = make(dtype, [1], [400], 64, 4, 2)
    check(arguments | {"q": arguments["q"] * 8, "k": arguments["k"] * 8})


def test_a_cache_with_room_is_read_where_it_is(dtype: torch.dtype) -> None:
    """Heads first and room behind the last key, as caches lie; views of it, no copy."""
    arguments = make(dtype, [1], [300], 64, 4, 2)
    expected = attention_grouped(**arguments)
    for name in "kv":
        room = torch.full((2, 350, 64), NAN, dtype=dtype)
        room[:, :300] = arguments[name].transpose(0, 1)
        arguments[name] = room[:, :300].transpose(0, 1)
    assert torch.equal(attention_grouped(**arguments), expected)
    moved = arguments | {"k": misaligned(arguments["k"])}
    assert torch.equal(attention_grouped(**moved), expected)
