"""What ``fastbert rank`` does: pairs of texts in, scores of a CrossEncoder out."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fastbert.embedding.cross_encoder import CrossEncoder
from fastbert.tools.lines import NOT_FINITE, Line, Problems, numbered
from fastbert.tools.output import Output

# Lines held in memory at a time, so that any number of them streams through.
BLOCK_LINES = 512

# The names that a line's JSON object may give to the two texts of a pair.
_NAMES = (
    ("query", "passage"),
    ("query", "document"),
    ("query", "text"),
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
)


@dataclass(frozen=True)
class Scored:
    """A line and what the model gives it.

    Attributes:
        number: the line's, counted from 1.
        text: the line.
        scores: one for each label of the model.
    """

    number: int
    text: str
    scores: list[float]

    def as_json(self, with_text: bool) -> bytes:
        """Return one line of JSON, with or without the text."""
        several = len(self.scores) > 1
        found: dict[str, Any] = {"line": self.number}
        found |= {"scores": self.scores} if several else {"score": self.scores[0]}
        if with_text:
            found["text"] = self.text
        return f"{json.dumps(found, ensure_ascii=False)}\n".encode()


def scoring(encoder: CrossEncoder, query: str | None) -> Callable[[list[str]], list[list[float]]]:
    """Return the function that scores lines of text.

    Args:
        encoder: what scores.
        query: the first text of every pair, where a line is the second; None where a line is both.

    Returns:
        A function from lines to their scores, which raises a ValueError where a line is no pair, or
        where its score is no number.
    """

    def scores(lines: list[str]) -> list[list[float]]:
        pairs = [pair_of(line) if query is None else (query, line) for line in lines]
        found = encoder.predict(pairs).reshape(len(pairs), -1)
        # str() of a float32 is the shortest decimal that reads back as the same float32.
        values = [[float(str(value)) for value in row] for row in found]
        if not all(math.isfinite(value) for row in values for value in row):
            raise ValueError(NOT_FINITE)
        return values

    return scores


def pair_of(line: str) -> tuple[str, str]:
    """Read a pair of texts from a line.

    Args:
        line: query, tab, passage; or JSON: a list of both, or an object with one of the pairs of
            names that this module knows.

    Raises:
        ValueError: when the line is neither.
    """
    found = _json(line)
    first, tab, second = line.partition("\t")
    if tab and found is None:
        if "\t" in second:
            raise ValueError("It has more than one tab, but is read as query, tab, passage.")
        return first, second
    if isinstance(found, dict):
        present = [names for names in _NAMES if all(name in found for name in names)]
        found = [found[name] for name in present[0]] if len(present) == 1 else None
    if not isinstance(found, list) or [type(text) for text in found] != [str, str]:
        known = ", ".join("/".join(names) for names in _NAMES)
        raise ValueError(
            f"{line[:40]!r} is no pair: expected query, tab, passage; or JSON, a list of two texts "
            f"or an object that gives them one pair of these names: {known}. Where lines are "
            "passages of one query, name it with --query."
        )
    return found[0], found[1]


def _json(line: str) -> Any:
    """Return the list or object that a line is as a whole; None for any other line.

    Between its parts JSON may have tabs, which then are not those of query, tab, passage.
    """
    inner = line.strip(" ")
    if (inner[:1], inner[-1:]) not in (("[", "]"), ("{", "}")):
        return None
    try:
        return json.loads(inner, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return None


def _once(parts: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of names and values; one that gives a name twice has none."""
    found = dict(parts)
    return found if len(found) == len(parts) else {}


def all_scored(
    blocks: Iterator[list[Line]],
    score: Callable[[list[str]], list[list[float]]],
    problems: Problems,
) -> Iterator[list[Scored]]:
    """Score lines block by block, and report those that cannot be scored."""
    for lines in blocks:
        found = numbered(lines, score, problems)
        yield [Scored(line.number, line.text, scores) for line, scores in found]


def write(
    blocks: Iterator[list[Scored]], top_k: int | None, output: Output, problems: Problems
) -> None:
    """Write scores as lines of JSON.

    Where there are bad lines and not a single good one, the output is discarded.

    Args:
        blocks: the lines and their scores.
        top_k: write only so many, with their texts, the best one first; None for all, in the order
            of the lines, as they come.
        output: where to.
        problems: the bad lines so far.
    """
    count = 0
    best: list[Scored] = []
    for block in blocks:
        count += len(block)
        if top_k is None:
            output.write(b"".join(line.as_json(with_text=False) for line in block))
        else:
            # Equal scores keep the order of the lines, as in CrossEncoder.rank.
            best = heapq.nsmallest(top_k, best + block, lambda line: (-line.scores[0], line.number))
    if best:
        output.write(b"".join(line.as_json(with_text=True) for line in best))
    output.discarded = not count and problems.count > 0
