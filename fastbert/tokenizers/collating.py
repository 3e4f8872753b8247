"""The part of a tokenizer that pads encodings to one length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch

from fastbert.tokenizers.batch_encoding import BatchEncoding, TensorType
from fastbert.tokenizers.calling import Calling
from fastbert.tokenizers.strategies import check_side, resolve
from fastbert.tokenizers.vocabulary import to_list


class Collating(Calling):
    """The method that makes a batch of rows."""

    def pad(
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Pad encodings to one length; usable as a collate function.

        input_ids, token_type_ids, attention_mask and special_tokens_mask are padded, other keys are
        passed through. Nothing is changed in place.

        Args:
            encoded_inputs: a BatchEncoding or dict, of one row or of a batch, or a list of such
                rows; values are lists, arrays or tensors.
            padding: see the call.
            max_length: see the call.
            pad_to_multiple_of: see the call.
            padding_side: see the call.
            return_attention_mask: see the call.
            return_tensors: see the call; None goes by the type of the inputs.
            verbose: accepted without effect.

        Raises:
            ValueError: for inputs without ids, rows that do not match, or contradictory arguments.
        """
        columns: dict[str, Any]
        if isinstance(encoded_inputs, (list, tuple)):
            if not encoded_inputs or not isinstance(encoded_inputs[0], Mapping):
                raise ValueError(
                    "pad() takes encodings: a dict, or a non-empty list of dicts with input_ids."
                )
            keys = list(encoded_inputs[0])
            for number, row in enumerate(encoded_inputs):
                if set(row) != set(keys):
                    raise ValueError(
                        f"pad() needs the same keys in every row, but row 0 has {', '.join(keys)} "
                        f"and row {number} {', '.join(row) or 'none'}."
                    )
            columns = {key: [row[key] for row in encoded_inputs] for key in keys}
        else:
            columns = dict(cast("Mapping[str, Any]", encoded_inputs))
        name = self.model_input_names[0]
        if name not in columns:
            raise ValueError(
                f"pad() needs the key '{name}', but was given {', '.join(columns) or 'no key'}."
            )
        if return_tensors is None:
            return_tensors = _tensor_type_of(columns[name])
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
            overflow=False,
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


def _tensor_type_of(values: Any) -> TensorType | None:
    """Return "pt" or "np" where `values` is, or holds, tensors or arrays."""
    first: Any = values
    while isinstance(first, Sequence) and not isinstance(first, str) and len(first):
        first = first[0]
    if isinstance(first, torch.Tensor):
        return "pt"
    return "np" if isinstance(first, np.ndarray) else None
