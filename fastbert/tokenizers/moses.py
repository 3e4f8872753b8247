"""FlauBERT's words: the Moses steps, through sacremoses, with the source of every character."""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import Any

from fastbert.tokenizers.alignment import align, nfc, normal
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


# The package's rule, which starts anew at every dot of a run, and the same rule run by run.
_QUOTE_BEHIND_DOTS = (r'(\.+)"(\s*[^<])', r'"\g<1>\g<2>')
_DOTS = re.compile(r'(\.+)(?:"(\s*[^<]))?')


def _dots_behind_quote(run: re.Match[str]) -> str:
    return run[0] if run[2] is None else f'"{run[1]}{run[2]}'


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

    class Normalizer(sacremoses.MosesPunctNormalizer):  # type: ignore[misc]
        """The package's normaliser, with its one quadratic rule replaced."""

        def __init__(self) -> None:
            super().__init__(lang="fr")
            self.substitutions: list[tuple[Any, Any]] = [
                (_DOTS, _dots_behind_quote) if rule == _QUOTE_BEHIND_DOTS else rule
                for rule in vars(self)["substitutions"]
            ]

    class Tokenizer(sacremoses.MosesTokenizer):  # type: ignore[misc]
        """The package's tokenizer, with tables made once and runs of dots replaced at once."""

        _alphabetic = frozenset(sacremoses.MosesTokenizer.IsAlpha)
        _lower = frozenset(sacremoses.MosesTokenizer.IsLower)

        def islower(self, text: str) -> bool:
            return self._lower.issuperset(text)

        def isanyalpha(self, text: str) -> bool:
            return not self._alphabetic.isdisjoint(text)

        def replace_multidots(self, text: str) -> str:
            def marked(run: re.Match[str]) -> str:
                after = " " if run.end() < len(text) else ""
                return f" {'DOT' * len(run[0])}MULTI{after}"

            return re.sub(r"\.{2,}", marked, text)

        def restore_multidots(self, text: str) -> str:
            return re.sub(r"((?:DOT)+)MULTI", lambda run: "." * (len(run[1]) // 3), text)

    return Normalizer(), Tokenizer(lang="fr")


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
    text = normal("NFC", text)
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
