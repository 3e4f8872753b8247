"""Write what a record says: a table, the goals, a plot, the Plan's table of measurements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.gpu.goals import OURS, verdicts
from bench.gpu.record import Record, Row
from fastbert.checkpoints.storage import write_text
from fastbert.kernels import measured

_OURS = "#4a9f8e"
_BASELINE = "#7a8ba8"


def text(record: Record) -> str:
    """Write every row, a case a block, the fastest first; then the goals."""
    lines = [f"{record.gpu}, {record.date}, commit {record.commit}, {record.versions}"]
    if record.dry_run:
        lines.insert(0, "DRY RUN on a CPU with tiny sizes: nothing below is a measurement")
    for part, case in dict.fromkeys((row.part, row.case) for row in record.rows):
        lines.append(f"{part}: {case}")
        rows = [row for row in record.rows if (row.part, row.case) == (part, case)]
        for row in sorted(rows, key=lambda row: row.median_ms or float("inf")):
            lines.append(f"  {row.engine:<32} {figure(row)}")
    lines.append("goals")
    unreal = "no measurement: " if record.dry_run else ""
    lines += [f"  {unreal}{verdict.line()}" for verdict in verdicts(record)]
    return "\n".join(lines)


def figure(row: Row) -> str:
    """Write the figures and the note of a row."""
    told = []
    if row.median_ms is not None:
        told.append(f"{row.median_ms:10.4f} ms")
    if row.rate is not None:
        told.append(f"{row.rate:10.4g} {row.unit}")
    if row.error is not None:
        told.append(f"error {row.error:.1e}")
    return "  ".join([*told, row.note] if row.note else told)


def draw(record: Record, path: Path) -> bool:
    """Draw bars of rates, a panel a case, ours in colour.

    Returns:
        False when there is nothing to draw.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    parts = ("attention", "rows", "gemm", "models")
    rows = [row for row in record.rows if row.part in parts and row.rate and row.median_ms]
    cases = list(dict.fromkeys(row.case for row in rows))
    if not cases:
        return False
    heights = [0.7 + 0.22 * sum(row.case == case for row in rows) for case in cases]
    figure, axes = pyplot.subplots(
        len(cases), 1, figsize=(9, sum(heights)), squeeze=False, layout="constrained",
        gridspec_kw={"height_ratios": heights},
    )  # fmt: skip
    for axis, case in zip(axes[:, 0], cases, strict=True):
        shown = sorted((r for r in rows if r.case == case), key=lambda r: r.rate or 0.0)
        colours = [_OURS if is_ours(row) else _BASELINE for row in shown]
        axis.barh([row.engine for row in shown], [row.rate or 0.0 for row in shown], color=colours)
        axis.tick_params(labelsize=7)
        axis.set_title(f"{case}: {shown[0].unit}, more is better", fontsize=8, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{record.gpu}, {record.date}", fontsize=9)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True


def is_ours(row: Row) -> bool:
    """Tell whether a row is of fastbert."""
    # "cpu" stands for our kernels in a dry run.
    return row.engine in (*OURS, "cpu") or row.engine.startswith("fastbert")


def measurements(record: Record) -> dict[str, Any]:
    """Make the record's entry in the Plan's table, of the cases that were measured for it."""
    cases: dict[tuple[str, str, int, str, tuple[int, ...]], dict[str, float]] = {}
    for row in record.rows:
        if row.op and row.median_ms is not None:
            key = (row.op, row.dtype, row.size, row.case, row.weight)
            cases.setdefault(key, {})[row.engine] = round(row.median_ms, 6)
    rows = [
        {"op": op, "dtype": dtype, "size": size, "case": case, "ms": times}
        | ({"weight": list(weight)} if weight else {})
        for (op, dtype, size, case, weight), times in cases.items()
    ]
    return {
        "capability": record.capability,
        "date": record.date,
        "commit": record.commit,
        "versions": record.versions,
        "rows": rows,
    }


def write_measurements(record: Record, path: Path = measured.PATH) -> int:
    """Put the record's entry into the Plan's table, in place of an earlier one of that GPU.

    Args:
        record: the measurements.
        path: the table's file.

    Returns:
        The number of cases in the entry. With none the file is left alone.

    Raises:
        ValueError: for a dry run, or a table that would not be one.
    """
    if record.dry_run:
        raise ValueError("A dry run measures no GPU; its figures do not go into the Plan's table.")
    entry = measurements(record)
    if entry["rows"]:
        table = json.loads(path.read_text(encoding="utf-8"))
        table["gpus"][record.gpu] = entry
        write_text(path, json.dumps(measured.checked(table), indent=1) + "\n")
    return len(entry["rows"])
