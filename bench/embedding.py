"""The case of real texts: tokenise, encode, pool by the mean, scale to length 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .rivals import Engine, Padded, Rival

BATCH = 32
MAX_TOKENS = 256


def embedder(
    rival: Rival, path: Path, threads: int, texts: Sequence[str], by_length: bool
) -> Callable[[], np.ndarray]:
    """A call that gives float32 (texts, hidden) in the texts' own order.

    fastbert packs and never sorts, so `by_length` is for rivals: they get the texts sorted by
    number of characters, as sentence-transformers does it.
    """
    if rival.ours:
        import fastbert

        engine: Any = rival.load(path, threads)
        encoder = fastbert.SentenceEncoder(
            engine.model,
            fastbert.AutoTokenizer.from_pretrained(path),
            normalized=True,
            max_seq_length=MAX_TOKENS,
        )
        return lambda: encoder.encode(texts)
    return _rival(rival.load(path, threads), path, texts, by_length)


def _rival(
    engine: Engine, path: Path, texts: Sequence[str], by_length: bool
) -> Callable[[], np.ndarray]:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(path)

    def run() -> np.ndarray:
        order = list(range(len(texts)))
        if by_length:
            order.sort(key=lambda index: len(texts[index]))
        vectors: np.ndarray | None = None
        for begin in range(0, len(order), BATCH):
            chosen = order[begin : begin + BATCH]
            encoded = tokenizer(
                [texts[index] for index in chosen],
                padding=True,
                truncation=True,
                max_length=MAX_TOKENS,
                return_tensors="np",
            )
            mask = encoded["attention_mask"].astype(np.int64)
            batch = Padded(encoded["input_ids"].astype(np.int64), mask)
            rows = engine.rows(engine.prepare(batch)())
            weights = mask.astype(np.float32)
            pooled = np.matmul(weights[:, None, :], rows)[:, 0] / weights.sum(1, keepdims=True)
            pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
            if vectors is None:
                vectors = np.empty((len(texts), rows.shape[2]), dtype=np.float32)
            vectors[chosen] = pooled
        assert vectors is not None
        return vectors

    return run
