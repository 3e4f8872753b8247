"""``fastbert bench``: times of one model on this machine, kernels beside the reference path."""

from __future__ import annotations

import inspect
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from . import limits
from .auto import AutoModel
from .backend import Plan
from .describe import explain
from .ops import REGISTRY

_RAGGED = (8, 12, 17, 21, 24, 30, 33, 39, 44, 48, 55, 60, 68, 79, 95, 160)
CASES: dict[str, tuple[int, ...]] = {
    "1 x 16": (16,),
    "1 x 128": (128,),
    "8 x 128": (128,) * 8,
    "16 ragged": _RAGGED,
}
_PROFILED = "8 x 128"
_PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp32"}


def inputs_of(model: Any, lengths: tuple[int, ...]) -> dict[str, Tensor]:
    """Random ids of these lengths, right-padded, with their mask; too long ones are cut."""
    longest = model.base_model.longest()
    sizes = torch.tensor([min(length, longest) for length in lengths])
    width = int(sizes.max())
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, model.vocab_size, (len(lengths), width), generator=generator)
    mask = (torch.arange(width) < sizes[:, None]).long()
    ids = torch.where(mask.bool(), ids, model.config.pad_token_id or 0)
    return {"input_ids": ids, "attention_mask": mask}


def times(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every call, the runs taking turns after one untimed call each."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            samples[name].append(time.perf_counter() - begin)
    return samples


def bench(path: str | os.PathLike[str], repeats: int = 7, **loading: Any) -> str:
    """A table of cases: median and spread with the kernels and on the reference path.

    Args:
        path: a checkpoint.
        repeats: timed calls of each.
        **loading: for from_pretrained: dtype, quantization.
    """
    model = AutoModel.from_pretrained(path, **loading)
    lines = [
        explain(model),
        "",
        f"{torch.get_num_threads()} threads, median of {repeats} in ms, spread between quartiles",
        f"{'case':<12}{'kernels':>10}{'':>7}{'reference':>12}{'':>7}{'ratio':>8}{'tokens/s':>11}",
    ]
    for name, lengths in CASES.items():
        inputs = inputs_of(model, lengths)

        def kernels(given: dict[str, Tensor] = inputs) -> None:
            with torch.inference_mode():
                model(**given)

        def reference(given: dict[str, Tensor] = inputs) -> None:
            from .backend import use_backend

            with torch.inference_mode(), use_backend("reference"):
                model(**given)

        samples = times({"kernels": kernels, "reference": reference}, repeats)
        ours, theirs = (statistics.median(samples[key]) for key in ("kernels", "reference"))
        tokens = int(inputs["attention_mask"].sum())
        lines.append(
            f"{name:<12}{ours * 1e3:>10.2f}{_spread(samples['kernels']):>7}"
            f"{theirs * 1e3:>12.2f}{_spread(samples['reference']):>7}"
            f"{theirs / ours:>7.2f}x{tokens / ours:>11,.0f}"
        )
    return "\n".join(lines)


def _spread(seconds: list[float]) -> str:
    if len(seconds) < 2:
        return ""
    quarter, median, three_quarters = statistics.quantiles(seconds, n=4, method="inclusive")
    return f" ±{(three_quarters - quarter) / 2 / median:.0%}"


@dataclass
class _Entry:
    """What is known of one op at one place in a layer."""

    seconds: float = 0.0
    calls: int = 0
    operations: float = 0.0
    traffic: float = 0.0
    weights: float = 0.0


def profile(path: str | os.PathLike[str], repeats: int = 7, **loading: Any) -> str:
    """Time per op against its own floor: arithmetic in registers, or bytes from memory.

    The model runs op by op, without a prepared encoder, so that each op can be timed; its floor
    counts activations once in and once out, as if no cache held them.

    Args: as of `bench`.
    """
    model = AutoModel.from_pretrained(path, **loading)
    bound = limits.measure(torch.get_num_threads())
    inputs = inputs_of(model, CASES[_PROFILED])
    entries: dict[str, _Entry] = defaultdict(_Entry)
    best: dict[str, float] = {}
    model.base_model.plan = _timed(model.plan(), entries)
    for _ in range(repeats + 1):
        entries.clear()
        with torch.inference_mode():
            model(**inputs, output_hidden_states=True)
        for name, entry in entries.items():
            best[name] = min(best.get(name, float("inf")), entry.seconds)
    total = sum(best.values())
    layers = model.config.num_hidden_layers
    lines = [
        explain(model),
        "",
        f"{_PROFILED}, {torch.get_num_threads()} threads, least of {repeats + 1}; op by op",
        f"{'op':<34}{'calls':>6}{'ms':>9}{'share':>7}{'ms/layer':>10}{'floor':>10}{'reached':>9}",
    ]
    for name, seconds in sorted(best.items(), key=lambda item: -item[1]):
        entry = entries[name]
        floor = _floor(name, entry, bound, model.dtype)
        told = f"{floor * 1e3:>10.3f}{floor / seconds:>9.0%}" if floor else f"{'-':>10}{'-':>9}"
        lines.append(
            f"{name:<34}{entry.calls:>6}{seconds * 1e3:>9.3f}{seconds / total:>7.0%}"
            f"{seconds * 1e3 / layers:>10.3f}{told}"
        )
    lines += [f"limit not measured: {reason}" for reason in bound.reasons]
    return "\n".join(lines)


def _timed(plan: Plan, entries: dict[str, _Entry]) -> Callable[..., Plan]:
    watched: dict[str, Any] = {
        name: _stopwatch(name, getattr(plan, name), entries) for name in REGISTRY
    }
    wrapped = replace(plan, **watched)
    return lambda needs_grad=False: wrapped


def _stopwatch(
    op: str, function: Callable[..., Any], entries: dict[str, _Entry]
) -> Callable[..., Any]:
    signature = inspect.signature(REGISTRY[op].reference)

    def call(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        result = function(*args, **kwargs)
        seconds = time.perf_counter() - begin
        given = signature.bind(*args, **kwargs).arguments
        key, operations, weights = _work(op, given)
        entry = entries[key]
        entry.seconds += seconds
        entry.calls += 1
        entry.operations += operations
        entry.weights += weights
        outputs = result if isinstance(result, tuple) else (result,)
        moved = [given.get("x"), given.get("residual"), *outputs]
        entry.traffic += sum(t.numel() * t.element_size() for t in moved if t is not None)
        return result

    return call


def _work(op: str, given: dict[str, Any]) -> tuple[str, float, float]:
    """The line an op is counted under, its operations, and the bytes of its weight."""
    if op in ("linear", "int8_linear"):
        x, weight = given["x"], given["weight" if op == "linear" else "qweight"]
        extra = given.get("activation", "none")
        tail = "" if extra == "none" else f" + {extra}"
        key = f"{op} {weight.shape[1]} -> {weight.shape[0]}{tail}"
        operations = 2.0 * x.shape[0] * weight.numel()
        return key, operations, float(weight.numel() * weight.element_size())
    if op == "attention_varlen":
        q, lengths = given["q"], given["cu_seqlens_q"].diff().double()
        return op, 4.0 * q.shape[1] * q.shape[2] * float((lengths * lengths).sum()), 0.0
    return op, 0.0, 0.0


def _floor(name: str, entry: _Entry, bound: limits.Limits, dtype: torch.dtype) -> float | None:
    """Seconds, None where it was not measured."""
    if bound.read is None:
        return None
    precision = "int8" if name.startswith("int8") else _PRECISIONS[dtype]
    products = bound.floor(precision, entry.operations, entry.weights)
    if entry.operations:
        return products
    return entry.traffic / bound.read
