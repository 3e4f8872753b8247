"""Time ALIGN's image tower beside transformers': ``python -m bench.images --help``.

Random weights in the published shape (EfficientNet B7, 289 pixels). No speed is printed of a tower
whose maps are wrong.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import fastbert
from bench.build import missing_kernels
from bench.gate import TOLERANCES
from fastbert.tools.tables import table
from fastbert.tools.threads import thread_count
from fastbert.tools.timing import Summary, interleave

_PIXELS = 289
_HEADER = ["", "images", "their error", "our error", "their ms", "our ms", "times as fast"]
_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status: 1 where a tower did not pass the gate, 2 where nothing can be measured.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.images", description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=thread_count, default=2)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--budget", type=float, default=20.0, help="seconds per tower and case")
    options = parser.parse_args(arguments)
    refusal = missing_kernels()
    if refusal is not None:
        print(f"bench: {refusal}", file=sys.stderr)
        return 2
    torch.set_num_threads(options.threads)
    theirs, ours = _towers()
    rows, passed = [_HEADER], True
    for precision, dtype in _PRECISIONS.items():
        theirs, ours = theirs.to(dtype), ours.to(dtype)
        exact = copy.deepcopy(theirs).float()
        for batch in options.batches:
            generator = torch.Generator().manual_seed(batch)
            pixels = torch.randn(batch, 3, _PIXELS, _PIXELS, generator=generator).to(dtype)
            expected = _run(exact, pixels.float())()
            runs = {"transformers": _run(theirs, pixels), "fastbert": _run(ours, pixels)}
            errors = {name: _error(run(), expected) for name, run in runs.items()}
            told = [precision, str(batch), *(f"{error:.1e}" for error in errors.values())]
            # At most twice as far from float32 on the same weights as transformers is.
            if errors["fastbert"] <= max(TOLERANCES[precision], 2 * errors["transformers"]):
                samples = interleave(runs, options.repetitions, options.budget)
                times = [Summary.of(samples[name]).median for name in runs]
                told += [*(f"{time:.0f}" for time in times), f"{times[0] / times[1]:.2f}"]
            else:
                passed = False
                told += ["-", "gate", "-"]
            rows.append(told)
    print(table(rows))
    return 0 if passed else 1


def _towers() -> tuple[Any, Any]:
    """Return transformers' tower with random weights, and ours with the same."""
    import transformers

    torch.manual_seed(0)
    theirs = transformers.AlignVisionModel(transformers.AlignVisionConfig())
    norms = [part for part in theirs.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    # Statistics of what really passes: maps of others grow from block to block, until float32 and
    # float64 differ by a tenth.
    with torch.no_grad():
        theirs.train()(pixel_values=torch.randn(4, 3, _PIXELS, _PIXELS))
    theirs.eval()
    ours = fastbert.AlignVisionModel(fastbert.AlignVisionConfig()).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def _run(model: Any, pixels: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.inference_mode():
            found: Tensor = model(pixel_values=pixels).pooler_output
        return found

    return run


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


if __name__ == "__main__":
    sys.exit(main())
