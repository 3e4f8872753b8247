"""Run cases through every engine, interleaved, behind the gate: ``python -m bench --help``."""

from __future__ import annotations

import argparse
import gc
import importlib.util
import platform
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import baselines, cases as case_registry, gate, models, plot, table, texts
from bench.baselines import Baseline, Padded
from bench.build import missing_kernels
from bench.cases import Case
from bench.embedding import MAX_TOKENS, embedder
from bench.exact import Exact, token_states
from bench.results import FOLDER, Results, Row
from fastbert.tools import peak
from fastbert.tools.threads import thread_count
from fastbert.tools.timing import Run, Summary, interleave

# A failure of one engine must not end the run; it becomes that engine's line in the table.
_FAILURES = (Exception,)
# Loads an engine for an arrangement; gives its timed call and the hidden states of every text.
Build = Callable[[Baseline, str], tuple[Run, list[np.ndarray]]]


@dataclass(frozen=True)
class Settings:
    """How engines are run and timed.

    Attributes:
        threads: number of threads of each engine.
        repetitions: of the interleaved run.
        budget: seconds for one engine in one case.
        least: repetitions that an engine has even beyond its budget.
    """

    threads: int
    repetitions: int
    budget: float
    least: int = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status: 1 when a row of ours did not pass the gate or nothing was timed, 2 where
        nothing can be measured.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    refusal = missing_kernels()
    if refusal is not None:
        print(f"bench: {refusal}", file=sys.stderr)
        return 2
    name = options.name or f"{platform.node()}-{time.strftime('%Y%m%d-%H%M%S')}"
    path: Path = options.results / f"{name}.json"
    try:
        cases = case_registry.chosen(options.cases)
        engines = baselines.chosen(options.baselines)
        results = Results.resume(path)
    except ValueError as error:
        parser.error(str(error))
    settings = Settings(options.threads, options.repetitions, options.budget)
    if options.quick:
        settings = Settings(options.threads, repetitions=3, budget=2.0, least=1)
    warnings.filterwarnings("ignore")
    for engine in engines:
        if engine.unavailable() is None:
            results.versions |= engine.versions()
    timed = [_measure(case, engines, settings, results, path) for case in cases]
    if sum(timed) > 1:
        print(table.shares(results, [case.name for case in cases]), end="\n\n")
    if any(timed):
        print(f"written to {path}")
    measured = {case.name for case in cases}
    red = [row for row in results.rows if row.case in measured and row.ours and not row.passed]
    return 1 if red or not all(timed) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Run cases through every engine, interleaved, behind the parity gate.",
    )
    parser.add_argument("--cases", default="base,text", help="names or groups; see bench/cases.py")
    parser.add_argument("--baselines", default="all", help="names, parts of names, or all")
    parser.add_argument("--threads", type=thread_count, default=2)
    parser.add_argument(
        "--repetitions", type=int, default=9, help="of the interleaved run of all engines"
    )
    parser.add_argument("--budget", type=float, default=30.0, help="seconds per engine and case")
    parser.add_argument("--quick", action="store_true", help="three repetitions, two seconds each")
    parser.add_argument("--name", help="of the results' files; cases are added to them")
    parser.add_argument(
        "--results", type=Path, default=FOLDER, metavar="FOLDER", help="default: bench/results"
    )
    # Earlier names.
    hidden: dict[str, Any] = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    parser.add_argument("--rivals", dest="baselines", **hidden)
    parser.add_argument("--turns", dest="repetitions", type=int, **hidden)
    return parser


def _measure(
    case: Case, engines: Sequence[Baseline], settings: Settings, results: Results, path: Path
) -> bool:
    """Run a case, print its table and add it to the file; tell whether anything was timed."""
    print(f"{time.strftime('%H:%M:%S')} {case.name}", file=sys.stderr, flush=True)
    run = _text_case if case.texts else _token_case
    run(case, engines, settings, results)
    print(table.render(results, [case.name]), end="\n\n", flush=True)
    timed = any(row.time for row in results.of(case.name))
    if timed:
        results.save(path)
        if importlib.util.find_spec("matplotlib") is None:
            print(
                "no plot: matplotlib is not installed (pip install -e '.[bench]')", file=sys.stderr
            )
        else:
            plot.draw(results, path.with_suffix(".png"))
    return timed


