"""Memory and time of accelerating a model of transformers: ``python -m bench.packing``.

    python -m bench.packing [--sizes bert-base] [--precisions float32 bfloat16 int8] [--threads 2]

For each size and precision, a process of its own makes a model with random weights, calls
`fastbert.accelerate`, and computes a text of 32 tokens, which packs the weights. It prints the
seconds of the call and of the first pass, and the memory of the process at its highest and
afterwards, as multiples of the model's parameters: 1 is the model alone.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SIZES: dict[str, dict[str, int]] = {
    "bert-base": {},
    "bert-large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
    "layers": {"vocab_size": 100, "num_hidden_layers": 6},  # hardly more than projections
    "tiny": {
        "vocab_size": 100,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 128,
    },
}
PRECISIONS = ("float32", "bfloat16", "int8")


@dataclass(frozen=True)
class Packing:
    """What accelerating one model took.

    Attributes:
        accelerate, first_pass: seconds of wall time.
        peak: highest memory of the process, from before the call until after the pass, beyond what
            it had without the model; as a multiple of the parameters' bytes.
        kept: the same after the pass.
        weights: the share of the layers' projections in the parameters.
    """

    accelerate: float
    first_pass: float
    peak: float
    kept: float
    weights: float


def measure(size: str, precision: str, threads: int) -> Packing:
    """Accelerate a model in a process of its own.

    Args:
        size: one of SIZES.
        precision: one of PRECISIONS; int8 is accelerated from float32 parameters.
        threads: of torch.

    Raises:
        RuntimeError: where the process fails.
    """
    command = [sys.executable, "-m", "bench.packing", "--child", size, precision, str(threads)]
    folder = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode != 0:
        raise RuntimeError(f"Accelerating {size} in {precision} failed: {done.stderr}")
    return Packing(**json.loads(done.stdout))


def _measure_here(size: str, precision: str, threads: int) -> Packing:
    import torch

    import fastbert

    torch.set_num_threads(threads)
    quantization = "int8" if precision == "int8" else None
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    ids = torch.arange(1, 33).reshape(1, 32)
    with torch.inference_mode():
        # What is loaded and reserved once.
        fastbert.accelerate(_model("tiny", dtype), quantization=quantization)(ids)
        model = _model(size, dtype)
        gc.collect()
        before = memory_bytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        begin = time.perf_counter()
        fastbert.accelerate(model, quantization=quantization)
        called = time.perf_counter()
        model(ids)
        passed = time.perf_counter()
    own = sum(p.numel() * p.element_size() for p in model.parameters())
    projections = (p for name, p in model.named_parameters() if "encoder" in name and p.dim() == 2)
    return Packing(
        accelerate=called - begin,
        first_pass=passed - called,
        peak=1 + (memory_bytes("VmHWM") - before) / own,
        kept=1 + (memory_bytes("VmRSS") - before) / own,
        weights=sum(p.numel() * p.element_size() for p in projections) / own,
    )


def _model(size: str, dtype: Any) -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    return transformers.BertModel(transformers.BertConfig(**SIZES[size])).to(dtype).eval()


def memory_bytes(name: str) -> int:
    """Return a number of bytes of this process by its name in /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["bert-base"])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child is not None:
        size, precision, threads = options.child
        print(json.dumps(asdict(_measure_here(size, precision, int(threads)))))
        return
    print(f"{'model':<12}{'precision':<11}", end="")
    print(f"{'accelerate s':>13}{'first pass s':>13}{'peak':>8}{'kept':>8}")
    for size in options.sizes:
        for precision in options.precisions:
            found = measure(size, precision, options.threads)
            print(
                f"{size:<12}{precision:<11}{found.accelerate:>13.3f}{found.first_pass:>13.2f}"
                f"{found.peak:>8.3f}{found.kept:>8.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
