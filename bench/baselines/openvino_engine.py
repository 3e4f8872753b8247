"""Run OpenVINO with the latency hint, in float32 and bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.baselines.base import Padded
from bench.baselines.onnx_engine import exported


class OpenVinoEngine:
    """A compiled OpenVINO model and one infer request."""

    def __init__(self, path: Path, threads: int, precision: str) -> None:
        import openvino

        compiled = openvino.Core().compile_model(
            str(exported(path)),
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": threads,
                "INFERENCE_PRECISION_HINT": precision,
            },
        )
        self._request = compiled.create_infer_request()

    def prepare(self, batch: Padded) -> Callable[[], object]:
        """Return a call that computes the batch once."""
        feed = {"input_ids": batch.ids, "attention_mask": batch.mask}
        return lambda: self._request.infer(feed, share_inputs=True, share_outputs=True)[0]

    def hidden_states(self, result: object) -> np.ndarray:
        """Convert what such a call returned to float32 (batch, length, hidden)."""
        # The output is the request's own memory, which the next call overwrites.
        return np.array(result, dtype=np.float32)


def loader(precision: str) -> Callable[[Path, int], OpenVinoEngine]:
    """Return a loader for "f32" or "bf16"."""
    return lambda path, threads: OpenVinoEngine(path, threads, precision)
