"""Time this checkout beside another build of the package, turn by turn on one machine.

    python -m bench.compare OTHER_CHECKOUT --cases 1x16,8x128 --repetitions 9

Each build runs in a process of its own, with its native library built in place (`make native`).
Both hold their model of a case loaded and take turns in random order, so that whatever else the
machine does meets both alike. Printed are medians, their ratio, and the middle half of the ratios
of neighbouring turns.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from bench import models
from bench.cases import CASES, Case, chosen

PRECISIONS = ("int8", "bfloat16", "float32")
HERE = Path(__file__).resolve().parents[1]
# Thread pools of one process spin for some milliseconds after a pass; the other must not meet them.
PAUSE_S = 0.05


class Build:
    """One checkout, in a process that runs passes when it is told to.

    Args:
        checkout: its root.
    """

    def __init__(self, checkout: Path) -> None:
        worker = Path(__file__).with_name("compare_worker.py")
        self._process = subprocess.Popen(
            [sys.executable, str(worker), str(checkout)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: object) -> float:
        """Send one request and return its answer; see compare_worker.py.

        Raises:
            RuntimeError: when the process has ended, whose own message is on standard error.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("A build could not run the case; its message stands above.")
        return float(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()


def times(builds: dict[str, Build], repetitions: int, budget: float) -> dict[str, list[float]]:
    """Collect the median seconds of a pass from every turn of every build."""
    found: dict[str, list[float]] = {name: [] for name in builds}
    for _ in range(repetitions):
        for name in random.sample(sorted(builds), len(builds)):
            time.sleep(PAUSE_S)
            found[name].append(builds[name].ask(do="time", seconds=budget))
    return found


def report(case: Case, precision: str, found: dict[str, list[float]]) -> str:
    """Format one row: medians in ms, and here / there with the middle half of its turns."""
    here, there = found["here"], found["there"]
    ratios = [a / b for a, b in zip(here, there, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return (
        f"{case.name:<12} {precision:<9} {statistics.median(here) * 1e3:9.2f} "
        f"{statistics.median(there) * 1e3:9.2f} {middle:8.3f}  ({low:.3f} to {high:.3f})"
    )


def main() -> int:
    """Run the comparison from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("other", type=Path, help="root of the other checkout")
    parser.add_argument("--cases", default="1x16,1x128,8x128,4x512,ragged32")
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--repetitions", type=int, default=9, help="turns of each build")
    parser.add_argument("--budget", type=float, default=0.5, help="seconds a turn")
    options = parser.parse_args()
    print(f"{'case':<12} {'precision':<9} {'here ms':>9} {'there ms':>9} {'ratio':>8}  middle half")
    with Build(HERE) as here, Build(options.other.resolve()) as there:
        builds = {"here": here, "there": there}
        for case in chosen(options.cases):
            if case.texts:
                parser.error(f"{case.name} is given as texts; {', '.join(CASES)} have lengths.")
            for precision in options.precisions.split(","):
                for build in builds.values():
                    build.ask(
                        do="load",
                        path=str(models.checkpoint(case.model)),
                        precision=precision,
                        lengths=case.lengths,
                    )
                found = times(builds, options.repetitions, options.budget)
                print(report(case, precision, found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
