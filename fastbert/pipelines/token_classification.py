"""token-classification: a label for every token, or for every entity that tokens form."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastbert.pipelines.base import Pipeline
from fastbert.pipelines.labels import LabelScheme
from fastbert.tokenizers.batch_encoding import BatchEncoding

STRATEGIES = ("none", "simple", "first", "average", "max")
Entity = dict[str, Any]
Offsets = Sequence[tuple[int, int]]

# The token that sentencepiece has for a blank, where no token holds it together with its word.
_BLANK = "\u2581"


@dataclass(frozen=True)
class _Token:
    """One token that is not special.

    Attributes:
        word: the token's text.
        scores: probabilities by label.
        start: first character of the token in the sentence.
        end: the character behind its last one.
        index: position of the token in its row.
        continues: whether the token goes on with the word before it.
        blank: whether it stands for a blank alone, as sentencepiece has them before words.
    """

    word: str
    scores: np.ndarray
    start: int
    end: int
    index: int
    continues: bool
    blank: bool


@dataclass(frozen=True)
class _Sentence:
    """One input.

    Attributes:
        text: the text that offsets count in.
        starts: where its words begin in it; None for a text that the tokenizer cuts into words.
        offsets: characters of the tokens, as the caller gave them; None for the tokenizer's.
    """

    text: str
    starts: Sequence[int] | None
    offsets: Offsets | None


class TokenClassification(Pipeline):
    """Named entities, parts of speech and the like.

    A word is what the tokenizer takes for one: between blanks and punctuation for BERT, elisions
    apart for FlauBERT, between blanks for models of sentencepiece; with is_split_into_words it is
    the caller's.
    """

    task = "token-classification"
    auto_class = "AutoModelForTokenClassification"

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Answer as Pipeline does; with is_split_into_words one list of words is one input."""
        words = options.get("is_split_into_words", self.options.get("is_split_into_words", False))
        if words and isinstance(inputs, (list, tuple)) and inputs and isinstance(inputs[0], str):
            return super().__call__([inputs], **options)
        offsets = options.get("offset_mapping")
        if offsets and offsets[0] and not isinstance(offsets[0][0], Sequence):
            options["offset_mapping"] = [offsets]
        return super().__call__(inputs, **options)

    def answer(
        self,
        items: list[Any],
        ignore_labels: Sequence[str] | None = ("O",),
        aggregation_strategy: str = "none",
        offset_mapping: Sequence[Offsets] | None = None,
        stride: int | None = None,
        is_split_into_words: bool = False,
        delimiter: str | None = " ",
    ) -> list[Any]:
        """Label the tokens or the entities of every text.

        Labels with the prefixes of IO, BIO, BIOES (BMES) or BILOU are read as such where the
        model's labels as a whole follow one of them; any other label is a kind of its own.

        Args:
            items: texts, or with is_split_into_words lists of words.
            ignore_labels: labels that are left out; of entities, kinds that are left out.
            aggregation_strategy: "none" gives {"entity", "score", "index", "word", "start", "end"}
                for every token; "simple" joins neighbouring tokens of one kind, "first",
                "average" and "max" first settle one label for each word, and all of them give
                {"entity_group", "score", "word", "start", "end"}.
            offset_mapping: (start, end) of every token of every text, special tokens included,
                instead of what the tokenizer says.
            stride: read a long text in windows that overlap by so many tokens, rather than cut it.
            is_split_into_words: whether inputs are lists of words.
            delimiter: what joins the words to the text that offsets count in.

        Returns:
            One list of dictionaries for every text.

        Raises:
            ValueError: for an unknown strategy, a stride without a strategy, or an offset_mapping
                that does not fit the texts.
        """
        strategy = _checked_strategy(aggregation_strategy, stride)
        ignored = ("O",) if ignore_labels is None else _as_labels(ignore_labels)
        sentences = _sentences(
            items, is_split_into_words, " " if delimiter is None else delimiter, offset_mapping
        )
        encodings = [self._encode(item, stride, is_split_into_words) for item in items]
        if offset_mapping is not None:
            _check_offsets(sentences, encodings, stride)
        rows = [row for encoded in encodings for row in self.rows(encoded)]
        logits = iter(self.token_outputs(rows, "logits"))
        scheme = LabelScheme(self.labels.values())
        answers: list[list[Entity]] = []
        for sentence, encoded in zip(sentences, encodings, strict=True):
            found: list[Entity] = []
            windows = len(encoded["input_ids"])
            for index in range(windows):
                scores = next(logits).softmax(-1).numpy()
                tokens = list(self._tokens(encoded, index, scores, sentence))
                found += self._answers_of(tokens, strategy, scheme, ignored)
            answers.append(_without_overlaps(found) if windows > 1 else found)
        return list(answers)

    def _encode(self, item: Any, stride: int | None, words: bool) -> BatchEncoding:
        overflow = {} if stride is None else {"return_overflowing_tokens": True, "stride": stride}
        return self.tokenize(
            [list(item) if words else item],
            truncation=True,
            is_split_into_words=words,
            return_special_tokens_mask=True,
            return_offsets_mapping=True,
            **overflow,
        )

    def _tokens(
        self, encoded: BatchEncoding, row: int, scores: np.ndarray, sentence: _Sentence
    ) -> Iterator[_Token]:
        ids, words = encoded["input_ids"][row], encoded.word_ids(row)
        offsets = encoded["offset_mapping"][row] if sentence.offsets is None else sentence.offsets
        last, last_end = None, 0
        for index, token in enumerate(ids):
            if encoded["special_tokens_mask"][row][index]:
                continue
            start, end = (int(offset) for offset in offsets[index])
            number = words[index]
            continues = number is not None and number == last
            if sentence.starts is None:
                # A tokenizer that leaves blanks in its words does not tell where words begin.
                continues = continues and not _has_blank(sentence.text[last_end : start + 1])
            elif number is not None:
                start, end = (offset + sentence.starts[number] for offset in (start, end))
            word = self.tokenizer.convert_ids_to_tokens(int(token))
            blank = word == _BLANK or sentence.text[start:end].isspace()
            if token == self.tokenizer.unk_token_id:
                word = sentence.text[start:end]
            yield _Token(word, scores[index], start, end, index, continues, blank)
            last, last_end = number, end

    def _answers_of(
        self,
        tokens: list[_Token],
        strategy: str,
        scheme: LabelScheme,
        ignored: Sequence[str],
    ) -> list[Entity]:
        """Build the answers for the tokens of one row."""
        words = [[token] for token in tokens]
        if strategy not in ("none", "simple"):
            words = _words(tokens)
        entities = [self._entity(word, strategy) for word in words]
        if strategy == "none":
            return [entity for entity in entities if entity["entity"] not in ignored]
        joined = [word[0].continues for word in words]
        return [
            {
                "entity_group": scheme.tag(entities[group[0]]["entity"]).kind,
                "score": float(np.mean([entities[at]["score"] for at in group])),
                "word": self.tokenizer.convert_tokens_to_string(
                    [token.word for at in group for token in words[at]]
                ),
                "start": entities[group[0]]["start"],
                "end": entities[group[-1]]["end"],
            }
            for group in _groups([entity["entity"] for entity in entities], scheme, joined)
            if not scheme.is_ignored(entities[group[0]]["entity"], ignored)
        ]

    def _entity(self, word: Sequence[_Token], strategy: str) -> Entity:
        """Settle the label of a word, or of a single token."""
        telling = [token for token in word if not token.blank] or word
        if strategy == "max":
            scores = max(telling, key=lambda token: token.scores.max()).scores
        elif strategy == "average":
            scores = np.mean([token.scores for token in telling], axis=0)
        else:
            scores = telling[0].scores
        best = int(scores.argmax())
        return {
            "entity": self.labels[best],
            "score": float(scores[best]),
            "index": word[0].index,
            "word": word[0].word,
            "start": telling[0].start,
            "end": telling[-1].end,
        }


