"""``fastbert bench``: times of one model on this machine, kernels beside the reference path."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastbert.models.auto import AutoModel
from fastbert.tools.explain import explain

_RAGGED = (8, 12, 17, 21, 24, 30, 33, 39, 44, 48, 55, 60, 68, 79, 95, 160)
CASES: dict[str, tuple[int, ...]] = {
    "1 x 16": (16,),
    "1 x 128": (128,),
    "8 x 128": (128,) * 8,
    "16 ragged": _RAGGED,
}


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
            from fastbert.runtime.plan import use_backend

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
