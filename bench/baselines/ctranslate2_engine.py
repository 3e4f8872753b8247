"""Run CTranslate2 in float32 and int8. It drops padding in its linear layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.baselines.base import Padded
from bench.models import CACHE


def _converted(path: Path) -> Path:
    import ctranslate2

    target = CACHE / "ctranslate2" / path.name
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        ctranslate2.converters.TransformersConverter(str(path)).convert(str(target))
    return target


class CTranslate2Engine:
    """An encoder of CTranslate2; it quantises while loading."""

    def __init__(self, path: Path, threads: int, precision: str) -> None:
        import ctranslate2

        self._encoder = ctranslate2.Encoder(
            str(_converted(path)), compute_type=precision, intra_threads=threads, inter_threads=1
        )

    def prepare(self, batch: Padded) -> Callable[[], object]:
        """Return a call that computes the batch once."""
        import ctranslate2

        ids = ctranslate2.StorageView.from_array(batch.ids.astype(np.int32))
        lengths = ctranslate2.StorageView.from_array(batch.mask.sum(axis=1).astype(np.int32))
        return lambda: self._encoder.forward_batch(ids, lengths).last_hidden_state

    def hidden_states(self, result: object) -> np.ndarray:
        """Convert what such a call returned to float32 (batch, length, hidden)."""
        return np.array(result, dtype=np.float32)


def loader(precision: str) -> Callable[[Path, int], CTranslate2Engine]:
    """Return a loader for "float32" or "int8"."""
    return lambda path, threads: CTranslate2Engine(path, threads, precision)
