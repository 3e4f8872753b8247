"""What ``fastbert run --task text-generation`` does: prompts in, growing texts out."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from fastbert.pipelines import pipeline
from fastbert.pipelines.text_generation import TextPieces
from fastbert.tools.untrained import untrained_refused


def continuing(
    path: str | os.PathLike[str],
    top_k: int | None,
    labels: list[str] | None,
    write: Callable[[bytes], object],
    **loading: Any,
) -> Callable[[list[str]], list[str]]:
    """Load a model and return the function that continues lines of text.

    Args:
        path: a checkpoint.
        top_k: must be None, as labels.
        labels: of other tasks.
        write: gets each prompt and its continuation piece by piece, and a newline behind it.
        **loading: for pipeline(): dtype, backend, quantization, device.

    Returns:
        A function that writes the continuations of prompts, and returns the prompts. It raises a
        ValueError, and has written nothing, where a prompt cannot be continued.

    Raises:
        ValueError: for options of other tasks, or a checkpoint without weights for the head.
    """
    if labels is not None or top_k is not None:
        raise ValueError("--labels and --top-k mean nothing for text-generation.")
    with untrained_refused():
        continued = pipeline("text-generation", model=path, **loading)

    def answers(lines: list[str]) -> list[str]:
        for line in lines:
            waiting = [line]

            def take(piece: str, waiting: list[str] = waiting) -> None:
                write(("".join(waiting) + piece).encode())
                waiting.clear()

            continued(line, streamer=TextPieces(continued.tokenizer, take))
            take("\n")
        return lines

    return answers
