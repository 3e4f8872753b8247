"""token-classification: a label for every token, or for every entity that tokens form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastbert.pipelines.base import Pipeline
from fastbert.tokenizers.batch_encoding import BatchEncoding

STRATEGIES = ("none", "simple", "first", "average", "max")
Entity = dict[str, Any]


@dataclass(frozen=True)
class _Token:
    """One token that is not special.

    Attributes:
        word: the token's text.
        scores: probabilities by label.
        start: first character of the token in the sentence; None where offsets are unknown.
        end: the character behind its last one; None where offsets are unknown.
        index: position of the token in its row.
        continues: whether the token goes on with the word before it.
    """

    word: str
    scores: np.ndarray
    start: int | None
    end: int | None
    index: int
    continues: bool


class TokenClassification(Pipeline):
    """Named entities, parts of speech and the like."""

    task = "token-classification"
    auto_class = "AutoModelForTokenClassification"

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Answer as Pipeline does; with is_split_into_words one list of words is one input."""
        words = options.get("is_split_into_words", self.options.get("is_split_into_words", False))
        if words and isinstance(inputs, (list, tuple)) and inputs and isinstance(inputs[0], str):
            return super().__call__([inputs], **options)
        return super().__call__(inputs, **options)

    def answer(
        self,
        items: list[Any],
        ignore_labels: Sequence[str] = ("O",),
        aggregation_strategy: str = "none",
        stride: int | None = None,
        is_split_into_words: bool = False,
        delimiter: str = " ",
    ) -> list[Any]:
        """Label the tokens or the entities of every text.

        Args:
            items: texts, or with is_split_into_words lists of words.
            ignore_labels: labels that are left out.
            aggregation_strategy: "none" gives {"entity", "score", "index", "word", "start", "end"}
                for every token; "simple" joins neighbouring tokens of one label, "first",
                "average" and "max" first settle one label for each word, and all of them give
                {"entity_group", "score", "word", "start", "end"}.
            stride: read a long text in windows that overlap by so many tokens, rather than cut it.
            is_split_into_words: whether inputs are lists of words.
            delimiter: what joins the words to the text that offsets count in.

        Returns:
            One list of dictionaries for every text.

        Raises:
            ValueError: for an unknown strategy, one that needs words from a tokenizer without
                offsets, or a stride without a strategy.
        """
        strategy = aggregation_strategy.lower()
        self._check_strategy(strategy, stride, is_split_into_words)
        rows: list[dict[str, Any]] = []
        owners: list[int] = []
        sentences = []
        for number, item in enumerate(items):
            encoded = self._encode(item, stride, is_split_into_words)
            sentences.append(delimiter.join(item) if is_split_into_words else item)
            shifts = _word_starts(item, delimiter) if is_split_into_words else None
            for index, given in enumerate(self.rows(encoded)):
                row: dict[str, Any] = dict(given)
                row["special"] = encoded["special_tokens_mask"][index]
                row["offsets"] = (
                    encoded["offset_mapping"][index] if self.tokenizer.is_fast else None
                )
                row["starts"] = None
                if shifts is not None:
                    words = encoded.word_ids(index)
                    row["starts"] = [0 if word is None else shifts[word] for word in words]
                rows.append(row)
                owners.append(number)
        logits = self.token_outputs(rows, "logits")
        answers: list[list[Entity]] = [[] for _ in items]
        for row, number, values in zip(rows, owners, logits, strict=True):
            tokens = self._tokens(row, values.softmax(-1).numpy(), sentences[number])
            answers[number] += [
                entity
                for entity in self._entities(tokens, strategy)
                if entity.get("entity", entity.get("entity_group")) not in ignore_labels
            ]
        for number, found in enumerate(answers):
            if owners.count(number) > 1:
                answers[number] = _without_overlaps(found)
        return list(answers)

    def _check_strategy(self, strategy: str, stride: int | None, words: bool) -> None:
        if strategy not in STRATEGIES:
            raise ValueError(
                f"aggregation_strategy is one of {', '.join(STRATEGIES)}, not {strategy!r}."
            )
        by_word = strategy in ("first", "average", "max")
        if (by_word or words or stride is not None) and not self.tokenizer.is_fast:
            raise ValueError(
                f"{type(self.tokenizer).__name__} does not tell where its tokens stand, "
                "which strategies by word, stride and is_split_into_words need; use "
                "aggregation_strategy='simple'."
            )
        if stride is not None and strategy == "none":
            raise ValueError("stride needs an aggregation_strategy other than 'none'.")

    def _encode(self, item: Any, stride: int | None, words: bool) -> BatchEncoding:
        expected = list if words else str
        if not isinstance(item, expected):
            raise TypeError(
                f"token-classification takes {'lists of words' if words else 'texts'} here, not "
                f"{type(item).__name__}."
            )
        overflow = {} if stride is None else {"return_overflowing_tokens": True, "stride": stride}
        return self.tokenize(
            [item],
            truncation=True,
            is_split_into_words=words,
            return_special_tokens_mask=True,
            return_offsets_mapping=self.tokenizer.is_fast,
            **overflow,
        )

    def _tokens(self, row: dict[str, Any], scores: np.ndarray, sentence: str) -> list[_Token]:
        found = []
        for index, token in enumerate(row["input_ids"]):
            if row["special"][index]:
                continue
            word = self.tokenizer.convert_ids_to_tokens(int(token))
            start = end = None
            continues = False
            if row["offsets"] is not None:
                shift = row["starts"][index] if row["starts"] is not None else 0
                start, end = (int(offset) + shift for offset in row["offsets"][index])
                continues = self._continues(word, sentence, start, end)
                if token == self.tokenizer.unk_token_id:
                    word, continues = sentence[start:end], False
            found.append(_Token(word, scores[index], start, end, index, continues))
        return found

    def _continues(self, word: str, sentence: str, start: int, end: int) -> bool:
        if self._marks_continuations():
            return len(word) != end - start
        # Such vocabularies do not say what a word is; a token after anything but a space goes on.
        return start > 0 and " " not in sentence[start - 1 : start + 1]

    def _marks_continuations(self) -> bool:
        backend = getattr(self.tokenizer.engine, "backend", None)
        return bool(getattr(getattr(backend, "model", None), "continuing_subword_prefix", None))

    def _entities(self, tokens: list[_Token], strategy: str) -> list[Entity]:
        if strategy in ("none", "simple"):
            entities = [self._token_entity(token) for token in tokens]
        else:
            words: list[list[_Token]] = []
            for token in tokens:
                if token.continues and words:
                    words[-1].append(token)
                else:
                    words.append([token])
            entities = [self._word_entity(word, strategy) for word in words]
        return entities if strategy == "none" else self._groups(entities)

    def _token_entity(self, token: _Token) -> Entity:
        best = int(token.scores.argmax())
        return {
            "entity": self.labels[best],
            "score": float(token.scores[best]),
            "index": token.index,
            "word": token.word,
            "start": token.start,
            "end": token.end,
        }

    def _word_entity(self, tokens: list[_Token], strategy: str) -> Entity:
        if strategy == "first":
            scores = tokens[0].scores
        elif strategy == "max":
            scores = max(tokens, key=lambda token: token.scores.max()).scores
        else:
            scores = np.mean([token.scores for token in tokens], axis=0)
        best = int(scores.argmax())
        return {
            "entity": self.labels[best],
            "score": float(scores[best]),
            "word": self.tokenizer.convert_tokens_to_string([token.word for token in tokens]),
            "start": tokens[0].start,
            "end": tokens[-1].end,
        }

    def _groups(self, entities: list[Entity]) -> list[Entity]:
        groups: list[list[Entity]] = []
        for entity in entities:
            begins, tag = _tag(entity["entity"])
            if groups and not begins and tag == _tag(groups[-1][-1]["entity"])[1]:
                groups[-1].append(entity)
            else:
                groups.append([entity])
        return [
            {
                "entity_group": group[0]["entity"].split("-", 1)[-1],
                "score": float(np.mean([entity["score"] for entity in group])),
                "word": self.tokenizer.convert_tokens_to_string(
                    [entity["word"] for entity in group]
                ),
                "start": group[0]["start"],
                "end": group[-1]["end"],
            }
            for group in groups
        ]


def _tag(label: str) -> tuple[bool, str]:
    """Split a label into whether it begins an entity, and the entity's type.

    A label without B- or I- continues an entity of its own name.
    """
    if label.startswith(("B-", "I-")):
        return label.startswith("B-"), label[2:]
    return False, label


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
