"""Run transformers on torch: eager sdpa, torch.compile, dynamic int8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.baselines.base import Padded


class TorchEngine:
    """A transformers model. bfloat16 is a cast of the whole model, the fastest form on a CPU.

    Args:
        path: the checkpoint's folder.
        threads: number of threads.
        dtype: of the arithmetic.
        compiled: run it under torch.compile, with freezing.
        int8: quantise every Linear dynamically.
        parameters: what the parameters are rounded to before they are cast to `dtype`.
    """

    def __init__(
        self,
        path: Path,
        threads: int,
        dtype: torch.dtype = torch.float32,
        compiled: bool = False,
        int8: bool = False,
        parameters: torch.dtype = torch.float32,
    ) -> None:
        import transformers

        torch.set_num_threads(threads)
        model: Any = transformers.AutoModel.from_pretrained(
            path, dtype=parameters, attn_implementation="sdpa"
        ).eval()
        model = model.to(dtype)
        if int8:
            model = torch.ao.quantization.quantize_dynamic(
                model, {torch.nn.Linear}, dtype=torch.qint8
            )
        if compiled:
            from torch._inductor import config

            config.freezing = True
            torch._dynamo.config.cache_size_limit = 64
            model = torch.compile(model, dynamic=False)
        self._model = model

    def prepare(self, batch: Padded) -> Callable[[], object]:
        """Return a call that computes the batch once."""
        ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)

        def run() -> torch.Tensor:
            with torch.inference_mode(False), torch.no_grad():
                return self._model(input_ids=ids, attention_mask=mask).last_hidden_state

        return run

    def hidden_states(self, result: object) -> np.ndarray:
        """Convert what such a call returned to float32 (batch, length, hidden)."""
        assert isinstance(result, torch.Tensor)
        return result.float().numpy()


def eager(dtype: torch.dtype) -> Callable[[Path, int], TorchEngine]:
    """Return a loader of plain transformers."""
    return lambda path, threads: TorchEngine(path, threads, dtype)


def exact_on(parameters: torch.dtype) -> Callable[[Path, int], TorchEngine]:
    """Return a loader of float32 arithmetic on rounded parameters."""
    return lambda path, threads: TorchEngine(path, threads, parameters=parameters)


def compiled(dtype: torch.dtype) -> Callable[[Path, int], TorchEngine]:
    """Return a loader of transformers under torch.compile with freezing."""
    return lambda path, threads: TorchEngine(path, threads, dtype, compiled=True)


def dynamic_int8(path: Path, threads: int) -> TorchEngine:
    """Load a model whose every Linear torch quantises dynamically."""
    return TorchEngine(path, threads, int8=True)
