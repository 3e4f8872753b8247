"""The task question-answering: the span of a text that answers a question about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastbert.pipelines.base import Pipeline, check_limit
from fastbert.pipelines.spans import Spans, Windows
from fastbert.tokenizers.batch_encoding import BatchEncoding

_MAX_SEQ_LEN = 384
_DOC_STRIDE = 128
Answer = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """A question about a text."""

    question: str
    context: str


class QuestionAnswering(Pipeline):
    """Answers that are spans of the context."""

    task = "question-answering"
    auto_class = "AutoModelForQuestionAnswering"

    def __call__(
        self,
        inputs: Any = None,
        context: Any = None,
        *,
        question: Any = None,
        **options: Any,
    ) -> Any:
        """Answer as Pipeline does.

        Args:
            inputs: {"question": ..., "context": ...}, an object with question_text and
                context_text, or a list or stream of these; the question, where `context` follows.
            context: the text about which is asked, or a list of texts.
            question: a question or a list of them. One question is asked of every context, and
                all questions of one context; two lists must be as long.
            **options: see `answer`.
        """
        if inputs is not None and question is not None:
            raise TypeError("Give either an input or question= and context=, not both.")
        if question is None and context is not None:
            inputs, question = None, inputs
        if question is not None:
            if context is None:
                raise TypeError("question= and context= must be given together.")
            inputs = _paired(question, context)
        elif inputs is None:
            raise TypeError("question-answering needs question= and context=.")
        elif isinstance(inputs, Mapping):
            inputs = _paired(*_fields(inputs))
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

        A score is the probability that the model gives to an answer: within a window the sum over
        all spans that read alike, and the best of the windows that hold it. So it is at most 1,
        and windows that overlap neither repeat an answer nor raise its score.

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
            where more than one is asked for and found. In a context without a single token (of
            blanks, say) the one answer is "", with score 1.

        Raises:
            TypeError: for an item without question and context.
            ValueError: for a limit below 1, an empty question or context, or windows that have no
                room for the context.
        """
        for name, limit in (
            ("top_k", top_k),
            ("max_answer_len", max_answer_len),
            ("max_question_len", max_question_len),
            ("max_seq_len", 1 if max_seq_len is None else max_seq_len),
        ):
            check_limit(name, limit)
        width = min(max_seq_len or _MAX_SEQ_LEN, self.longest)
        questions = [_question(item) for item in items]
        encodings = [self._encode(one, width, doc_stride, max_question_len) for one in questions]
        rows = [window for encoded in encodings for window in self.rows(encoded)]
        starts = iter(self.token_outputs(rows, "start_logits"))
        ends = iter(self.token_outputs(rows, "end_logits"))
        answers: list[Any] = []
        for one, encoded in zip(questions, encodings, strict=True):
            windows = Windows(encoded, int(self._question_first), self.tokenizer.cls_token_id)
            spans = Spans(one.context, windows, align_to_words)
            for index in range(len(encoded["input_ids"])):
                logits = next(starts).numpy(), next(ends).numpy()
                spans.add(index, *logits, top_k, max_answer_len)
            found = _ranked(spans, handle_impossible_answer)[:top_k]
            answers.append(found[0] if len(found) == 1 else found)
        return answers

    @property
    def _question_first(self) -> bool:
        """Whether the question stands before its context, as where padding is on the right."""
        return bool(self.tokenizer.padding_side == "right")

    def _encode(
        self, asked: Question, width: int, stride: int | None, question_length: int
    ) -> BatchEncoding:
        """Tokenise a question with windows over its context, one a row."""
        question = asked.question
        offsets = self.tokenize(question, add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
        if len(offsets) > question_length:
            question = question[: offsets[question_length - 1][1]]
        used = min(len(offsets), question_length) + self.tokenizer.num_special_tokens_to_add(True)
        room = width - used
        if room < 1:
            raise ValueError(
                f"The question fills the {width} tokens of a window, so that none is left for the "
                "context; raise max_seq_len, as far as the model goes, or lower max_question_len."
            )
        if stride is None:
            stride = min(width // 2, _DOC_STRIDE, room - 1)
        first = self._question_first
        return self.tokenize(
            [question if first else asked.context],
            [asked.context if first else question],
            truncation="only_second" if first else "only_first",
            max_length=width,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )


def _ranked(spans: Spans, impossible: bool) -> list[Answer]:
    """List the answers to a question, the best first."""
    found: list[Answer] = [
        {"score": score, "start": start, "end": end, "answer": spans.context[start:end]}
        for score, start, end in spans.found()
    ]
    if impossible or not found:
        found.append({"score": spans.nothing, "start": 0, "end": 0, "answer": ""})
    return sorted(found, key=lambda answer: -answer["score"])


def _question(item: Any) -> Question:
    """Take a question and its context from one input.

    Raises:
        TypeError: for an input that has no two texts of these names.
        ValueError: for an empty text.
    """
    question, context = _fields(item)
    for name, text in (("question", question), ("context", context)):
        if not isinstance(text, str):
            raise TypeError(f"The {name} must be a text, not {type(text).__name__}.")
        if not text:
            raise ValueError(f"The {name} may not be empty.")
    return Question(question, context)


def _fields(item: Any) -> tuple[Any, Any]:
    if isinstance(item, Mapping) and {"question", "context"} <= set(item):
        return item["question"], item["context"]
    if hasattr(item, "question_text") and hasattr(item, "context_text"):
        return item.question_text, item.context_text
    raise TypeError(
        'question-answering takes {"question": ..., "context": ...}, not '
        f"{list(item) if isinstance(item, Mapping) else type(item).__name__}."
    )


def _paired(question: Any, context: Any) -> Any:
    """Pair questions with contexts; one of either goes with all of the other.

    Returns:
        One pair for two texts, a list of pairs where there is a list.

    Raises:
        TypeError: for anything but texts and lists of them.
        ValueError: for lists of different lengths.
    """
    lists: list[Sequence[Any]] = []
    for name, given in (("question", question), ("context", context)):
        if not isinstance(given, (str, list, tuple)):
            raise TypeError(f"{name}= is a text or a list of texts, not {type(given).__name__}.")
        lists.append([given] if isinstance(given, str) else given)
    questions, contexts = lists
    if isinstance(question, str):
        questions = list(questions) * len(contexts)
    if isinstance(context, str):
        contexts = list(contexts) * len(questions)
    if len(questions) != len(contexts):
        raise ValueError(
            f"There are {len(questions)} questions but {len(contexts)} contexts; give as many, or "
            "one of either."
        )
    pairs = [{"question": q, "context": c} for q, c in zip(questions, contexts, strict=True)]
    single = isinstance(question, str) and isinstance(context, str)
    return pairs[0] if single else pairs
