"""What ``fastbert run --task text-generation`` does: prompts in, growing texts out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from fastbert.pipelines import pipeline
from fastbert.pipelines.text_generation import TextPieces


def continue_lines(
    path: str | os.PathLike[str],
    lines: Iterable[str],
    write: Callable[[str], object],
    **loading: Any,
) -> None:
    """Write every prompt and its continuation, piece by piece as it is generated.

    Args:
        path: a checkpoint.
        lines: the prompts.
        write: gets the pieces of each text, and a newline behind it.
        **loading: for pipeline(): dtype, backend, quantization, device.
    """
    continued = pipeline("text-generation", model=path, **loading)
    pieces = TextPieces(continued.tokenizer, write)
    for line in lines:
        write(line)
        continued(line, streamer=pieces)
        write("\n")
