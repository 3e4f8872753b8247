"""The case of real texts: tokenise, encode, pool by the mean, scale to length 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.baselines import Baseline, Engine, Padded

BATCH = 32
MAX_TOKENS = 256


def embedder(
    baseline: Baseline, path: Path, threads: int, texts: Sequence[str], by_length: bool
) -> Callable[[], np.ndarray]:
    """Load an engine, and return a call that embeds texts with it.

    Args:
        baseline: the engine.
        path: the checkpoint's folder.
        threads: number of threads.
        texts: what to embed.
        by_length: sort the texts by their number of characters first, as sentence-transformers
            does. fastbert packs its batches and never sorts.

    Returns:
        A call that gives float32 (texts, hidden) in the texts' own order.
    """
    if baseline.ours:
        import fastbert

        engine: Any = baseline.load(path, threads)
        encoder = fastbert.SentenceEncoder(
            engine.model,
            fastbert.AutoTokenizer.from_pretrained(path),
            normalized=True,
            max_seq_length=MAX_TOKENS,
        )
        return lambda: encoder.encode(texts)
    return _padding(baseline.load(path, threads), path, texts, by_length)


def _padding(
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
            states = engine.hidden_states(engine.prepare(batch)())
            weights = mask.astype(np.float32)
            pooled = np.matmul(weights[:, None, :], states)[:, 0] / weights.sum(1, keepdims=True)
            pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
            if vectors is None:
                vectors = np.empty((len(texts), states.shape[2]), dtype=np.float32)
            vectors[chosen] = pooled
        assert vectors is not None
        return vectors

    return run
