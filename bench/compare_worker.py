"""One build's process of `python -m bench.compare`: passes of one model, when asked for.

    python compare_worker.py CHECKOUT

Reads one JSON request a line and answers each with one number. `load` takes a checkpoint, a
precision and the lengths of the texts, and answers 0; `time` repeats the pass for some seconds and
answers the median seconds of one. Only the package of the checkout is imported, so that any two
revisions with the same public classes can be compared.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

sys.path[0] = sys.argv[1]

import torch  # noqa: E402

import fastbert  # noqa: E402

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32}


def load(path: str, precision: str, lengths: list[int]) -> Callable[[], object]:
    """Load a model and return its pass over texts of these lengths, padded to the longest."""
    auto: Any = fastbert.AutoModel
    model = auto.from_pretrained(
        path,
        dtype=DTYPES[precision],
        quantization="int8" if precision == "int8" else None,
        strict=True,
        local_files_only=True,
    )
    longest = max(lengths)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (len(lengths), longest), generator=generator)
    real = torch.arange(longest) < torch.tensor(lengths)[:, None]
    mask = None if bool(real.all()) else real.long()
    return lambda: model(ids, attention_mask=mask)


def median_seconds(run: Callable[[], object], seconds: float) -> float:
    """Repeat a pass for some seconds, at least three times, after one that warms the caches."""
    run()
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def main() -> None:
    """Answer requests until standard input ends."""
    run: Callable[[], object] | None = None
    with torch.no_grad():
        for line in sys.stdin:
            request = json.loads(line)
            if request.pop("do") == "load":
                run = None  # the last model's memory goes before the next one comes
                run = load(**request)
                answer = 0.0
            else:
                assert run is not None
                answer = median_seconds(run, request["seconds"])
            print(answer, flush=True)


if __name__ == "__main__":
    main()
