"""FlauBERT's words: the Moses steps, through sacremoses, with the source of every character."""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import Any

from fastbert.tokenizers.alignment import align, nfc
from fastbert.tokenizers.engines.encoding import Span

# Moses' replace-unicode-punctuation: East Asian and typographic punctuation in ASCII.
_FULL_STOPS = re.compile(r"[。．]\s*")
_PUNCTUATION = str.maketrans(
    {
        **dict(zip("，、∶：？！（）；～％", ",,::?!();~%", strict=True)),
        **dict(zip("０１２３４５６７８９", "0123456789", strict=True)),
        **dict.fromkeys("”“《》」「", '"'),
        **dict(zip("’━〈〉【】", "'-<>[]", strict=True)),
        "…": "...",
    }
)


@functools.cache
def _moses() -> tuple[Any, Any]:
    """Return sacremoses' punctuation normaliser and tokenizer for French."""
    try:
        import sacremoses
    except ImportError as error:
        raise ImportError(
            "FlaubertTokenizer needs sacremoses for the Moses steps, and it is not installed: "
            "pip install fastbert-kernels[flaubert]"
        ) from error
    return sacremoses.MosesPunctNormalizer(lang="fr"), sacremoses.MosesTokenizer(lang="fr")


def require() -> None:
    """Raise an ImportError that names the extra to install where sacremoses is missing."""
    _moses()


def _ascii_punctuation(text: str) -> str:
    return _FULL_STOPS.sub(". ", text).translate(_PUNCTUATION)


def _printable(text: str) -> str:
    """Drop the characters of Unicode's category C (controls, formats, unassigned)."""
    if text.isprintable():  # which implies it, and is thirty times faster to ask
        return text
    return "".join(char for char in text if unicodedata.category(char)[0] != "C")


def words(text: str, lowercase: bool) -> list[str]:
    """Cut a text into the words that FlauBERT's BPE is applied to."""
    normalizer, tokenizer = _moses()
    text = text.replace("``", '"').replace("''", '"')
    text = unicodedata.normalize("NFC", text)
    text = text.lower() if lowercase else text
    text = _printable(normalizer.normalize(_ascii_punctuation(text)))
    return [word for word in tokenizer.tokenize(text, return_str=False, escape=False) if word]


def spans(text: str, found: list[str], lowercase: bool) -> list[list[Span]]:
    """Find where in `text` every character of the words `found` in it came from."""
    composed, origins = nfc(text)
    source: list[tuple[str, Span]] = []
    for index, char in enumerate(composed):
        origin = (index, index + 1) if origins is None else origins[index]
        char = char.lower() if lowercase else char
        for one in _printable(_ascii_punctuation(char)):
            if not one.isspace():
                source.append((one, origin))
    return align(source, found)
