"""Bars of every engine per case, with a line for the hardware's limit."""

from __future__ import annotations

from pathlib import Path

from .results import Results, Row

_COLOURS = {"fp32": "#7a8ba8", "bf16": "#4a9f8e", "int8": "#d98a3d"}


def draw(results: Results, path: Path) -> None:
    """Writes a picture of the run: medians, quartiles as whiskers, floors as dashed lines.

    Args:
        results: at least one timed row.
        path: where to, ending in .png or .svg.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    cases = {
        case: sorted((row for row in results.rows if row.case == case and row.time), key=_median)
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
        for position, row in enumerate(rows):
            assert row.time is not None
            ours = row.engine.startswith("fastbert")
            axis.barh(
                position,
                row.time.median,
                color=_COLOURS[row.precision],
                edgecolor="black" if ours else "none",
                linewidth=1.6,
                xerr=[
                    [row.time.median - row.time.quarter],
                    [row.time.three_quarters - row.time.median],
                ],
                error_kw={"elinewidth": 0.8, "ecolor": "#444444"},
            )
        labels = [f"{r.engine}{'' if r.arrangement == 'arrival' else ' (sorted)'}" for r in rows]
        axis.set_yticks(range(len(rows)), labels, fontsize=8)
        axis.invert_yaxis()
        for precision, floor in results.cases[case].floors.items():
            axis.axvline(floor, color=_COLOURS[precision], linestyle="--", linewidth=1.2)
        axis.set_title(f"{case}: milliseconds, less is better", fontsize=9, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    handles = [Patch(color=colour, label=name) for name, colour in _COLOURS.items()]
    axes[0, 0].legend(handles=handles, fontsize=8, title="dashed: the limit", title_fontsize=8)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _median(row: Row) -> float:
    assert row.time is not None
    return row.time.median
