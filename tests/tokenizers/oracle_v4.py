"""Run by the tests with the Python of transformers 4.56.2: loads folders that fastbert saved.

python oracle_v4.py FOLDER... prints one JSON list: for each folder the ids of the texts. A folder's
class is the one its tokenizer_config.json names; "+fast" after a folder asks for the Rust class.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tok_corpus
import transformers


def main() -> None:
    """Prints the answers."""
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    texts = tok_corpus.texts()[::16]
    found = []
    for argument in sys.argv[1:]:
        folder, _, kind = argument.partition("+")
        settings = json.loads((Path(folder) / "tokenizer_config.json").read_text())
        name = settings["tokenizer_class"].removesuffix("Fast")
        name = {"BertTokenizerLegacy": "BertTokenizer"}.get(name, name) + kind.title()
        tok = getattr(transformers, name).from_pretrained(folder)
        found.append([tok(text)["input_ids"] for text in texts])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
