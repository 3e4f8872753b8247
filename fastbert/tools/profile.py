"""``fastbert bench --profile``: where the time of a prepared encoder's pass goes.

The times are the native encoder's own: it reads a clock before and after every step of every block
in each thread. A product's floor is its arithmetic in registers or one reading of its weights from
memory, whichever takes longer; attention's is its arithmetic. What only touches rows that a cache
holds has none.
"""

from __future__ import annotations

import os
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from fastbert.engine.cpu_encoder import CpuEncoder, supports
from fastbert.layers.block import Block
from fastbert.layers.linear import Int8Linear, Projection
from fastbert.models.auto import AutoModel
from fastbert.tools import limits
from fastbert.tools.bench import CASES, inputs_of
from fastbert.tools.explain import explain

_PROFILED = "8 x 128"
_PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp32"}


def profile(path: str | os.PathLike[str], repeats: int = 7, **loading: Any) -> str:
    """A table of steps: time in all and per layer, the slowest layer, the floor, how near it is.

    Args:
        path: a checkpoint.
        repeats: passes of which the least time of every step and layer counts.
        **loading: for from_pretrained: dtype, quantization.

    Raises:
        ValueError: for a model that has no prepared encoder on the CPU, with the reason.
    """
    model = AutoModel.from_pretrained(path, **loading)
    inputs = inputs_of(model, CASES[_PROFILED])
    base = model.base_model
    view, plan = base.encoder_cache.view(base), model.plan()
    encoder = base.encoder_cache.encoder(view, plan)
    if not isinstance(encoder, CpuEncoder):
        raise ValueError(
            "Only the steps of the CPU's prepared encoder are timed, and this model has none: "
            f"{supports(view.blocks, plan) or 'it runs on a GPU'}."
        )
    best: dict[tuple[str, int], float] = {}
    for _ in range(repeats + 1):
        for time in _times(model, encoder, inputs):
            key = (time.step, time.block)
            best[key] = min(best.get(key, float("inf")), time.seconds)
    steps: dict[str, list[float]] = defaultdict(list)
    for (step, _block), seconds in best.items():
        if seconds > 0.0:
            steps[step].append(seconds)
    total = sum(best.values())
    bound = limits.measure(torch.get_num_threads())
    lengths = inputs["attention_mask"].sum(dim=1)
    lines = [
        explain(model),
        "",
        f"{_PROFILED}, {torch.get_num_threads()} threads, least of {repeats + 1} passes, "
        f"{total * 1e3:.3f} ms in all",
        f"{'step':<16}{'precision':>10}{'ms':>9}{'share':>7}{'ms/layer':>10}{'slowest':>9}"
        f"{'floor':>8}{'reached':>9}",
    ]
    for step, times in sorted(steps.items(), key=lambda item: -sum(item[1])):
        precision, floor = _floor(step, view.blocks[0], encoder, lengths, bound)
        mean = sum(times) / len(times)
        told = f"{'-':>8}{'-':>9}" if floor is None else f"{floor * 1e3:>8.3f}{floor / mean:>9.0%}"
        lines.append(
            f"{step:<16}{precision:>10}{sum(times) * 1e3:>9.3f}{sum(times) / total:>7.0%}"
            f"{mean * 1e3:>10.3f}{max(times) * 1e3:>9.3f}{told}"
        )
    lines += [f"limit not measured: {reason}" for reason in bound.reasons]
    return "\n".join(lines)


def _times(model: Any, encoder: CpuEncoder, inputs: dict[str, Tensor]) -> list[Any]:
    encoder.record = []
    try:
        with torch.inference_mode():
            model(**inputs)
        return encoder.record[-1]
    finally:
        encoder.record = None


def _floor(
    step: str, block: Block, encoder: CpuEncoder, lengths: Tensor, bound: limits.Limits
) -> tuple[str, float | None]:
    """The precision of a step, and the seconds it takes at least in one layer."""
    parts: dict[str, tuple[Projection, ...]] = {
        "qkv": (block.q, block.k, block.v),
        "out": (block.out,),
        "up": (block.up,),
        "down": (block.down,),
    }
    if step == "attention":
        precision = _PRECISIONS[encoder.attention]
        square = float((lengths.double() ** 2).sum())
        return precision, bound.floor(precision, 4.0 * block.q.out_features * square, 0.0)
    if step not in parts:
        return "", None
    first = parts[step][0]
    precision = "int8" if isinstance(first, Int8Linear) else _PRECISIONS[first.weight.dtype]
    elements = sum(part.in_features * part.out_features for part in parts[step])
    operations = 2.0 * elements * float(lengths.sum())
    return precision, bound.floor(precision, operations, elements * limits.BYTES[precision])
