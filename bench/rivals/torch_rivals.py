"""transformers with torch: eager sdpa, torch.compile, dynamic int8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .base import Padded


class TorchEngine:
    """A transformers model. bf16 is a cast of the whole model, the fastest form on a CPU.

    `parameters` is what they are rounded to before they are cast to `dtype`.
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
        ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)

        def run() -> torch.Tensor:
            with torch.inference_mode(False), torch.no_grad():
                return self._model(input_ids=ids, attention_mask=mask).last_hidden_state

        return run

    def rows(self, result: object) -> np.ndarray:
        assert isinstance(result, torch.Tensor)
        return result.float().numpy()


def eager(dtype: torch.dtype) -> Callable[[Path, int], TorchEngine]:
    """A loader of plain transformers."""
    return lambda path, threads: TorchEngine(path, threads, dtype)


def exact_on(parameters: torch.dtype) -> Callable[[Path, int], TorchEngine]:
    """A loader of float32 arithmetic on rounded parameters: what the gate compares with."""
    return lambda path, threads: TorchEngine(path, threads, parameters=parameters)


def compiled(dtype: torch.dtype) -> Callable[[Path, int], TorchEngine]:
    """A loader of transformers under torch.compile with freezing."""
    return lambda path, threads: TorchEngine(path, threads, dtype, compiled=True)


def dynamic_int8(path: Path, threads: int) -> TorchEngine:
    """torch's dynamic quantisation of every Linear."""
    return TorchEngine(path, threads, int8=True)
