"""One training step of fastbert beside transformers: ``python -m bench.training``.

Both train the same weights on the same ragged texts, padded to the longest of a batch: loss,
backward pass and fused AdamW. Each engine runs in a process of its own, which says how much memory
it took at most. A gate comes first: without dropout, the losses of both must agree. Then the
processes take turns, in an order that is drawn anew for every round.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

SIZES = {
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
    "bert-base": {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072},
    "tiny": {"hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 48},
}
ENGINES = ("fastbert", "transformers")
# Largest relative difference of the losses without dropout.
TOLERANCES = {"fp32": 1e-5, "bf16": 2e-2}
LONGEST = 256


@dataclass(frozen=True)
class Job:
    """What one process trains.

    Attributes:
        engine: one of ENGINES.
        size: one of SIZES.
        precision: "fp32", or "bf16" for autocast to bfloat16.
        dropout: probability, of hidden states and of attention weights.
        batch: texts a step.
        threads: of torch.
    """

    engine: str
    size: str
    precision: str
    dropout: float
    batch: int
    threads: int


def texts(batch: int, seed: int) -> dict[str, np.ndarray]:
    """Make a batch of random ids, lengths lognormal(4, 0.8) cut at 256, and labels."""
    drawn = np.random.default_rng(seed)
    lengths = np.clip(drawn.lognormal(4.0, 0.8, batch), 2, LONGEST).astype(int)
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
    ids = drawn.integers(1000, 30000, mask.shape) * mask
    return {"input_ids": ids, "attention_mask": mask, "labels": drawn.integers(0, 2, batch)}


class Trainee:
    """A model in training, of either engine."""

    def __init__(self, job: Job) -> None:
        import torch

        torch.set_num_threads(job.threads)
        rates = {"hidden_dropout_prob": job.dropout, "attention_probs_dropout_prob": job.dropout}
        sizes = {**SIZES[job.size], **rates, "num_attention_heads": 12, "num_labels": 2}
        package: Any
        if job.engine == "fastbert":
            import fastbert as package
        else:
            import transformers as package

            sizes["attn_implementation"] = "sdpa"
        model = package.BertForSequenceClassification(package.BertConfig(**sizes)).train()
        made = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in sorted(model.named_parameters()):
                if name.endswith("LayerNorm.weight"):
                    continue
                parameter.copy_(torch.randn(parameter.shape, generator=made) * 0.02)
        self.job, self.model, self.torch = job, model, torch
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step(self, seed: int) -> float:
        """Take one step, and return its loss."""
        torch = self.torch
        given = {name: torch.from_numpy(x) for name, x in texts(self.job.batch, seed).items()}
        low = self.job.precision == "bf16"
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            loss = self.model(**given).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())


def work() -> None:
    """Answer requests of standard input: a job first, then seeds of batches, one a line."""
    trainee = Trainee(Job(**json.loads(sys.stdin.readline())))
    for line in sys.stdin:
        start = time.perf_counter()
        loss = trainee.step(int(line))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        answer = {"loss": loss, "seconds": time.perf_counter() - start, "peak": peak}
        print(json.dumps(answer), flush=True)


class Process:
    """A process that trains, and waits while it is not asked to."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.training", "--work"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._say(json.dumps(asdict(job)))

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def step(self, seed: int) -> dict[str, float]:
        """Have it take one step: its loss, seconds, and peak memory in bytes so far."""
        self._say(str(seed))
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.job} ended")
        answer: dict[str, float] = json.loads(line)
        return answer

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def gate(size: str, precision: str, batch: int, threads: int) -> float:
    """Return the largest relative difference of the losses of three steps without dropout.

    Raises:
        SystemExit: where it is above the tolerance, or no number.
    """
    pair = [Process(Job(engine, size, precision, 0.0, batch, threads)) for engine in ENGINES]
    try:
        losses = [[process.step(seed)["loss"] for process in pair] for seed in range(3)]
    finally:
        for process in pair:
            process.close()
    worst = max(abs(ours - theirs) / abs(theirs) for ours, theirs in losses)
    if not worst <= TOLERANCES[precision]:
        raise SystemExit(f"{size} {precision}: losses differ by {worst:.1e}, and nothing is timed.")
    return worst


def measure(
    size: str, precision: str, dropout: float, batch: int, threads: int, rounds: int
) -> list[dict[str, Any]]:
    """Time steps of both engines in turn: a row for each."""
    found = gate(size, precision, batch, threads)
    jobs = [Job(engine, size, precision, dropout, batch, threads) for engine in ENGINES]
    pair = [Process(job) for job in jobs]
    times: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    peaks = dict.fromkeys(ENGINES, 0.0)
    order = random.Random(0)
    try:
        for seed in range(rounds + 1):
            for process in order.sample(pair, len(pair)):
                answer = process.step(seed)
                peaks[process.job.engine] = answer["peak"]
                if seed:  # the first step warms caches
                    times[process.job.engine].append(answer["seconds"])
    finally:
        for process in pair:
            process.close()
    return [
        {
            **asdict(job),
            "samples_per_second": batch * rounds / sum(times[job.engine]),
            "median_seconds": statistics.median(times[job.engine]),
            "peak_bytes": peaks[job.engine],
            "loss_difference": found,
        }
        for job in jobs
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Write the rows, the ratios to transformers beside them."""
    head = "| step | engine | samples/s | peak memory | beside transformers |"
    lines = [head, "|---|---|---|---|---|"]
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        for row in (ours, theirs):
            speed = row["samples_per_second"] / theirs["samples_per_second"]
            memory = row["peak_bytes"] / theirs["peak_bytes"]
            lines.append(
                f"| {row['size']} {row['precision']} | {row['engine']} "
                f"| {row['samples_per_second']:.2f} | {row['peak_bytes'] / 1e9:.2f} GB "
                f"| {speed:.2f}x, memory {memory:.2f}x |"
            )
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw samples a second and peak memory as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 0.6 + 0.4 * len(rows)), layout="constrained")
    labels = [f"{row['engine']}, {row['size']} {row['precision']}" for row in rows]
    colours = ["#4a9f8e" if row["engine"] == "fastbert" else "#7a8ba8" for row in rows]
    values = (
        ("samples a second, more is better", [row["samples_per_second"] for row in rows]),
        ("peak memory in GB, less is better", [row["peak_bytes"] / 1e9 for row in rows]),
    )
    for axis, (title, numbers) in zip(axes, values, strict=True):
        axis.barh(range(len(rows)), numbers, color=colours)
        axis.set_yticks(range(len(rows)), labels, fontsize=8)
        axis.invert_yaxis()
        axis.set_title(title, fontsize=9, loc="left")
    axes[1].set_yticklabels([])
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.training", description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["minilm", "bert-base"])
    parser.add_argument("--precisions", nargs="+", choices=TOLERANCES, default=[*TOLERANCES])
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8, help="timed steps of each engine")
    parser.add_argument("--json", type=Path, help="where the rows go")
    parser.add_argument("--plot", type=Path, help="where a plot goes, ending in .png or .svg")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.work:
        work()
        return
    rows: list[dict[str, Any]] = []
    for size in given.sizes:
        for precision in given.precisions:
            found = measure(
                size, precision, given.dropout, given.batch, given.threads, given.rounds
            )
            lines = table(found).splitlines()
            print("\n".join(lines[2:] if rows else lines), flush=True)  # minutes lie between
            rows += found
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if given.plot is not None:
        draw(rows, given.plot)


if __name__ == "__main__":
    main()
