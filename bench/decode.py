"""Time decoders beside each other, behind the gate: ``python -m bench.decode --help``.

A case is a model and what is done with it: `decode-N` continues N texts at once, `prefill-N` reads
one text of N tokens, `context-N` continues one of N tokens. Bounds: a step reads every weight once,
and the keys and values of the text; a text's arithmetic takes its time. Our int8 weights meet rows
of 16 bits in two products of 8 bits, and attention in bfloat16 takes as long as two in int8: the
share of two products is printed beside that of the bound. `context-N` also prints how
fast our engines read keys and values: by what a step takes longer than one behind a short text.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import gate, table
from bench.baselines.decoders import DECODERS, Decoder, DecoderBaseline
from bench.build import missing_kernels
from bench.decoders import SHAPES, DecoderShape, checkpoint
from bench.results import FOLDER, Results, Row
from fastbert.tools import peak
from fastbert.tools.peak import Peak
from fastbert.tools.threads import thread_count
from fastbert.tools.timing import Run, Summary, interleave

_PROMPT = 32  # tokens of every text before it is continued
_CASES = "decode-1,decode-8,decode-16,context-4096,prefill-512"
_FAILURES = (Exception,)
_SHORT = " behind a short text"


@dataclass(frozen=True)
class Case:
    """What is done with a model.

    Attributes:
        kind: "decode", "prefill" or "context".
        batch: texts at once.
        length: tokens of a text.
        steps: how many tokens each text is continued by.
    """

    kind: str
    batch: int
    length: int
    steps: int

    @classmethod
    def of(cls, name: str, steps: int) -> Case:
        """Read a name such as "decode-8"."""
        kind, number = name.rsplit("-", 1)
        if kind == "decode":
            return cls(kind, int(number), _PROMPT, steps)
        return cls(kind, 1, int(number), steps if kind == "context" else 0)

    @property
    def tokens(self) -> int:
        """Number of tokens that are read or made."""
        return self.batch * (self.steps or self.length)

    def texts(self, vocabulary: int) -> list[list[int]]:
        """Return random texts, always the same."""
        random = np.random.default_rng(2)
        texts: list[list[int]] = random.integers(4, vocabulary, (self.batch, self.length)).tolist()
        return texts

    def run(self, decoder: Decoder, texts: list[list[int]]) -> Run:
        """Return the call that is timed."""
        return decoder.decode(texts, self.steps) if self.steps else decoder.prefill(texts)

    def bound(
        self, shape: DecoderShape, found: Peak, precision: str, products: int = 1
    ) -> float | None:
        """Return the seconds of the call that no program can beat.

        Args:
            shape: of the model.
            found: what the machine can do.
            precision: of the arithmetic and the weights.
            products: of that precision, in which each is computed.
        """
        weights = shape.weights * peak.BYTES[precision]
        if not self.steps:
            operations = products * shape.prefill_operations(self.length)
            return found.lower_bound(precision, operations, weights)
        read = weights + self.batch * shape.cache_bytes(self.length, _element(precision))
        operations = products * 2.0 * shape.weights * self.batch
        step = found.lower_bound(precision, operations, read)
        return None if step is None else step * self.steps


def _element(precision: str) -> int:
    """Return the bytes of a number in a cache: models with int8 weights compute in bfloat16."""
    return 4 if precision == "fp32" else 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status: 1 when a row of ours did not pass the gate, 2 where nothing can be timed.
    """
    options = _parser().parse_args(arguments)
    refusal = missing_kernels()
    if refusal is not None:
        print(f"bench: {refusal}", file=sys.stderr)
        return 2
    warnings.filterwarnings("ignore")
    name = options.name or f"decode-{platform.node()}-{time.strftime('%Y%m%d-%H%M%S')}"
    path: Path = options.results / f"{name}.json"
    results = Results.resume(path)
    wanted = [part.strip().lower() for part in options.baselines.split(",")]
    engines = [
        engine
        for engine in DECODERS.values()
        if any(part == "all" or part in engine.name.lower() for part in wanted)
    ]
    for model in options.models.split(","):
        _measure(SHAPES[model], engines, options, results)
        results.save(path)
    print(f"written to {path}")
    return int(any(row.ours and not row.passed for row in results.rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.decode", description=__doc__)
    parser.add_argument("--models", default="apertus-0.5b", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--cases", default=_CASES)
    parser.add_argument("--baselines", default="all", help="names, parts of names, or all")
    parser.add_argument("--steps", type=int, default=16, help="tokens that a text is continued by")
    parser.add_argument("--threads", type=thread_count, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--budget", type=float, default=30.0, help="seconds per engine and case")
    parser.add_argument("--name", help="of the results' file; cases are added to it")
    parser.add_argument("--results", type=Path, default=FOLDER, metavar="FOLDER")
    return parser


def _measure(
    shape: DecoderShape,
    engines: Sequence[DecoderBaseline],
    options: argparse.Namespace,
    results: Results,
) -> None:
    """Load every engine, judge it once, and time all that passed in every case."""
    path = checkpoint(shape)
    random = np.random.default_rng(1)
    prompt = [int(token) for token in random.integers(4, shape.vocabulary, _PROMPT)]
    exact = DECODERS["transformers fp32"].load(path, options.threads).logits(prompt)
    gc.collect()
    verdicts: list[Row] = []
    loaded: dict[str, Any] = {}
    for engine in engines:
        row = Row("", engine.name, engine.precision, "arrival", reason=engine.unavailable() or "")
        verdicts.append(row)
        if not row.reason:
            _judge(row, engine, path, options.threads, prompt, exact, loaded)
    for case in options.cases.split(","):
        _time(f"{shape.name} {case}", case, shape, verdicts, loaded, options, results)
    for engine_loaded in loaded.values():
        if hasattr(engine_loaded, "close"):
            engine_loaded.close()


def _judge(
    row: Row,
    engine: DecoderBaseline,
    path: Path,
    threads: int,
    prompt: list[int],
    exact: np.ndarray,
    loaded: dict[str, Any],
) -> None:
    """Load an engine and hold its scores against float32; it stays loaded where it passes."""
    print(f"{time.strftime('%H:%M:%S')} {engine.name}", file=sys.stderr, flush=True)
    try:
        decoder = engine.load(path, threads)
        found = decoder.logits(prompt)
    except _FAILURES as error:
        row.reason = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return
    verdict = gate.judge([found[None]], [exact[None]], engine.precision)
    row.error = row.own = verdict.error
    row.passed = verdict.passed
    if verdict.passed:
        loaded[engine.name] = decoder
    else:
        row.reason = f"gate: relative error {verdict.error:.1e}"


def _time(
    name: str,
    case: str,
    shape: DecoderShape,
    verdicts: Sequence[Row],
    loaded: dict[str, Any],
    options: argparse.Namespace,
    results: Results,
) -> None:
    """Time a case, print its table and add it to the results."""
    task = Case.of(case, options.steps)
    texts = task.texts(shape.vocabulary)
    found = results.begin(name, peak.measure(options.threads))
    for precision in peak.BYTES:
        bound = task.bound(shape, found.peak, precision)
        if bound is not None:
            found.lower_bounds[precision] = bound * 1e3
    runs = {engine_name: task.run(decoder, texts) for engine_name, decoder in loaded.items()}
    for engine_name, decoder in loaded.items():
        if not engine_name.startswith("fastbert"):
            continue
        found.plans[engine_name] = decoder.model.plan().lines()
        if task.kind == "context":
            runs[engine_name + _SHORT] = task.run(decoder, [texts[0][:_PROMPT]])
    samples = interleave(runs, options.repetitions, options.budget)
    for verdict in verdicts:
        row = Row(**{**vars(verdict), "case": name, "time": None})
        if row.engine in samples:
            row.time = Summary.of(samples[row.engine])
        results.rows.append(row)
    print(table.render(results, [name]))
    for row in results.of(name):
        if not row.time:
            continue
        print(f"    {row.engine}: {task.tokens / row.time.median * 1e3:.1f} tokens/s")
        if row.ours and row.precision == "int8":
            print(f"    {row.engine}: {_two_products(task, shape, found.peak, row.time.median)}")
        if row.engine + _SHORT in samples:
            longer = row.time.median / 1e3 - statistics.median(samples[row.engine + _SHORT])
            cache = shape.cache_bytes(task.length - _PROMPT, _element(row.precision))
            print(f"    {row.engine}: {_reading(cache * task.steps / longer, found.peak)}")
    print(flush=True)


def _two_products(task: Case, shape: DecoderShape, found: Peak, milliseconds: float) -> str:
    """Say what share of a time two products take, as rows of 16 bits do."""
    bound = task.bound(shape, found, "int8", products=2)
    return "" if bound is None else f"{bound * 1e3 / milliseconds:.0%} is what two products take"


def _reading(rate: float, found: Peak) -> str:
    """Say how fast attention reads keys and values, beside what is read from memory."""
    share = "" if found.read is None else f", {rate / found.read:.0%} of the bandwidth"
    return f"attention reads keys and values at {rate * 1e-9:.1f} GB/s{share}"


if __name__ == "__main__":
    sys.exit(main())
