"""The ops of decoders beyond their own cases: groups of heads, layouts, odd values, bad input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fastbert
from fastbert.kernels import kernel
from fastbert.modeling.quantization import quantize
from fastbert.ops import DECODING
from fastbert.testing import parity, poisoned_empty, strided
from fastbert.triton_kernels import attention_grouped as chunked, configs

attention_grouped = kernel("triton", "attention_grouped")
linear_w8a16, rms_norm = kernel("triton", "linear_w8a16"), kernel("triton", "rms_norm")
qk_norm_rope, xielu = kernel("triton", "qk_norm_rope"), kernel("triton", "xielu")
NAN, INF = float("nan"), float("inf")


def offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def grouped(
    lengths_q: list[int], lengths_k: list[int], heads: int, kv_heads: int, dim: int = 32
) -> dict[str, object]:
    torch.manual_seed(dim)
    return {
        "q": torch.randn(sum(lengths_q), heads, dim),
        "k": torch.randn(sum(lengths_k), kv_heads, dim),
        "v": torch.randn(sum(lengths_k), kv_heads, dim),
        "cu_seqlens_q": offsets(lengths_q), "cu_seqlens_k": offsets(lengths_k),
        "max_seqlen_q": max(lengths_q), "max_seqlen_k": max(lengths_k),
        "scale": dim**-0.5, "causal": True,
    }  # fmt: skip


# Groups of 3, which no block of rows holds a whole number of; and a first block of rows whose last
# query is the only one that sees the first key of a further block.
@pytest.mark.parametrize(
    ("heads", "queries", "keys"), [(6, [3, 0, 61, 1], [9, 2, 61, 70]), (4, [70], [71])]
)
@pytest.mark.parametrize("added", ["none", "key_bias", "bias"])
def check_groups(added: str, heads: int, queries: list[int], keys: list[int]) -> None:
    given = grouped(queries, keys, heads, 2, 80)
    if added == "key_bias":
        given["key_bias"] = torch.zeros(sum(keys)).index_fill(
            0, torch.tensor([0, 20, 69]), torch.finfo(torch.float32).min
        )
    if added == "bias":
        given["bias"] = torch.randn(len(queries), heads, max(queries), max(keys))
    with poisoned_empty():
        verdict = parity(DECODING["attention_grouped"], attention_grouped, given, torch.float32)
    assert verdict.ok, verdict.reason


def check_a_step_has_the_same_bits_alone() -> None:
    """One query a sequence over a cache, as decoding asks it, with and without neighbours."""
    keys = [5, 1, 64, 130]
    given = grouped([1] * 4, keys, 8, 2, 64)
    given["causal"] = False
    together = attention_grouped(**given)
    bounds = offsets(keys).tolist()
    for index, length in enumerate(keys):
        own = slice(bounds[index], bounds[index + 1])
        alone = attention_grouped(
            given["q"][index : index + 1], given["k"][own], given["v"][own],  # type: ignore[index]
            offsets([1]), offsets([length]), 1, length, 64**-0.5,
        )  # fmt: skip
        assert torch.equal(alone[0], together[index])


@pytest.mark.parametrize(
    ("dim", "dtype", "added"),
    [(64, torch.float16, "none"), (80, torch.float32, "key_bias"), (80, torch.float32, "bias")],
)
def check_long_caches_in_chunks(
    dim: int, dtype: torch.dtype, added: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Single queries over chunks of keys, beside sequences that take the other form."""
    monkeypatch.setattr(chunked, "CHUNK", 64)
    queries, keys = [1, 1, 0, 3, 1, 1, 1], [64, 65, 4, 80, 0, 7, 150]
    given = grouped(queries, keys, 6, 2, dim)
    if added == "key_bias":
        # A first chunk is hidden as a whole, others in parts; finfo.min means worst, but visible.
        given["key_bias"] = torch.zeros(sum(keys))
        given["key_bias"][3::7] = torch.finfo(torch.float32).min
        given["key_bias"][sum(keys[:-1]) :][:64] = -INF
    if added == "bias":
        given["bias"] = torch.randn(len(queries), 6, max(queries), max(keys)).to(dtype)
    for name in "qkv":
        given[name] = given[name].to(dtype)  # type: ignore[attr-defined]
    with poisoned_empty():
        verdict = parity(DECODING["attention_grouped"], attention_grouped, given, dtype)
    assert verdict.ok, verdict.reason


