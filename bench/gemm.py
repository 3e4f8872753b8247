"""Time the GEMM kernels alone, beside the machine's peak.

    python -m bench.gemm [--threads 1 2] [--rows 1 16 96 128 1024] [--quick] [--json FILE]

For each precision the peak is measured in registers in the same run, with as many threads as the
GEMM uses. Up to 16 rows the weights come from memory, as in a forward pass of a model that no cache
holds, and the lower bound is the longer of reading them and multiplying them.

Every figure is the best of many short runs, since the machine may be shared; with one thread its
own processor time is taken, which other programs do not lengthen.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fastbert import _C
from fastbert.tools import peak
from fastbert.tools.threads import thread_count

SHAPES = (  # K, N
    (384, 384), (384, 1152), (384, 1536), (1536, 384),
    (512, 512), (512, 1536), (512, 2048), (2048, 512),
    (768, 768), (768, 2304), (768, 3072), (3072, 768),
    (1024, 1024), (1024, 3072), (1024, 4096), (4096, 1024),
    (1152, 1152), (1152, 4608), (4608, 1152), (256, 1152),
)  # fmt: skip
QUICK = ((384, 384), (384, 1536), (768, 768), (768, 3072), (3072, 768), (1024, 4096))
CODES = {torch.float32: 0, torch.bfloat16: 1, torch.uint8: 3, torch.int8: 4}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
PEAKS = {"float32": "fp32", "bfloat16": "bf16", "int8": "int8"}
STREAMED_ROWS = 16
CACHE_BYTES = 96 << 20


@dataclass(frozen=True)
class Figure:
    """One measured GEMM: x (rows, k) times the transpose of a weight (n, k).

    Attributes:
        precision: "float32", "bfloat16" or "int8".
        threads: number of threads.
        rows: of x.
        k: elements that a result is summed over.
        n: columns of the result.
        seconds: time of the fastest call.
        bound_seconds: lower bound of that time.
    """

    precision: str
    threads: int
    rows: int
    k: int
    n: int
    seconds: float
    bound_seconds: float

    @property
    def fraction(self) -> float:
        """The lower bound as a share of the time; 1 is the bound reached."""
        return self.bound_seconds / self.seconds


def best_time(run: Callable[[int], None], budget: float, clock: Callable[[], float]) -> float:
    """Time run(0), run(1), ...: at least five of them, for `budget` seconds.

    Returns:
        Seconds of the fastest.
    """
    best, spent, count = float("inf"), 0.0, 0
    while count < 5 or spent < budget:
        start = clock()
        run(count)
        elapsed = clock() - start
        best, spent, count = min(best, elapsed), spent + elapsed, count + 1
    return best


def gemm(
    dtype: torch.dtype, rows: int, k: int, n: int, copies: int, gelu: bool = False
) -> Callable[[int], None]:
    """Make a function that multiplies once, with another copy of the weights each time.

    Args:
        dtype: of the weights.
        rows: of the other operand.
        k: elements that a result is summed over.
        n: columns of the result.
        copies: of the weights.
        gelu: whether GELU is applied to the result.
    """
    activation = 1 if gelu else 0
    stride = k + 64 // dtype.itemsize if k * dtype.itemsize % 2048 == 0 else k
    packed = []
    for _ in range(copies):
        weight = torch.randint(-127, 128, (n, k)).to(dtype)
        out = torch.empty(_C.packed_bytes(CODES[dtype], n, k), dtype=torch.uint8)
        _C.pack_weight(
            weight.data_ptr(), CODES[dtype], n, k, stride=k, out=out.data_ptr(),
            out_bytes=out.numel(),
        )  # fmt: skip
        packed.append(out)
    x_dtype = torch.uint8 if dtype == torch.int8 else dtype
    out_dtype = torch.float32 if dtype == torch.int8 else dtype
    x = torch.randint(0, 255, (rows, stride)).to(x_dtype)
    bias, w_scale, x_scale = torch.randn(n), torch.rand(n), torch.rand(rows)
    zero_point = torch.randint(0, 255, (rows,), dtype=torch.int32)
    result = torch.empty(rows, n, dtype=out_dtype)

    # Addresses are taken inside, so that the tensors live as long as the function.
    def run(count: int) -> None:
        block = packed[count % copies]
        quantised = dtype == torch.int8
        args = _C.GemmArgs(
            rows=rows, n=n, k=k, x=x.data_ptr(), x_dtype=CODES[x_dtype], x_stride=stride,
            packed=block.data_ptr(), bias=bias.data_ptr(), activation=activation,
            out=result.data_ptr(), out_dtype=CODES[out_dtype], out_stride=n,
            x_scale=x_scale.data_ptr() if quantised else 0,
            x_zero_point=zero_point.data_ptr() if quantised else 0,
            w_scale=w_scale.data_ptr() if quantised else 0,
        )  # fmt: skip
        if quantised:
            _C.int8_linear(args, block.numel(), None)
        else:
            _C.linear(args, block.numel())

    return run


def measure(
    precision: str, threads: int, rows: Sequence[int], shapes: Sequence[tuple[int, int]],
    budget: float, gelu: bool = False,
) -> list[Figure]:  # fmt: skip
    """Measure every shape and number of rows, and print a line for each shape.

    Args:
        precision: a key of PRECISIONS.
        threads: number of threads.
        rows: numbers of rows.
        shapes: (k, n) of each.
        budget: seconds a figure.
        gelu: whether GELU is applied to the results.
    """
    dtype = PRECISIONS[precision]
    _C.set_num_threads(threads)
    arithmetic = peak.arithmetic(PEAKS[precision], threads)
    memory = peak.memory(threads)
    print(
        f"\n{precision}, {threads} thread(s), {_C.active_isa()}: peak in registers "
        f"{arithmetic * 1e-9:.0f} G operations/s, memory {memory * 1e-9:.0f} GB/s"
    )
    print("     K      N " + "".join(f"{f'{m} rows':>18}" for m in rows))
    clock = time.thread_time if threads == 1 else time.perf_counter
    figures = []
    for k, n in shapes:
        cells = []
        for m in rows:
            size = n * k * dtype.itemsize
            streamed = m <= STREAMED_ROWS
            copies = max(1, CACHE_BYTES // size) if streamed else 1
            seconds = best_time(gemm(dtype, m, k, n, copies, gelu), budget, clock)
            multiplying = 2 * m * n * k / arithmetic
            bound = max(multiplying, size / memory) if streamed else multiplying
            figure = Figure(precision, threads, m, k, n, seconds, bound)
            figures.append(figure)
            cells.append(f"{seconds * 1e6:9.0f} us {100 * figure.fraction:4.0f} %")
        print(f"{k:6d} {n:6d} " + "".join(f"{cell:>18}" for cell in cells), flush=True)
    return figures


def main() -> None:
    """Print a table for every precision and number of threads."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=thread_count, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 96, 128, 1024])
    parser.add_argument("--precision", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--budget", type=float, default=0.2, help="seconds a figure")
    parser.add_argument("--gelu", action="store_true", help="with GELU in the epilogue")
    parser.add_argument("--quick", action="store_true", help="fewer shapes")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = []
    for precision in arguments.precision:
        for threads in arguments.threads:
            shapes = QUICK if arguments.quick else SHAPES
            figures += measure(
                precision, threads, arguments.rows, shapes, arguments.budget, arguments.gelu
            )
    if arguments.json:
        rows = [{**asdict(figure), "fraction": figure.fraction} for figure in figures]
        record = {"isa": _C.active_isa(), "torch": torch.__version__, "figures": rows}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
