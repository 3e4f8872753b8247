"""What ``fastbert embed`` does with texts and vectors: blocks, formats, whole files or none."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from io import BytesIO
from typing import IO, Any

import numpy as np

from fastbert.embedding.modules import Normalize
from fastbert.runtime.progress import Progress
from fastbert.tools.lines import NOT_FINITE, Line, Problems, answered
from fastbert.tools.output import Output

# Texts held in memory at a time, so that any number of lines streams through.
BLOCK_TEXTS = 512


def output_format(output: str | None, asked: str | None, terminal: bool) -> str:
    """Decide on the output's format: as asked for, else as the output's name says, else jsonl.

    Args:
        output: name of the output file, None for standard output.
        asked: "npy" or "jsonl", or None.
        terminal: whether standard output is a terminal.

    Returns:
        "npy" or "jsonl".

    Raises:
        ValueError: when binary output would go to a terminal.
    """
    form = asked or ("npy" if output is not None and output.endswith(".npy") else "jsonl")
    if form == "npy" and output is None and terminal:
        raise ValueError(
            "An .npy file is binary and would go to the terminal; name a file with --output, or "
            "choose --format jsonl."
        )
    return form


def leave_lengths(encoder: Any) -> None:
    """Take the modules that scale vectors to length 1 off the end of a SentenceEncoder."""
    while isinstance(encoder.modules[-1], Normalize):
        del encoder.modules[-1]


def vectors_of(
    encoder: Any,
    blocks: Iterator[list[Line]],
    problems: Problems,
    shown: bool | None,
    **arguments: Any,
) -> Iterator[np.ndarray]:
    """Encode lines block by block.

    Args:
        encoder: a SentenceEncoder.
        blocks: the lines.
        problems: where lines that cannot be encoded are reported.
        shown: draw progress on standard error; None for only where that is a terminal.
        **arguments: for the encoder's encode().

    Yields:
        float32 (good lines of the block, dimension), for every block with one.
    """
    with Progress(None, shown=shown) as progress:

        def vectors_of_texts(texts: list[str]) -> list[np.ndarray]:
            found = encoder.encode(texts, show_progress_bar=progress, **arguments)
            if not np.isfinite(found).all():
                raise ValueError(NOT_FINITE)
            return list(found)

        for lines in blocks:
            vectors = answered(lines, vectors_of_texts, problems)
            if vectors:
                yield np.stack(vectors)


def write(
    blocks: Iterator[np.ndarray], dimension: int, output: Output, form: str, problems: Problems
) -> None:
    """Write all vectors as one .npy array or as JSON lines, in bounded memory.

    Where there are bad lines and not a single good one, the output is discarded.

    Args:
        blocks: float32 (texts, dimension), any number of them.
        dimension: the number of values of one vector.
        output: where to; JSON lines are handed on block by block.
        form: "npy" or "jsonl".
        problems: the bad lines so far.
    """
    if form == "jsonl":
        rows = _jsonl(blocks, output)
    elif output.seekable:
        rows = _npy(blocks, dimension, output.file)
    else:
        # The head tells how many vectors there are, so it can only be written once all are known.
        with tempfile.TemporaryFile() as spool:
            rows = _npy(blocks, dimension, spool)
            if rows or not problems.count:
                spool.seek(0)
                shutil.copyfileobj(spool, output.file)
        output.file.flush()
    output.discarded = not rows and problems.count > 0


def _jsonl(blocks: Iterator[np.ndarray], output: Output) -> int:
    """Write arrays as JSON lines, and return how many there are."""
    rows = 0
    for block in blocks:
        # str() of a float32 is the shortest decimal that reads back as the same float32.
        values = ([float(str(value)) for value in vector] for vector in block)
        output.write("".join(f"{json.dumps(vector)}\n" for vector in values).encode())
        rows += len(block)
    return rows


def _npy(blocks: Iterator[np.ndarray], dimension: int, file: IO[bytes]) -> int:
    """Write an array into a new file, and return how many rows it has."""
    rows = 0
    file.write(_npy_head(rows, dimension))
    for block in blocks:
        file.write(np.ascontiguousarray(block, dtype="<f4").tobytes())
        rows += len(block)
    file.seek(0)
    file.write(_npy_head(rows, dimension))
    return rows


def _npy_head(rows: int, dimension: int) -> bytes:
    """Return the head of an .npy file, which is as long for any number of rows."""
    head = BytesIO()
    described = {"descr": "<f4", "fortran_order": False, "shape": (rows, dimension)}
    np.lib.format.write_array_header_1_0(head, described)
    return head.getvalue()


def read_jsonl(text: str) -> np.ndarray:
    """Read what `write` made as JSON lines.

    Returns:
        float32 (lines, dimension).
    """
    return np.array([json.loads(line) for line in text.splitlines()], dtype=np.float32)
