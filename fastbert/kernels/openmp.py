"""Torch's operators on the calling thread alone, where they stand between two passes of kernels."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from fastbert.kernels import native

# Elements up to which one thread does. Torch takes 80 us for a row of 131072 scores on one thread
# and on two; four million take milliseconds, which are small beside the pass that computed them.
_MOST = 1 << 22


def on_one_thread(x: Tensor) -> AbstractContextManager[None]:
    """Let torch's operators take one thread of the CPU, so that they wake no other.

    Threads of OpenMP spin for milliseconds after a loop, on the cores that the kernels' own threads
    need for the next pass: on two cores of a Zen 5, Apertus 0.5B in int8 went from 52 to 71 tokens
    a second (``python -m bench.decode --cases decode-1``) when the operators of a step left them
    asleep.

    Only the calling thread's numbers change, and they are set back in the end. No operator of ours
    belongs inside, since it would take as many threads as torch does.

    Args:
        x: what is worked on; nothing changes for very many elements, on other devices, or in a
            traced pass.
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.numel() > _MOST:
        return nullcontext()
    return nullcontext() if native.reason() is not None else _Alone()


class _Alone:
    """What on_one_thread returns; as a generator it would take three times as many calls."""

    __slots__ = ("_former",)

    def __enter__(self) -> None:
        self._former = native.library.use_one_loop_thread()

    def __exit__(self, *error: object) -> None:
        native.library.set_loop_threads(*self._former)
