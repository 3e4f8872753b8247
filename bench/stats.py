"""Timing: interleaved turns and what is kept of the samples."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

Run = Callable[[], object]
# Worker threads of another engine may go on spinning for some milliseconds after its call.
SETTLE_SECONDS = 0.02
# Calls shorter than this are repeated within a turn, after an untimed one that brings the
# engine's weights back into the caches that the engine before it used.
SHORT_SECONDS = 0.3
CALLS_IN_TURN = 3


@dataclass(frozen=True)
class Summary:
    """Times of one engine in one case, in milliseconds."""

    median: float
    minimum: float
    quarter: float
    three_quarters: float
    count: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Summary:
        """The summary of at least one sample in seconds."""
        times = sorted(value * 1e3 for value in seconds)
        if len(times) == 1:
            return cls(times[0], times[0], times[0], times[0], 1)
        quarter, median, three_quarters = statistics.quantiles(times, n=4, method="inclusive")
        return cls(median, times[0], quarter, three_quarters, len(times))

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        return (self.three_quarters - self.quarter) / 2 / self.median

    def as_dict(self) -> dict[str, float]:
        """For a results file."""
        return asdict(self)


def interleave(
    runs: Mapping[str, Run],
    turns: int,
    budget: float,
    least: int = 3,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    settle: Callable[[float], None] = time.sleep,
) -> dict[str, list[float]]:
    """Times every run in turns of shuffled order, so that a slow minute hits all of them alike.

    Args:
        runs: what to time, by name.
        turns: rounds in which each run has its turn, unless it is too slow for its budget.
        budget: seconds one run may use in all.
        least: turns that a run has even beyond its budget.
        seed: of the order.
        clock, settle: for tests.

    Returns:
        Seconds of every timed call, by name.
    """
    samples: dict[str, list[float]] = {name: [] for name in runs}
    cost: dict[str, float] = {}
    for name, run in runs.items():
        begin = clock()
        run()
        cost[name] = clock() - begin
        if cost[name] < SHORT_SECONDS:  # the first call may have paid for more than the work
            begin = clock()
            run()
            cost[name] = clock() - begin
    wanted = {name: max(min(least, turns), _turns(cost[name], turns, budget)) for name in runs}
    order = random.Random(seed)
    for turn in range(turns):
        names = [name for name in runs if _takes_part(turn, turns, wanted[name])]
        order.shuffle(names)
        for name in names:
            settle(SETTLE_SECONDS)
            samples[name] += _turn(runs[name], cost[name], clock)
    return samples


def _turns(cost: float, turns: int, budget: float) -> int:
    calls = CALLS_IN_TURN + 1 if cost < SHORT_SECONDS else 1
    return min(turns, int(budget / max(cost * calls, 1e-9)))


def _takes_part(turn: int, turns: int, wanted: int) -> bool:
    """Spreads `wanted` turns evenly over all of them."""
    return (turn + 1) * wanted // turns > turn * wanted // turns


def _turn(run: Run, cost: float, clock: Callable[[], float]) -> list[float]:
    short = cost < SHORT_SECONDS
    if short:
        run()
    times = []
    for _ in range(CALLS_IN_TURN if short else 1):
        begin = clock()
        run()
        times.append(clock() - begin)
    return times