def _words(tokens: Sequence[_Token]) -> list[list[_Token]]:
    words: list[list[_Token]] = []
    for token in tokens:
        if token.continues and words:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _groups(labels: Sequence[str], scheme: LabelScheme, joined: Sequence[bool]) -> list[list[int]]:
    """Join tokens or words to entities.

    Args:
        labels: those of the tokens or words, in order.
        scheme: the model's labels.
        joined: whether each goes on with the word before it.

    Returns:
        The indices of what belongs to each entity.
    """
    groups: list[list[int]] = []
    for index, label in enumerate(labels):
        if index and not scheme.begins(labels[index - 1], label, joined[index]):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _checked_strategy(strategy: Any, stride: int | None) -> str:
    """Return the name of a strategy; transformers' enumeration of them is accepted too."""
    name = str(getattr(strategy, "value", strategy)).lower()
    if name not in STRATEGIES:
        raise ValueError(
            f"aggregation_strategy is one of {', '.join(STRATEGIES)}, not {strategy!r}."
        )
    if stride is not None and name == "none":
        raise ValueError("stride needs an aggregation_strategy other than 'none'.")
    return name


def _as_labels(ignore_labels: Sequence[str]) -> Sequence[str]:
    if isinstance(ignore_labels, str):
        raise TypeError(
            f"ignore_labels is a list of labels, not the text {ignore_labels!r}; put it into a "
            "list."
        )
    return ignore_labels


