"""What all pipelines share: options, and passes over rows of tokens in packed batches."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastbert.sentence import MAX_TOKENS

Row = Mapping[str, Sequence[int]]
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Pipeline:
    """A model, its tokenizer and default options; call it with one input or a list of them.

    Class attributes:
        task: its name.
        auto_class: the class of fastbert.auto that loads its model.
    """

    task: ClassVar[str]
    auto_class: ClassVar[str]
    # answer(items, **options): one answer for every item, as each pipeline documents it.
    answer: Callable[..., list[Any]]
    # Options that answer() does not name go to the tokenizer.
    open_options: ClassVar[bool] = False

    def __init__(self, model: Any, tokenizer: Any, **options: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._check(options)
        self.options = options

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """The answer for one input, or a list of answers for a list.

        Raises:
            TypeError: for an option that this pipeline does not have, or input that is no text.
            ValueError: for a text that is longer than the model's positions.
        """
        self._check(options)
        settings = {**self.options, **options}
        many = isinstance(inputs, (list, tuple))
        with torch.inference_mode():
            answers = self.answer(list(inputs) if many else [inputs], **settings)
        return answers if many else answers[0]

    def _check(self, options: Mapping[str, Any]) -> None:
        known = [
            name
            for name, parameter in inspect.signature(self.answer).parameters.items()
            if name != "items" and parameter.kind is not parameter.VAR_KEYWORD
        ]
        unknown = [name for name in options if name not in known]
        if unknown and not self.open_options:
            raise TypeError(
                f"{self.task} has no option {', '.join(map(repr, unknown))}; it has "
                f"{', '.join(known) or 'none'}."
            )

    def tokenize(self, *texts: Any, **arguments: Any) -> Any:
        """The tokenizer's answer; truncation, where asked for, is to what the model can take."""
        if arguments.get("truncation"):
            arguments.setdefault("max_length", self.longest)
        return self.tokenizer(*texts, **arguments)

    @property
    def longest(self) -> int:
        """Most tokens of one row: the tokenizer's limit or the model's positions."""
        return int(min(self.tokenizer.model_max_length, self.model.base_model.longest()))

    def texts(self, items: list[Any]) -> list[str]:
        """The items, checked to be texts."""
        for item in items:
            if not isinstance(item, str):
                raise TypeError(
                    f"{self.task} takes a text or a list of texts, not {type(item).__name__}."
                )
        return items

    def rows(self, encoded: Mapping[str, Any]) -> list[dict[str, Sequence[int]]]:
        """What a tokenizer returned for a list of texts, row by row."""
        names = [name for name in _INPUTS if name in encoded]
        count = len(encoded["input_ids"])
        return [{name: encoded[name][index] for name in names} for index in range(count)]

    def batches(self, rows: Sequence[Row]) -> Iterator[tuple[range, dict[str, Tensor]]]:
        """Rows in padded batches of about MAX_TOKENS tokens, with their indices.

        The model packs them at once, and a row's result does not depend on its neighbours.
        """
        begin, tokens = 0, 0
        for index, row in enumerate(rows):
            length = len(row["input_ids"])
            if index > begin and tokens + length > MAX_TOKENS:
                yield range(begin, index), self._padded(rows[begin:index])
                begin, tokens = index, 0
            tokens += length
        if begin < len(rows):
            yield range(begin, len(rows)), self._padded(rows[begin:])

    def _padded(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        lengths = [len(row["input_ids"]) for row in rows]
        pad = self.tokenizer.pad_token_id or 0
        fill = {"input_ids": pad, "attention_mask": 0, "token_type_ids": 0}
        batch = {}
        for name in ("input_ids", "token_type_ids"):
            if name in rows[0]:
                grid = torch.full((len(rows), max(lengths)), fill[name], dtype=torch.int64)
                for index, row in enumerate(rows):
                    grid[index, : lengths[index]] = torch.tensor(row[name], dtype=torch.int64)
                batch[name] = grid.to(self.model.device)
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        for index, row in enumerate(rows):
            if "attention_mask" in row:
                mask[index, : lengths[index]] &= torch.tensor(row["attention_mask"]) != 0
        batch["attention_mask"] = mask.to(self.model.device)
        return batch

    def token_outputs(self, rows: Sequence[Row], field: str | int) -> list[Tensor]:
        """One output field, float32 on the CPU, (length, ...) for every row."""
        found: list[Tensor] = []
        for indices, inputs in self.batches(rows):
            values = self.model(**inputs)[field].float().cpu()
            found += [
                values[at, : len(rows[index]["input_ids"])] for at, index in enumerate(indices)
            ]
        return found

    def text_outputs(self, rows: Sequence[Row], field: str | int) -> list[Tensor]:
        """One output field, float32 on the CPU, one value or vector for every row."""
        found: list[Tensor] = []
        for _, inputs in self.batches(rows):
            found += list(self.model(**inputs)[field].float().cpu())
        return found
