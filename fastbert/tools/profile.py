"""``fastbert bench --profile``: where the time of a prepared encoder's pass goes.

The times are the native encoder's own: it reads a clock before and after every step of every block
in each thread. The lower bound of a projection is its arithmetic in registers or one reading of its
weights from memory, whichever takes longer; that of attention is its arithmetic. A step that only
touches hidden states which a cache holds has none.
"""

from __future__ import annotations

import os
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from fastbert.engine.cpu_encoder import CpuEncoder
from fastbert.engine.cpu_support import supports
from fastbert.layers.block import Block
from fastbert.layers.linear import Int8Linear, Projection
from fastbert.models.auto import AutoModel
from fastbert.tools import peak
from fastbert.tools.bench import CASES, inputs_of, setting
from fastbert.tools.explain import explain
from fastbert.tools.tables import table

_PROFILED = "8 x 128"
_PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp32"}
_HEADER = ["step", "precision", "ms", "share", "ms/layer", "slowest", "bound", "reached"]


def profile(path: str | os.PathLike[str], repetitions: int = 7, **loading: Any) -> str:
    """Time every step of a pass.

    Args:
        path: a checkpoint.
        repetitions: passes, after one more; the least time of every step and layer counts.
        **loading: for from_pretrained: dtype, quantization.

    Returns:
        A table of steps: time in all and per layer, the slowest layer, the lower bound of a layer,
        and the share of the time that the bound is.

    Raises:
        ValueError: for a model that has no prepared encoder on the CPU, with the reason.
    """
    model = AutoModel.from_pretrained(path, **loading)
    inputs = inputs_of(model, CASES[_PROFILED])
    encoder, block = prepared(model)
    best: dict[tuple[str, int], float] = {}
    for _ in range(repetitions + 1):
        for time in _times(model, encoder, inputs):
            key = (time.step, time.block)
            best[key] = min(best.get(key, float("inf")), time.seconds)
    steps: dict[str, list[float]] = defaultdict(list)
    for (step, _block), seconds in best.items():
        if seconds > 0.0:
            steps[step].append(seconds)
    total = sum(best.values())
    measured = peak.measure(torch.get_num_threads())
    lengths = inputs["attention_mask"].sum(dim=1)
    rows = [_HEADER]
    for step, times in sorted(steps.items(), key=lambda item: -sum(item[1])):
        precision, bound = _lower_bound(step, block, encoder, lengths, measured)
        mean = sum(times) / len(times)
        reached = ["-", "-"] if bound is None else [f"{bound * 1e3:.3f}", f"{bound / mean:.0%}"]
        rows.append(
            [
                step,
                precision,
                f"{sum(times) * 1e3:.3f}",
                f"{sum(times) / total:.0%}",
                f"{mean * 1e3:.3f}",
                f"{max(times) * 1e3:.3f}",
                *reached,
            ]
        )
    heading = (
        f"{_PROFILED}, {setting()}, least of {repetitions + 1} passes, {total * 1e3:.3f} ms in "
        "all; bound: lower bound of a layer, in ms"
    )
    missing = [f"peak not measured: {reason}" for reason in measured.reasons]
    return "\n".join([explain(model), "", heading, table(rows, left=(0, 1)), *missing])


def prepared(model: Any) -> tuple[CpuEncoder, Block]:
    """Return the prepared encoder of a model, and one block for the shapes of its projections.

    Raises:
        ValueError: for a model that has no prepared encoder on the CPU, with the reason.
    """
    base = model.base_model
    cache, plan = base.encoder_cache, model.plan()
    view = cache.view(base)
    if not view.holds():
        cache.stale(view)
        view = cache.view(base)
    encoder = cache.encoder(view, plan)
    if not isinstance(encoder, CpuEncoder):
        raise ValueError(
            "Only the steps of the CPU's prepared encoder are timed, and this model has none: "
            f"{supports(view.blocks, plan) or 'it runs on a GPU'}."
        )
    return encoder, view.blocks[0]


def _times(model: Any, encoder: CpuEncoder, inputs: dict[str, Tensor]) -> list[Any]:
    encoder.record = []
    try:
        with torch.inference_mode():
            model(**inputs)
        return encoder.record[-1]
    finally:
        encoder.record = None


def _lower_bound(
    step: str, block: Block, encoder: CpuEncoder, lengths: Tensor, measured: peak.Peak
) -> tuple[str, float | None]:
    """Return the precision of a step, and the seconds that one layer of it takes at least."""
    parts: dict[str, tuple[Projection, ...]] = {
        "qkv": (block.q, block.k, block.v),
        "out": (block.out,),
        "up": (block.up,),
        "down": (block.down,),
    }
    if step == "attention":
        precision = _PRECISIONS[encoder.attention]
        square = float((lengths.double() ** 2).sum())
        return precision, measured.lower_bound(precision, 4.0 * block.q.out_features * square)
    if step not in parts:
        return "", None
    first = parts[step][0]
    precision = "int8" if isinstance(first, Int8Linear) else _PRECISIONS[first.weight.dtype]
    elements = sum(part.in_features * part.out_features for part in parts[step])
    operations = 2.0 * elements * float(lengths.sum())
    return precision, measured.lower_bound(precision, operations, elements * peak.BYTES[precision])