def _sentences(
    items: Sequence[Any], words: bool, delimiter: str, offsets: Sequence[Offsets] | None
) -> list[_Sentence]:
    """Check the inputs and say what text the offsets of each count in.

    Raises:
        TypeError: for an input that is no text, or no list of words.
        ValueError: for an offset_mapping of another number of texts.
    """
    if offsets is not None and len(offsets) != len(items):
        raise ValueError(
            f"offset_mapping holds the offsets of {len(offsets)} texts, but there are {len(items)} "
            "of them; give one list of (start, end) for each text, and no iterator of texts."
        )
    found = []
    for number, item in enumerate(items):
        given = None if offsets is None else offsets[number]
        if not words and isinstance(item, str):
            found.append(_Sentence(item, None, given))
        elif words and isinstance(item, (list, tuple)) and all(isinstance(w, str) for w in item):
            found.append(_Sentence(delimiter.join(item), _word_starts(item, delimiter), given))
        else:
            raise TypeError(
                f"token-classification takes {'lists of words' if words else 'texts'} here, not "
                f"{type(item).__name__}."
            )
    return found


def _check_offsets(
    sentences: Sequence[_Sentence], encodings: Sequence[BatchEncoding], stride: int | None
) -> None:
    if stride is not None:
        raise ValueError("offset_mapping tells of whole texts: leave out stride, or itself.")
    for number, (sentence, encoded) in enumerate(zip(sentences, encodings, strict=True)):
        tokens, given = len(encoded["input_ids"][0]), len(sentence.offsets or ())
        if tokens != given:
            raise ValueError(
                f"offset_mapping holds {given} spans for text {number}, which has {tokens} tokens "
                "with its special ones; give one (start, end) for each token."
            )


def _has_blank(text: str) -> bool:
    return any(char in "\t\n\r" or unicodedata.category(char)[0] == "Z" for char in text)


def _word_starts(words: Sequence[str], delimiter: str) -> list[int]:
    starts, at = [], 0
    for word in words:
        starts.append(at)
        at += len(word) + len(delimiter)
    return starts


def _without_overlaps(entities: list[Entity]) -> list[Entity]:
    """Keep the longest of entities that overlap between windows, the likeliest of equal ones."""
    kept: list[Entity] = []
    for entity in sorted(entities, key=lambda value: value["start"]):
        if kept and kept[-1]["start"] <= entity["start"] < kept[-1]["end"]:
            rank = [(value["end"] - value["start"], value["score"]) for value in (entity, kept[-1])]
            if rank[0] > rank[1]:
                kept[-1] = entity
        else:
            kept.append(entity)
    return kept
