"""WordPiece: its vocabulary files, and the algorithm in Python."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fastbert.checkpoints.storage import write_text
from fastbert.tokenizers import files
from fastbert.tokenizers.alignment import nfc
from fastbert.tokenizers.engines import holes
from fastbert.tokenizers.engines.encoding import Span
from fastbert.tokenizers.engines.python import PieceEngine, Pieces
from fastbert.tokenizers.engines.template import BERT_TEMPLATE

# Longer words are unknown as a whole; the limit is the original's.
_LONGEST_WORD = 100
# The CJK ideographs, each a word of its own; kana and Hangul are written with spaces or in runs.
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)

# Characters, each with the span of the text it came from.
Chars = list[tuple[str, Span]]


def read_vocabulary(source: str | os.PathLike[str] | dict[str, int] | None) -> dict[str, int]:
    """Read the id of every token.

    Args:
        source: a vocab.txt (one token a line, the id is the line's number), or a dict of ids.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for a file that is empty or not UTF-8, and for ids that are no table.
    """
    if isinstance(source, dict):
        ids = list(source.values())
        if not all(isinstance(index, int) and index >= 0 for index in ids):
            raise ValueError("The ids of a vocabulary must be integers from 0 on.")
        if len(set(ids)) < len(ids):
            raise ValueError("Two tokens of the vocabulary have the same id.")
        return source
    path = files.existing_file(
        source, "vocabulary file", "pass vocab_file= (a vocab.txt), or use from_pretrained(folder)."
    )
    try:
        # Only "\n" ends a token: vocabularies hold other line separators as tokens.
        lines = path.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is not a vocabulary of UTF-8 lines ({error}).") from error
    lines = lines[:-1] if lines[-1] == "" else lines
    if not lines:
        raise ValueError(f"'{path}' is empty; a vocab.txt holds one token a line.")
    tokens = {line.rstrip("\r"): index for index, line in enumerate(lines)}
    return {token: index for token, index in tokens.items() if not holes.is_filler(token)}


def write_vocabulary(vocab: dict[str, int], folder: str, prefix: str | None) -> tuple[str]:
    """Write vocab.txt, in the order of the ids, and return its path.

    An id without a token, as a line that stands twice leaves one, gets a line of its own, so that
    the ids after it stay what they are.
    """
    path = Path(folder) / (f"{prefix}-vocab.txt" if prefix else "vocab.txt")
    filled = vocab | holes.fillers(vocab.values())
    ordered = sorted(filled, key=filled.__getitem__)
    write_text(path, "".join(f"{token}\n" for token in ordered))
    return (str(path),)


def _is_ideograph(char: str) -> bool:
    point = ord(char)
    return point >= 0x3400 and any(low <= point <= high for low, high in _IDEOGRAPHS)


def _is_punctuation(char: str) -> bool:
    """Return whether BERT calls a character punctuation, as it does ASCII symbols ($, +, ^)."""
    if char.isascii():
        return not char.isalnum() and " " < char < "\x7f"
    return unicodedata.category(char)[0] == "P"


def _is_dropped(char: str) -> bool:
    if char in "\t\n\r":
        return False
    return char in "\x00\ufffd" or unicodedata.category(char)[0] == "C"


def _is_space(char: str) -> bool:
    return char in " \t\n\r" or unicodedata.category(char) == "Zs"


def _split_at_spaces(chars: Chars) -> list[Chars]:
    words: list[Chars] = [[]]
    for one in chars:
        if one[0].isspace():
            words.append([])
        else:
            words[-1].append(one)
    return [word for word in words if word]


def _text(chars: Chars) -> str:
    return "".join(char for char, _ in chars)


class BasicWords:
    """BERT's splitting at spaces and punctuation, with cleaning, lower-casing and accents.

    Args:
        lowercase: lower-case the words.
        never_split: words that stay whole and as they are.
        chinese: make a word of every CJK ideograph.
        strip_accents: strip accents; None does where words are lower-cased.
    """

    def __init__(
        self,
        *,
        lowercase: bool,
        never_split: Iterable[str],
        chinese: bool,
        strip_accents: bool | None,
    ) -> None:
        self.lowercase = lowercase
        # A dict rather than a set: pickles of it are the same in every process.
        self.never_split = dict.fromkeys(never_split)
        self.chinese = chinese
        self.strip = lowercase if strip_accents is None else strip_accents

    def __call__(self, text: str) -> list[Chars]:
        """Cut a text into words."""
        words: list[Chars] = []
        for word in _split_at_spaces(self._composed(self._cleaned(text))):
            if _text(word) in self.never_split:
                words.append(word)
                continue
            folded = self._folded(word)
            if _text(folded) in self.never_split:
                words += _split_at_spaces(folded)
                continue
            start = 0
            for index, (char, _) in enumerate(folded):
                if _is_punctuation(char):
                    words += _split_at_spaces(folded[start:index])
                    words.append(folded[index : index + 1])
                    start = index + 1
            words += _split_at_spaces(folded[start:])
        return words

    def _cleaned(self, text: str) -> Chars:
        chars: Chars = []
        for index, char in enumerate(text):
            if _is_dropped(char):
                continue
            span = (index, index + 1)
            if self.chinese and _is_ideograph(char):
                chars += [(" ", span), (char, span), (" ", span)]
            else:
                chars.append((" " if _is_space(char) else char, span))
        return chars

    def _composed(self, chars: Chars) -> Chars:
        text, spans = nfc(_text(chars))
        if spans is None:
            return chars
        return [
            (char, (chars[start][1][0], chars[end - 1][1][1]))
            for char, (start, end) in zip(text, spans, strict=True)
        ]

    def _folded(self, word: Chars) -> Chars:
        if self.lowercase:
            # Lower-casing the whole word lets a final sigma be one; lengths are those of each.
            low = iter(_text(word).lower())
            word = [(next(low), span) for char, span in word for _ in char.lower()]
        if self.strip:
            word = [
                (part, span)
                for char, span in word
                for part in unicodedata.normalize("NFD", char)
                if unicodedata.category(part) != "Mn"
            ]
        return word


class WordPieceModel:
    """A PieceModel of greedy longest matches; "##" begins the pieces inside a word.

    Args:
        vocab: the id of every token.
        unk_token: the unknown token.
        words: cuts a text into words; None for splitting at spaces alone.
    """

    def __init__(self, vocab: dict[str, int], unk_token: str, words: BasicWords | None) -> None:
        self.encoder = vocab
        self.decoder = {index: token for token, index in vocab.items()}
        self.unk_token = unk_token
        self.words = words

    @property
    def size(self) -> int:
        """The size of the base vocabulary."""
        return holes.next_id(self.encoder.values())

    def vocab(self) -> dict[str, int]:
        """Return the id of every token."""
        return dict(self.encoder)

    def to_id(self, piece: str) -> int:
        """Return the id of a piece, or the unknown token's."""
        index = self.encoder.get(piece)
        return self.encoder[self.unk_token] if index is None else index

    def to_piece(self, index: int) -> str:
        """Return the piece of an id, or the unknown token."""
        return self.decoder.get(index, self.unk_token)

    def pieces(self, text: str) -> Pieces:
        """Cut a stretch of text that holds no added tokens."""
        if self.words is None:
            words = _split_at_spaces([(char, (i, i + 1)) for i, char in enumerate(text)])
            whole: dict[str, None] = {}
        else:
            words, whole = self.words(text), self.words.never_split
        found = Pieces([], [], lambda: spans)
        spans: list[Span] = []
        for index, word in enumerate(words):
            string = _text(word)
            cuts = [(0, len(string), string)] if string in whole else self._cut(string)
            for start, end, token in cuts:
                found.tokens.append(token)
                found.words.append(index)
                spans.append((word[start][1][0], word[end - 1][1][1]))
        return found

    def _cut(self, word: str) -> list[tuple[int, int, str]]:
        unknown = [(0, len(word), self.unk_token)]
        if len(word) > _LONGEST_WORD:
            return unknown
        cuts: list[tuple[int, int, str]] = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(len(word), start, -1):
                token = prefix + word[start:end]
                if token in self.encoder:
                    cuts.append((start, end, token))
                    start = end
                    break
            else:
                return unknown
        return cuts

    def join(self, tokens: Sequence[str], specials: set[str]) -> str:
        """Join pieces to text."""
        return " ".join(tokens).replace(" ##", "").strip()


def python_engine(vocab: dict[str, int], unk_token: str, settings: dict[str, Any]) -> PieceEngine:
    """Build BERT's engine in Python.

    Args:
        vocab: the id of every token.
        unk_token: the unknown token.
        settings: do_lower_case, do_basic_tokenize, never_split, tokenize_chinese_chars and
            strip_accents, as far as they are given.

    Raises:
        ValueError: for a vocabulary without the unknown token.
    """
    if unk_token not in vocab:
        raise ValueError(
            f"The vocabulary lacks {unk_token}; pass the name it uses as unk_token, or check that "
            "this is a BERT vocabulary."
        )
    words = None
    lowercase = settings.get("do_lower_case") is not False
    if settings.get("do_basic_tokenize", True):
        words = BasicWords(
            lowercase=lowercase,
            never_split=settings.get("never_split") or [],
            chinese=settings.get("tokenize_chinese_chars") is not False,
            strip_accents=settings.get("strip_accents"),
        )
    model = WordPieceModel(vocab, unk_token, words)
    return PieceEngine(model, BERT_TEMPLATE, lower=lowercase and words is not None)
