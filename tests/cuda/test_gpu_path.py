"""Whole models on a GPU: packing, recorded passes, threads, streams, devices, compilation.

tests/test_graphs.py and tests/test_gpu_choice.py hold what can be said of them without a device.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import fastbert
from fastbert.engine import cuda_graphs
from fastbert.engine.gpu_encoder import GpuEncoder
from fastbert.layers.encoder import ForwardOptions, encode
from fastbert.modeling.quantization import quantize
from fastbert.models.bert import BertModel
from fastbert.runtime.packing import PackedBatch
from fastbert.runtime.plan import use_backend

if not torch.cuda.is_available():
    pytest.skip("this machine has no CUDA device", allow_module_level=True)

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda", 0)
LENGTHS = ([37], [5, 0, 30, 1], [128], [300, 3, 64], [17, 20, 1, 1])


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def model(
    dtype: torch.dtype = torch.bfloat16, device: torch.device = DEVICE, **options: Any
) -> BertModel:
    torch.manual_seed(0)
    quantization = options.pop("quantization", None)
    config = BertModel.config_class(
        vocab_size=100, hidden_size=256, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=512, max_position_embeddings=512,
    )  # fmt: skip
    with torch.inference_mode(False):
        made = BertModel(config, add_pooling_layer=False).eval().requires_grad_(False)
        if quantization:
            made = BertModel.from_pretrained(
                None, config=config, state_dict=made.state_dict(), quantization=quantization,
                add_pooling_layer=False,
            )  # fmt: skip
        made = made.to(device, dtype)
    made.set_backend(**options)
    return made


def prepared(made: BertModel) -> GpuEncoder:
    # The first pass may move weights of projections behind one another, and then looks again.
    made(torch.tensor([[5]], device=made.device))
    encoder = made.encoder_cache.encoder(made.encoder_cache.view(made), made.plan())
    assert isinstance(encoder, GpuEncoder)
    return encoder


KINDS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": torch.float32},
    "float16": {"dtype": torch.float16},
    "bfloat16": {},
    "int8": {"quantization": "int8"},
}


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("kind", KINDS)
def test_replays_have_the_bits_of_plain_passes(kind: str, backend: str) -> None:
    made = model(backend=backend, batch_invariant=True, **KINDS[kind])
    encoder = prepared(made)
    for lengths in LENGTHS:
        batch = PackedBatch.from_lengths(lengths, DEVICE)
        rows = torch.randn(batch.total, 256, device=DEVICE).to(made.dtype)
        layers = encode(made.blocks(), rows, batch, made.plan(), ForwardOptions()).packed
        for _ in range(3):
            assert torch.equal(encoder(rows, batch), layers), lengths
            buffers = encoder.graphs._buffers
            if buffers is not None:
                buffers.rows.fill_(float("nan"))
    assert encoder.graphs.buckets and not encoder.graphs.failure


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_a_text_has_the_same_bits_alone_and_in_any_batch(kind: str) -> None:
    made = model(batch_invariant=True, strict=True, **KINDS[kind])
    lengths = [5, 64, 1, 200, 130, 33]
    ids = [torch.randint(5, 100, (1, length), device=DEVICE) for length in lengths]
    grid = torch.zeros(len(lengths), 256, dtype=torch.long, device=DEVICE)
    mask = torch.zeros_like(grid)
    for row, text in enumerate(ids):
        grid[row, : text.shape[1]] = text
        mask[row, : text.shape[1]] = 1
    for _ in range(3):
        together = made(grid, attention_mask=mask).last_hidden_state
        for row, text in enumerate(ids):
            alone = made(text).last_hidden_state[0]
            assert torch.equal(alone, together[row, : text.shape[1]]), lengths[row]


def test_weights_are_quantised_on_the_device_as_they_are_loaded() -> None:
    plain = model(torch.float32)
    with torch.inference_mode(False):
        made = BertModel.from_pretrained(
            None, config=plain.config, state_dict=plain.state_dict(), quantization="int8",
            device=DEVICE, add_pooling_layer=False,
        )  # fmt: skip
    part = made.blocks()[0].up
    assert part.qweight.device == DEVICE and part.qweight.dtype == torch.int8
    ids = torch.randint(5, 100, (2, 30), device=DEVICE)
    ours, exact = (m(ids).last_hidden_state.double() for m in (made, plain))
    assert float((ours - exact).norm() / exact.norm()) < 5e-2


def test_the_host_does_not_wait() -> None:
    made = model()
    ids = torch.randint(5, 100, (3, 40), device=DEVICE)
    mask = torch.arange(40) < torch.tensor([[40], [7], [21]])
    for _ in range(3):  # kernels compile and graphs are recorded
        expected = made(ids, attention_mask=mask).last_hidden_state
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = made(ids, attention_mask=mask).last_hidden_state
        PackedBatch.from_lengths([3, 0, 9], DEVICE, seqlen=12)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(out, expected)
    on_device = made(ids, attention_mask=mask.to(DEVICE)).last_hidden_state
    assert torch.equal(on_device, expected)


@pytest.mark.parametrize("keep", [False, True])
def test_packing_on_the_device_is_packing_on_the_host(keep: bool) -> None:
    mask = torch.rand(7, 33) < 0.5
    mask[3] = False
    host = PackedBatch.from_mask(mask, 7, 33, DEVICE, keep)
    device = PackedBatch.from_mask(mask.to(DEVICE), 7, 33, DEVICE, keep)
    assert (host.max_seqlen, host.min_seqlen, host.total) == (
        device.max_seqlen,
        device.min_seqlen,
        device.total,
    )
    for name in ("cu_seqlens", "indices", "key_bias"):
        one, other = getattr(host, name), getattr(device, name)
        assert (one is None and other is None) or torch.equal(one, other), name
        assert one is None or (one.device, other.device) == (DEVICE, DEVICE)


def test_changed_weights_are_seen() -> None:
    made = model()
    ids = torch.randint(5, 100, (2, 30), device=DEVICE)
    for _ in range(3):
        before = made(ids).last_hidden_state
    with torch.inference_mode(False):
        made.encoder.layer[1].attention.self.query.weight.mul_(2.0)
    after = made(ids).last_hidden_state
    assert not torch.equal(before, after)
    for _ in range(2):
        assert torch.equal(made(ids).last_hidden_state, after)


def test_streams_and_threads_share_a_model() -> None:
    made = model()
    texts = [torch.randint(5, 100, (1, n), device=DEVICE) for n in (16, 64, 100, 250)]
    expected = []
    for text in texts:
        for _ in range(3):
            last = made(text).last_hidden_state
        expected.append(last)
    torch.cuda.synchronize()
    wrong: list[int] = []

    def work(which: int) -> None:
        stream = torch.cuda.Stream(DEVICE)
        with torch.inference_mode(), torch.cuda.stream(stream):
            for _ in range(30):
                out: Tensor = made(texts[which]).last_hidden_state
                if not torch.equal(out, expected[which]):
                    wrong.append(which)

    threads = [threading.Thread(target=work, args=(i % len(texts),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_memory_is_bounded() -> None:
    made = model()
    sizes = list(range(16, 512, 16))
    for n in sizes:
        for _ in range(2):
            made(torch.randint(5, 100, (1, n), device=DEVICE))
    assert len(prepared(made).graphs.buckets) <= cuda_graphs.MOST_GRAPHS
    torch.cuda.synchronize()
    before = torch.cuda.memory_reserved(DEVICE)
    for _ in range(2):
        for n in sizes:
            made(torch.randint(5, 100, (1, n), device=DEVICE))
    assert torch.cuda.memory_reserved(DEVICE) <= before + (64 << 20)


def test_within_the_callers_own_graph() -> None:
    made = model()
    ids = torch.randint(5, 100, (1, 48), device=DEVICE)
    for _ in range(3):
        expected = made(ids).last_hidden_state
    static = ids.clone()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = made(static).last_hidden_state
    other = torch.randint(5, 100, (1, 48), device=DEVICE)
    static.copy_(other)
    graph.replay()
    assert torch.equal(out, made(other).last_hidden_state)
    static.copy_(ids)
    graph.replay()
    assert torch.equal(out, expected)


def test_a_host_mask_is_refused_within_a_recording() -> None:
    made = model()
    ids = torch.randint(5, 100, (1, 48), device=DEVICE)
    mask = torch.ones(1, 48, dtype=torch.long)
    mask[0, 40:] = 0
    made(ids, attention_mask=mask)
    torch.cuda.synchronize()
    with (
        pytest.raises(RuntimeError, match="cannot become part of a CUDA graph"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        made(ids, attention_mask=mask)


def test_autocast_runs_what_it_promises() -> None:
    made = model(torch.float32)
    ids = torch.randint(5, 100, (2, 30), device=DEVICE)
    exact = made(ids).last_hidden_state
    with torch.autocast("cuda", torch.bfloat16):
        out = made(ids).last_hidden_state
        with use_backend("reference"):
            assert torch.equal(out, made(ids).last_hidden_state)
    assert not torch.equal(out.float(), exact)
    torch.testing.assert_close(out.float(), exact, rtol=0, atol=0.2)


def test_compiled_models_agree() -> None:
    made = model()
    ids = torch.randint(5, 100, (2, 30), device=DEVICE)
    mask = torch.ones_like(ids)
    mask[1, 20:] = 0
    expected = made(ids, attention_mask=mask).last_hidden_state
    compiled = torch.compile(made)
    for _ in range(3):
        out = compiled(ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(out.float(), expected.float(), rtol=2e-2, atol=2e-2)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="this machine has one CUDA device")
def test_a_model_on_another_device() -> None:
    other = torch.device("cuda", 1)
    ids = torch.randint(5, 100, (2, 30), device=DEVICE)
    here, there = model(), model(device=other)
    for _ in range(3):
        expected = here(ids).last_hidden_state
        out = there(ids.to(other)).last_hidden_state
        assert out.device == other and torch.equal(out.cpu(), expected.cpu())
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_a_decoder_writes_by_kernels(kind: str) -> None:
    """Prompts padded on the left, then single tokens over a cache longer than a chunk of keys."""
    config = fastbert.ApertusConfig(
        vocab_size=100, hidden_size=256, num_hidden_layers=2, num_attention_heads=8, head_dim=64,
        num_key_value_heads=2, intermediate_size=512, max_position_embeddings=1024,
        tie_word_embeddings=False, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.inference_mode(False):
        made = fastbert.ApertusForCausalLM(config).eval().requires_grad_(False)
        made = quantize(made) if kind == "int8" else made
        made = made.to(DEVICE, torch.bfloat16 if kind == "bfloat16" else torch.float32)
    ids = torch.randint(3, 100, (2, 600), device=DEVICE)
    mask = torch.ones_like(ids)
    mask[0, :500] = 0
    found = {}
    for backend in ("triton", "reference"):
        with use_backend(backend):
            out = made(ids, attention_mask=mask, use_cache=True)
            step = made(
                ids[:, :1], attention_mask=torch.cat([mask, torch.ones_like(mask[:, :1])], 1),
                past_key_values=out.past_key_values,
            )  # fmt: skip
            found[backend] = torch.cat([out.logits[:, 500:], step.logits], 1)
    scale = found["reference"].abs().max()
    error = (found["triton"] - found["reference"]).abs().max() / scale
    assert error < (3e-2 if kind == "bfloat16" else 1e-3)
