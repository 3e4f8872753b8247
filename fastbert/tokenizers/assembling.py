"""Working on ids that are already there: special tokens around them, truncation, padding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import torch

from fastbert.tokenizers.batch_encoding import BatchEncoding
from fastbert.tokenizers.calling import Calling, silent
from fastbert.tokenizers.engines.windows import longest_first
from fastbert.tokenizers.strategies import check_side, resolve
from fastbert.tokenizers.strategies import truncation_strategy as named_strategy
from fastbert.tokenizers.vocabulary import to_list


class Assembling(Calling):
    """The methods that take ids rather than texts, or either."""

    def encode(self, text: Any, text_pair: Any = None, **options: Any) -> list[int]:
        """The ids of one text or pair, special tokens included.

        Each is a str; the tokens of a text, a list of str (with `is_split_into_words` its words);
        or their ids, a list of int. Options are those of the call.
        """
        return self.encode_plus(text, text_pair, **options)["input_ids"]

    def encode_plus(self, text: Any, text_pair: Any = None, **options: Any) -> BatchEncoding:
        """The call for one text or pair, which may be tokens or ids as in `encode`."""
        if isinstance(text, str) or options.get("is_split_into_words"):
            return self(text, text_pair, **options)
        ids, pair = self._ids_of(text), None if text_pair is None else self._ids_of(text_pair)
        options.pop("is_split_into_words", None)
        batched = options.get("return_tensors") is not None
        return self.prepare_for_model(ids, pair, prepend_batch_axis=batched, **options)

    def batch_encode_plus(
        self, batch_text_or_text_pairs: Sequence[Any], **options: Any
    ) -> BatchEncoding:
        """The call for a batch of texts or (text, pair) tuples, or of lists of ids or tuples of
        two such lists."""
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
        """Ids from a str, its tokens, or its ids."""
        if isinstance(text, str):
            return self.convert_tokens_to_ids(self.tokenize(text))
        if _is_ids(text):
            return to_list(text)
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
        """The call for ids in the place of a text: special tokens, truncation, padding.

        Arguments are those of the call. With `return_overflowing_tokens` what was cut off is a list
        of ids under "overflowing_tokens", the last `stride` of the kept ones before it, and
        "num_truncated_tokens" says by how many ids the whole exceeds the limit. Returns one row,
        with `prepend_batch_axis` a batch of one. Raises ValueError for offsets, which ids do not
        have, and for the overflow of a pair that is cut by "longest_first".
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
        """Targets are tokenised like inputs in these families, so this changes nothing; the
        argument `text_target` of the call says the same in newer programs."""
        yield self

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """One or two lists of ids with the family's special tokens around them."""
        ids: list[int] = []
        for slot in self.template.slots(token_ids_1 is not None):
            if slot in "AB":
                ids += token_ids_0 if slot == "A" else token_ids_1 or []
            else:
                ids.append(getattr(self, f"{slot}_token_id"))
        return ids

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """The token types of `build_inputs_with_special_tokens` of the same lists."""
        lengths = {"A": len(token_ids_0), "B": len(token_ids_1 or [])}
        pair = token_ids_1 is not None
        types: list[int] = []
        for slot, kind in zip(self.template.slots(pair), self.template.types(pair), strict=True):
            types += [kind] * lengths.get(slot, 1)
        return types

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 where `build_inputs_with_special_tokens` would put a special token, else 0; for ids
        that already have them (`already_has_special_tokens`), 1 at every special id."""
        if already_has_special_tokens:
            if token_ids_1 is not None:
                raise ValueError(
                    "token_ids_1 must be None with already_has_special_tokens=True: such ids are "
                    "one list."
                )
            special = self._mask_ids()
            return [int(token in special) for token in token_ids_0]
        lengths = {"A": len(token_ids_0), "B": len(token_ids_1 or [])}
        mask: list[int] = []
        for slot in self.template.slots(token_ids_1 is not None):
            mask += [0] * lengths[slot] if slot in lengths else [1]
        return mask

    def _mask_ids(self) -> set[int]:
        """The ids that `already_has_special_tokens` marks."""
        return set(self.all_special_ids)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens a text (or a pair) gets."""
        return self.engine.num_special_tokens_to_add(pair)

    @property
    def max_len_single_sentence(self) -> int:
        """Tokens of text that fit beside the special tokens."""
        return self.model_max_length - self.num_special_tokens_to_add(False)

    @property
    def max_len_sentences_pair(self) -> int:
        """Tokens of two texts together that fit beside the special tokens."""
        return self.model_max_length - self.num_special_tokens_to_add(True)

    def truncate_sequences(
        self,
        ids: list[int],
        pair_ids: list[int] | None = None,
        num_tokens_to_remove: int = 0,
        truncation_strategy: Any = "longest_first",
        stride: int = 0,
    ) -> tuple[list[int], list[int] | None, list[int]]:
        """Shortens one or two lists of ids; returns them and what overflowed.

        The overflow begins `stride` tokens early. A pair cut by "longest_first" has none. Raises
        ValueError where the strategy's text is not longer than what must go.
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

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Pads encodings to one length; usable as a collate function.

        `encoded_inputs` is a BatchEncoding or dict (of one row or of a batch), or a list of them;
        values are lists, arrays or tensors. input_ids, token_type_ids, attention_mask and
        special_tokens_mask are padded, other keys are passed through. Nothing is changed in place.
        """
        if isinstance(encoded_inputs, (list, tuple)):
            if not encoded_inputs or not isinstance(encoded_inputs[0], Mapping):
                raise ValueError(
                    "pad() takes encodings: a dict, or a non-empty list of dicts with input_ids."
                )
            columns = {key: [row[key] for row in encoded_inputs] for key in encoded_inputs[0]}
        else:
            columns = dict(encoded_inputs)
        name = self.model_input_names[0]
        if name not in columns:
            raise ValueError(
                f"pad() needs the key '{name}', but was given {', '.join(columns) or 'no key'}."
            )
        if return_tensors is None:
            return_tensors = _kind_of(columns[name])
        columns = {key: to_list(value) for key, value in columns.items()}
        single = not columns[name] or not isinstance(columns[name][0], list)
        rows = {k: [v] for k, v in columns.items()} if single else columns
        if len({len(value) for value in rows.values()}) > 1:
            sizes = ", ".join(f"{key} {len(value)}" for key, value in rows.items())
            raise ValueError(f"pad() needs as many rows under every key, but was given {sizes}.")
        self._pad_rows(
            rows,
            padding=padding,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side,
            return_attention_mask=return_attention_mask,
        )
        data = {key: value[0] for key, value in rows.items()} if single else rows
        return BatchEncoding(data, tensor_type=return_tensors)

    def _pad_rows(
        self,
        rows: dict[str, list[Any]],
        *,
        padding: Any,
        max_length: int | None,
        pad_to_multiple_of: int | None,
        padding_side: str | None,
        return_attention_mask: bool | None,
    ) -> None:
        name = self.model_input_names[0]
        side = check_side("padding_side", padding_side or self.padding_side)
        wants_mask = return_attention_mask
        wants_mask = (
            "attention_mask" in self.model_input_names if wants_mask is None else wants_mask
        )
        if wants_mask and "attention_mask" not in rows:
            rows["attention_mask"] = [[1] * len(ids) for ids in rows[name]]
        _, pad = resolve(
            padding=padding,
            truncation=False,
            max_length=None if padding is True else max_length,
            stride=0,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=side,
            truncation_side="right",
            model_max_length=self.model_max_length,
            pad=(self.pad_token, self.pad_token_id, self.pad_token_type_id),
            warn=self._warn,
        )
        if pad is None:
            return
        length = pad.length or max(map(len, rows[name]), default=0)
        if pad.multiple:
            length = -(-length // pad.multiple) * pad.multiple
        missing = [max(0, length - len(ids)) for ids in rows[name]]
        fills = {
            "token_type_ids": pad.type_id,
            "special_tokens_mask": 1,
            name: pad.token_id,
        } | ({"attention_mask": 0} if wants_mask else {})
        for key, value in fills.items():
            if key in rows:
                rows[key] = [
                    row + [value] * n if side == "right" else [value] * n + row
                    for row, n in zip(rows[key], missing, strict=True)
                ]


# Arguments that concern a whole batch, and those of a batch and of its rows.
_PADDING = ("padding", "pad_to_multiple_of", "padding_side")
_PADDED_TO = ("max_length", "return_attention_mask")


def _is_ids(values: Any) -> bool:
    """Whether these are the ids of a text."""
    values = to_list(values)
    return (
        isinstance(values, list)
        and bool(values)
        and all(isinstance(one, int) and not isinstance(one, bool) for one in values)
    )


def _kind_of(values: Any) -> str | None:
    """ "pt" or "np" where `values` is, or holds, tensors or arrays."""
    first: Any = values
    while isinstance(first, Sequence) and not isinstance(first, str) and len(first):
        first = first[0]
    if isinstance(first, torch.Tensor):
        return "pt"
    return "np" if isinstance(first, np.ndarray) else None
