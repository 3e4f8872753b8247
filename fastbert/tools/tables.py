"""Text tables with aligned columns."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def table(rows: Sequence[Sequence[str]], left: Collection[int] = (0,), indent: str = "") -> str:
    """Align rows of cells, with two spaces between columns.

    Args:
        rows: the cells of every row, the header first; a row may have fewer than the widest.
        left: indices of the columns that are aligned on the left; the others are on the right.
        indent: what stands before every row.
    """
    count = max(map(len, rows), default=0)
    widths = [max(len(row[at]) for row in rows if at < len(row)) for at in range(count)]
    lines = []
    for row in rows:
        cells = [
            f"{cell:<{width}}" if at in left else f"{cell:>{width}}"
            for at, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        lines.append((indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)
