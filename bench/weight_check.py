"""What a pass pays to know that its weights are those it packed: `python -m bench.weight_check`.

Prints the median time of the check of BERT-base, whose 199 parameters and all modules are compared:
when the check before it has just run, and when none of what it reads is in the processor's caches.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

import fastbert
from fastbert.engine.encoder_cache import ModelSnapshot
from fastbert.runtime import versions


def median(check: Callable[[], object], repetitions: int, evict: Callable[[], object]) -> float:
    """Return the median time of `check` in microseconds, with `evict` called before each."""
    times = []
    for _ in range(repetitions):
        evict()
        begin = time.perf_counter()
        check()
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e6


def main() -> None:
    """Measure, and print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--megabytes", type=int, default=64, help="written to empty the caches")
    arguments = parser.parse_args()
    model = fastbert.BertModel(fastbert.BertConfig()).eval()
    snapshot = ModelSnapshot(model)
    written = np.zeros(arguments.megabytes << 20, dtype=np.uint8)

    def check() -> None:
        assert snapshot.holds(contents=True)

    def evict() -> None:
        np.add(written, 1, out=written)

    repetitions = arguments.repetitions
    print(f"warm            {median(check, 10 * repetitions, lambda: None):9.1f} us")
    print(f"cold            {median(check, repetitions, evict):9.1f} us")
    tensors = list(snapshot.copied.values())
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6
    spent = median(lambda: [versions._bytes_of(t) for t in tensors], 20, lambda: None)
    print(f"all bytes       {spent:9.1f} us, {size:.0f} MB in {torch.get_num_threads()} threads")
    new = median(lambda: ModelSnapshot(model), 20, lambda: None)
    print(f"a new snapshot  {new:9.1f} us")


if __name__ == "__main__":
    main()
