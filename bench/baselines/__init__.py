"""The registry of engines: fastbert, and every baseline in its best fair setting."""

from __future__ import annotations

import torch

from bench.baselines import (
    ctranslate2_engine,
    fastbert_engine,
    onnx_engine,
    openvino_engine,
    torch_engine,
)
from bench.baselines.base import Baseline, Engine, Padded
from bench.exact import DTYPES

__all__ = ["BASELINES", "Baseline", "Engine", "Padded", "chosen", "exact_on"]

_TORCH = ("torch", "transformers")
_ONNX = ("onnxruntime", "onnx", "transformers")
_OPENVINO = ("openvino", "onnx", "transformers")
_NNCF = ("openvino", "nncf", "onnx", "transformers")
_CT2 = ("ctranslate2", "transformers")
_FP32, _BF16 = torch.float32, torch.bfloat16
# The exports below are written for BERT's own graph.
_BERT = ("bert-base", "minilm")
_EVERY_HF = ("bert-base", "minilm", "camembert-large", "rembert")


def _ours(precision: str, dtype: torch.dtype, quantization: str | None = None) -> Baseline:
    return Baseline(
        f"fastbert {precision}",
        precision,
        ("torch",),
        fastbert_engine.loader(dtype, quantization),
        ours=True,
        parameters="fp32" if dtype is _FP32 else "bf16",
    )


BASELINES = {
    baseline.name: baseline
    for baseline in (
        _ours("fp32", _FP32),
        _ours("bf16", _BF16),
        _ours("int8", _BF16, "int8"),
        Baseline("transformers fp32", "fp32", _TORCH, torch_engine.eager(_FP32), _EVERY_HF),
        Baseline(
            "transformers bf16",
            "bf16",
            _TORCH,
            torch_engine.eager(_BF16),
            _EVERY_HF,
            parameters="bf16",
        ),
        Baseline("compile fp32", "fp32", _TORCH, torch_engine.compiled(_FP32), _BERT),
        Baseline(
            "compile bf16", "bf16", _TORCH, torch_engine.compiled(_BF16), _BERT, parameters="bf16"
        ),
        Baseline("torch int8", "int8", _TORCH, torch_engine.dynamic_int8, _BERT),
        Baseline("ONNX Runtime fp32", "fp32", _ONNX, onnx_engine.fp32, _BERT),
        Baseline("ONNX Runtime int8", "int8", _ONNX, onnx_engine.int8, _BERT),
        Baseline("OpenVINO fp32", "fp32", _OPENVINO, openvino_engine.loader("f32"), _BERT),
        Baseline("OpenVINO bf16", "bf16", _OPENVINO, openvino_engine.loader("bf16"), _BERT),
        Baseline("OpenVINO int8", "int8", _NNCF, openvino_engine.int8, _BERT),
        Baseline("CTranslate2 fp32", "fp32", _CT2, ctranslate2_engine.loader("float32"), _BERT),
        Baseline("CTranslate2 int8", "int8", _CT2, ctranslate2_engine.loader("int8"), _BERT),
    )
}


def exact_on(parameters: str) -> Baseline:
    """Return the engine that the gate compares others with: float32 on the parameters they had.

    Args:
        parameters: a value of `Baseline.parameters`.
    """
    loader = torch_engine.exact_on(DTYPES[parameters])
    return Baseline(f"float32 on {parameters}", "fp32", _TORCH, loader)


def chosen(names: str) -> list[Baseline]:
    """Return the engines that a list of names means.

    Args:
        names: full names or parts of names, separated by commas, or "all".

    Raises:
        ValueError: for a part that no name contains.
    """
    found: set[str] = set()
    for part in (piece.strip().lower() for piece in names.split(",")):
        matches = {name for name in BASELINES if part == "all" or part in name.lower()}
        if not matches:
            raise ValueError(
                f"There is no baseline {part!r}; choose from {', '.join(BASELINES)}, all."
            )
        found |= matches
    return [baseline for name, baseline in BASELINES.items() if name in found]
