"""Time every form of the CUDA GEMMs, on which the costs in csrc/cuda/gemm/config.cpp should rest.

    python -m bench.gpu.tiles [--rows 1 128 512 2048 16384]

Each GEMM has one line: the time of each (family, tile) in microseconds, the fastest first, and a
mark at the one that the kernels would take. Only the GEMM is timed: rows are quantised beforehand.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bench.gpu.timing import Stopwatch
from fastbert import kernels
from fastbert.kernels.cuda import _gemm, _native
from fastbert.kernels.cuda.int8_linear import int8_linear_prepack

SHAPES = ((768, 768), (768, 2304), (768, 3072), (3072, 768), (1024, 4096), (4096, 1024))
ROWS = (1, 128, 512, 2048, 16384)
FAMILIES = {1: "fma", 80: "mma", 90: "wgmma"}
Form = tuple[int, int]


class Gemm:
    """One GEMM of random operands, in any form.

    Args:
        rows: of the left operand.
        inner: elements that a result is summed over.
        outer: columns of the result.
        dtype: float32, float16 or bfloat16 of x and of the result.
        integer: whether the operands are of 8 bits.
        device: where they are.
    """

    def __init__(
        self,
        rows: int,
        inner: int,
        outer: int,
        dtype: torch.dtype,
        integer: bool,
        device: torch.device,
    ) -> None:
        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device).to(dtype)

        x, bias = draw(rows, inner), draw(outer)
        self._quantised = None
        if integer:
            weight = torch.randint(-127, 128, (outer, inner), device=device, dtype=torch.int8)
            scale = torch.rand(outer, device=device) / 1000 + 1e-4
            q, row_scale, zero_point = kernels.bound("cuda", "quantize_rows")(x)
            sums = int8_linear_prepack(weight)
            self._quantised = _gemm.Quantised(row_scale, zero_point, scale, sums)
            self._x = q
        else:
            weight, scale = draw(outer, inner) / inner**0.5, None
            self._x = x
        self._weight = weight
        self.op = "int8_linear" if integer else "linear"
        kernel = kernels.bound("cuda", self.op)
        weights = (weight,) if scale is None else (weight, scale)
        self._operands = kernel.check(kernel.target, x, *weights, bias, "gelu")

    def run(self, form: Form) -> Tensor:
        """Compute gelu(x @ weight.T + bias) in a form; no epilogue costs more than GELU's."""
        before, _gemm.FORM = _gemm.FORM, form
        try:
            return _gemm.gemm(
                self.op, self._operands, self._x, self._weight, self._quantised,
            )  # fmt: skip
        finally:
            _gemm.FORM = before

    def forms(self) -> Iterator[Form]:
        """Yield the forms that take this GEMM on this device."""
        for family in FAMILIES:
            for tile in range(3):
                try:
                    self.run((family, tile))
                except ValueError:
                    break
                yield family, tile

    def taken(self, device: torch.device) -> Form:
        """Return the form that the kernels would take."""
        operands = self._operands
        major, multiprocessors = 9, 1
        if device.type == "cuda":
            properties: Any = torch.cuda.get_device_properties(device)
            major, multiprocessors = properties.major, properties.multi_processor_count
        code = 3 if self._quantised is not None else operands.code
        family, tile, *_ = _native.extension().gemm_config(
            operands.rows, operands.outer, operands.inner, code, 0, -1, major, multiprocessors
        )
        return family, tile


def line(gemm: Gemm, stopwatch: Stopwatch) -> str:
    """Write the forms of a GEMM by their time in microseconds, with * at the one taken."""
    forms = list(gemm.forms())
    times = stopwatch.kernels({str(form): (lambda form=form: gemm.run(form)) for form in forms})
    taken = gemm.taken(stopwatch.device)
    ordered = sorted(forms, key=lambda form: times[str(form)].median)
    return "   ".join(
        f"{FAMILIES[form[0]]}/{form[1]}{'*' if form == taken else ' '} "
        f"{1000 * times[str(form)].median:8.1f}"
        for form in ordered
    )


def main() -> None:
    """Print a line for every GEMM."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.tiles")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench.gpu.tiles: this machine has no CUDA device; nothing was measured.")
    device = torch.device("cuda", 0)
    stopwatch = Stopwatch(device, budget=0.2)
    for dtype, integer in ((torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)):
        for inner, outer in SHAPES:
            for rows in given.rows:
                gemm = Gemm(rows, inner, outer, dtype, integer, device)
                operands = "int8" if integer else str(dtype).removeprefix("torch.")
                print(f"{operands:9} {inner:5} x {outer:5} {rows:6} rows  {line(gemm, stopwatch)}")


if __name__ == "__main__":
    main()
