"""Run fastbert as a user of transformers calls it: with padded ids and a mask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.baselines.base import Padded


class FastbertEngine:
    """A fastbert model on the CPU's kernels. Packing the batch is part of the timed call."""

    def __init__(
        self, path: Path, threads: int, dtype: torch.dtype, quantization: str | None
    ) -> None:
        import fastbert

        torch.set_num_threads(threads)
        self.model: Any = fastbert.AutoModel.from_pretrained(
            path, dtype=dtype, quantization=quantization, backend="cpu", strict=True
        ).eval()

    def prepare(self, batch: Padded) -> Callable[[], object]:
        """Return a call that computes the batch once."""
        ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)

        def run() -> torch.Tensor:
            with torch.inference_mode():
                return self.model(input_ids=ids, attention_mask=mask).last_hidden_state

        return run

    def hidden_states(self, result: object) -> np.ndarray:
        """Convert what such a call returned to float32 (batch, length, hidden)."""
        assert isinstance(result, torch.Tensor)
        return result.float().numpy()


def loader(
    dtype: torch.dtype, quantization: str | None = None
) -> Callable[[Path, int], FastbertEngine]:
    """Return a loader for one precision."""
    return lambda path, threads: FastbertEngine(path, threads, dtype, quantization)
