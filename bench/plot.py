"""Bars of every engine per case, with a line for the lower bound of each precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.results import Results, Row

_COLOURS = {"fp32": "#7a8ba8", "bf16": "#4a9f8e", "int8": "#d98a3d"}


def draw(results: Results, path: Path) -> None:
    """Draw medians as bars, quartiles as whiskers and lower bounds as dashed lines.

    Args:
        results: at least one timed row.
        path: where to, ending in .png or .svg.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    cases = {
        case: sorted((row for row in results.of(case) if row.time), key=lambda row: row.median)
        for case in dict.fromkeys(row.case for row in results.rows)
    }
    cases = {case: rows for case, rows in cases.items() if rows}
    heights = [0.8 + 0.26 * len(rows) for rows in cases.values()]
    figure, axes = pyplot.subplots(
        len(cases),
        1,
        figsize=(9, sum(heights) + 0.6),
        squeeze=False,
        gridspec_kw={"height_ratios": heights},
        layout="constrained",
    )
    for axis, (case, rows) in zip(axes[:, 0], cases.items(), strict=True):
        _draw_case(axis, rows)
        for precision, bound in results.cases[case].lower_bounds.items():
            axis.axvline(bound, color=_COLOURS[precision], linestyle="--", linewidth=1.2)
        axis.set_title(f"{case}: milliseconds, less is better", fontsize=9, loc="left")
    handles = [Patch(color=colour, label=name) for name, colour in _COLOURS.items()]
    axes[0, 0].legend(handles=handles, fontsize=8, title="dashed: lower bound", title_fontsize=8)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _draw_case(axis: Any, rows: list[Row]) -> None:
    for position, row in enumerate(rows):
        assert row.time is not None
        axis.barh(
            position,
            row.median,
            color=_COLOURS[row.precision],
            edgecolor="black" if row.ours else "none",
            linewidth=1.6,
            xerr=[[row.median - row.time.quarter], [row.time.three_quarters - row.median]],
            error_kw={"elinewidth": 0.8, "ecolor": "#444444"},
        )
    labels = [f"{r.engine}{'' if r.arrangement == 'arrival' else ' (sorted)'}" for r in rows]
    axis.set_yticks(range(len(rows)), labels, fontsize=8)
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)
