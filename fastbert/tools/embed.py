"""What ``fastbert embed`` does with texts and vectors: streams, formats, whole files or none."""

from __future__ import annotations

import io
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from fastbert.checkpoints.storage import replaced
from fastbert.embedding.modules import Normalize
from fastbert.runtime.progress import Progress

# Texts held in memory at a time, so that JSON lines stream through in bounded memory.
BLOCK_TEXTS = 4096


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
    encoder: Any, texts: Iterable[str], shown: bool | None, **arguments: Any
) -> Iterator[np.ndarray]:
    """Encode texts block by block.

    Args:
        encoder: a SentenceEncoder.
        texts: one at a time.
        shown: draw progress on standard error; None for only where that is a terminal.
        **arguments: for the encoder's encode().

    Yields:
        float32 (texts of the block, dimension); at least one block.
    """
    source = iter(texts)
    with Progress(None, shown=shown) as progress:
        block = list(itertools.islice(source, BLOCK_TEXTS))
        yield encoder.encode(block, show_progress_bar=progress, **arguments)
        while block := list(itertools.islice(source, BLOCK_TEXTS)):
            yield encoder.encode(block, show_progress_bar=progress, **arguments)


def write(blocks: Iterator[np.ndarray], output: str | None, form: str) -> None:
    """Write all vectors as one .npy array or as JSON lines.

    A named file appears whole or not at all: it is written beside its place and then renamed.

    Args:
        blocks: float32 (texts, dimension), at least one.
        output: a path, None for standard output.
        form: "npy" or "jsonl".

    Raises:
        FileNotFoundError: when the output's folder does not exist.
        IsADirectoryError: when the output is a folder.
    """
    fill = _npy if form == "npy" else _jsonl
    if output is None:
        fill(blocks, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    path = Path(output)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is not a folder; make it first to write {path}.")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file to write.")
    with replaced(path) as temporary, temporary.open("wb") as file:
        fill(blocks, file)


def _npy(blocks: Iterator[np.ndarray], file: IO[bytes]) -> None:
    # np.save seeks in real files, which a pipe cannot.
    buffer = io.BytesIO()
    np.save(buffer, np.concatenate(list(blocks)))
    file.write(buffer.getbuffer())


def _jsonl(blocks: Iterator[np.ndarray], file: IO[bytes]) -> None:
    for block in blocks:
        for vector in block:
            # str() of a float32 is the shortest decimal that reads back as the same float32.
            values = [float(str(value)) for value in vector]
            file.write(f"{json.dumps(values)}\n".encode())


def read_jsonl(text: str) -> np.ndarray:
    """Read what `write` made as JSON lines.

    Returns:
        float32 (lines, dimension).
    """
    return np.array([json.loads(line) for line in text.splitlines()], dtype=np.float32)
