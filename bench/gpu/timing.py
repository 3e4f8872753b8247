"""Times of calls on a GPU (or, in a dry run, on the CPU): interleaved, so that drift hits all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Call = Callable[[], Any]
# Written before every timed call: many times the largest L2 there is, and long enough to write (a
# quarter of a millisecond at 4 TB/s) for the host to queue even a compiled call behind it.
_FLUSH_BYTES = 1 << 30
_WARM_UP = 3


@dataclass(frozen=True)
class Times:
    """Milliseconds of one call: median and quartiles."""

    median: float
    quartiles: tuple[float, float]

    @classmethod
    def of(cls, samples: list[float]) -> Times:
        if len(samples) == 1:
            return cls(samples[0], (samples[0], samples[0]))
        low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(middle, (low, high))


class Stopwatch:
    """Times calls.

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
        """Device time of each call, by events, with cold caches. The write that empties the caches
        also gives the host the time to queue the call behind it."""
        return self._interleaved(calls, self._device_time if self._cuda else self._host_time)

    def passes(self, calls: Mapping[str, Call]) -> dict[str, Times]:
        """Time until the result is there, as a caller sees it: launching included."""
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
