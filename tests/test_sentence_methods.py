"""A program written for sentence-transformers runs on SentenceEncoder, and gets the same answers.

Names, order and meaning of arguments, and the shapes and kinds of results, are those of
sentence-transformers 6. Expected values are its own, on a folder that it saved.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers as st
import torch
from sentence_transformers.sentence_transformer import modules as stm
from torch import nn

import fastbert
from fastbert.embedding.modules import Dense, Dropout, Normalize, Pooling, SentenceLayerNorm
from fastbert.embedding.transformer_settings import TextOptions, TransformerSettings
from fastbert.runtime.plan import Unavailable

# Files of tests are imported by their paths, so their helpers are found through this one's.
sys.path.insert(0, str(Path(__file__).parent))
from sentence_folders import HIDDEN, TEXTS, both, saved, tiny

MANY = [f"{a} {b} {a}" for a in TEXTS for b in ("cat", "far", "house", "red mat")]
CLOSE: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("methods")
    modules: list[nn.Module] = [stm.Pooling(HIDDEN), stm.Dense(HIDDEN, 12)]
    prompts = {"query": "query : ", "passage": "passage : ", "red": "red "}
    options: dict[str, Any] = {"prompts": prompts, "default_prompt_name": "red"}
    return saved(root / "saved", tiny(root / "model"), modules, **options)


@pytest.fixture(scope="module")
def pair(folder: Path) -> tuple[fastbert.SentenceEncoder, Any]:
    return both(folder)


def alike(found: Any, expected: Any) -> None:
    if isinstance(expected, list):
        assert isinstance(found, list)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            alike(one, other)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for name, value in expected.items():
            alike(found[name], value)
    elif isinstance(expected, torch.Tensor | np.ndarray):
        assert type(found) is type(expected)
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        np.testing.assert_allclose(np.asarray(found), np.asarray(expected), **CLOSE)
    else:
        assert found == expected


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"prompt": "under "},
        {"prompt": ""},
        {"prompt_name": "query"},
        {"prompt_name": "document"},
        {"convert_to_tensor": True},
        {"convert_to_numpy": False},
        {"convert_to_numpy": True, "convert_to_tensor": True},
        {"normalize_embeddings": True},
        {"truncate_dim": 5},
        {"truncate_dim": 5, "normalize_embeddings": True},
        {"truncate_dim": 99},
        {"output_value": "token_embeddings"},
        {"output_value": "token_embeddings", "convert_to_tensor": True},
        {"precision": "binary"},
        {"precision": "ubinary"},
        {"precision": "binary", "convert_to_tensor": True},
        {"precision": None},
        {"batch_size": 1, "output_value": None},
        {"batch_size": 1, "output_value": None, "prompt": "red ", "truncate_dim": 3},
        {"batch_size": 2},
        {"processing_kwargs": {"text": {"max_length": 4}}},
        {"device": "cpu"},
        {"show_progress_bar": None},
        {"task": "query"},
    ],
    ids=str,
)
def test_arguments_of_encode(pair: tuple[Any, Any], arguments: dict[str, Any]) -> None:
    ours, theirs = pair
    alike(ours.encode(TEXTS, **arguments), theirs.encode(TEXTS, **arguments))
    alike(ours.encode("A dog far", **arguments), theirs.encode("A dog far", **arguments))


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_precisions_with_ranges(
    pair: tuple[Any, Any], precision: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = pair
    vectors = theirs.encode(MANY)
    options: dict[str, Any] = {"precision": precision}
    found, expected = ours.encode(MANY, **options), theirs.encode(MANY, **options)
    assert found.dtype == expected.dtype
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
    assert (found == expected).mean() > 0.9
    from fastbert.embedding.quantize import quantize

    np.testing.assert_array_equal(quantize(vectors, precision), expected)
    constant = np.ones((3, 4), np.float32)
    theirs_too = st.util.quantize_embeddings(constant, precision)
    np.testing.assert_array_equal(quantize(constant, precision), theirs_too)
    assert "steadier" in caplog.text
    with pytest.raises(ValueError, match="single vector"):
        ours.encode("a cat", precision=precision)
    options["output_value"] = "token_embeddings"
    tokens, expected = ours.encode(TEXTS, **options), theirs.encode(TEXTS, **options)
    for one, other in zip(tokens, expected, strict=True):
        assert (type(one), one.dtype, one.shape) == (type(other), other.dtype, other.shape)


def test_queries_and_documents(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    assert ours.prompts == theirs.prompts
    for name in ("encode_query", "encode_document"):
        alike(getattr(ours, name)(TEXTS), getattr(theirs, name)(TEXTS))
        more = {"prompt": "far ", "convert_to_tensor": True}
        alike(getattr(ours, name)(TEXTS, **more), getattr(theirs, name)(TEXTS, **more))
        alike(
            getattr(ours, name)("mat", prompt_name="red"),
            getattr(theirs, name)("mat", prompt_name="red"),
        )


def test_arguments_in_order_and_by_their_other_names(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    alike(ours.encode(TEXTS, "query", None, 2), theirs.encode(TEXTS, "query", None, 2))
    alike(ours.encode(inputs=TEXTS), theirs.encode(inputs=TEXTS))
    alike(ours.encode(sentences=TEXTS), theirs.encode(TEXTS))
    alike(ours.encode(texts=TEXTS), theirs.encode(TEXTS))
    with pytest.raises(TypeError, match="once"):
        ours.encode()
    with pytest.raises(TypeError, match="once"):
        ours.encode(TEXTS, sentences=TEXTS)


class Series:
    """A column of values, as data frames have them."""

    def __init__(self, values: list[str]) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, key: int) -> str:
        return self.values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns if isinstance(self, Frame) else self.values)

    def keys(self) -> range:
        return range(len(self.values))


class Frame(Series):
    """Columns by name, which it iterates over."""

    columns = ("a", "b")


def test_what_may_be_encoded(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    expected = theirs.encode(TEXTS)
    kinds: list[Any] = [
        tuple(TEXTS),
        np.array(TEXTS),
        np.array(TEXTS, dtype=object),
        Series(TEXTS),
        iter(TEXTS),
    ]
    for texts in kinds:
        alike(ours.encode(texts), expected)
    alike(ours.encode(np.str_("a cat")), theirs.encode(np.str_("a cat")))
    assert ours.encode([]).shape == (0, 12)
    assert ours.encode([], convert_to_tensor=True).shape == (0, 12)
    assert ours.encode([], convert_to_numpy=False) == []
    assert ours.encode([], output_value="token_embeddings") == []
    assert ours.encode([], precision="int8").shape == (0, 12)


@pytest.mark.parametrize(
    "wrong",
    [
        {"a": "b"},
        Frame(["a", "b"]),
        {"a", "b"},
        b"bytes",
        None,
        5,
        [None],
        [["a", "b"]],
        [("a", "b")],
        [1.5],
        np.array("a"),
        np.array([["a", "b"]]),
    ],
    ids=lambda wrong: type(wrong).__name__,
)
def test_what_may_not_be_encoded_gets_a_sentence(pair: tuple[Any, Any], wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"encode\(\) takes"):
        pair[0].encode(wrong)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"output_value": "vectors"}, "output_value"),
        ({"precision": "float16"}, "precision"),
        ({"truncate_dim": 0}, "truncate_dim"),
        ({"truncate_dim": -3}, "truncate_dim"),
        ({"batch_size": 0}, "batch_size"),
        ({"prompt_name": "nobody"}, "nobody"),
        ({"processing_kwargs": {"text": {"stride": 3}}}, "stride"),
        ({"processing_kwargs": {"text": {"max_length": 41}}}, "at most 40"),
        ({"output_value": None, "precision": "int8"}, "precision"),
    ],
)
def test_values_that_are_not_possible(
    pair: tuple[Any, Any], arguments: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        pair[0].encode(TEXTS, **arguments)


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarities(pair: tuple[Any, Any], name: Any) -> None:
    ours, theirs = pair
    a, b = theirs.encode(TEXTS), theirs.encode(MANY[:5])
    before = ours.similarity_fn_name, theirs.similarity_fn_name
    ours.similarity_fn_name = theirs.similarity_fn_name = name
    for x, y in ((a, b), (torch.tensor(a), torch.tensor(b)), (list(a), list(b)), (a[0], b)):
        found, expected = ours.similarity(x, y), theirs.similarity(x, y)
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for x, y in ((a, b), (a[0], b[0])):
        expected = theirs.similarity_pairwise(x, y)
        torch.testing.assert_close(ours.similarity_pairwise(x, y), expected, rtol=1e-5, atol=1e-5)
    half = torch.tensor(a).half()
    assert ours.similarity(half, half).dtype == torch.float32
    ours.similarity_fn_name = st.SimilarityFunction.DOT_PRODUCT
    assert ours.similarity_fn_name == "dot"
    ours.similarity_fn_name, theirs.similarity_fn_name = before
    with pytest.raises(ValueError, match="maxsim"):
        ours.similarity_fn_name = "maxsim"


def test_truncation_within_a_block(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    for block in (ours.truncate_embeddings(4), ours.truncate_sentence_embeddings(4)):
        with block:
            assert ours.get_embedding_dimension() == ours.get_sentence_embedding_dimension() == 4
            np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS)[:, :4], **CLOSE)
    assert ours.get_embedding_dimension() == ours.dimension == 12


def test_preprocess_is_the_tokenizer(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    for arguments in ({}, {"prompt": "red cat "}):
        found = ours.preprocess(TEXTS, **arguments)
        expected = dict(theirs.preprocess(TEXTS, **arguments))
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert np.array_equal(found[name], value), name
    assert torch.equal(
        ours.tokenize(["a cat"])["input_ids"], theirs.tokenize(["a cat"])["input_ids"]
    )


def test_lengths_are_those_of_the_property(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    assert ours.max_seq_length == theirs.max_seq_length == ours.get_max_seq_length() == 40
    ours.max_seq_length = theirs.max_seq_length = 4
    alike(ours.encode(TEXTS), theirs.encode(TEXTS))
    ours.max_seq_length = theirs.max_seq_length = 40


def test_include_prompt_can_be_set(folder: Path) -> None:
    ours, theirs = both(folder)
    ours.set_pooling_include_prompt(False)
    theirs.set_pooling_include_prompt(False)
    alike(ours.encode(TEXTS), theirs.encode(TEXTS))


def test_a_model_in_training_is_set_to_eval(folder: Path) -> None:
    encoder = fastbert.SentenceEncoder.from_pretrained(folder)
    before = encoder.encode(TEXTS)
    encoder.model.train()
    np.testing.assert_array_equal(encoder.encode(TEXTS), before)


@pytest.mark.parametrize("name", ["Identity", "Sigmoid", "Softplus", "GELU", "LogSigmoid", "Mish"])
def test_pickles_and_batches_keep_every_bit(folder: Path, name: str) -> None:
    encoder = fastbert.SentenceEncoder.from_pretrained(folder)
    torch.manual_seed(1)
    dense = Dense(2 * HIDDEN, 37, activation_function=getattr(nn, name)())
    encoder = fastbert.SentenceEncoder(
        encoder.model, encoder.tokenizer, modules=[Pooling(("mean", "max")), dense]
    )
    together = encoder.encode(MANY)
    copy = pickle.loads(pickle.dumps(encoder))
    for index, text in enumerate(MANY):
        assert np.array_equal(copy.encode(text), together[index])
    assert np.array_equal(encoder.encode(MANY, batch_size=7), together)
    assert np.array_equal(encoder.encode(MANY[::-1])[::-1], together)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        assert np.array_equal(encoder.encode(MANY * 40)[: len(MANY)], together)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("modes", [("mean", "cls"), ("cls", "mean")])
def test_both_libraries_read_what_is_saved(folder: Path, tmp_path: Path, modes: Any) -> None:
    source = fastbert.SentenceEncoder.from_pretrained(folder)
    torch.manual_seed(2)
    modules = [
        Dense(HIDDEN, 20, module_input_name="token_embeddings"),
        Pooling(modes, include_prompt=False),
        Dense(40, 40, activation_function=nn.PReLU(), use_residual=True),
        SentenceLayerNorm(40),
        Normalize(),
        Dropout(0.1),
    ]
    encoder = fastbert.SentenceEncoder(
        source.model,
        source.tokenizer,
        modules=modules,
        max_seq_length=7,
        do_lower_case=True,
        prompts={"red": "red "},
        default_prompt_name="red",
        similarity_fn_name="dot",
        truncate_dim=11,
        settings=TransformerSettings(lengths={"query": 5}, text=TextOptions(truncation=True)),
    )
    encoder.save_pretrained(tmp_path / "saved")
    ours, theirs = both(tmp_path / "saved")
    texts = [*TEXTS, "The CAT sat far far under the House [MASK]"]
    np.testing.assert_array_equal(ours.encode(texts), encoder.encode(texts))
    np.testing.assert_array_equal(ours.encode_query(texts), encoder.encode_query(texts))
    alike(ours.encode(texts), theirs.encode(texts))
    alike(ours.encode_query(texts), theirs.encode_query(texts))
    assert (ours.prompts, ours.similarity_fn_name) == (encoder.prompts, "dot")
    assert theirs.similarity_fn_name == "dot"


def test_int8_is_saved(folder: Path, tmp_path: Path) -> None:
    encoder = fastbert.SentenceEncoder.from_pretrained(folder, quantization="int8")
    encoder.save_pretrained(tmp_path)
    again = fastbert.SentenceEncoder.from_pretrained(tmp_path)
    np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))


def test_what_the_format_cannot_hold_is_not_saved(folder: Path, tmp_path: Path) -> None:
    class Mine(Normalize): ...

    encoder = fastbert.SentenceEncoder.from_pretrained(folder)
    leaky = Dense(HIDDEN, 4, activation_function=nn.LeakyReLU(0.3))
    for module, told in ((Mine(), "Mine"), (leaky, "LeakyReLU")):
        made = fastbert.SentenceEncoder(
            encoder.model, encoder.tokenizer, modules=[Pooling(), module]
        )
        with pytest.raises(ValueError, match=told):
            made.save_pretrained(tmp_path / "nothing")
        assert not (tmp_path / "nothing").exists()


def test_a_pool_of_processes_gives_the_same_bits(folder: Path) -> None:
    encoder = fastbert.SentenceEncoder.from_pretrained(folder)
    pool = encoder.start_multi_process_pool(["cpu", "cpu"])
    try:
        np.testing.assert_array_equal(encoder.encode(MANY, pool=pool), encoder.encode(MANY))
        options: dict[str, Any] = {"prompt": "red ", "truncate_dim": 3, "chunk_size": 4}
        found = encoder.encode(MANY, pool=pool, **options, convert_to_tensor=True)
        assert torch.equal(found, torch.tensor(encoder.encode(MANY, **options)))
        options = {"output_value": "token_embeddings"}
        parts, whole = encoder.encode(MANY, pool=pool, **options), encoder.encode(MANY, **options)
        assert all(torch.equal(a, b) for a, b in zip(parts, whole, strict=True))
        np.testing.assert_array_equal(
            encoder.encode_multi_process(TEXTS, pool), encoder.encode(TEXTS)
        )
        assert encoder.encode([], pool=pool).shape == (0, 12)
        with pytest.raises(ValueError, match="half a character"):
            encoder.encode([*TEXTS, "\ud800"], pool=pool, chunk_size=1)
        np.testing.assert_array_equal(encoder.encode(TEXTS, pool=pool), encoder.encode(TEXTS))
        for process in pool["processes"]:
            process.kill()
        with pytest.raises(RuntimeError, match="died"):
            encoder.encode(MANY, pool=pool)
    finally:
        encoder.stop_multi_process_pool(pool)


class Halved(nn.Linear):
    """A projection of one's own."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 0.5 * super().forward(input)


@pytest.mark.parametrize("why", ["calls PReLU row by row", "calls the Halved in the place"])
def test_strict_names_what_no_kernel_computes_behind_a_transformer(folder: Path, why: str) -> None:
    encoder = fastbert.SentenceEncoder.from_pretrained(folder, backend="cpu", strict=True)
    before = encoder.encode("a text")
    dense = encoder.dense[0]
    if "PReLU" in why:
        dense.activation_function = nn.PReLU()
    else:
        halved = Halved(HIDDEN, 12)
        halved.load_state_dict(dense.linear.state_dict())
        dense.linear = halved
        dense.activation_function = nn.Identity()
    assert why in fastbert.explain(encoder)
    with pytest.raises(Unavailable, match=why):
        encoder.encode("a text")
    encoder.model.set_backend("cpu")
    if "Halved" in why:
        expected = np.arctanh(before) / 2
        np.testing.assert_allclose(encoder.encode("a text"), expected, rtol=1e-4, atol=1e-5)
    encoder.model.set_backend("reference", strict=True)
    encoder.encode("a text")
