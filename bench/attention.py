"""The attention kernel alone, on one thread, against what a core can do at most.

    python bench/attention.py [--tokens 4096] [--budget 0.3]

Queries, keys and values are views into one fused projection, as in an encoder; with many tokens
they do not fit the second-level cache. The limit is measured in registers in the same run. Times
are of the processor, not of the clock on the wall, and the best of many: the machine may be shared.
"""

from __future__ import annotations

import argparse
import time

import torch

from fastbert import _C
from fastbert.kernels.cpu import attention_varlen

CASES = (  # length, heads, head_dim
    (16, 12, 64), (24, 12, 64), (58, 12, 64), (128, 12, 64), (256, 12, 64), (512, 12, 64),
    (58, 12, 32), (256, 12, 32), (256, 12, 80), (256, 12, 96), (256, 12, 128),
)  # fmt: skip
CODES = {torch.float32: 0, torch.bfloat16: 1}


def best_seconds(
    dtype: torch.dtype, tokens: int, length: int, heads: int, head_dim: int, budget: float
) -> tuple[float, float]:
    """(seconds, operations) of attention within sequences of one length."""
    batch = max(1, tokens // length)
    fused = torch.randn(batch * length, 3, heads, head_dim).to(dtype)
    q, k, v = fused.unbind(1)
    cu_seqlens = torch.arange(batch + 1, dtype=torch.int32) * length
    best, spent, runs = float("inf"), 0.0, 0
    while runs < 5 or spent < budget:
        start = time.thread_time()
        attention_varlen(q, k, v, cu_seqlens, cu_seqlens, length, length, head_dim**-0.5)
        elapsed = time.thread_time() - start
        best, spent, runs = min(best, elapsed), spent + elapsed, runs + 1
    return best, 4.0 * batch * length * length * heads * head_dim


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--budget", type=float, default=0.3, help="seconds a figure")
    options = parser.parse_args()
    torch.set_num_threads(1)
    limits = {dtype: _C.dot_peak(code, 1, 200) for dtype, code in CODES.items()}
    print(f"{_C.active_isa()}, {options.tokens} tokens, 1 thread; % of the limit in registers")
    for dtype, limit in limits.items():
        name = str(dtype).removeprefix("torch.")
        print(f"\n{name}: limit {limit * 1e-9:.0f} GFLOP/s")
        for case in CASES:
            seconds, operations = best_seconds(dtype, options.tokens, *case, options.budget)
            print(
                f"  length {case[0]:4}  head_dim {case[2]:4}  {seconds * 1e3:8.2f} ms"
                f"  {operations / seconds * 1e-9:6.0f} GFLOP/s {operations / seconds / limit:5.0%}"
            )


if __name__ == "__main__":
    main()
