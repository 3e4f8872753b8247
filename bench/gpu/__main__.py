"""Measure one part: `python -m bench.gpu PART ...`. bench/gpu.sh runs all, with time limits."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

import torch

from bench.gpu import models, ops, report
from bench.gpu.record import Record
from bench.gpu.timing import Stopwatch
from bench.results import FOLDER
from fastbert.kernels import measured


def main(arguments: list[str] | None = None) -> int:
    """Run one part. The exit status is 1 when a case of ours has no figure."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--results", type=Path, default=FOLDER, metavar="FOLDER")
    parts = parser.add_subparsers(dest="part", required=True)
    for name, module in (("ops", ops), ("models", models)):
        part = parts.add_parser(name)
        part.add_argument("group", choices=module.GROUPS)
        part.add_argument("--seconds", type=float, default=480.0, help="start no case after these")
    for name, told in (
        ("report", "table, goals and plot of what is there"),
        ("table", "put the measurements into the Plan's table"),
    ):
        part = parts.add_parser(name, help=told)
        part.add_argument("--record", type=Path, metavar="FILE", help="of another machine or day")
    parts.add_parser("where", help="where this machine's record is")
    merge = parts.add_parser("merge", help="records of one GPU and day into one")
    merge.add_argument("records", nargs="+", type=Path)
    given = parser.parse_args(arguments)
    if given.dry_run and given.results == FOLDER:
        parser.error("a dry run has no results; give it another --results folder")
    if given.part == "merge":
        return _merge(given.records, given.results)
    if getattr(given, "record", None) is not None:
        record = Record.load(given.record)
    else:
        record = Record.here(given.dry_run).resumed(given.results)
    if given.part == "where":
        print(given.results / f"{record.stem}.json")
        return 0
    if given.part == "report":
        return _report(record, given.results)
    if given.part == "table":
        print(f"{report.write_measurements(record)} cases went into the Plan's table")
        # The table of a machine that is lent for measuring goes back with it.
        given.results.mkdir(parents=True, exist_ok=True)
        shutil.copy(measured.PATH, given.results / measured.PATH.name)
        return 0
    return _measure(record, given)


def _measure(record: Record, given: argparse.Namespace) -> int:
    begin = time.monotonic()
    torch.manual_seed(0)
    device = torch.device("cpu") if given.dry_run else torch.device("cuda", 0)
    # Seconds for one set of calls; the Plan's table is made of many.
    budget = {"ops": 0.3 if given.group.startswith("choice") else 0.7, "models": 2.0}[given.part]
    watch = Stopwatch(device, budget)
    if given.part == "ops":
        rows = ops.run(given.group, ops.Bench(device, watch, 64 if given.dry_run else 1))
    else:
        rows = models.run(given.group, models.Models(device, watch, given.dry_run))
    without = 0
    for found in rows:
        record.add(found)
        record.save(given.results)
        for row in found:
            print(f"{row.case:<40} {row.engine:<32} {report.figure(row)}", flush=True)
            ours = report.is_ours(row) and row.rate is None and row.error is None
            without += ours and not row.note.startswith(("not measured", "Unavailable"))
        if time.monotonic() - begin > given.seconds:
            print(f"{given.group}: its time is up; what was measured is written", file=sys.stderr)
            return 1
    return 1 if without else 0


def _report(record: Record, folder: Path) -> int:
    if not record.rows:
        print(f"There is no record of {record.gpu} of today in {folder}.", file=sys.stderr)
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    print(report.text(record))
    (folder / f"{record.stem}.txt").write_text(report.text(record) + "\n", encoding="utf-8")
    try:
        drawn = report.draw(record, folder / f"{record.stem}.png")
    except ImportError as error:
        print(f"There is no plot ({error}); everything else is written.", file=sys.stderr)
        return 1
    if drawn:
        print(f"plot: {folder / record.stem}.png")
    return 0


def _merge(paths: list[Path], folder: Path) -> int:
    records = [Record.load(path) for path in paths]
    first = records[0]
    for other in records[1:]:
        if (other.gpu, other.dry_run) != (first.gpu, first.dry_run):
            raise SystemExit(f"{first.gpu} and {other.gpu} are not one machine; merge each alone.")
        first.add(other.rows)
    print(f"written: {first.save(folder)}")
    return _report(first, folder)


if __name__ == "__main__":
    sys.exit(main())
