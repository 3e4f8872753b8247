"""The sample sentences that come with the package: eight topics, English and French."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Sample:
    """A sentence.

    Attributes:
        topic: its subject, which eight sentences share.
        language: "en" or "fr".
        text: the sentence.
    """

    topic: str
    language: str
    text: str


def sentences() -> list[Sample]:
    """Return all 64 sample sentences, topic by topic."""
    table = resources.files("fastbert").joinpath("data/sentences.tsv").read_text(encoding="utf-8")
    return [Sample(*line.split("\t")) for line in table.splitlines()]
