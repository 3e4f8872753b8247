"""The registry of engines: ours, and every rival in its best fair setting."""

from __future__ import annotations

import torch

from ..exact import DTYPES
from . import ctranslate2_rivals, onnx_rivals, openvino_rivals, ours, torch_rivals
from .base import Engine, Padded, Rival

__all__ = ["RIVALS", "Engine", "Padded", "Rival", "chosen", "yardstick"]

_TORCH = ("torch", "transformers")
_ONNX = ("onnxruntime", "onnx", "transformers")
_OPENVINO = ("openvino", "onnx", "transformers")
_CT2 = ("ctranslate2", "transformers")
_FP32, _BF16 = torch.float32, torch.bfloat16
# The exports below are written for BERT's own graph.
_BERT = ("bert-base", "minilm")
_EVERY_HF = ("bert-base", "minilm", "camembert-large", "rembert")

RIVALS = {
    rival.name: rival
    for rival in (
        Rival("fastbert fp32", "fp32", ("torch",), ours.loader(_FP32), ours=True),
        Rival(
            "fastbert bf16", "bf16", ("torch",), ours.loader(_BF16), ours=True, parameters="bf16"
        ),
        Rival(
            "fastbert int8",
            "int8",
            ("torch",),
            ours.loader(_BF16, "int8"),
            ours=True,
            parameters="bf16",
        ),
        Rival("transformers fp32", "fp32", _TORCH, torch_rivals.eager(_FP32), _EVERY_HF),
        Rival(
            "transformers bf16",
            "bf16",
            _TORCH,
            torch_rivals.eager(_BF16),
            _EVERY_HF,
            parameters="bf16",
        ),
        Rival("compile fp32", "fp32", _TORCH, torch_rivals.compiled(_FP32), _BERT),
        Rival(
            "compile bf16", "bf16", _TORCH, torch_rivals.compiled(_BF16), _BERT, parameters="bf16"
        ),
        Rival("torch int8", "int8", _TORCH, torch_rivals.dynamic_int8, _BERT),
        Rival("ONNX Runtime fp32", "fp32", _ONNX, onnx_rivals.fp32, _BERT),
        Rival("ONNX Runtime int8", "int8", _ONNX, onnx_rivals.int8, _BERT),
        Rival("OpenVINO fp32", "fp32", _OPENVINO, openvino_rivals.loader("f32"), _BERT),
        Rival("OpenVINO bf16", "bf16", _OPENVINO, openvino_rivals.loader("bf16"), _BERT),
        Rival("CTranslate2 fp32", "fp32", _CT2, ctranslate2_rivals.loader("float32"), _BERT),
        Rival("CTranslate2 int8", "int8", _CT2, ctranslate2_rivals.loader("int8"), _BERT),
    )
}


def yardstick(parameters: str) -> Rival:
    """What the gate compares engines with that are given these `Rival.parameters`."""
    loader = torch_rivals.exact_on(DTYPES[parameters])
    return Rival(f"float32 on {parameters}", "fp32", _TORCH, loader)


def chosen(names: str) -> list[Rival]:
    """The engines that a comma-separated list means: full names, or parts of names, or "all".

    Raises:
        ValueError: for a part that no name contains.
    """
    found: dict[str, Rival] = {}
    for part in (piece.strip().lower() for piece in names.split(",")):
        matches = {k: v for k, v in RIVALS.items() if part == "all" or part in k.lower()}
        if not matches:
            raise ValueError(f"There is no rival {part!r}; choose from {', '.join(RIVALS)}, all.")
        found |= matches
    return [rival for name, rival in RIVALS.items() if name in found]
