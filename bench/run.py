"""Runs cases and rivals, interleaved, behind the gate: ``python -m bench --help``."""

from __future__ import annotations

import argparse
import gc
import platform
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastbert.tools import limits

from . import cases as cases_module
from . import gate, models, plot, rivals, stats, table, texts
from .cases import Case
from .embedding import MAX_TOKENS, embedder
from .exact import Exact, token_rows
from .results import Results, Row
from .rivals import Padded, Rival

# A failure of one rival must not end the run; it becomes that rival's line in the table.
_FAILURES = (Exception,)
Run = Callable[[], object]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 1 when a row of ours did not pass the gate."""
    options = _parser().parse_args(arguments)
    chosen = cases_module.chosen(options.cases)
    engines = rivals.chosen(options.rivals)
    warnings.filterwarnings("ignore")
    name = options.name or f"{platform.node()}-{time.strftime('%Y%m%d-%H%M%S')}"
    results = Results.load(name)
    for engine in engines:
        if engine.unavailable() is None:
            results.versions |= engine.versions()
    for case in chosen:
        print(f"{time.strftime('%H:%M:%S')} {case.name}", file=sys.stderr, flush=True)
        run = _text_case if case.texts else _token_case
        run(case, engines, options, results)
        print(table.render(results, [case.name]), end="\n\n", flush=True)
        path = results.save(name)
        if any(row.time for row in results.rows):
            plot.draw(results, path.with_suffix(".png"))
    print(f"written to {path}")
    measured = {case.name for case in chosen}
    red = [
        row
        for row in results.rows
        if row.case in measured and row.engine.startswith("fastbert") and not row.passed
    ]
    return 1 if red else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--cases", default="base,text", help="names or groups; see bench/cases.py")
    parser.add_argument("--rivals", default="all", help="names, parts of names, or all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=9, help="rounds of the interleaved run")
    parser.add_argument("--budget", type=float, default=30.0, help="seconds per engine and case")
    parser.add_argument("--quick", action="store_true", help="three turns, two seconds each")
    parser.add_argument("--name", help="of the files in bench/results; cases are added to them")
    return parser


def _token_case(
    case: Case, engines: Sequence[Rival], options: argparse.Namespace, results: Results
) -> None:
    path = models.checkpoint(case.model)
    random = np.random.default_rng(1)
    inputs = [
        [int(i) for i in random.integers(1000, case.shape.vocabulary - 10, size=length)]
        for length in case.lengths
    ]
    ways = cases_module.arrangements(case)
    found = results.begin(case.name, limits.measure(options.threads))
    found.floors = _floors(case, case.lengths, found.limits)
    loaded: dict[str, Any] = {}

    def build(rival: Rival, way: str) -> tuple[Run, list[np.ndarray]]:
        if rival.name not in loaded:
            loaded[rival.name] = rival.load(path, options.threads)
        engine = loaded[rival.name]
        if rival.ours:
            found.plans[rival.name] = engine.model.plan().lines()
        return _batched(engine, inputs, ways[way])

    exact = Exact(lambda parameters: token_rows(path, inputs, parameters))
    _compare(case, engines, list(ways), build, exact, options, results)
    loaded.clear()
    gc.collect()


def _text_case(
    case: Case, engines: Sequence[Rival], options: argparse.Namespace, results: Results
) -> None:
    path = models.checkpoint(case.model)
    inputs = texts.english(case.texts)
    found = results.begin(case.name, limits.measure(options.threads))
    found.floors = _floors(case, _text_lengths(path, inputs), found.limits)
    found.notes["digest of the texts"] = texts.digest(inputs)

    def build(rival: Rival, way: str) -> tuple[Run, list[np.ndarray]]:
        run = embedder(rival, path, options.threads, inputs, way == "sorted")
        return run, list(run())

    def expected(parameters: str) -> list[np.ndarray]:
        yardstick = rivals.yardstick(parameters)
        return list(embedder(yardstick, path, options.threads, inputs, True)())

    _compare(case, engines, ["arrival", "sorted"], build, Exact(expected), options, results)


def _compare(
    case: Case,
    engines: Sequence[Rival],
    ways: Sequence[str],
    build: Callable[[Rival, str], tuple[Run, list[np.ndarray]]],
    exact: Exact,
    options: argparse.Namespace,
    results: Results,
) -> None:
    """Builds every engine in every way, lets those through that the gate passes, and times them."""
    runs: dict[tuple[str, str], Run] = {}
    rows: dict[tuple[str, str], Row] = {}
    for rival in engines:
        for way in ("arrival",) if rival.ours else ways:
            row = Row(case.name, rival.name, rival.precision, way)
            rows[rival.name, way] = row
            results.rows.append(row)
            row.reason = _refusal(rival, case)
            if row.reason:
                continue
            try:
                run, outputs = build(rival, way)
            except _FAILURES as error:
                row.reason = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
                continue
            row.error = gate.judge(outputs, exact["fp32"], rival.precision).error
            verdict = gate.judge(outputs, exact[rival.parameters], rival.precision)
            row.own, row.passed = verdict.error, verdict.passed
            if verdict.passed:
                runs[rival.name, way] = run
            else:
                row.reason = f"gate: relative error {verdict.error:.1e}"
    turns, budget, least = (3, 2.0, 1) if options.quick else (options.turns, options.budget, 3)
    names = {" / ".join(key): key for key in runs}
    samples = stats.interleave(
        {name: runs[key] for name, key in names.items()}, turns, budget, least
    )
    for name, seconds in samples.items():
        rows[names[name]].time = stats.Summary.of(seconds)


def _refusal(rival: Rival, case: Case) -> str:
    if rival.models is not None and case.model not in rival.models:
        return f"its export here does not cover {case.model}"
    if case.group == "growth" and not rival.ours:
        return "growth is measured of fastbert alone"
    return rival.unavailable() or ""


def _batched(
    engine: Any, inputs: Sequence[Sequence[int]], batches: Sequence[Sequence[int]]
) -> tuple[Run, list[np.ndarray]]:
    """The timed call over all batches, and the rows of every text in the texts' own order."""
    padded = [Padded.of([inputs[index] for index in batch]) for batch in batches]
    calls = [engine.prepare(batch) for batch in padded]
    outputs: list[np.ndarray] = [np.empty(0)] * len(inputs)
    for batch, indices, call in zip(padded, batches, calls, strict=True):
        for index, rows in zip(indices, batch.unpad(engine.rows(call())), strict=True):
            outputs[index] = rows.copy()

    def run() -> object:
        result: object = None
        for call in calls:
            result = call()
        return result

    return run, outputs


def _text_lengths(path: Path, inputs: Sequence[str]) -> tuple[int, ...]:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    encoded = tokenizer(list(inputs), truncation=True, max_length=MAX_TOKENS)["input_ids"]
    return tuple(map(len, encoded))


def _floors(case: Case, lengths: tuple[int, ...], bound: limits.Limits) -> dict[str, float]:
    """Milliseconds by precision."""
    found = {}
    for precision, size in limits.BYTES.items():
        floor = bound.floor(precision, case.shape.operations(lengths), case.shape.weights * size)
        if floor is not None:
            found[precision] = floor * 1e3
    return found
