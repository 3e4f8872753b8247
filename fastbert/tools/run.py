"""What ``fastbert run`` does: a pipeline over lines of text."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

from fastbert.pipelines import pipeline


def answers(
    task: str,
    path: str | os.PathLike[str],
    lines: Iterable[str],
    top_k: int | None,
    labels: list[str] | None,
    **loading: Any,
) -> Iterator[str]:
    """Answer every line of text with a line of JSON.

    Args:
        task: a pipeline's name.
        path: a checkpoint.
        lines: texts; for question-answering question and context with a tab between them.
        top_k: answers for each, where the task has several; None for its default.
        labels: the candidates of zero-shot-classification.
        **loading: for pipeline(): dtype, backend, quantization, device.

    Yields:
        one JSON object or list for every line.

    Raises:
        ValueError: when labels or top_k do not fit the task, or a line lacks its tab.
    """
    if (labels is not None) != (task == "zero-shot-classification"):
        raise ValueError(
            "--labels names the candidates of zero-shot-classification: give it for that task, "
            "and for no other."
        )
    options: dict[str, Any] = {} if labels is None else {"candidate_labels": labels}
    if top_k is not None:
        if task not in ("fill-mask", "text-classification", "question-answering"):
            raise ValueError(f"--top-k means nothing for {task}.")
        options["top_k"] = top_k
    answer = pipeline(task, model=path, **loading)
    for line in lines:
        given = _question(line) if task == "question-answering" else line
        yield json.dumps(answer(given, **options), ensure_ascii=False)


def _question(line: str) -> dict[str, str]:
    question, tab, context = line.partition("\t")
    if not tab:
        raise ValueError(
            f"question-answering reads question, tab, context on every line; {line[:40]!r} has no "
            "tab."
        )
    return {"question": question, "context": context}
