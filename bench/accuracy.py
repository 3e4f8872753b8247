"""``python -m bench.accuracy``: what reduced precision costs on the real MiniLM."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import numpy as np

import fastbert
from fastbert.tools.demo import PRECISIONS, agreement_of
from fastbert.tools.samples import sentences

from . import results, texts
from .models import minilm_path

# What int8 must reach: cosine to float32 (mean, least), texts whose nearest text stays the same.
REQUIRED = {"mean": 0.999, "least": 0.997, "nearest_unchanged": 0.97}
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


def exact(inputs: Sequence[str]) -> np.ndarray:
    """The float32 embeddings of the reference path, (texts, dimension)."""
    with fastbert.use_backend("reference"):
        encoder = fastbert.SentenceEncoder.from_pretrained(minilm_path(), dtype="float32")
        return np.asarray(encoder.encode(list(inputs)))


def measure(precision: str, inputs: Sequence[str], truth: np.ndarray) -> dict[str, float]:
    """How near the embeddings of a precision (float32, bfloat16, int8) come, by REQUIRED's keys."""
    encoder = fastbert.SentenceEncoder.from_pretrained(
        minilm_path(), backend="cpu", **PRECISIONS[precision]
    )
    found = agreement_of(truth, np.asarray(encoder.encode(list(inputs))))
    return dict(zip(REQUIRED, found, strict=True))


def misses(found: dict[str, float]) -> list[str]:
    """What of REQUIRED was not reached, in words."""
    return [
        f"{name} is {found[name]:.6f}, required is {least}"
        for name, least in REQUIRED.items()
        if not found[name] >= least
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; with --name writes it to bench/results/ too.

    Returns:
        1 where int8 misses what is REQUIRED of it, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy", description=__doc__)
    parser.add_argument("--name", help="of a file in bench/results")
    options = parser.parse_args(arguments)
    inputs = corpus()
    truth = exact(inputs)
    print(f"{len(inputs)} texts, {texts.digest(inputs)}")
    print(f"{'precision':<12}{'cosine mean':>13}{'least':>12}{'nearest unchanged':>20}")
    found = {}
    for name in PRECISIONS:
        found[name] = measure(name, inputs, truth)
        mean, least, unchanged = found[name].values()
        print(f"{name:<12}{mean:>13.6f}{least:>12.6f}{unchanged:>20.1%}")
    missed = misses(found["int8"])
    print("int8: " + ("; ".join(missed) or "reaches what is required"))
    if options.name:
        record = {"machine": results.machine(), "digest": texts.digest(inputs), "cosine": found}
        target = results.FOLDER / f"{options.name}.json"
        target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"written to {target}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