def check_one_chunk_has_the_bits_of_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lets the host leave chunks out where no cache is longer than one."""
    given = grouped([1, 1, 1], [256, 3, 130], 4, 2, 64)
    whole = attention_grouped(**given)
    monkeypatch.setattr(chunked, "CHUNK", 128)
    cut = attention_grouped(**given)
    assert torch.equal(cut[1], whole[1]) and torch.allclose(cut, whole, atol=1e-6)
    assert not torch.equal(cut, whole)  # the others are joined from two chunks


def check_a_long_cache_has_the_same_bits_beside_a_prompt() -> None:
    given = grouped([1, 5, 1], [300, 5, 30], 4, 2, 64)
    together = attention_grouped(**given)
    for index, (row, start, length) in enumerate([(0, 0, 300), (6, 305, 30)]):
        own = slice(start, start + length)
        alone = attention_grouped(
            given["q"][row : row + 1], given["k"][own], given["v"][own],  # type: ignore[index]
            offsets([1]), offsets([length]), 1, length, 64**-0.5, True,
        )  # fmt: skip
        assert torch.equal(alone[0], together[row]), index


def check_heads_may_be_expanded() -> None:
    given = grouped([7, 12], [7, 12], 4, 4)
    for name in "kv":
        given[name] = given[name][:, :1].expand(-1, 4, -1)  # type: ignore[index]
    shared = given | {name: given[name][:, :1] for name in "kv"}  # type: ignore[index]
    verdict = parity(DECODING["attention_grouped"], attention_grouped, given, torch.float32)
    assert verdict.ok, verdict.reason
    assert torch.allclose(attention_grouped(**given), attention_grouped(**shared), atol=1e-6)


@pytest.mark.parametrize("special", [NAN, INF, -INF])
def check_a_row_with_a_special_value_is_nan_as_a_whole(special: float) -> None:
    x, weight = torch.randn(3, 40), torch.randint(-127, 128, (9, 40), dtype=torch.int8)
    weight[:4, 4] = 0
    x[1, 4] = special
    out = linear_w8a16(x, weight, torch.rand(9), None, "relu", torch.randn(3, 9))
    assert out.isnan().all(1).tolist() == [False, True, False]


def check_both_tiles_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(70, 77), torch.randint(-127, 128, (135, 77), dtype=torch.int8)
    results = []
    for limit in (0, 70):
        monkeypatch.setattr(configs, "FEW_ROWS", limit)
        results.append(linear_w8a16(x, strided(weight), torch.rand(135) * 0 + 0.01))
    # The interpreter's product is a BLAS call, whose bits may depend on the tile's shape.
    assert torch.allclose(*results, rtol=1e-5, atol=1e-5)


def check_xielu_far_out() -> None:
    x = torch.tensor(
        [[-1e30, -200.0, -101.0, -100.0, -88.0, -1e-6, -1e-30, 0.0, 1e-30, 88.0, 1e15]]
    )
    x = torch.cat([x, torch.tensor([[INF, NAN] + [-(2.0**-n) for n in range(9)]])])
    for alphas in ((0.2, -1.05), (-90.0, -90.0), (30.0, 3.0)):
        numbers = [torch.tensor([a]) for a in (*alphas, 0.5, -1e-6)]
        exact = DECODING["xielu"].reference(x.double(), *(n.double() for n in numbers))
        out = xielu(x, *numbers)
        same = torch.isclose(out.double(), exact, rtol=2e-6, atol=0.0, equal_nan=True)
        assert same.all(), (alphas, x[~same], out[~same], exact[~same])


def check_special_values_stay_in_their_rows() -> None:
    x = torch.randn(3, 8)
    x[1, 3] = NAN
    out, total = rms_norm(x, torch.ones(8), 1e-5, torch.zeros(3, 8), True)
    assert out.isnan().any(1).tolist() == [False, True, False]
    assert torch.equal(total.nan_to_num(7.0), x.nan_to_num(7.0))
    heads, half = torch.randn(3, 5, 8), torch.ones(3, 4)
    heads[1, 4, 2] = NAN
    q, k = qk_norm_rope(heads[:, :2], heads[:, 2:], *[torch.ones(8)] * 2, 1e-5, half, half)
    assert not q.isnan().any()
    assert k.isnan().any(2).tolist() == [[False] * 3, [False, False, True], [False] * 3]


def check_layouts() -> None:
    rows, gain = torch.randn(8, 5), torch.ones(8)
    assert torch.equal(
        rms_norm(rows.t(), gain, 1e-5)[0], rms_norm(rows.t().contiguous(), gain, 1e-5)[0]
    )
    # Heads before tokens, and cos and sin of one row for all tokens.
    q, k = torch.randn(3, 6, 8).transpose(0, 1), torch.randn(2, 6, 8).transpose(0, 1)
    angle = torch.rand(1, 4).expand(6, -1)
    assert all(
        torch.equal(*pair)
        for pair in zip(
            qk_norm_rope(q, k, gain, gain, 1e-5, angle, angle),
            qk_norm_rope(q.contiguous(), k.contiguous(), gain, gain, 1e-5, *[angle.clone()] * 2),
            strict=True,
        )
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: attention_grouped(**grouped([4], [4], 4, 2, 48)),
            "attention_grouped: head_dim is 48",
        ),
        (
            lambda: attention_grouped(**grouped([4], [4], 4, 2) | {"scale": 0.0}),
            "attention_grouped: scale is 0.0",
        ),
        (
            lambda: rms_norm(torch.zeros(1, configs.ROW_LIMIT + 1),
                             torch.zeros(configs.ROW_LIMIT + 1), 1e-5),
            "rms_norm: rows have",
        ),
        (
            lambda: qk_norm_rope(*[torch.zeros(1, 1, 2048)] * 2, *[torch.zeros(2048)] * 2, 1e-5,
                                 *[torch.zeros(1, 1024)] * 2),
            "qk_norm_rope: head_dim is 2048",
        ),
    ],
)  # fmt: skip
def check_bad_input(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["plain", "int8"])
def check_a_model_writes_by_these_kernels(kind: str) -> None:
    """A prompt, then single tokens over a cache, in a batch padded on the left."""
    torch.manual_seed(0)
    config = fastbert.ApertusConfig(
        vocab_size=40, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, head_dim=32,
        num_key_value_heads=2, intermediate_size=96, max_position_embeddings=64,
        initializer_range=0.3, tie_word_embeddings=False, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    model = fastbert.ApertusForCausalLM(config).eval().requires_grad_(False)
    if kind == "int8":
        model = quantize(model)
    ids = torch.randint(3, 40, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    results = {}
    for backend in ("triton", "reference"):
        with fastbert.use_backend(backend), torch.inference_mode():
            out = model(ids, attention_mask=mask, use_cache=True)
            step = model(
                ids[:, -2:-1], attention_mask=torch.cat([mask, mask[:, -1:]], 1),
                past_key_values=out.past_key_values,
            )  # fmt: skip
            results[backend] = torch.cat([out.logits[:, 4:], step.logits], 1)
            if backend == "triton":
                used = {choice.op: choice.backend for choice in model.plan().choices}
    wanted = {"rms_norm", "qk_norm_rope", "attention_grouped", "xielu"}
    wanted.add("linear_w8a16" if kind == "int8" else "linear")
    assert wanted <= set(used) and set(used.values()) == {"triton"}, used
    assert torch.allclose(results["triton"], results["reference"], rtol=1e-4, atol=1e-4)
