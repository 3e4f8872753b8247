"""The task question-answering: the span of a text that answers a question about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastbert.pipelines.base import Pipeline
from fastbert.tokenizers.batch_encoding import BatchEncoding

# Logits of tokens where no answer can begin or end, as transformers sets them.
_FORBIDDEN = -10000.0
_MAX_SEQ_LEN = 384
_DOC_STRIDE = 128


class QuestionAnswering(Pipeline):
    """Answers that are spans of the context."""

    task = "question-answering"
    auto_class = "AutoModelForQuestionAnswering"

    def __call__(
        self, inputs: Any = None, *, question: Any = None, context: Any = None, **options: Any
    ) -> Any:
        """Answer as Pipeline does.

        Args:
            inputs: {"question": ..., "context": ...}, or a list of such dictionaries.
            question: a question or a list of them, instead of `inputs`.
            context: the text about which they are asked, or a list of as many.
            **options: see `answer`.
        """
        if question is not None or context is not None:
            if inputs is not None:
                raise TypeError("Give either an input or question= and context=, not both.")
            inputs = _paired(question, context)
        return super().__call__(inputs, **options)

    def answer(
        self,
        items: list[Any],
        top_k: int = 1,
        doc_stride: int | None = None,
        max_answer_len: int = 15,
        max_seq_len: int | None = None,
        max_question_len: int = 64,
        handle_impossible_answer: bool = False,
        align_to_words: bool = True,
    ) -> list[Any]:
        """Find the spans that answer every question.

        Args:
            items: {"question": ..., "context": ...}.
            top_k: at most so many answers, the best first.
            doc_stride: tokens by which the windows over a long context overlap.
            max_answer_len: longest answer in tokens.
            max_seq_len: tokens of one window, the question included.
            max_question_len: the question is cut to so many tokens.
            handle_impossible_answer: "" may be an answer.
            align_to_words: answers begin and end with whole words.

        Returns:
            {"score", "start", "end", "answer"} for every item, or a list of them, the best first,
            where more than one is asked for and found.

        Raises:
            ValueError: for a limit below 1, or a tokenizer that does not tell offsets.
        """
        if top_k < 1 or max_answer_len < 1:
            raise ValueError(
                f"top_k and max_answer_len must be at least 1, not {top_k} and {max_answer_len}."
            )
        if not self.tokenizer.is_fast:
            raise ValueError(
                f"{type(self.tokenizer).__name__} does not tell where its tokens stand, "
                "so that answers cannot be found in it."
            )
        width = min(max_seq_len or _MAX_SEQ_LEN, self.longest)
        stride = min(width // 2, _DOC_STRIDE) if doc_stride is None else doc_stride
        encodings = [self._encode(item, width, stride, max_question_len) for item in items]
        rows = [window for encoded in encodings for window in self.rows(encoded)]
        starts = self.token_outputs(rows, "start_logits")
        ends = self.token_outputs(rows, "end_logits")
        answers: list[Any] = []
        row = 0
        for item, encoded in zip(items, encodings, strict=True):
            spans: dict[str, dict[str, Any]] = {}
            nothing = 1e6
            for index in range(len(encoded["input_ids"])):
                context = np.array([text == 1 for text in encoded.sequence_ids(index)])
                allowed = context | self._is_cls(encoded["input_ids"][index])
                first = _probabilities(starts[row].numpy(), allowed)
                last = _probabilities(ends[row].numpy(), allowed)
                row += 1
                if handle_impossible_answer:
                    nothing = min(nothing, float(first[0] * last[0]))
                first[~context] = last[~context] = 0.0
                pool = top_k * 2 + 10 if align_to_words else top_k
                for begin, end, score in _spans(first, last, pool, max_answer_len):
                    span = _characters(encoded, index, begin, end, align_to_words)
                    text = item["context"][span[0] : span[1]]
                    known = spans.setdefault(
                        text.lower(),
                        {"score": 0.0, "start": span[0], "end": span[1], "answer": text},
                    )
                    known["score"] += score
            found = list(spans.values())
            if handle_impossible_answer:
                found.append({"score": nothing, "start": 0, "end": 0, "answer": ""})
            found.sort(key=lambda span: -span["score"])
            answers.append(found[0] if len(found[:top_k]) == 1 else found[:top_k])
        return answers

    def _encode(self, item: Any, width: int, stride: int, question_length: int) -> BatchEncoding:
        """Tokenise a question with windows over its context, one a row."""
        if not isinstance(item, dict) or not {"question", "context"} <= set(item):
            raise TypeError('question-answering takes {"question": ..., "context": ...}.')
        question, context = item["question"], item["context"]
        if not question or not context:
            raise ValueError("Neither the question nor the context may be empty.")
        offsets = self.tokenize(question, add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
        if len(offsets) > question_length:
            question = question[: offsets[question_length - 1][1]]
        return self.tokenize(
            [question],
            [context],
            truncation="only_second",
            max_length=width,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )

    def _is_cls(self, ids: Sequence[int]) -> np.ndarray:
        """Mark the tokens that stand for no answer, which take part in the probabilities.

        That is CLS; FlauBERT has the same token between its texts, where no answer may be either.
        """
        removed: NDArray[np.bool_] = np.array(ids) == self.tokenizer.cls_token_id
        return removed


def _paired(question: Any, context: Any) -> Any:
    if question is None or context is None:
        raise TypeError("question= and context= must be given together.")
    if isinstance(question, str) and isinstance(context, str):
        return {"question": question, "context": context}
    if isinstance(context, str):
        context = [context] * len(question)
    if len(question) != len(context):
        raise ValueError(f"There are {len(question)} questions but {len(context)} contexts.")
    return [{"question": q, "context": c} for q, c in zip(question, context, strict=True)]


def _probabilities(logits: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    masked = np.where(allowed, logits, _FORBIDDEN)
    exponents = np.exp(masked - masked.max())
    return np.asarray(exponents / exponents.sum())


def _spans(
    first: np.ndarray, last: np.ndarray, count: int, longest: int
) -> list[tuple[int, int, float]]:
    """Return the best (begin, end, score), end included, at most `longest` tokens long."""
    scores = np.tril(np.triu(np.outer(first, last)), longest - 1)
    flat = scores.ravel()
    best = np.argsort(-flat, kind="stable")[:count]
    begins, ends = np.unravel_index(best, scores.shape)
    return [
        (int(begin), int(end), float(scores[begin, end]))
        for begin, end in zip(begins, ends, strict=True)
        if scores[begin, end] > 0.0
    ]


def _characters(
    encoded: BatchEncoding, index: int, begin: int, end: int, by_word: bool
) -> tuple[int, int]:
    """Return the characters from token `begin` to `end` of a row, widened to whole words."""
    offsets: Sequence[tuple[int, int]] = encoded["offset_mapping"][index]
    if not by_word:
        return int(offsets[begin][0]), int(offsets[end][1])
    words, sequence = encoded.word_ids(index), encoded.sequence_ids(index)

    def spans_of_word(token: int) -> list[tuple[int, int]]:
        if words[token] is None:
            return [offsets[token]]
        return [
            offsets[other]
            for other in range(len(words))
            if words[other] == words[token] and sequence[other] == 1
        ]

    return int(spans_of_word(begin)[0][0]), int(spans_of_word(end)[-1][1])
