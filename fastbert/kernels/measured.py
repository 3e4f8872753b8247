"""Which backend was fastest on which GPU: a committed table of measurements, read by the Plan.

`bench/gpu.sh` writes the table (`fastbert/data/gpu_measurements.json`) on a machine with a GPU:

    {"format": 1, "gpus": {NAME: {"capability": "9.0", "date": ..., "rows": [
        {"op": "linear", "dtype": "bfloat16", "size": 768, "case": "768x3072, 16384 rows",
         "ms": {"cuda": 0.13, "triton": 0.15, "cublas": 0.12}}, ...]}}}

`size` is the shape class of a row: head_dim for attention, the width of a row for everything else.
Rows of gemms may also say their `weight`, (out_features, in_features): of a layer's four products,
with an activation or without, each has a backend that is fastest for it.
Nothing is interpolated: a GPU, dtype or size that nobody measured has no ranking, and the Plan says
"not measured".
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

PATH = Path(__file__).parents[1] / "data" / "gpu_measurements.json"
FORMAT = 1
# A measured size speaks for sizes up to this factor away: 768 for 512 and 1024, not for 128.
REACH = 1.5


@dataclass(frozen=True)
class Gpu:
    """A device as the table knows it: torch's name for it, and its compute capability."""

    name: str
    capability: str


@dataclass(frozen=True)
class Ranking:
    """Backends by measured time.

    Attributes:
        ratios: backend -> its time relative to the fastest one's, the fastest first; geometric
            mean over the cases that all of them were measured in.
        where: the GPU and the day of the measurement.
    """

    ratios: Mapping[str, float]
    where: str


@functools.cache
def gpu(device: torch.device) -> Gpu:
    """Return the names under which the table knows a CUDA device."""
    major, minor = torch.cuda.get_device_capability(device)
    return Gpu(torch.cuda.get_device_name(device), f"{major}.{minor}")


def ranking(
    gpu: Gpu,
    op: str,
    dtype: torch.dtype,
    size: int | None,
    backends: Sequence[str],
    table: Mapping[str, Any] | None = None,
    weight: tuple[int, int] | None = None,
) -> Ranking | str:
    """Return the measured order of backends, or why there is none.

    Args:
        gpu: the device. One that is not in the table is judged by another of the same compute
            capability, and `where` says by which.
        op: name of the op.
        dtype: of the calls.
        size: shape class; None, where the caller does not know it, takes all of them.
        backends: who could serve the op. One without a figure stands outside of the ranking.
        table: as in the file, for tests; the committed one by default.
        weight: shape of a gemm's weight, to be judged by that product alone; by all products of
            the size where it was not measured, or where this is None.
    """
    gpus = (load() if table is None else table)["gpus"]
    found = _entry(gpus, gpu)
    if found is None:
        return f"not measured on {gpu.name}"
    name, entry = found
    precision = str(dtype).removeprefix("torch.")
    rows = [row for row in entry["rows"] if row["op"] == op and row["dtype"] == precision]
    rows = _of_weight(rows, weight) or _of_size(rows, size)
    measured = [b for b in backends if rows and all(b in row["ms"] for row in rows)]
    if len(measured) < 2:
        return f"not measured beside another on {name} in {precision} at this size"
    means = {
        backend: math.exp(sum(math.log(row["ms"][backend]) for row in rows) / len(rows))
        for backend in measured
    }
    best = min(means.values())
    order = sorted(means, key=lambda backend: means[backend])
    where = f"{name}, {entry['date']}"
    if name != gpu.name:
        where += f", of the same compute capability as {gpu.name}"
    return Ranking({backend: means[backend] / best for backend in order}, where)


def _entry(gpus: Mapping[str, Any], gpu: Gpu) -> tuple[str, Any] | None:
    if gpu.name in gpus:
        return gpu.name, gpus[gpu.name]
    alike = sorted(name for name, entry in gpus.items() if entry["capability"] == gpu.capability)
    return (alike[0], gpus[alike[0]]) if alike else None


def _of_size(rows: list[Any], size: int | None) -> list[Any]:
    """Return the rows of the measured size that is nearest, if any is within REACH."""
    if size is None or not rows:
        return rows
    distance = {row["size"]: abs(math.log(row["size"] / size)) for row in rows}
    nearest = min(distance, key=lambda measured: (distance[measured], measured))
    if distance[nearest] > math.log(REACH):
        return []
    return [row for row in rows if row["size"] == nearest]


def _of_weight(rows: list[Any], weight: tuple[int, int] | None) -> list[Any]:
    """Return the rows of the measured weight that is nearest, if any is within REACH."""
    if weight is None:
        return []

    def distance(row: Any) -> float:
        pairs = zip(row["weight"], weight, strict=True)
        return max(abs(math.log(theirs / ours)) for theirs, ours in pairs)

    near = [row for row in rows if "weight" in row and distance(row) <= math.log(REACH)]
    least = min(map(distance, near), default=0.0)
    return [row for row in near if distance(row) == least]


@functools.cache
def load() -> Mapping[str, Any]:
    """Return the committed table.

    Raises:
        ValueError: when it is not one, with what is wrong.
    """
    return checked(json.loads(PATH.read_text(encoding="utf-8")))


def checked(table: Any) -> Mapping[str, Any]:
    """Return the table itself, known to have the form above.

    Raises:
        ValueError: naming the first thing that is wrong.
    """
    if not isinstance(table, dict) or table.get("format") != FORMAT:
        raise ValueError(f"A table of GPU measurements has format {FORMAT}; write it anew.")
    for name, entry in table["gpus"].items():
        for key in ("capability", "date", "rows"):
            if key not in entry:
                raise ValueError(f"The measurements of {name} have no {key!r}.")
        for row in entry["rows"]:
            missing = {"op", "dtype", "size", "case", "ms"} - set(row)
            if missing:
                raise ValueError(f"A measurement of {name} has no {', '.join(sorted(missing))}.")
            if "weight" in row and not (len(row["weight"]) == 2 and min(row["weight"]) > 0):
                raise ValueError(
                    f"The measurement of {row['op']} ({row['case']}) on {name} has a weight "
                    "that is no pair of sizes."
                )
            times = row["ms"].values()
            if not all(isinstance(t, int | float) and 0 < t < math.inf for t in times):
                raise ValueError(
                    f"The measurement of {row['op']} ({row['case']}) on {name} holds a time that "
                    "is no positive number of milliseconds."
                )
    return table
