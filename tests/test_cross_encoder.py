"""A CrossEncoder gives the scores of sentence-transformers' on the same folder.

Pairs are read as one text each: special tokens, token types, truncation and prompts are those of
pairs; the head's outputs become scores by the activation that the folder's files name, wherever
they name it. What is not obeyed is refused, and a pair's bits do not depend on other pairs.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers as st
import torch
import transformers
from torch import nn

import fastbert

# Files of tests are imported by their paths, so their helpers are found through this one's.
sys.path.insert(0, str(Path(__file__).parent))
from sentence_folders import HIDDEN, TEXTS, edited, saved, tiny

PAIRS = [(one, other) for one in TEXTS for other in TEXTS[:3]]
PAIRS += [("the far " * 40, "cat " * 30), ("red", "on mat " * 60)]
GENERAL, BERT = "config_sentence_transformers.json", "sentence_bert_config.json"
FAMILIES = ["Bert", "Roberta", "XLMRoberta", "Camembert", "DistilBert", "Electra", "MPNet"]


def classifier(folder: Path, source: Path, labels: int = 1, family: str = "Bert") -> Path:
    """Write a tiny random classifier of transformers with the tokenizer of another folder."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    sizes: dict[str, Any] = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "dim": HIDDEN}
    sizes |= {"num_attention_heads": 2, "n_heads": 2, "n_layers": 2, "intermediate_size": 48}
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(tokenizer), max_position_embeddings=42, num_labels=labels, **sizes
    )
    torch.manual_seed(labels)
    model = getattr(transformers, f"{family}ForSequenceClassification")(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    tokenizer.model_max_length = 40
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("source") / "model")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Path:
    return classifier(tmp_path_factory.mktemp("plain") / "model", source)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Path:
    return classifier(tmp_path_factory.mktemp("three") / "model", source, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, plain: Path) -> Path:
    """Return a folder that sentence-transformers 6 saved."""
    target = tmp_path_factory.mktemp("saved") / "model"
    theirs = st.CrossEncoder(str(plain), device="cpu", prompts={"q": "query : "})
    theirs.save(str(target), create_model_card=False)
    return target


def both(folder: Path, **options: Any) -> tuple[fastbert.CrossEncoder, Any]:
    ours = fastbert.CrossEncoder.from_pretrained(folder, **options)
    return ours, st.CrossEncoder(str(folder), device="cpu", **options)


def alike(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def named(**values: Any) -> Callable[[Any], Any]:
    return lambda content: {**content, **values}


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_of_every_family(tmp_path: Path, source: Path, family: str) -> None:
    ours, theirs = both(classifier(tmp_path, source, 1, family))
    alike(ours.predict(PAIRS), theirs.predict(PAIRS))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation_fn": nn.Identity()},
        {"activation_fn": nn.Tanh()},
        {"activation_fn": nn.PReLU()},
        {"activation_fn": torch.sigmoid},
        {"activation_fn": lambda scores: 3 * scores - 1},
        {"apply_softmax": True},
        {"batch_size": 3},
        {"convert_to_tensor": True},
        {"processing_kwargs": {"text": {"max_length": 9}}},
        {"processing_kwargs": {"text": {"truncation": "only_second"}}},
        {"prompt": "far far "},
    ],
)
def test_arguments_of_predict(plain: Path, three: Path, options: dict[str, Any]) -> None:
    pairs = PAIRS[:-2] if "only_second" in str(options) else PAIRS
    for folder in (plain, three):
        ours, theirs = both(folder)
        alike(ours.predict(pairs, **options), theirs.predict(pairs, **options))
        alike(ours.predict(pairs[0], **options), theirs.predict(pairs[0], **options))


def test_forms_of_pairs_and_of_scores(plain: Path, three: Path) -> None:
    for folder in (plain, three):
        ours, theirs = both(folder)
        whole = ours.predict(PAIRS)
        for given in (list(map(list, PAIRS)), tuple(PAIRS), np.array(PAIRS), iter(PAIRS)):
            np.testing.assert_array_equal(ours.predict(given), whole)
        np.testing.assert_array_equal(ours.predict(sentences=PAIRS), whole)
        np.testing.assert_array_equal(ours.predict(list(PAIRS[1])), whole[1])
        found, expected = (one.predict(PAIRS, convert_to_numpy=False) for one in (ours, theirs))
        assert isinstance(found, list) and len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            alike(one, other)
        empty = (0,) if ours.num_labels == 1 else (0, 3)
        assert ours.predict([]).shape == empty
        assert tuple(ours.predict([], convert_to_tensor=True).shape) == empty
        # Tensors may be computed with: they are not of inference mode.
        ours.predict(PAIRS, convert_to_tensor=True).add_(1).requires_grad_()


