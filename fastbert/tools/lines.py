"""Lines of text from a file or pipe, and answers to them that one bad line does not end."""

from __future__ import annotations

import os
import select
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

AnswerT = TypeVar("AnswerT")

# A line is held in memory as a whole, so there is a limit to it.
MOST_BYTES = 1 << 26
_CHUNK_BYTES = 1 << 16
# Said of a line for which a model, in too narrow a dtype or with damaged weights, computes nothing.
NOT_FINITE = "What the model computes for it is no finite number; see the model's dtype."
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Line:
    """One line.

    Attributes:
        number: counted from 1.
        text: the line without its end; empty where it cannot be read.
        problem: one sentence why it cannot be read; empty where it can.
    """

    number: int
    text: str
    problem: str = ""


class Problems:
    """Names bad lines on standard error as they are found.

    Attributes:
        count: how many there were.
    """

    def __init__(self) -> None:
        self.count = 0

    def report(self, number: int, sentence: str) -> None:
        """Name one line and what is wrong with it."""
        self.count += 1
        print(f"fastbert: line {number}: {sentence}", file=sys.stderr, flush=True)


@contextmanager
def opened_input(name: str) -> Iterator[int]:
    """Open a file of text.

    Args:
        name: a path, or "-" for standard input.

    Yields:
        Its descriptor.

    Raises:
        ValueError: when standard input is closed.
        OSError: when the file cannot be opened or is a folder.
    """
    if name == "-":
        if sys.stdin is None:
            raise ValueError("Standard input is closed; name a file to read, or pipe texts in.")
        yield sys.stdin.fileno()
        return
    with Path(name).open("rb", buffering=0) as file:
        yield file.fileno()


def blocks(descriptor: int, most: int) -> Iterator[list[Line]]:
    """Read lines in blocks that never wait for more once a line is there.

    A line ends at LF or CRLF only. A byte order mark before the first one is left out. A block of
    a file is full; of a pipe it holds the lines that have arrived.

    Args:
        descriptor: what to read.
        most: at most so many lines in a block.

    Yields:
        At least one line at a time.
    """
    reader = _Reader(descriptor)
    block: list[Line] = []
    for line in reader.lines():
        if line is not None:
            block.append(line)
        if block and (len(block) == most or (line is None and not reader.is_ready())):
            yield block
            block = []
    if block:
        yield block


def answered(
    lines: Sequence[Line],
    answer: Callable[[list[str]], Sequence[AnswerT]],
    problems: Problems,
) -> list[AnswerT]:
    """Answer all lines of a block that can be answered, in order, and report the others.

    Args:
        lines: the block.
        answer: called with texts; returns one answer for each, or raises a ValueError where one of
            them cannot be answered.
        problems: where bad lines are reported.
    """
    return [found for _, found in numbered(lines, answer, problems)]


def numbered(
    lines: Sequence[Line],
    answer: Callable[[list[str]], Sequence[AnswerT]],
    problems: Problems,
) -> list[tuple[Line, AnswerT]]:
    """Do what `answered` does, and return each answer with its line."""
    bad = {line.number: line.problem for line in lines if line.problem}
    found = _halved([line for line in lines if not line.problem], answer, bad)
    for number, sentence in sorted(bad.items()):
        problems.report(number, sentence)
    return found


def _halved(
    lines: list[Line], answer: Callable[[list[str]], Sequence[AnswerT]], bad: dict[int, str]
) -> list[tuple[Line, AnswerT]]:
    """Answer lines together; where that fails, answer either half by itself."""
    if not lines:
        return []
    try:
        return list(zip(lines, answer([line.text for line in lines]), strict=True))
    except ValueError as error:
        if len(lines) == 1:
            bad[lines[0].number] = " ".join(str(error).split())
            return []
    half = len(lines) // 2
    return _halved(lines[:half], answer, bad) + _halved(lines[half:], answer, bad)


class _Reader:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        # Lines that are not read yet, and the beginning of the next; None for too long a line.
        self._complete: deque[bytes | None] = deque()
        self._rest: bytearray | None = bytearray()
        self._count = 0

    def lines(self) -> Iterator[Line | None]:
        """Give every line; None each time before more must be read."""
        while True:
            while self._complete:
                content = self._complete.popleft()
                yield self._line(content and content.removesuffix(b"\r"))
            yield None
            chunk = self._read()
            if not chunk:
                break
            self._take(chunk)
        if self._rest is None or self._rest:
            yield self._line(None if self._rest is None else bytes(self._rest))

    def is_ready(self) -> bool:
        """Return whether reading would not wait."""
        return bool(self._poll.poll(0))

    def _read(self) -> bytes:
        while True:
            try:
                return os.read(self._descriptor, _CHUNK_BYTES)
            except BlockingIOError:
                self._poll.poll()

    def _take(self, chunk: bytes) -> None:
        first, *others = chunk.split(b"\n")
        self._extend(first)
        for part in others:
            self._complete.append(None if self._rest is None else bytes(self._rest))
            self._rest = bytearray()
            self._extend(part)

    def _extend(self, part: bytes) -> None:
        if self._rest is not None:
            self._rest += part
            if len(self._rest) > MOST_BYTES:
                self._rest = None

    def _line(self, content: bytes | None) -> Line:
        self._count += 1
        if content is None:
            return Line(self._count, "", f"It is longer than {MOST_BYTES >> 20} MiB; cut it.")
        if self._count == 1:
            content = content.removeprefix(_BOM)
        try:
            return Line(self._count, content.decode("utf-8"))
        except UnicodeDecodeError as error:
            return Line(
                self._count,
                "",
                f"It is not UTF-8 text ({error.reason} at byte {error.start} of the line); convert "
                "it to UTF-8 first.",
            )
