"""``python -m bench.accuracy``: what reduced precision costs on the real MiniLM."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import numpy as np

import fastbert
from fastbert.demo import PRECISIONS, agreement_of
from fastbert.samples import sentences

from . import results, texts
from .models import minilm_path

_ENGLISH = 384
_FRENCH = 128


def corpus() -> list[str]:
    """512 texts of mixed length: English documentation, and French made of the sample sentences."""
    french = [sample.text for sample in sentences() if sample.language == "fr"]
    random = np.random.default_rng(2)
    joined = [
        " ".join(french[index] for index in random.choice(len(french), 1 + at % 4, replace=False))
        for at in range(_FRENCH)
    ]
    return texts.english(_ENGLISH) + joined


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; with --name writes it to bench/results/ too."""
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy", description=__doc__)
    parser.add_argument("--name", help="of a file in bench/results")
    options = parser.parse_args(arguments)
    inputs = corpus()
    path = minilm_path()
    with fastbert.use_backend("reference"):
        exact = np.asarray(fastbert.SentenceEncoder.from_pretrained(path).encode(inputs))
    found = {}
    print(f"{len(inputs)} texts, {texts.digest(inputs)}")
    print(f"{'precision':<12}{'cosine mean':>13}{'least':>12}{'nearest unchanged':>20}")
    for name, loading in PRECISIONS.items():
        encoder = fastbert.SentenceEncoder.from_pretrained(path, backend="cpu", **loading)
        mean, least, unchanged = agreement_of(exact, np.asarray(encoder.encode(inputs)))
        found[name] = {"mean": mean, "least": least, "nearest_unchanged": unchanged}
        print(f"{name:<12}{mean:>13.6f}{least:>12.6f}{unchanged:>20.1%}")
    if options.name:
        record = {"machine": results.machine(), "digest": texts.digest(inputs), "cosine": found}
        target = results.FOLDER / f"{options.name}.json"
        target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"written to {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
