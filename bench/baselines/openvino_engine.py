"""Run OpenVINO with the latency hint, in float32, bfloat16 and int8 quantised by NNCF."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from bench.baselines.base import Padded
from bench.baselines.onnx_engine import exported
from bench.texts import english

# NNCF's own default of samples; the texts are not those that are timed.
_CALIBRATION_TEXTS = 300
_CALIBRATION_SEED = 77


class OpenVinoEngine:
    """A compiled OpenVINO model and one infer request."""

    def __init__(self, file: Path, threads: int, precision: str) -> None:
        import openvino

        compiled = openvino.Core().compile_model(
            str(file),
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
    return lambda path, threads: OpenVinoEngine(exported(path), threads, precision)


def int8(path: Path, threads: int) -> OpenVinoEngine:
    """Load the model quantised after training by NNCF; what stays floating runs in bfloat16."""
    return OpenVinoEngine(_quantised(path), threads, "bf16")


def _quantised(path: Path) -> Path:
    """Return the model in int8, made on first use."""
    import nncf
    import openvino

    target = exported(path).with_name("nncf-int8.xml")
    if not target.is_file():
        model = openvino.Core().read_model(str(exported(path)))
        quantised = nncf.quantize(
            model,
            nncf.Dataset(list(_calibration(path))),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=_CALIBRATION_TEXTS,
        )
        part = target.with_name("nncf-int8.part.xml")
        openvino.save_model(quantised, str(part))
        part.with_suffix(".bin").rename(target.with_suffix(".bin"))
        part.rename(target)
    return target


def _calibration(path: Path) -> Iterator[dict[str, np.ndarray]]:
    """Yield what the model is given for texts of everyday lengths."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    for text in english(_CALIBRATION_TEXTS, _CALIBRATION_SEED):
        ids = tokenizer(text, truncation=True, max_length=512)["input_ids"]
        batch = Padded.of([ids])
        yield {"input_ids": batch.ids, "attention_mask": batch.mask}
