"""FlauBERT's tokenizer: Moses words, then BPE in Rust."""

from __future__ import annotations

import functools
import itertools
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import models

from fastbert.checkpoints.storage import read_json, write_json, write_text
from fastbert.tokenizers import files, moses
from fastbert.tokenizers.base import Tokenizer
from fastbert.tokenizers.engines.encoding import Span
from fastbert.tokenizers.engines.python import PieceEngine, Pieces
from fastbert.tokenizers.engines.template import SpecialTokensTemplate
from fastbert.tokenizers.special import TokenLike

logger = logging.getLogger("fastbert.tokenizers")

_END = "</w>"
_SPECIALS = tuple(f"<special{i}>" for i in range(10))
# Words seen before are not cut again; the table is emptied when it is this long.
_CACHED_WORDS = 100_000
_LONGEST_CACHED = 64


def read_merges(path: Path) -> list[tuple[str, str]]:
    """Read the pairs of a merges.txt, best first: two pieces a line, then perhaps a frequency.

    Raises:
        ValueError: for a line that holds no pair.
    """
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    pairs = []
    for number, line in enumerate(lines, 1):
        parts = line.split()
        if len(parts) < 2:
            raise ValueError(
                f"'{path}' line {number} is {line!r}; a merge is two pieces separated by a space."
            )
        pairs.append((parts[0], parts[1]))
    return pairs


