"""The sample sentences that come with the package: eight topics, English and French."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Sample:
    """One sentence; the same topic holds its translation."""

    topic: str
    language: str
    text: str


def sentences() -> list[Sample]:
    """All 64 sample sentences, topic by topic."""
    table = resources.files("fastbert").joinpath("data/sentences.tsv").read_text(encoding="utf-8")
    return [Sample(*line.split("\t")) for line in table.splitlines()]
