"""The benchmark of decoders: what its bounds count, and who takes part."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from bench.baselines import llama_cpp_engine
from bench.baselines.decoders import DECODERS, TorchDecoder
from bench.decode import Case
from bench.decoders import SHAPES, DecoderShape, checkpoint
from fastbert.tools.peak import Peak


def test_weights_are_those_of_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("bench.decoders.CACHE", tmp_path)
    shape = SHAPES["apertus-tiny"]
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint(shape))
    matrices = {name: value.numel() for name, value in model.named_parameters() if value.ndim == 2}
    assert shape.weights == sum(matrices.values())  # the table is read as the last projection


def test_a_step_continues_from_the_texts_every_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("bench.decoders.CACHE", tmp_path)
    path = checkpoint(SHAPES["apertus-tiny"])
    texts = [[5, 6, 7, 8], [9, 10, 11, 12]]
    for library in ("fastbert", "transformers"):
        run = TorchDecoder(library, path, 1).decode(texts, 3)
        first = run()
        assert run().tolist() == first.tolist(), library


def test_prefill_counts_half_of_the_scores() -> None:
    shape = DecoderShape("one", 1, 4, 8, 2, 1, 10)
    # Projections 2 * (2*4*(4+2) + 2*4*8) a token, the last one 2*4*10 once, 2*4*n*n for attention.
    assert shape.prefill_operations(3) == 2 * (48 + 64) * 3 + 2 * 40 + 2 * 4 * 9


def test_a_step_reads_weights_and_the_keys_and_values_of_the_text() -> None:
    shape = DecoderShape("one", 3, 4, 8, 2, 1, 10)
    found = Peak(1, fp32=1e12, bf16=1e12, int8=1e12, read=100.0)
    assert shape.cache_bytes(7, 2) == 3 * 2 * 7 * 2 * 2  # layers, keys and values, tokens, width
    case = Case.of("context-7", 5)
    assert (case.batch, case.length, case.tokens) == (1, 7, 5)
    assert case.bound(shape, found, "int8") == pytest.approx(0.05 * (shape.weights + 168))
    assert case.bound(shape, found, "fp32") == pytest.approx(0.05 * (4 * shape.weights + 336))


def test_two_products_take_twice_the_arithmetic_and_read_no_more() -> None:
    shape = DecoderShape("one", 3, 4, 8, 2, 1, 10)
    slow = Peak(1, fp32=1e12, bf16=1e12, int8=1e3, read=1e12)
    case = Case.of("prefill-7", 5)
    assert case.bound(shape, slow, "int8", 2) == pytest.approx(
        2e-3 * shape.prefill_operations(7), rel=1e-9
    )
    found = Peak(1, fp32=1e12, bf16=1e12, int8=1e12, read=100.0)
    step = Case.of("decode-1", 5)
    assert step.bound(shape, found, "int8", 2) == step.bound(shape, found, "int8")


def test_llama_cpp_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTBERT_BENCH_NODE", raising=False)
    reason = llama_cpp_engine.unavailable()
    assert reason is not None and "FASTBERT_BENCH_NODE" in reason
    assert DECODERS["llama.cpp Q8_0"].unavailable() is not None
