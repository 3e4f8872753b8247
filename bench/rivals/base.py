"""What every engine of the benchmark offers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Padded:
    """One batch as a tokenizer gives it: int64 (batch, length) each, right-padded."""

    ids: np.ndarray
    mask: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]]) -> Padded:
        """Pads token ids to the longest text."""
        longest = max(map(len, texts))
        ids = np.zeros((len(texts), longest), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = text
            mask[row, : len(text)] = 1
        return cls(ids, mask)

    def unpad(self, grid: np.ndarray) -> list[np.ndarray]:
        """The real tokens' rows of every text, from (batch, length, hidden)."""
        lengths = self.mask.sum(axis=1)
        return [row[:length] for row, length in zip(grid, lengths, strict=True)]


class Engine(Protocol):
    """A loaded model. `prepare` is not timed; what it returns is."""

    def prepare(self, batch: Padded) -> Callable[[], object]:
        """A call that computes the batch once, on inputs already in the engine's own form."""

    def rows(self, result: object) -> np.ndarray:
        """float32 (batch, length, hidden) from what such a call returned."""


@dataclass(frozen=True)
class Rival:
    """An entry of the registry.

    Attributes:
        name: what the table calls it.
        precision: "fp32", "bf16" or "int8".
        packages: distributions it needs; one that is missing is named in the results.
        load: makes the engine from a checkpoint's folder and a number of threads.
        models: names of SHAPES that it can run, None for all.
        ours: whether it is fastbert.
        parameters: what it is given: "fp32", the file's parameters as they are, or "bf16", every
            one of them rounded to bfloat16 (as ``from_pretrained(dtype=torch.bfloat16)`` does).
    """

    name: str
    precision: str
    packages: tuple[str, ...]
    load: Callable[[Path, int], Engine]
    models: tuple[str, ...] | None = None
    ours: bool = False
    parameters: str = "fp32"

    def unavailable(self) -> str | None:
        """Why it cannot run here, None when it can."""
        missing = [name for name in self.packages if not _installed(name)]
        if missing:
            return f"not installed: {', '.join(missing)}"
        return None

    def versions(self) -> dict[str, str]:
        """Versions of its packages."""
        return {name: metadata.version(name) for name in self.packages}


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