class MosesBpe:
    """A PieceModel that cuts Moses words by BPE with "</w>" on the last character.

    The real files hold merges whose result is not in the vocabulary, which the Rust BPE refuses. It
    is given the vocabulary with those results appended; a piece with such an id is unknown to the
    model, and its string has no id of its own.

    Args:
        vocab: the id of every token.
        merges: pairs of pieces, best first.
        unk_token: the unknown token.
        lowercase: whether texts are lower-cased.
        bypass: whether texts are in Moses words already, separated by spaces.
    """

    def __init__(
        self,
        vocab: dict[str, int],
        merges: list[tuple[str, str]],
        unk_token: str,
        *,
        lowercase: bool,
        bypass: bool,
    ) -> None:
        self.encoder = vocab
        self.decoder = {index: token for token, index in vocab.items()}
        self.merges = merges
        self.unk_token = unk_token
        self.lowercase = lowercase
        self.bypass = bypass
        self._start()

    def _start(self) -> None:
        padded = dict.fromkeys(self.encoder)
        for left, right in self.merges:
            padded |= dict.fromkeys((left, right, left + right))
        # A character that no merge and no token holds is cut off by itself, as this one.
        padded.setdefault(self.unk_token)
        self._bpe = models.BPE(
            {token: index for index, token in enumerate(padded)},
            self.merges,
            end_of_word_suffix=_END,
            unk_token=self.unk_token,
            fuse_unk=False,
        )
        self._cache: dict[str, list[Span]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_bpe", "_cache")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    @property
    def size(self) -> int:
        """The size of the base vocabulary."""
        return len(self.encoder)

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

    def cut(self, word: str) -> list[Span]:
        """Cut a word into pieces, as spans of its characters."""
        spans = self._cache.get(word)
        if spans is None:
            ends = [token.offsets[1] for token in self._bpe.tokenize(word)]
            if not word.isascii():
                # The library counts bytes of UTF-8.
                sizes = itertools.accumulate(len(char.encode("utf-8")) for char in word)
                characters = {size: count for count, size in enumerate(sizes, 1)}
                ends = [characters[end] for end in ends]
            spans = list(zip([0, *ends[:-1]], ends, strict=True))
            if len(word) > _LONGEST_CACHED:
                return spans
            if len(self._cache) >= _CACHED_WORDS:
                self._cache.clear()
            self._cache[word] = spans
        return spans

    def pieces(self, text: str) -> Pieces:
        """Cut a stretch of text that holds no added tokens."""
        lowercase = self.lowercase
        if self.bypass:
            found, spans_of = text.split(), _split_spans
        else:
            found = moses.words(text, lowercase)
            spans_of = functools.partial(moses.spans, lowercase=lowercase)
        cuts = [self.cut(word) for word in found]
        tokens: list[str] = []
        words: list[int] = []
        for index, (word, cut) in enumerate(zip(found, cuts, strict=True)):
            tokens += [word[start:end] for start, end in cut]
            tokens[-1] += _END
            words += [index] * len(cut)

        def spans() -> list[Span]:
            return [
                (chars[start][0], chars[end - 1][1])
                for chars, cut in zip(spans_of(text, found), cuts, strict=True)
                for start, end in cut
            ]

        return Pieces(tokens, words, spans)

    def join(self, tokens: Sequence[str], specials: set[str]) -> str:
        """Join pieces to text."""
        return "".join(tokens).replace(_END, " ").strip()


def _split_spans(text: str, words: list[str]) -> list[list[Span]]:
    """Find where the characters of `text.split()` are in `text`."""
    spans: list[list[Span]] = []
    at = 0
    for word in words:
        at = text.index(word, at)
        spans.append([(i, i + 1) for i in range(at, at + len(word))])
        at += len(word)
    return spans


class FlaubertTokenizer(Tokenizer):
    """FlauBERT's tokenizer: the Moses steps for French (package sacremoses), then BPE.

    `<s> A </s>`, or `<s> A </s> B </s>` with token type 1 from B on. The token types are returned,
    as transformers 4 did (5 lost them, and with them an embedding that the model adds to every
    token); `model_input_names=["input_ids", "attention_mask"]` leaves them out.

    Args:
        vocab_file: vocab.json.
        merges_file: merges.txt.
        do_lowercase: lower-case the text.
        unk_token: one of the special tokens, as are the others named so.
        bos_token: see unk_token.
        sep_token: see unk_token.
        pad_token: see unk_token.
        cls_token: see unk_token.
        mask_token: see unk_token.
        additional_special_tokens: special tokens without a role.
        lang2id: stored only.
        id2lang: stored only.
        do_lowercase_and_remove_accent: ignored, with a warning.
        bypass_tokenizer: the text is already in Moses words, separated by spaces.
        **options: see `Tokenizer`.

    Raises:
        FileNotFoundError: for a missing file.
        ImportError: where sacremoses is missing.
        ValueError: for a file that is damaged or belongs to another tokenizer.
    """

    vocab_files_names: ClassVar = {"vocab_file": "vocab.json", "merges_file": "merges.txt"}
    template = SpecialTokensTemplate(("bos", "A", "sep"), ("bos", "A", "sep", "B", "sep"), 1)

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None = None,
        merges_file: str | os.PathLike[str] | None = None,
        do_lowercase: bool = False,
        unk_token: TokenLike | None = "<unk>",
        bos_token: TokenLike | None = "<s>",
        sep_token: TokenLike | None = "</s>",
        pad_token: TokenLike | None = "<pad>",
        cls_token: TokenLike | None = "</s>",
        mask_token: TokenLike | None = "<special1>",
        additional_special_tokens: Iterable[TokenLike] | None = _SPECIALS,
        lang2id: dict[str, int] | None = None,
        id2lang: dict[int, str] | None = None,
        do_lowercase_and_remove_accent: bool | None = None,
        bypass_tokenizer: bool = False,
        **options: Any,
    ) -> None:
        if do_lowercase_and_remove_accent is not None:
            logger.warning(
                "do_lowercase_and_remove_accent does nothing in FlaubertTokenizer; do_lowercase "
                "lower-cases the text, and accents are always kept."
            )
        if lang2id is not None and id2lang is not None and len(lang2id) != len(id2lang):
            raise ValueError(
                f"lang2id names {len(lang2id)} languages and id2lang {len(id2lang)}; they must be "
                "the same ones."
            )
        hint = "FlaubertTokenizer needs vocab_file= and merges_file=, or from_pretrained(folder)."
        vocab_path = files.existing_file(vocab_file, "vocabulary file (vocab.json)", hint)
        merges_path = files.existing_file(merges_file, "merges file (merges.txt)", hint)
        if not bypass_tokenizer:
            moses.require()
        vocab = read_json(vocab_path, dict)
        # What a text cannot be laid out without.
        unk_token, bos_token = unk_token or "<unk>", bos_token or "<s>"
        sep_token = sep_token or "</s>"
        unknown = str(getattr(unk_token, "content", unk_token))
        if unknown not in vocab:
            raise ValueError(
                f"'{vocab_path}' is not a vocabulary of FlauBERT: it must be a JSON object of "
                f"tokens and ids that holds {unknown}."
            )
        self.lang2id = lang2id
        self.id2lang = id2lang
        self._model = MosesBpe(
            vocab,
            read_merges(merges_path),
            unknown,
            lowercase=do_lowercase,
            bypass=bypass_tokenizer,
        )
        super().__init__(
            PieceEngine(self._model, self.template),
            special={
                "bos_token": bos_token,
                "unk_token": unk_token,
                "sep_token": sep_token,
                "pad_token": pad_token,
                "cls_token": cls_token,
                "mask_token": mask_token,
            },
            additional_special_tokens=additional_special_tokens,
            settings={"do_lowercase": do_lowercase, "lang2id": lang2id, "id2lang": id2lang},
            **options,
        )

    @property
    def do_lowercase(self) -> bool:
        """Whether the text is lower-cased."""
        return self._model.lowercase

    @property
    def bypass_tokenizer(self) -> bool:
        """Whether the Moses steps are left out; may be set."""
        return self._model.bypass

    @bypass_tokenizer.setter
    def bypass_tokenizer(self, value: bool) -> None:
        self._model.bypass = value

    @classmethod
    def _enough(cls, arguments: set[str]) -> bool:
        return arguments >= set(cls.vocab_files_names)

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write vocab.json and merges.txt into a folder and return their paths."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        vocab = Path(save_directory) / (prefix + "vocab.json")
        merges = Path(save_directory) / (prefix + "merges.txt")
        write_json(vocab, self._model.encoder, ensure_ascii=False)
        write_text(merges, "".join(f"{a} {b}\n" for a, b in self._model.merges))
        return str(vocab), str(merges)
