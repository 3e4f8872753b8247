"""What ``fastbert run`` does: a pipeline over lines of text."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from fastbert.pipelines import Pipeline, pipeline
from fastbert.tools.lines import NOT_FINITE
from fastbert.tools.untrained import untrained_refused

# Lines that are answered together; the fewer, the sooner the first answer.
BLOCK_LINES = 32

# How a task is told to cut texts that are too long. The others read or cut them by themselves.
_TRUNCATION: dict[str, dict[str, Any]] = {
    "feature-extraction": {"truncation": True},
    "fill-mask": {"tokenizer_kwargs": {"truncation": True}},
    "text-classification": {"truncation": True},
}
_CUTTING = ("token-classification", "zero-shot-classification")
_LABELLED = ("zero-shot-classification", "zero-shot-image-classification")
_TEMPLATE = "This example is {}."


def answering(
    task: str,
    path: str | os.PathLike[str],
    top_k: int | None,
    labels: list[str] | None,
    truncate: bool,
    **loading: Any,
) -> Callable[[list[str]], list[str]]:
    """Load a model and return the function that answers lines of text.

    Args:
        task: a pipeline's name.
        path: a checkpoint.
        top_k: answers for each line, where the task has several; None for its default.
        labels: the candidates of zero-shot-classification.
        truncate: cut texts that are too long for the model, rather than refuse them.
        **loading: for pipeline(): dtype, backend, quantization, device.

    Returns:
        A function from lines to lines of JSON, one for each. A line is a text; for
        question-answering it is question and context with a tab between them, for
        zero-shot-image-classification the path of an image. The function raises
        a ValueError where a line cannot be answered.

    Raises:
        ValueError: when options do not fit the task or the model, or where the checkpoint has no
            weights for the task's head.
    """
    options = _options(task, top_k, labels)
    # Features are hidden states, which no head changes.
    with contextlib.nullcontext() if task == "feature-extraction" else untrained_refused():
        answer = pipeline(task, model=path, **loading)
    if truncate:
        options |= _TRUNCATION.get(task, {})
    answer([], **options)  # refuses options that do not fit the model

    def answers(lines: list[str]) -> list[str]:
        given: list[Any] = list(lines)
        if task == "question-answering":
            given = [_question(line) for line in lines]
        elif task in _CUTTING and not truncate:
            _check_lengths(answer, lines, labels)
        # A stream is answered alike, however many there are.
        try:
            found = list(answer(iter(given), **options))
        except FileNotFoundError as error:  # a line that names no image
            raise ValueError(str(error)) from error
        return [_json(one) for one in found]

    return answers


def _json(answer: Any) -> str:
    """Return an answer as a line of JSON, which knows finite numbers only."""
    try:
        return json.dumps(answer, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise ValueError(NOT_FINITE) from None


def _options(task: str, top_k: int | None, labels: list[str] | None) -> dict[str, Any]:
    if (labels is not None) != (task in _LABELLED):
        raise ValueError(
            f"--labels names the candidates of {' and '.join(_LABELLED)}: give it for these tasks, "
            "and for no other."
        )
    options: dict[str, Any] = {} if labels is None else {"candidate_labels": labels}
    if task == "text-classification":
        options["top_k"] = 1
    if top_k is not None:
        if task not in ("fill-mask", "text-classification", "question-answering"):
            raise ValueError(f"--top-k means nothing for {task}.")
        options["top_k"] = top_k
    return options


def _question(line: str) -> dict[str, str]:
    question, tab, context = line.partition("\t")
    if not tab:
        raise ValueError(
            f"question-answering reads question, tab, context on every line; {line[:40]!r} has no "
            "tab."
        )
    return {"question": question, "context": context}


def _check_lengths(answer: Pipeline, lines: Sequence[str], labels: list[str] | None) -> None:
    """Refuse texts that the task would cut without a word."""
    seconds = [None] if labels is None else [_TEMPLATE.format(label) for label in labels]
    for line in lines:
        for second in seconds:
            tokens = len(answer.tokenizer(line, second, verbose=False)["input_ids"])
            if tokens > answer.longest:
                raise ValueError(
                    f"It has {tokens} tokens, but the model takes at most {answer.longest}; "
                    "shorten it, or give --truncate to have such lines cut."
                )
