"""Working on ids that are already there: special tokens around them, truncation, padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fastbert.tokenizers.batch_encoding import BatchEncoding
from fastbert.tokenizers.calling import Calling
from fastbert.tokenizers.strategies import check_side, resolve
from fastbert.tokenizers.strategies import truncation_strategy as named_strategy
from fastbert.tokenizers.vocabulary import to_list
from fastbert.tokenizers.windows import longest_first


class Assembling(Calling):
    """The methods that take ids rather than texts."""

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """One or two lists of ids with the family's special tokens around them."""
        ids: list[int] = []
        for slot in self.layout.slots(token_ids_1 is not None):
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
        for slot, kind in zip(self.layout.slots(pair), self.layout.types(pair), strict=True):
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
        for slot in self.layout.slots(token_ids_1 is not None):
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


def _kind_of(values: Any) -> str | None:
    """ "pt" or "np" where `values` is, or holds, tensors or arrays."""
    first: Any = values
    while isinstance(first, Sequence) and not isinstance(first, str) and len(first):
        first = first[0]
    if isinstance(first, torch.Tensor):
        return "pt"
    return "np" if isinstance(first, np.ndarray) else None
