"""Settings of the process must not leak into results: defaults of torch, forward-mode, rounding.

A default device or dtype says where *new* tensors of the user go, not where kernels write. Dual
numbers have values and derivatives, of which kernels see the values alone. The floating-point state
belongs to a thread, and a pass is computed by several.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, jvp

import fastbert
from fastbert.kernels import kernel, native
from fastbert.ops import REGISTRY
from fastbert.runtime.packing import PackedBatch
from fastbert.runtime.plan import Traits, build_plan

IDS = torch.arange(60).reshape(3, 20) % 50 + 5
MASK = (torch.arange(20) < torch.tensor([20, 7, 13])[:, None]).long()


@pytest.fixture
def model() -> fastbert.BertModel:
    torch.manual_seed(0)
    config = fastbert.BertConfig(
        vocab_size=60,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        initializer_range=0.2,
    )
    return fastbert.BertModel(config).eval()


@pytest.fixture
def own_defaults() -> Iterator[None]:
    yield
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


def hidden(model: fastbert.BertModel) -> Tensor:
    with torch.no_grad():
        return model(IDS, attention_mask=MASK).last_hidden_state


@pytest.mark.usefixtures("own_defaults")
@pytest.mark.parametrize("warm", [False, True])
def test_another_default_device_and_dtype(model: fastbert.BertModel, warm: bool) -> None:
    model.encoder.layer[0].attention.self.key.bias = None  # its place is filled with zeros
    expected = hidden(model)
    if not warm:
        model.refresh()
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    found = hidden(model)
    assert torch.equal(found, expected)
    batch = PackedBatch.from_lengths([3, 1], seqlen=4)
    assert batch.cu_seqlens.device.type == "cpu" and batch.indices is not None
    assert batch.indices.tolist() == [0, 1, 2, 4]


@pytest.mark.usefixtures("own_defaults")
def test_texts_are_written_under_other_defaults() -> None:
    """A decoder's caches, columns and masks lie where it does."""
    config = fastbert.ApertusConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        initializer_range=0.2,
    )
    decoder = fastbert.ApertusForCausalLM(config).eval()
    ids, mask = IDS.clamp(min=4, max=59), MASK.flip(1)

    def everything() -> list[Tensor]:
        found = [
            decoder.generate(ids, attention_mask=mask, max_new_tokens=5, **options)
            for options in ({}, {"num_beams": 2}, {"use_cache": False})
        ]
        with torch.no_grad():
            out = decoder(ids, attention_mask=mask, logits_to_keep=1)
            cache = fastbert.join_caches([out.past_key_values, decoder(ids[:1]).past_key_values])
            cache.batch_select_indices([2, 0])
            shown = cache.attention_mask()
            last = decoder(ids[:2, :1], attention_mask=shown, past_key_values=cache).logits
            return [*found, out.logits, shown, last, decoder(ids, logits_to_keep=[0, 1]).logits]

    expected = everything()
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    assert all(torch.equal(one, other) for one, other in zip(everything(), expected, strict=True))


@pytest.mark.usefixtures("own_defaults")
@pytest.mark.parametrize("op", REGISTRY)
def test_every_kernel_writes_where_its_operands_are(op: str) -> None:
    case = next(case for case in REGISTRY[op].cases() if "1x1" not in case.name)
    arguments = case.make(torch.float32)
    expected = kernel("cpu", op)(**arguments)
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    found = kernel("cpu", op)(**arguments)
    pairs = zip(*(r if isinstance(r, tuple) else (r,) for r in (found, expected)), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("grad", [False, True])
def test_forward_mode_derivatives_are_those_of_the_reference(
    model: fastbert.BertModel, grad: bool
) -> None:
    weights = {name: p.detach() for name, p in model.named_parameters()}
    torch.manual_seed(1)
    ways = {name: torch.randn_like(p) for name, p in weights.items()}
    expected = jvp(lambda w: functional_call(model, w, (IDS,))[0], (weights,), (ways,))[1]
    assert expected.norm() > 1
    hidden(model)  # packs the weights
    with torch.set_grad_enabled(grad), forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(p, ways[name]) for name, p in weights.items()}
        found = forward_ad.unpack_dual(functional_call(model, duals, (IDS,))[0]).tangent
    assert found is not None
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    embeds, way = torch.randn(2, 3, 64), torch.randn(2, 3, 64)
    with torch.set_grad_enabled(grad), forward_ad.dual_level():
        out = model(inputs_embeds=forward_ad.make_dual(embeds, way)).last_hidden_state
        tangent = forward_ad.unpack_dual(out).tangent
    with torch.no_grad():
        ends = [model(inputs_embeds=embeds + s * way).last_hidden_state for s in (1e-3, -1e-3)]
    torch.testing.assert_close(tangent, (ends[0] - ends[1]) / 2e-3, atol=2e-2, rtol=2e-2)


def test_a_kernel_called_by_name_refuses_dual_numbers() -> None:
    with torch.no_grad(), forward_ad.dual_level():
        x = forward_ad.make_dual(torch.randn(3, 8), torch.ones(3, 8))
        with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            torch.ops.fastbert.bias_act.cpu(x, None, "gelu")


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_denormal_numbers_are_flushed_in_all_threads_or_none(threads: int) -> None:
    before = torch.get_num_threads()
    x, weight = torch.full((600, 256), 1e-30), torch.full((256, 256), 1e-10)
    try:
        torch.set_num_threads(threads)
        plain = kernel("cpu", "linear")(x, weight)  # the workers exist
        assert (plain > 0).all()
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor does not flush denormal numbers")
        assert (kernel("cpu", "linear")(x, weight) == 0).all()
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(before)
    assert torch.equal(kernel("cpu", "linear")(x, weight), plain)


def test_memory_of_a_large_pass_is_given_back() -> None:
    config = fastbert.BertConfig(
        vocab_size=60,
        hidden_size=512,
        num_hidden_layers=1,
        num_attention_heads=8,
        intermediate_size=16,
        max_position_embeddings=8,
    )
    model = fastbert.BertModel(config, add_pooling_layer=False).eval()

    def kept() -> int:
        entry = model.encoder_cache._entry
        assert entry is not None
        return int(entry.encoder.arena_bytes)

    ids = torch.full((2500, 8), 7)
    with torch.no_grad():
        first = model(ids[:100]).last_hidden_state
        small = kept()
        model(ids)
        assert 0 < small < 2**27
        assert kept() <= 2**27, "what is larger ends with its pass"
        assert torch.equal(model(ids[:100]).last_hidden_state, first)


def test_plain_kernels_are_taken_only_by_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "isa", lambda: "scalar")
    monkeypatch.setattr(native, "_chosen", False)
    monkeypatch.delenv("FASTBERT_CPU_ISA", raising=False)
    native.slow.cache_clear()
    traits = Traits(num_heads=4, head_dim=16, hidden_size=64, activation="gelu")

    def backend(wanted: str) -> str:
        return build_plan(traits, "cpu", torch.float32, wanted).choice("linear").backend

    assert backend("auto") == "reference"
    assert "in plain C++ only" in str(build_plan(traits, "cpu", torch.float32))
    assert backend("cpu") == "cpu"
    monkeypatch.setenv("FASTBERT_CPU_ISA", "scalar")
    native.slow.cache_clear()
    assert backend("auto") == "cpu"
    monkeypatch.undo()
    native.slow.cache_clear()
