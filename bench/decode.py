"""Time decoders beside each other, behind the gate: ``python -m bench.decode --help``.

A case is a model and what is done with it: `decode-N` continues N texts at once, `prefill-N` reads
one text of N tokens. Bounds: a step reads every weight once; a text's arithmetic takes its time.
"""

from __future__ import annotations

import argparse
import gc
import platform
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import gate, table
from bench.baselines.decoders import DECODERS, DecoderBaseline
from bench.build import missing_kernels
from bench.decoders import SHAPES, DecoderShape, checkpoint
from bench.results import FOLDER, Results, Row
from fastbert.tools import peak
from fastbert.tools.threads import thread_count
from fastbert.tools.timing import Summary, interleave

_PROMPT = 32  # tokens of every text before it is continued
_FAILURES = (Exception,)


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
    parser.add_argument("--cases", default="decode-1,decode-8,decode-16,prefill-512")
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
    kind, number = case.rsplit("-", 1)
    random = np.random.default_rng(2)
    batch, length = (int(number), _PROMPT) if kind == "decode" else (1, int(number))
    texts = random.integers(4, shape.vocabulary, (batch, length)).tolist()
    found = results.begin(name, peak.measure(options.threads))
    if kind == "decode":
        operations, reads = 2.0 * shape.weights * batch, options.steps
    else:
        operations, reads = shape.prefill_operations(length), 1
    for precision, size in peak.BYTES.items():
        bound = found.peak.lower_bound(precision, operations, shape.weights * size)
        if bound is not None:
            found.lower_bounds[precision] = bound * reads * 1e3
    for engine_name, decoder in loaded.items():
        if hasattr(decoder, "model") and engine_name.startswith("fastbert"):
            found.plans[engine_name] = decoder.model.plan().lines()
    runs = {
        engine_name: (
            decoder.decode(texts, options.steps) if kind == "decode" else decoder.prefill(texts)
        )
        for engine_name, decoder in loaded.items()
    }
    samples = interleave(runs, options.repetitions, options.budget)
    for verdict in verdicts:
        row = Row(**{**vars(verdict), "case": name, "time": None})
        if row.engine in samples:
            row.time = Summary.of(samples[row.engine])
        results.rows.append(row)
    print(table.render(results, [name]))
    tokens = batch * (options.steps if kind == "decode" else length)
    for row in results.of(name):
        if row.time:
            print(f"    {row.engine}: {tokens / row.time.median * 1e3:.1f} tokens/s")
    print(flush=True)


if __name__ == "__main__":
    sys.exit(main())
