"""Time the attention kernel alone, on one thread, beside a core's peak.

    python -m bench.attention [--tokens 4096] [--budget 0.3]

Queries, keys and values are views into one fused projection, as in an encoder; with many tokens
they do not fit the second-level cache. The peak is measured in registers in the same run. Times
are the processor's, not the wall clock's, and the best of many: the machine may be shared.
"""

from __future__ import annotations

import argparse
import time

import torch

from fastbert.kernels import kernel, native
from fastbert.tools import peak

CASES = (  # length, heads, head_dim
    (16, 12, 64), (24, 12, 64), (58, 12, 64), (128, 12, 64), (256, 12, 64), (512, 12, 64),
    (58, 12, 32), (256, 12, 32), (256, 12, 80), (256, 12, 96), (256, 12, 128),
)  # fmt: skip
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def best_seconds(
    dtype: torch.dtype, tokens: int, length: int, heads: int, head_dim: int, budget: float
) -> tuple[float, float]:
    """Time attention within sequences of one length.

    Args:
        dtype: of queries, keys and values.
        tokens: number of tokens in all sequences together.
        length: tokens of a sequence.
        heads: number of heads.
        head_dim: width of a head.
        budget: seconds for this figure.

    Returns:
        Seconds of the fastest call, and the operations of a call.
    """
    batch = max(1, tokens // length)
    fused = torch.randn(batch * length, 3, heads, head_dim).to(dtype)
    q, k, v = fused.unbind(1)
    cu_seqlens = torch.arange(batch + 1, dtype=torch.int32) * length
    attend = kernel("cpu", "attention_varlen")
    best, spent, runs = float("inf"), 0.0, 0
    while runs < 5 or spent < budget:
        start = time.thread_time()
        attend(q, k, v, cu_seqlens, cu_seqlens, length, length, head_dim**-0.5)
        elapsed = time.thread_time() - start
        best, spent, runs = min(best, elapsed), spent + elapsed, runs + 1
    return best, 4.0 * batch * length * length * heads * head_dim


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--budget", type=float, default=0.3, help="seconds a figure")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{native.isa()}, {options.tokens} tokens, 1 thread; % of the peak in registers")
    for precision, dtype in DTYPES.items():
        rate = peak.arithmetic(precision, threads=1)
        print(f"\n{precision}: peak {rate * 1e-9:.0f} GFLOP/s")
        for case in CASES:
            seconds, operations = best_seconds(dtype, options.tokens, *case, options.budget)
            print(
                f"  length {case[0]:4}  head_dim {case[2]:4}  {seconds * 1e3:8.2f} ms"
                f"  {operations / seconds * 1e-9:6.0f} GFLOP/s {operations / seconds / rate:5.0%}"
            )


if __name__ == "__main__":
    main()
