"""Run every kernel once on small odd shapes: `python -m bench.gpu.drive cuda`.

`python -m bench.gpu.drive cuda linear bfloat16` runs one, for bench.gpu.once.

This is what compute-sanitizer watches.

Inputs are made on the host and results judged there, so that next to no kernels but ours run.
PYTORCH_NO_CUDA_MEMORY_CACHING=1 gives every tensor its own allocation; in a shared one memcheck
would see no access beyond a tensor's end.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from torch import Tensor

from bench.small import small_cases
from fastbert import kernels
from fastbert.ops import ALL
from fastbert.testing import gate, to_float64

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PER_DTYPE = 8


def main(backend: str, device: str = "cuda") -> int:
    """Run the kernels of a backend.

    Args:
        backend: its name.
        device: where they run.

    Returns:
        The number of wrong results; 1 where nothing ran.
    """
    found = [once(backend, op, dtype, device) for op in ALL for dtype in DTYPES]
    done, wrong = (sum(column) for column in zip(*found, strict=True))
    if backend == "cuda" and device == "cuda":
        # Enough tiles that blocks which stay have several, and K of more slabs than stages.
        wrong += every_form(torch.device(device), 2100, 656, 1030)
    print(f"{backend}: {done} calls, {wrong} wrong results")
    return wrong if done else 1


def once(backend: str, name: str, dtype: torch.dtype, device: str) -> tuple[int, int]:
    """Run one kernel on its small shapes.

    Returns:
        The number of calls, and of wrong results.
    """
    op = ALL[name]
    try:
        kernel = kernels.kernel(backend, name)
    except kernels.Unavailable as reason:
        print(f"{name}: {reason}")
        return 0, 0
    wrong = done = 0
    for name_of_case, arguments in small_cases(op, dtype, _PER_DTYPE):
        try:
            given = {key: _to(value, device) for key, value in arguments.items()}
            with torch.no_grad():
                result = kernel(**given)
        except ValueError as refusal:  # a shape that this backend does not serve
            print(f"{name} {name_of_case} {dtype}: not served: {refusal}")
            continue
        done += 1
        exact = op.reference(**to_float64(arguments))
        eager = op.reference(**arguments)
        verdict = gate(_to(result, "cpu"), exact, eager, dtype, op.tolerances[dtype])
        if not verdict.ok:
            wrong += 1
            print(f"{name} {name_of_case} {dtype}: {verdict.reason}")
    return done, wrong


def every_form(device: torch.device, rows: int, inner: int, outer: int) -> int:
    """Run a GEMM in every form of the CUDA kernels.

    Args:
        device: where to run it.
        rows: of the left operand.
        inner: elements that a result is summed over.
        outer: columns of the result.

    Returns:
        The number of forms that differ from another of their family (of any, for integers).
    """
    from bench.gpu.tiles import Gemm

    wrong = 0
    for dtype, integer in ((torch.float32, False), (torch.float16, False), (torch.bfloat16, True)):
        gemm = Gemm(rows, inner, outer, dtype, integer, device)
        first: dict[int, Tensor] = {}
        for form in gemm.forms():
            result = gemm.run(form).cpu()
            if not torch.equal(first.setdefault(0 if integer else form[0], result), result):
                wrong += 1
                print(f"{gemm.op} {dtype}: form {form} differs from another of its family")
    return wrong


def _to(value: Any, device: str) -> Any:
    if isinstance(value, tuple):
        return tuple(_to(part, device) for part in value)
    return value.to(device) if isinstance(value, Tensor) else value


def of_arguments(backend: str, *only: str) -> int:
    """Run what the command's arguments name.

    Args:
        backend: its name; "cpu" stands for the GPU's in a dry run.
        only: nothing for all ops; or an op and a dtype, with the number of calls and of wrong
            results as the last line.
    """
    device = "cpu" if backend == "cpu" else "cuda"
    if not only:
        return main(backend, device)
    name, dtype = only
    done, wrong = once(backend, name, getattr(torch, dtype), device)
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"{done} calls, {wrong} wrong results")
    return wrong


if __name__ == "__main__":
    _alone = os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING") == "1"
    if not _alone and sys.argv[1:] in (["cuda"], ["triton"]):
        sys.exit(
            "bench.gpu.drive: set PYTORCH_NO_CUDA_MEMORY_CACHING=1, or the tools see too little"
        )
    sys.exit(min(of_arguments(*sys.argv[1:]), 100))
