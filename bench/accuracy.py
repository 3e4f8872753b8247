"""Measure what reduced precision costs on the real MiniLM: ``python -m bench.accuracy``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

import fastbert
from bench import texts
from bench.models import minilm_path
from bench.results import FOLDER
from fastbert.checkpoints.storage import write_text
from fastbert.tools.demo import PRECISIONS, Agreement, agreement_table
from fastbert.tools.env import machine
from fastbert.tools.samples import sentences

# What int8 must reach.
REQUIRED = Agreement(mean=0.999, least=0.997, nearest_unchanged=0.97)
_ENGLISH = 384
_FRENCH = 128


def corpus() -> list[str]:
    """Make 512 texts of mixed length.

    They are English documentation, and French made of the sample sentences.
    """
    french = [sample.text for sample in sentences() if sample.language == "fr"]
    random = np.random.default_rng(2)
    joined = [
        " ".join(french[index] for index in random.choice(len(french), 1 + at % 4, replace=False))
        for at in range(_FRENCH)
    ]
    return texts.english(_ENGLISH) + joined


def exact(inputs: Sequence[str]) -> np.ndarray:
    """Compute the float32 embeddings of the reference path, (texts, dimension)."""
    with fastbert.use_backend("reference"):
        encoder = fastbert.SentenceEncoder.from_pretrained(minilm_path(), dtype="float32")
        return np.asarray(encoder.encode(list(inputs)))


def measure(precision: str, inputs: Sequence[str], truth: np.ndarray) -> Agreement:
    """Compare the embeddings of a precision with exact ones.

    Args:
        precision: "float32", "bfloat16" or "int8".
        inputs: the texts.
        truth: their exact embeddings, (texts, dimension).
    """
    encoder = fastbert.SentenceEncoder.from_pretrained(
        minilm_path(), backend="cpu", **PRECISIONS[precision]
    )
    return Agreement.of(truth, np.asarray(encoder.encode(list(inputs))))


def misses(found: Agreement) -> list[str]:
    """Name what of REQUIRED was not reached."""
    figures = asdict(found)
    return [
        f"{name} is {figures[name]:.6f}, required is {least}"
        for name, least in asdict(REQUIRED).items()
        if not figures[name] >= least
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; with --name write it to a file of results too.

    Returns:
        The exit status: 1 where int8 misses what is REQUIRED of it, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy", description=__doc__)
    parser.add_argument("--name", help="of a file of results")
    parser.add_argument("--results", type=Path, default=FOLDER, metavar="FOLDER")
    options = parser.parse_args(arguments)
    inputs = corpus()
    truth = exact(inputs)
    print(f"{len(inputs)} texts, {texts.digest(inputs)}")
    found = {name: measure(name, inputs, truth) for name in PRECISIONS}
    print(agreement_table(found))
    missed = misses(found["int8"])
    print("int8: " + ("; ".join(missed) or "reaches what is required"))
    if options.name:
        cosines = {name: asdict(near) for name, near in found.items()}
        record = {"machine": machine(), "digest": texts.digest(inputs), "cosine": cosines}
        target = options.results / f"{options.name}.json"
        write_text(target, json.dumps(record, indent=1) + "\n")
        print(f"written to {target}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