def _token_case(
    case: Case, engines: Sequence[Baseline], settings: Settings, results: Results
) -> None:
    path = models.checkpoint(case.model)
    random = np.random.default_rng(1)
    inputs = [
        [int(i) for i in random.integers(1000, case.shape.vocabulary - 10, size=length)]
        for length in case.lengths
    ]
    arrangements = case_registry.arrangements(case)
    found = results.begin(case.name, peak.measure(settings.threads))
    found.lower_bounds = _lower_bounds(case, case.lengths, found.peak)
    loaded: dict[str, Any] = {}

    def build(baseline: Baseline, arrangement: str) -> tuple[Run, list[np.ndarray]]:
        if baseline.name not in loaded:
            loaded[baseline.name] = baseline.load(path, settings.threads)
        engine = loaded[baseline.name]
        if baseline.ours:
            found.plans[baseline.name] = engine.model.plan().lines()
        return _batched(engine, inputs, arrangements[arrangement])

    exact = Exact(lambda parameters: token_states(path, inputs, parameters))
    _compare(case, engines, list(arrangements), build, exact, settings, results)
    loaded.clear()
    gc.collect()


def _text_case(
    case: Case, engines: Sequence[Baseline], settings: Settings, results: Results
) -> None:
    path = models.checkpoint(case.model)
    inputs = texts.english(case.texts)
    found = results.begin(case.name, peak.measure(settings.threads))
    found.lower_bounds = _lower_bounds(case, _text_lengths(path, inputs), found.peak)
    found.notes["digest of the texts"] = texts.digest(inputs)

    def build(baseline: Baseline, arrangement: str) -> tuple[Run, list[np.ndarray]]:
        run = embedder(baseline, path, settings.threads, inputs, arrangement == "sorted")
        return run, list(run())

    def expected(parameters: str) -> list[np.ndarray]:
        exact = baselines.exact_on(parameters)
        return list(embedder(exact, path, settings.threads, inputs, True)())

    _compare(case, engines, ["arrival", "sorted"], build, Exact(expected), settings, results)


def _compare(
    case: Case,
    engines: Sequence[Baseline],
    arrangements: Sequence[str],
    build: Build,
    exact: Exact,
    settings: Settings,
    results: Results,
) -> None:
    """Build every engine in every arrangement, and time those that the gate lets through."""
    runs: dict[str, Run] = {}
    rows: dict[str, Row] = {}
    for baseline in engines:
        for arrangement in ("arrival",) if baseline.ours else arrangements:
            row = Row(case.name, baseline.name, baseline.precision, arrangement)
            results.rows.append(row)
            run = _judged(row, baseline, case, build, exact)
            if run is not None:
                name = f"{row.engine} / {row.arrangement}"
                runs[name], rows[name] = run, row
    samples = interleave(
        runs, settings.repetitions, settings.budget, settings.least, pause=case.pause
    )
    for name, seconds in samples.items():
        rows[name].time = Summary.of(seconds)


def _judged(row: Row, baseline: Baseline, case: Case, build: Build, exact: Exact) -> Run | None:
    """Build an engine and fill in its errors; return its call where the gate lets it through."""
    row.reason = _refusal(baseline, case)
    if row.reason:
        return None
    try:
        run, outputs = build(baseline, row.arrangement)
    except _FAILURES as error:
        row.reason = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return None
    row.error = gate.judge(outputs, exact["fp32"], baseline.precision).error
    verdict = gate.judge(outputs, exact[baseline.parameters], baseline.precision)
    row.own, row.passed = verdict.error, verdict.passed
    if not verdict.passed:
        row.reason = f"gate: relative error {verdict.error:.1e}"
        return None
    return run


def _refusal(baseline: Baseline, case: Case) -> str:
    if baseline.models is not None and case.model not in baseline.models:
        return f"its export here does not cover {case.model}"
    if case.group == "growth" and not baseline.ours:
        return "growth is measured of fastbert alone"
    return baseline.unavailable() or ""


def _batched(
    engine: Any, inputs: Sequence[Sequence[int]], batches: Sequence[Sequence[int]]
) -> tuple[Run, list[np.ndarray]]:
    """Return the timed call over all batches, and the hidden states in the texts' own order."""
    padded = [Padded.of([inputs[index] for index in batch]) for batch in batches]
    calls = [engine.prepare(batch) for batch in padded]
    outputs: list[np.ndarray] = [np.empty(0)] * len(inputs)
    for batch, indices, call in zip(padded, batches, calls, strict=True):
        states = batch.unpad(engine.hidden_states(call()))
        for index, found in zip(indices, states, strict=True):
            outputs[index] = found.copy()

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


def _lower_bounds(case: Case, lengths: tuple[int, ...], measured: peak.Peak) -> dict[str, float]:
    """Return the lower bound of a case in milliseconds, by precision."""
    operations = case.shape.operations(lengths)
    found = {
        precision: measured.lower_bound(precision, operations, case.shape.weights * size)
        for precision, size in peak.BYTES.items()
    }
    return {precision: bound * 1e3 for precision, bound in found.items() if bound is not None}
