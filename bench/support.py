"""The README's table of ops, backends and dtypes: ``python -m bench.support`` rewrites it."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastbert import kernels
from fastbert.kernels.registration import support_table

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN = "<!-- written by python -m bench.support -->"
END = "<!-- end -->"


def rows() -> list[list[str]]:
    """Return header and rows as text cells."""
    names = ["op", "reference", *kernels.NAMES]
    found = [[row[name] for name in names] for row in support_table()]
    return [names, *[[f"`{op}`", *cells] for op, *cells in found]]


def markdown() -> str:
    """Write the table from the registry of this installation."""
    header, *body = rows()
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def in_readme() -> list[list[str]]:
    """Return header and rows of the table that stands in the README."""
    table = README.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip()
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()]
    return [lines[0], *lines[2:]]


def main() -> None:
    """Put the table into the README."""
    argparse.ArgumentParser(prog="python -m bench.support", description=__doc__).parse_args()
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    README.write_text(f"{before}{BEGIN}\n{markdown()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
