"""The part of a tokenizer that works on ids: special tokens around them, truncation, padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any, Self, cast

from fastbert.tokenizers.batch_encoding import BatchEncoding
from fastbert.tokenizers.calling import Texts, silent
from fastbert.tokenizers.collating import Collating
from fastbert.tokenizers.engines.windows import longest_first
from fastbert.tokenizers.strategies import (
    check_side,
    resolve,
    truncation_strategy as named_strategy,
)
from fastbert.tokenizers.vocabulary import to_list

# One text: itself, its tokens (or words), or its ids.
Text = str | Sequence[str] | Sequence[int]


class Assembling(Collating):
    """The methods that take ids rather than texts, or either."""

    def encode(self, text: Text, text_pair: Text | None = None, **options: Any) -> list[int]:
        """Return the ids of one text or pair, special tokens included.

        Args:
            text: a str; the tokens of a text, a list of str (with `is_split_into_words` its words);
                or its ids, a list of int.
            text_pair: the second text, in any of these forms.
            **options: those of the call.
        """
        ids: list[int] = self.encode_plus(text, text_pair, **options)["input_ids"]
        return ids

    def encode_plus(
        self, text: Text, text_pair: Text | None = None, **options: Any
    ) -> BatchEncoding:
        """Encode one text or pair, which may be tokens or ids as in `encode`; see the call."""
        if isinstance(text, str) or options.get("is_split_into_words"):
            return self(cast("Texts", text), cast("Texts | None", text_pair), **options)
        ids, pair = self._ids_of(text), None if text_pair is None else self._ids_of(text_pair)
        options.pop("is_split_into_words", None)
        batched = options.get("return_tensors") is not None
        return self.prepare_for_model(ids, pair, prepend_batch_axis=batched, **options)

    def batch_encode_plus(
        self, batch_text_or_text_pairs: Sequence[Any], **options: Any
    ) -> BatchEncoding:
        """Encode a batch of texts or (text, pair) tuples, or of ids; see the call.

        Args:
            batch_text_or_text_pairs: texts or pairs; or lists of ids or tuples of two such lists.
            **options: those of the call.
        """
        batch = list(batch_text_or_text_pairs)
        first = batch[0][0] if batch and isinstance(batch[0], tuple) and batch[0] else None
        if not batch or not _is_ids(batch[0] if first is None else first):
            return self(batch, **options)
        options.pop("is_split_into_words", None)
        tensors = options.pop("return_tensors", None)
        padding = {name: options.pop(name) for name in _PADDING if name in options}
        if padding.get("padding"):
            options.setdefault("truncation", False)
        rows = []
        for one in batch:
            pair = one if isinstance(one, tuple) else (one,)
            rows.append(self.prepare_for_model(*pair, **options).data)
        both = {name: options[name] for name in _PADDED_TO if name in options}
        if padding.setdefault("padding", False) is not False:
            return self.pad(rows, return_tensors=tensors, **padding, **both)
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        return BatchEncoding(columns, tensor_type=tensors)

    def _ids_of(self, text: Any) -> list[int]:
        """Return the ids of a text given as a str, its tokens, or its ids."""
        if isinstance(text, str):
            return self.convert_tokens_to_ids(self.tokenize(text))
        if _is_ids(text):
            ids: list[int] = to_list(text)
            return ids
        if isinstance(text, (list, tuple)) and all(isinstance(token, str) for token in text):
            return self.convert_tokens_to_ids(list(text))
        raise TypeError(
            f"encode() takes a str, a list of tokens or a list of ids, not {text!r}; for several "
            "texts call the tokenizer itself."
        )

    def prepare_for_model(
        self,
        ids: Sequence[int],
        pair_ids: Sequence[int] | None = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        prepend_batch_axis: bool = False,
    ) -> BatchEncoding:
        """Put special tokens around ids, truncate and pad them.

        Args:
            ids: the ids of a text.
            pair_ids: those of a second text.
            add_special_tokens: see the call, as for all arguments that are not explained here.
            padding: see the call.
            truncation: see the call.
            max_length: see the call.
            stride: see the call.
            pad_to_multiple_of: see the call.
            padding_side: see the call.
            return_tensors: see the call.
            return_token_type_ids: see the call.
            return_attention_mask: see the call.
            return_overflowing_tokens: whether "overflowing_tokens" holds the ids cut off, with the
                last `stride` of the kept ones before them, and "num_truncated_tokens" the number of
                ids beyond the limit.
            return_special_tokens_mask: see the call.
            return_offsets_mapping: False: ids have no offsets.
            return_length: see the call.
            verbose: see the call.
            prepend_batch_axis: whether to return a batch of one rather than a row.

        Returns:
            The keys that the call returns for one text.

        Raises:
            ValueError: for offsets, for the overflow of a pair that is cut by "longest_first", and
                for contradictory arguments.
        """
        if return_offsets_mapping:
            raise ValueError("Ids do not tell where in a text they stood; call with the text.")
        first = list(to_list(ids))
        second = None if pair_ids is None else list(to_list(pair_ids))
        cut, _ = resolve(
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            stride=stride,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=check_side("padding_side", padding_side or self.padding_side),
            truncation_side=self.truncation_side,
            overflow=return_overflowing_tokens,
            model_max_length=self.model_max_length,
            pad=(self.pad_token, self.pad_token_id, self.pad_token_type_id),
            warn=self._warn if verbose else silent,
        )
        pair = second is not None
        specials = self.num_special_tokens_to_add(pair) if add_special_tokens else 0
        excess = len(first) + len(second or []) + specials
        excess -= cut.max_length if cut else (max_length or excess)
        over: list[int] = []
        if return_overflowing_tokens and pair and cut and cut.strategy == "longest_first":
            raise ValueError(
                "A pair cut by 'longest_first' has no single overflow; use truncation='only_first' "
                "or 'only_second', or call with the texts."
            )
        if cut and excess > 0:
            first, second, over = self.truncate_sequences(
                first, second, excess, cut.strategy, stride
            )
        wanted = self.model_input_names
        data: dict[str, Any] = {}
        if return_overflowing_tokens:
            data |= {"overflowing_tokens": over, "num_truncated_tokens": excess}
        if add_special_tokens:
            data["input_ids"] = self.build_inputs_with_special_tokens(first, second)
            types = self.create_token_type_ids_from_sequences(first, second)
            mask = self.get_special_tokens_mask(first, second)
        else:
            data["input_ids"] = first + (second or [])
            types, mask = ([0] * len(data["input_ids"]) for _ in range(2))
        if "token_type_ids" in wanted if return_token_type_ids is None else return_token_type_ids:
            data["token_type_ids"] = types
        if return_special_tokens_mask:
            data["special_tokens_mask"] = mask
        if verbose and cut is None and max_length is None:
            self._warn_too_long([data["input_ids"]])
        data = self.pad(
            data,
            padding=padding,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side,
            return_attention_mask=return_attention_mask,
        ).data
        if return_length:
            data["length"] = len(data["input_ids"])
        return BatchEncoding(
            data, tensor_type=return_tensors, prepend_batch_axis=prepend_batch_axis
        )

    @contextmanager
    def as_target_tokenizer(self) -> Iterator[Self]:
        """Change nothing: targets are tokenised like inputs in these families.

        Newer programs use the argument `text_target` of the call.
        """
        yield self

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Put the family's special tokens around one or two lists of ids."""
        texts = (token_ids_0, token_ids_1 or [])
        ids: list[int] = []
        for slot in self.engine.layout(token_ids_1 is not None):
            ids += slot.ids if slot.sequence is None else texts[slot.sequence]
        return ids

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Return the token types of `build_inputs_with_special_tokens` of the same lists."""
        lengths = (len(token_ids_0), len(token_ids_1 or []))
        types: list[int] = []
        for slot in self.engine.layout(token_ids_1 is not None):
            count = len(slot.ids) if slot.sequence is None else lengths[slot.sequence]
            types += [slot.type_id] * count
        return types

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """Mark special tokens with 1 and others with 0.

        Args:
            token_ids_0: the ids of a text.
            token_ids_1: those of a second text.
            already_has_special_tokens: whether `token_ids_0` holds its special tokens already;
                otherwise those are marked that `build_inputs_with_special_tokens` would add.

        Raises:
            ValueError: for a second list where they are there already.
        """
        if already_has_special_tokens:
            if token_ids_1 is not None:
                raise ValueError(
                    "token_ids_1 must be None with already_has_special_tokens=True: such ids are "
                    "one list."
                )
            special = self._mask_ids()
            return [int(token in special) for token in token_ids_0]
        lengths = (len(token_ids_0), len(token_ids_1 or []))
        mask: list[int] = []
        for slot in self.engine.layout(token_ids_1 is not None):
            at = slot.sequence
            mask += [1] * len(slot.ids) if at is None else [0] * lengths[at]
        return mask

    def _mask_ids(self) -> set[int]:
        """Return the ids that `already_has_special_tokens` marks."""
        return set(self.all_special_ids)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Return how many special tokens a text (or a pair) gets."""
        return self.engine.num_special_tokens_to_add(pair)

    @property
    def max_len_single_sentence(self) -> int:
        """The number of tokens of a text that fit beside the special tokens."""
        return self.model_max_length - self.num_special_tokens_to_add(False)

    @property
    def max_len_sentences_pair(self) -> int:
        """The number of tokens of two texts together that fit beside the special tokens."""
        return self.model_max_length - self.num_special_tokens_to_add(True)

    def truncate_sequences(
        self,
        ids: list[int],
        pair_ids: list[int] | None = None,
        num_tokens_to_remove: int = 0,
        truncation_strategy: bool | str | Enum | None = "longest_first",
        stride: int = 0,
    ) -> tuple[list[int], list[int] | None, list[int]]:
        """Shorten one or two lists of ids.

        Args:
            ids: the ids of a text.
            pair_ids: those of a second text.
            num_tokens_to_remove: how many go in all.
            truncation_strategy: see `truncation` of the call.
            stride: the overflow begins so many tokens early.

        Returns:
            The two lists, and the ids that were cut off; a pair cut by "longest_first" gives none.

        Raises:
            ValueError: where the strategy's text is not longer than what must go.
        """
        strategy = named_strategy(truncation_strategy)
        if num_tokens_to_remove <= 0 or strategy == "do_not_truncate":
            return ids, pair_ids, []
        check_side("truncation_side", self.truncation_side)
        if strategy == "longest_first" and pair_ids is not None:
            cut_0, cut_1 = longest_first(len(ids), len(pair_ids), num_tokens_to_remove)
            return self._cut(ids, cut_0), self._cut(pair_ids, cut_1), []
        second = strategy == "only_second"
        target = pair_ids if second else ids
        if target is None or len(target) <= num_tokens_to_remove:
            raise ValueError(
                f"{num_tokens_to_remove} tokens must go, but the {'second' if second else 'first'} "
                f"text has {len(target or [])}; use truncation='longest_first', or a larger "
                "max_length."
            )
        window = min(len(target), stride + num_tokens_to_remove)
        right = self.truncation_side == "right"
        overflow = target[-window:] if right else target[:window]
        kept = self._cut(target, num_tokens_to_remove)
        return (ids, kept, overflow) if second else (kept, pair_ids, overflow)

    def _cut(self, ids: list[int], count: int) -> list[int]:
        return ids[: len(ids) - count] if self.truncation_side == "right" else ids[count:]


# Arguments that concern a whole batch, and those of a batch and of its rows.
_PADDING = ("padding", "pad_to_multiple_of", "padding_side")
_PADDED_TO = ("max_length", "return_attention_mask")


def _is_ids(values: Any) -> bool:
    """Return whether these are the ids of a text."""
    values = to_list(values)
    return (
        isinstance(values, list)
        and bool(values)
        and all(isinstance(one, int) and not isinstance(one, bool) for one in values)
    )
