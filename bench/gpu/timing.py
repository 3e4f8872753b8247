"""Time calls on a GPU (or, in a dry run, on the CPU), interleaved so that drift hits all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fastbert.tools.timing import Summary

Call = Callable[[], Any]
# Written before every timed call: many times the largest L2 there is, and long enough to write (a
# quarter of a millisecond at 4 TB/s) for the host to queue even a compiled call behind it.
_FLUSH_BYTES = 1 << 30
_WARM_UP = 3


@dataclass(frozen=True)
class Times:
    """Milliseconds of one call.

    Attributes:
        median: of the samples.
        quartiles: the lower and the upper one.
    """

    median: float
    quartiles: tuple[float, float]

    @classmethod
    def of(cls, samples: list[float]) -> Times:
        """Summarise at least one sample in milliseconds."""
        summary = Summary.of([milliseconds / 1e3 for milliseconds in samples])
        return cls(summary.median, (summary.quarter, summary.three_quarters))


class Stopwatch:
    """A stopwatch for sets of calls.

    Args:
        device: where they run.
        budget: seconds for one set of calls.
    """

    def __init__(self, device: torch.device, budget: float = 1.0) -> None:
        self.device = device
        self._budget = budget
        self._cuda = device.type == "cuda"
        self._flush = (
            torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device) if self._cuda else None
        )

    def kernels(self, calls: Mapping[str, Call]) -> dict[str, Times]:
        """Measure the device time of each call, by events, with cold caches.

        The write that empties the caches also gives the host the time to queue the call behind it.
        """
        return self._interleaved(calls, self._device_time if self._cuda else self._host_time)

    def passes(self, calls: Mapping[str, Call]) -> dict[str, Times]:
        """Measure the time until the result is there, as a caller sees it: launching included."""
        return self._interleaved(calls, self._host_time)

    def _interleaved(
        self, calls: Mapping[str, Call], sample: Callable[[Call], Callable[[], float]]
    ) -> dict[str, Times]:
        cost = 0.0
        for call in calls.values():
            for _ in range(_WARM_UP):
                call()
            self._wait()
            begin = time.perf_counter()
            call()
            self._wait()
            cost += time.perf_counter() - begin
        rounds = min(200, max(10, int(self._budget / max(cost, 1e-6)))) if self._cuda else 3
        samples: dict[str, list[Callable[[], float]]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                samples[name].append(sample(call))
        self._wait()
        return {name: Times.of([read() for read in taken]) for name, taken in samples.items()}

    def _device_time(self, call: Call) -> Callable[[], float]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        assert self._flush is not None
        self._flush.zero_()
        start.record()
        call()
        end.record()
        return lambda: start.elapsed_time(end)

    def _host_time(self, call: Call) -> Callable[[], float]:
        self._wait()
        begin = time.perf_counter()
        call()
        self._wait()
        taken = (time.perf_counter() - begin) * 1e3
        return lambda: taken

    def _wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize(self.device)
