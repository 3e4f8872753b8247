"""Real English paragraphs of mixed length, the same on every machine with the same Python.

They come from the documentation that every Python carries (pydoc_data.topics). Their numbers of
words are drawn like the lengths of real requests.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np

# MiniLM's tokens per word of this text, measured; it is technical.
_TOKENS_PER_WORD = 1.9


def english(count: int, seed: int = 0) -> list[str]:
    """Make `count` texts of about 8 to 256 tokens, lognormal as `cases.ragged_lengths`."""
    from pydoc_data.topics import topics

    from bench.cases import ragged_lengths

    words = [
        paragraph.split()
        for _, topic in sorted(topics.items())
        for paragraph in re.split(r"\n\s*\n", topic)
        if _is_prose(paragraph)
    ]
    random = np.random.default_rng(seed)
    lengths = ragged_lengths(count, seed + 1, 8, 256)
    texts = []
    for length in lengths:
        wanted = max(3, round(length / _TOKENS_PER_WORD))
        start = int(random.integers(len(words)))
        taken: list[str] = []
        while len(taken) < wanted:
            taken += words[start % len(words)]
            start += 1
        texts.append(" ".join(taken[:wanted]))
    return texts


def _is_prose(paragraph: str) -> bool:
    letters = sum(character.isalpha() or character.isspace() for character in paragraph)
    return len(paragraph.split()) >= 12 and letters / len(paragraph) > 0.9


def digest(texts: Sequence[str]) -> str:
    """Return a name for this very list of texts, by which a results file knows it."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
