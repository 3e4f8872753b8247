"""Interleaved timing, and the quartiles of what it finds."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

Run = Callable[[], object]
# The worker threads of another engine may spin for some milliseconds after its call, on a core that
# the next engine needs.
SETTLE_SECONDS = 0.02
# A call shorter than this is timed several times in a repetition, after an untimed call that brings
# back the weights which the engine before it drove out of the caches.
SHORT_SECONDS = 0.3
CALLS_IN_REPETITION = 3


@dataclass(frozen=True)
class Summary:
    """Times of one call, in milliseconds.

    Attributes:
        median: half of the samples are shorter.
        minimum: the shortest sample.
        quarter: a quarter of the samples are shorter.
        three_quarters: three quarters of the samples are shorter.
        count: number of samples.
        ninety_fifth: 95 of 100 samples are shorter; None in files of earlier versions.
    """

    median: float
    minimum: float
    quarter: float
    three_quarters: float
    count: int
    ninety_fifth: float | None = None

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Summary:
        """Summarise samples.

        Args:
            seconds: at least one sample.
        """
        times = sorted(value * 1e3 for value in seconds)
        if len(times) == 1:
            return cls(times[0], times[0], times[0], times[0], 1, times[0])
        quarter, median, three_quarters = statistics.quantiles(times, n=4, method="inclusive")
        high = statistics.quantiles(times, n=20, method="inclusive")[-1]
        return cls(median, times[0], quarter, three_quarters, len(times), high)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        return (self.three_quarters - self.quarter) / 2 / self.median

    def as_dict(self) -> dict[str, float]:
        """Return the fields by name, as a results file holds them."""
        return asdict(self)


def interleave(
    runs: Mapping[str, Run],
    repetitions: int,
    budget: float = float("inf"),
    least: int = 3,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    settle: Callable[[float], None] = time.sleep,
    pause: float = 0.0,
) -> dict[str, list[float]]:
    """Time every run in repetitions of shuffled order, so that a slow minute hits all alike.

    Args:
        runs: what to time, by name.
        repetitions: how often each run is timed, unless it is too slow for its budget.
        budget: seconds that one run may use in all.
        least: repetitions that a run has even beyond its budget.
        seed: decides the order.
        clock: returns the time in seconds.
        settle: waits for so many seconds before a run is timed.
        pause: seconds without work before every timed call, as in a service that waits for its next
            request; 0 for calls back to back.

    Returns:
        Seconds of every timed call, by name.
    """
    samples: dict[str, list[float]] = {name: [] for name in runs}
    cost: dict[str, float] = {}
    for name, run in runs.items():
        cost[name] = _seconds(run, clock)
        if cost[name] < SHORT_SECONDS:  # the first call may have paid for more than the work
            cost[name] = _seconds(run, clock)
    wanted = {
        name: max(min(least, repetitions), _affordable(cost[name], repetitions, budget))
        for name in runs
    }
    order = random.Random(seed)
    for repetition in range(repetitions):
        names = [name for name in runs if _takes_part(repetition, repetitions, wanted[name])]
        order.shuffle(names)
        for name in names:
            settle(SETTLE_SECONDS)
            samples[name] += _repeat(runs[name], cost[name], clock, settle, pause)
    return samples


def _affordable(cost: float, repetitions: int, budget: float) -> int:
    calls = CALLS_IN_REPETITION + 1 if cost < SHORT_SECONDS else 1
    return int(min(repetitions, budget / max(cost * calls, 1e-9)))


def _takes_part(repetition: int, repetitions: int, wanted: int) -> bool:
    """Tell whether a run has this repetition, where `wanted` of them are spread evenly."""
    return (repetition + 1) * wanted // repetitions > repetition * wanted // repetitions


def _repeat(
    run: Run,
    cost: float,
    clock: Callable[[], float],
    settle: Callable[[float], None],
    pause: float,
) -> list[float]:
    if cost >= SHORT_SECONDS:
        return [_seconds(run, clock)]
    run()
    times = []
    for _ in range(CALLS_IN_REPETITION):
        if pause:
            settle(pause)
        times.append(_seconds(run, clock))
    return times


def _seconds(run: Run, clock: Callable[[], float]) -> float:
    begin = clock()
    run()
    return clock() - begin