@pytest.mark.parametrize("activation", [nn.Identity(), nn.Sigmoid(), nn.Mish(), nn.Softmax(dim=1)])
def test_a_pair_has_the_bits_that_it_has_alone(three: Path, activation: nn.Module) -> None:
    ours = fastbert.CrossEncoder.from_pretrained(three)
    with torch.no_grad():  # torch's code for the last elements differs on larger values
        ours.model.classifier.weight.mul_(20)
    for softmax in (False, True):
        options: Any = {"activation_fn": activation, "apply_softmax": softmax}
        whole = ours.predict(PAIRS, **options)
        for index, pair in enumerate(PAIRS):
            np.testing.assert_array_equal(ours.predict(pair, **options), whole[index])
        np.testing.assert_array_equal(ours.predict(PAIRS, max_tokens=1, **options), whole)


def test_rank(plain: Path) -> None:
    ours, theirs = both(plain)
    documents = [*TEXTS, TEXTS[0]]
    for options in ({}, {"top_k": 2}, {"return_documents": True}, {"prompt": "red "}):
        found = ours.rank("the cat", documents, **options)
        expected = theirs.rank("the cat", documents, **options)
        assert [(a["corpus_id"], a.get("text")) for a in found] == [
            (b["corpus_id"], b.get("text")) for b in expected
        ]
        scores = [[result["score"] for result in results] for results in (found, expected)]
        np.testing.assert_allclose(*scores, atol=1e-6)
    assert ours.rank("the cat", []) == []


def test_folders_of_sentence_transformers(tmp_path: Path, folder: Path) -> None:
    ours, theirs = both(folder)
    assert ours.prompts == theirs.prompts == {"q": "query : "}
    alike(ours.predict(PAIRS, prompt_name="q"), theirs.predict(PAIRS, prompt_name="q"))
    target = edited(folder, tmp_path, GENERAL, named(default_prompt_name="q"))
    target = edited(target, target, BERT, named(max_seq_length=9, do_lower_case=True))
    ours, theirs = both(target)
    pairs = [*PAIRS, ("The CAT", "A Dog [SEP] RAN")]
    assert ours.max_seq_length == ours.max_length == theirs.max_seq_length == 9
    alike(ours.predict(pairs), theirs.predict(pairs))
    ours, theirs = both(folder, max_length=7, prompts={"q": "red "}, default_prompt_name="q")
    alike(ours.predict(PAIRS), theirs.predict(PAIRS))


