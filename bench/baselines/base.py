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
    """One batch as a tokenizer gives it, padded on the right.

    Attributes:
        ids: token ids, int64 (batch, length).
        mask: 1 at real tokens and 0 at padding, int64 (batch, length).
    """

    ids: np.ndarray
    mask: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]]) -> Padded:
        """Pad texts of token ids to the longest of them."""
        longest = max(map(len, texts))
        ids = np.zeros((len(texts), longest), dtype=np.int64)
        mask = np.zeros_like(ids)
        for index, text in enumerate(texts):
            ids[index, : len(text)] = text
            mask[index, : len(text)] = 1
        return cls(ids, mask)

    def unpad(self, grid: np.ndarray) -> list[np.ndarray]:
        """Cut the padding off.

        Args:
            grid: hidden states, (batch, length, hidden).

        Returns:
            The hidden states of every text's real tokens, (tokens, hidden) each.
        """
        lengths = self.mask.sum(axis=1)
        return [states[:length] for states, length in zip(grid, lengths, strict=True)]


class Engine(Protocol):
    """A loaded model. `prepare` is not timed; the call that it returns is."""

    def prepare(self, batch: Padded) -> Callable[[], object]:
        """Put a batch into the engine's own form, and return a call that computes it once."""

    def hidden_states(self, result: object) -> np.ndarray:
        """Convert what such a call returned to float32 (batch, length, hidden)."""


@dataclass(frozen=True)
class Baseline:
    """An entry of the registry: something to compare with, or fastbert itself.

    Attributes:
        name: what the table calls it.
        precision: "fp32", "bf16" or "int8".
        packages: distributions that it needs; one that is missing is named in the results.
        load: makes the engine from a checkpoint's folder and a number of threads.
        models: names of SHAPES that it can run, None for all.
        ours: whether it is fastbert.
        parameters: what it is given: "fp32", the file's parameters as they are, or "bf16", each of
            them rounded to bfloat16 (as ``from_pretrained(dtype=torch.bfloat16)`` does).
    """

    name: str
    precision: str
    packages: tuple[str, ...]
    load: Callable[[Path, int], Engine]
    models: tuple[str, ...] | None = None
    ours: bool = False
    parameters: str = "fp32"

    def unavailable(self) -> str | None:
        """Return why it cannot run here, None when it can."""
        missing = [name for name in self.packages if not _installed(name)]
        if missing:
            return f"not installed: {', '.join(missing)}"
        return None

    def versions(self) -> dict[str, str]:
        """Return the versions of its packages."""
        return {name: metadata.version(name) for name in self.packages}


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
