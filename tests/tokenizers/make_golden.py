"""Records what transformers 4.56.2 answers, into golden/v4.json.xz.

Run with an environment that has transformers==4.56.2, sentencepiece, protobuf and sacremoses:
python tests/tokenizers/make_golden.py [--out FILE]. Of each answer a 24-bit hash is kept, and of
every two hundredth text the whole answer.
"""

from __future__ import annotations

import argparse
import json
import lzma
import tempfile
from pathlib import Path

import tok_cases
import tok_corpus

GOLDEN = tok_cases.HERE / "golden" / "v4.json.xz"


def record() -> dict[str, object]:
    """The answers of every case."""
    import sentencepiece
    import transformers

    transformers.logging.set_verbosity(transformers.logging.CRITICAL)

    classes = {"BertTokenizerLegacy": "BertTokenizer"}
    texts = tok_corpus.texts()
    cases: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        models = tok_cases.unpack(Path(folder))
        for case in tok_cases.CASES:
            cls = getattr(transformers, classes.get(case.cls, case.cls))
            tok = tok_cases.make(case, cls, models)
            if case.added:
                tok_cases.extend(tok)
            found = tok_cases.answers(tok, case.fast, tok_cases.texts_of(case))
            cases[case.name] = {
                "summary": tok_cases.summary(tok),
                "hashes": {
                    part: "".join(tok_corpus.digest(one[part]) for one in found)
                    for part in tok_cases.PARTS
                },
                "whole": {str(i): found[i] for i in range(0, len(found), 200)},
            }
    return {
        "transformers": transformers.__version__,
        "sentencepiece": sentencepiece.__version__,
        "texts": len(texts),
        "corpus": tok_corpus.digest(json.dumps(texts)),
        "cases": cases,
    }


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=GOLDEN)
    out = parser.parse_args().out
    text = json.dumps(record(), sort_keys=True).encode()
    out.write_bytes(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
    print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
