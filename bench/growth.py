"""Measure time per token and scratch memory as ragged batches grow, with one thread and two.

    python -m bench.growth [--threads 2 1] [--repetitions 3]

BERT-base computes the growth cases of `bench.cases` in int8. Their parity is judged by
`python -m bench --cases growth`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch

import fastbert
from bench import cases, models
from bench.baselines import Padded
from fastbert.tools.profile import prepared
from fastbert.tools.threads import thread_count


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=thread_count, nargs="+", default=[2, 1])
    parser.add_argument("--repetitions", type=int, default=3)
    # Its earlier name.
    hidden = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    parser.add_argument("--repeat", dest="repetitions", type=int, **hidden)
    options = parser.parse_args(arguments)
    path = models.checkpoint("bert-base")
    print(f"{'threads':>7}{'tokens':>9}{'us/token':>10}{'mean l^2/l':>12}{'scratch MiB':>13}")
    for threads in options.threads:
        torch.set_num_threads(threads)
        # A new model each time: its scratch memory only ever grows.
        model = fastbert.BertModel.from_pretrained(path, quantization="int8").eval()
        for case in (case for case in cases.CASES.values() if case.group == "growth"):
            random = np.random.default_rng(1)
            batch = Padded.of([list(random.integers(1000, 30000, n)) for n in case.lengths])
            ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)
            seconds = []
            with torch.inference_mode():
                for _ in range(options.repetitions):
                    begin = time.perf_counter()
                    model(ids, attention_mask=mask)
                    seconds.append(time.perf_counter() - begin)
            encoder, _ = prepared(model)
            total = sum(case.lengths)
            squares = sum(length * length for length in case.lengths) / total
            print(
                f"{threads:>7}{total:>9}{min(seconds) / total * 1e6:>10.1f}{squares:>12.0f}"
                f"{encoder.arena_bytes / 2**20:>13.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