TANH, SILU = "torch.nn.modules.activation.Tanh", "torch.nn.modules.activation.SiLU"


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (GENERAL, {"activation_fn": TANH}),
        (GENERAL, {"activation_fn": None}),
        (GENERAL, {"activation_fn": "torch.nn.modules.linear.Identity"}),
        ("config.json", {"sentence_transformers": {"activation_fn": TANH, "version": "4.1.0"}}),
        ("config.json", {"sentence_transformers": {"version": "4.1.0"}}),
        ("config.json", {"sbert_ce_default_activation_function": TANH}),
        (
            "config.json",
            {
                "sentence_transformers": {"activation_fn": SILU},
                "sbert_ce_default_activation_function": TANH,
            },
        ),
        (BERT, {"processing_kwargs": {"text": {"truncation": "only_first", "max_length": 30}}}),
        (BERT, {"max_seq_length": 11}),
    ],
)
def test_settings_of_files_are_obeyed(
    tmp_path: Path, plain: Path, folder: Path, name: str, values: dict[str, Any]
) -> None:
    # Where the whole has an activation, that of config.json is not asked.
    for number, start in enumerate((folder, plain) if name == "config.json" else (folder,)):
        ours, theirs = both(edited(start, tmp_path / f"{number}", name, named(**values)))
        pairs = [*PAIRS[:-2], ("far " * 60, "cat")]
        alike(ours.predict(pairs), theirs.predict(pairs))
        assert type(ours.activation_fn) is type(theirs.activation_fn)


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        (GENERAL, {"activation_fn": "my.package.Squash"}, "my.package.Squash"),
        (GENERAL, {"activation_fn": "torch.sigmoid"}, "torch.sigmoid"),
        (GENERAL, {"model_type": "SentenceTransformer"}, "fastbert.SentenceEncoder"),
        (GENERAL, {"model_type": "SparseEncoder"}, "Use sentence-transformers"),
        (GENERAL, {"default_prompt_name": "nobody"}, "nobody"),
        (BERT, {"transformer_task": "text-generation"}, "sequence-classification"),
        (BERT, {"module_output_name": "causal_logits"}, "causal_logits"),
        (BERT, {"something": 1}, "something"),
        ("config.json", {"architectures": ["BertForMaskedLM"]}, "no head that scores pairs"),
        ("adapter_config.json", {"peft_type": "LORA"}, "CrossEncoder does not apply"),
    ],
)
def test_what_is_not_obeyed_is_named(
    tmp_path: Path, folder: Path, name: str, values: dict[str, Any], told: str
) -> None:
    path = edited(folder, tmp_path, name, named(**values))
    with pytest.raises(ValueError, match=told):
        fastbert.CrossEncoder.from_pretrained(path)
    if "my.package" in told:
        ours = fastbert.CrossEncoder.from_pretrained(path, activation_fn=nn.Sigmoid())
        alike(ours.predict(PAIRS), fastbert.CrossEncoder.from_pretrained(folder).predict(PAIRS))


def test_float32_layers_of_a_half_model_are_refused(tmp_path: Path, folder: Path) -> None:
    path = edited(folder, tmp_path, GENERAL, named(keep_in_fp32_modules=["0.model.classifier"]))
    ours, theirs = both(path)
    alike(ours.predict(PAIRS), theirs.predict(PAIRS))
    with pytest.raises(ValueError, match=r"classifier in float32"):
        fastbert.CrossEncoder.from_pretrained(path, dtype="bfloat16")


def test_other_folders_are_refused_by_name(
    tmp_path: Path, source: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from sentence_transformers.sentence_transformer import modules as stm

    sentences = saved(tmp_path / "sentences", source, [stm.Pooling(HIDDEN)])
    for path in (sentences, source):
        with pytest.raises(ValueError, match=r"fastbert\.SentenceEncoder"):
            fastbert.CrossEncoder.from_pretrained(path)
    with pytest.raises(ValueError, match=r"fastbert\.CrossEncoder"):
        fastbert.SentenceEncoder.from_pretrained(folder)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    modules = json.loads((copy / "modules.json").read_text())
    more = [*modules, {**modules[0], "name": "1", "path": "1_Transformer"}]
    (copy / "modules.json").write_text(json.dumps(more))
    with pytest.raises(ValueError, match="as module 1; expected one Transformer"):
        fastbert.CrossEncoder.from_pretrained(copy)
    (copy / "modules.json").unlink()
    with caplog.at_level(logging.WARNING, "fastbert"):
        fastbert.CrossEncoder.from_pretrained(copy)
    assert "there is no modules.json" in caplog.text


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda e: e.predict("text"), "a str"),
        (lambda e: e.predict(["one"]), "the input is a list of str"),
        (lambda e: e.predict(["a", "b", "c"]), "the input is a list of str, str, str"),
        (lambda e: e.predict([("a", "b"), "cd"]), "item 1 is a str"),
        (lambda e: e.predict([("a", "b"), ("c", None)]), "item 1 is a tuple of str, NoneType"),
        (lambda e: e.predict([("a", "b", "c")]), "item 0 is a tuple of str, str, str"),
        (lambda e: e.predict({"query": "a", "text": "b"}), "names would be taken"),
        (lambda e: e.predict({("a", "b")}), "no order"),
        (lambda e: e.predict(b"ab"), "bytes"),
        (lambda e: e.predict(), "once"),
        (lambda e: e.rank("a", "documents"), "sequence of documents"),
        (lambda e: e.rank(["a"], ["b"]), "a query"),
        (lambda e: e.rank("a", {"b"}), "sequence of documents"),
        (lambda e: e.rank("a", {"b": "c"}), "sequence of documents"),
        (lambda e: e.predict(("a", "b"), activation_fn="sigmoid"), "expected a function"),
        (lambda e: e.rank("a", ["b", 3]), "item 1"),
    ],
)
def test_what_are_no_pairs_gets_a_sentence(
    plain: Path, call: Callable[[fastbert.CrossEncoder], Any], told: str
) -> None:
    with pytest.raises(TypeError, match=told):
        call(fastbert.CrossEncoder.from_pretrained(plain))


