"""The table: a case a block, engines sorted by time, the floor of each precision below."""

from __future__ import annotations

from collections.abc import Sequence

from .results import Results, Row


def render(results: Results, cases: Sequence[str]) -> str:
    """These cases as text."""
    blocks = ["\n".join(_block(case, results)) for case in cases]
    return "\n\n".join(blocks)


def _block(case: str, results: Results) -> list[str]:
    rows = [row for row in results.rows if row.case == case]
    floors = results.cases[case].floors
    timed = sorted((row for row in rows if row.time), key=lambda row: _median(row))
    errors = f"{'error':>9} {'own':>8}"
    lines = [f"{case:<20} {'median ms':>10} {'spread':>7} {'min ms':>9} {'floor':>6} {errors}"]
    for row in timed:
        assert row.time is not None and row.error is not None
        own = "" if row.own is None else f"{row.own:9.1e}"
        floor = results.floor(row)
        share = f"{floor / row.time.median:6.0%}" if floor else "     -"
        lines.append(
            f"  {_label(row):<28}{row.time.median:>8.2f}{row.time.spread:>8.0%}"
            f"{row.time.minimum:>10.2f} {share} {row.error:>9.1e}{own}"
        )
    lines += [f"  {_label(row):<28}   {row.reason}" for row in rows if not row.time]
    if floors:
        named = ", ".join(f"{name} {value:.2f}" for name, value in floors.items())
        lines.append(f"  {'floor, ms':<28}   {named}")
    lines += [f"  not measured: {reason}" for reason in results.cases[case].limits.reasons]
    lines += _against(rows)
    return lines


def _against(rows: Sequence[Row]) -> list[str]:
    """Ours against the fastest rival: in the same arrangement, and in the best for the rival."""
    rivals = [row for row in rows if row.time and not _is_ours(row)]
    lines = []
    for row in rows:
        if not row.time or not _is_ours(row):
            continue
        told = []
        for label, others in (
            ("fastest rival", rivals),
            ("fastest in arrival order", [r for r in rivals if r.arrangement == "arrival"]),
            (f"fastest {row.precision} rival", [r for r in rivals if r.precision == row.precision]),
        ):
            if others:
                best = min(others, key=_median)
                told.append(f"{_median(best) / _median(row):.2f}x {label} ({_label(best)})")
        if told:
            lines.append(f"  {row.engine}: " + "; ".join(dict.fromkeys(told)))
    return lines


def _is_ours(row: Row) -> bool:
    return row.engine.startswith("fastbert")


def _median(row: Row) -> float:
    assert row.time is not None
    return row.time.median


def _label(row: Row) -> str:
    return row.engine if row.arrangement == "arrival" else f"{row.engine}, {row.arrangement}"
