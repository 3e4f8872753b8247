"""The table: a case a block, engines sorted by time, the lower bound of each precision below."""

from __future__ import annotations

from collections.abc import Sequence

from bench.results import Results, Row
from fastbert.tools.tables import table

_HEADER = ("median ms", "spread", "min ms", "p95 ms", "bound", "error", "own")


def render(results: Results, cases: Sequence[str]) -> str:
    """Write these cases as text.

    "bound" is the lower bound as a share of the median; "error" is against float32 on the file's
    parameters, "own" against float32 on the parameters that the engine was given.
    """
    return "\n\n".join(_block(case, results) for case in cases)


def shares(results: Results, cases: Sequence[str]) -> str:
    """Write fastbert's medians of these cases side by side, a column a precision.

    In brackets stands the lower bound as a share of the median: how near a case is to what the
    processor can do, and so whether one model falls behind another.
    """
    timed = [row for case in cases for row in results.of(case) if row.ours and row.time]
    precisions = list(dict.fromkeys(row.precision for row in timed))
    cells = [["fastbert, ms (bound)", *precisions]]
    for case in dict.fromkeys(row.case for row in timed):
        found = {row.precision: _share(row, results) for row in timed if row.case == case}
        cells.append([f"  {case}", *(found.get(precision, "-") for precision in precisions)])
    return table(cells)


def _share(row: Row, results: Results) -> str:
    bound = results.lower_bound(row)
    told = "-" if bound is None else f"{bound / row.median:.0%}"
    digits = 0 if row.median >= 100 else 1
    return f"{row.median:.{digits}f} ({told})"


def _block(case: str, results: Results) -> str:
    rows, circumstances = results.of(case), results.cases[case]
    cells = [[case, *_HEADER]]
    for row in sorted((row for row in rows if row.time), key=lambda row: row.median):
        cells.append([f"  {_label(row)}", *_figures(row, results.lower_bound(row))])
    refused = [[_label(row), row.reason] for row in rows if not row.time]
    lines = [table(cells)]
    if refused:
        lines.append(table(refused, left=(0, 1), indent="  "))
    if circumstances.lower_bounds:
        bounds = ", ".join(f"{name} {ms:.2f}" for name, ms in circumstances.lower_bounds.items())
        lines.append(f"  lower bound, ms: {bounds}")
    lines += [f"  peak not measured: {reason}" for reason in circumstances.peak.reasons]
    return "\n".join([*lines, *_against(rows)])


def _figures(row: Row, bound: float | None) -> list[str]:
    assert row.time is not None and row.error is not None
    return [
        f"{row.time.median:.2f}",
        f"{row.time.spread:.0%}",
        f"{row.time.minimum:.2f}",
        "" if row.time.ninety_fifth is None else f"{row.time.ninety_fifth:.2f}",
        "-" if bound is None else f"{bound / row.time.median:.0%}",
        f"{row.error:.1e}",
        "" if row.own is None else f"{row.own:.1e}",
    ]


def _against(rows: Sequence[Row]) -> list[str]:
    """Compare ours with the fastest baseline: of all, in arrival order, of the same precision."""
    baselines = [row for row in rows if row.time and not row.ours]
    lines = []
    for row in rows:
        if not row.time or not row.ours:
            continue
        alike = [other for other in baselines if other.precision == row.precision]
        arrived = [other for other in baselines if other.arrangement == "arrival"]
        told = [
            f"{best.median / row.median:.2f}x {label} ({_label(best)})"
            for label, others in (
                ("fastest baseline", baselines),
                ("fastest in arrival order", arrived),
                (f"fastest {row.precision} baseline", alike),
            )
            if (best := min(others, key=lambda other: other.median, default=None))
        ]
        if told:
            lines.append(f"  {row.engine}: " + "; ".join(told))
    return lines


def _label(row: Row) -> str:
    return row.engine if row.arrangement == "arrival" else f"{row.engine}, {row.arrangement}"