def test_impossible_values_get_a_sentence(plain: Path, three: Path) -> None:
    ours = fastbert.CrossEncoder.from_pretrained(plain)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"batch_size": 0}, "batch_size"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt_name": "nobody"}, "nobody"),
        ({"processing_kwargs": {"text": {"max_length": 43}}}, "at most 42"),
        ({"processing_kwargs": {"text": {"stride": 2}}}, "stride"),
    ]
    for options, told in wrong:
        with pytest.raises(ValueError, match=told):
            ours.predict(PAIRS, **options)
    with pytest.raises(ValueError, match="top_k"):
        ours.rank("a", ["b"], top_k=0)
    with pytest.raises(ValueError, match="as many rows"):
        ours.predict(PAIRS, activation_fn=torch.mean)
    with pytest.raises(ValueError, match=r"not a BertModel.*AutoModelForSequenceClassification"):
        fastbert.CrossEncoder(ours.model.base_model, ours.tokenizer)
    with pytest.raises(ValueError, match="3 labels"):
        fastbert.CrossEncoder.from_pretrained(three).rank("a", ["b"])
    for length in (0, 43, True):
        with pytest.raises(ValueError, match="max_seq_length is"):
            fastbert.CrossEncoder.from_pretrained(plain, max_length=length)


@pytest.mark.parametrize("options", [{}, {"quantization": "int8"}], ids=["float32", "int8"])
def test_what_is_saved_is_read_back_bit_for_bit(
    tmp_path: Path, folder: Path, three: Path, options: dict[str, Any]
) -> None:
    for number, start in enumerate((folder, three)):
        ours = fastbert.CrossEncoder.from_pretrained(start, max_length=12, **options)
        ours.activation_fn = nn.Tanh()
        target = tmp_path / f"{number}"
        ours.save_pretrained(target)
        again = fastbert.CrossEncoder.from_pretrained(target)
        np.testing.assert_array_equal(again.predict(PAIRS), ours.predict(PAIRS))
        assert again.prompts == ours.prompts
        if not options:
            theirs = st.CrossEncoder(str(target), device="cpu")
            alike(theirs.predict(PAIRS), ours.predict(PAIRS))
            # As versions before 6 find it.
            section = json.loads((target / "config.json").read_text())["sentence_transformers"]
            assert section["activation_fn"] == TANH
    ours.activation_fn = torch.sigmoid
    with pytest.raises(ValueError, match="cannot be saved"):
        ours.save_pretrained(tmp_path / "nothing")
    ours.activation_fn = nn.LeakyReLU(0.3)
    with pytest.raises(ValueError, match="LeakyReLU"):
        ours.save_pretrained(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_int8_and_explain(plain: Path) -> None:
    ours = fastbert.CrossEncoder.from_pretrained(plain)
    small = fastbert.CrossEncoder.from_pretrained(plain, quantization="int8")
    np.testing.assert_allclose(small.predict(PAIRS), ours.predict(PAIRS), atol=0.02)
    assert "layers in int8" in fastbert.explain(small)


def test_a_pool_of_processes_gives_the_same_bits(plain: Path) -> None:
    ours = fastbert.CrossEncoder.from_pretrained(plain)
    pool = ours.start_multi_process_pool(["cpu"])
    try:
        options: Any = {"chunk_size": 5, "activation_fn": lambda scores: scores * 2}
        found = ours.predict(PAIRS, pool=pool, **options)
        np.testing.assert_array_equal(found, ours.predict(PAIRS, **options))
    finally:
        ours.stop_multi_process_pool(pool)
