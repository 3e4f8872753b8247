"""Torch's operators on the calling thread alone, where they stand between two passes of kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from fastbert.kernels import native

# Elements up to which one thread does. Torch takes 80 us for a row of 131072 scores on one thread
# and on two; four million take milliseconds, which are small beside the pass that computed them.
_MOST = 1 << 22


@contextmanager
def on_one_thread(x: Tensor) -> Iterator[None]:
    """Let torch's operators take one thread of the CPU, so that they wake no other.

    Threads of OpenMP spin for milliseconds after a loop (7 on the machine of docs/performance.md),
    on the cores that the kernels' own threads need for the next pass. On two cores a token of
    Apertus 0.5B in int8 took 14.7 ms instead of 10.3 when one operator in each step ran on both.

    Only the calling thread's numbers change, and they are set back in the end.

    Args:
        x: what is worked on; nothing changes for very many elements or on other devices.
    """
    if x.device.type != "cpu" or x.numel() > _MOST or native.reason() is not None:
        yield
        return
    former = native.library.use_one_loop_thread()
    try:
        yield
    finally:
        native.library.set_loop_threads(*former)
