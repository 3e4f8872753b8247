"""Run ONNX Runtime: exported once, fused by its transformer optimiser; int8 per channel."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.baselines.base import Padded
from bench.models import CACHE


def exported(path: Path) -> Path:
    """Return the model as plain ONNX, made on first use. OpenVINO reads it too."""
    import torch
    import transformers

    target = CACHE / "onnx" / path.name / "model.onnx"
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # The optimiser's fusions match the plain form of attention, not sdpa's.
    model = transformers.AutoModel.from_pretrained(path, attn_implementation="eager").eval()
    model.config.return_dict = False
    ids = torch.ones(2, 7, dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    axes = {0: "batch", 1: "length"}
    part = target.with_suffix(".part")

    class HiddenStates(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            out = self.inner(input_ids=input_ids, attention_mask=attention_mask)
            return out[0]

    with torch.no_grad():
        torch.onnx.export(
            HiddenStates(),
            (ids, mask),
            str(part),
            input_names=["input_ids", "attention_mask"],
            output_names=["hidden_states"],
            dynamic_axes={"input_ids": axes, "attention_mask": axes, "hidden_states": axes},
            opset_version=17,
            dynamo=False,
        )
    part.rename(target)
    return target


def _optimised(path: Path) -> Path:
    from onnxruntime.transformers import optimizer

    target = exported(path).with_name("optimised.onnx")
    if not target.is_file():
        config = json.loads((path / "config.json").read_text())
        fused = optimizer.optimize_model(
            str(exported(path)),
            model_type="bert",
            num_heads=config["num_attention_heads"],
            hidden_size=config["hidden_size"],
        )
        fused.save_model_to_file(str(target))
    return target


def _quantised(path: Path) -> Path:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = exported(path).with_name("int8.onnx")
    if not target.is_file():
        quantize_dynamic(
            str(_optimised(path)),
            str(target),
            per_channel=True,
            weight_type=QuantType.QInt8,
            # Shape inference does not know the types behind the optimiser's fused nodes.
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
    return target


class OnnxEngine:
    """A session of ONNX Runtime on the CPU."""

    def __init__(self, file: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self._session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )

    def prepare(self, batch: Padded) -> Callable[[], object]:
        """Return a call that computes the batch once."""
        feed = {"input_ids": batch.ids, "attention_mask": batch.mask}
        names = {value.name for value in self._session.get_inputs()}
        feed = {name: value for name, value in feed.items() if name in names}
        return lambda: self._session.run(None, feed)[0]

    def hidden_states(self, result: object) -> np.ndarray:
        """Convert what such a call returned to float32 (batch, length, hidden)."""
        assert isinstance(result, np.ndarray)
        return result.astype(np.float32, copy=False)


def fp32(path: Path, threads: int) -> OnnxEngine:
    """Load the fused model in float32."""
    return OnnxEngine(_optimised(path), threads)


def int8(path: Path, threads: int) -> OnnxEngine:
    """Load the fused model in dynamic int8, with one scale for each channel."""
    return OnnxEngine(_quantised(path), threads)
