"""What all pipelines share: options, and passes over rows of tokens in packed batches."""

from __future__ import annotations

import importlib
import inspect
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastbert.embedding.sentence import MAX_TOKENS

Row = Mapping[str, Sequence[int]]
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# Options of every pipeline, besides those of its answer().
_COMMON = ("batch_size", "num_workers")
# Inputs that a lazy source is asked for at a time, where no batch_size says how many.
_AHEAD = 64


class Pipeline:
    """A model, its tokenizer and default options; call it with one input or a list of them.

    Every pipeline has the options batch_size (at most so many rows in one pass; by default only
    their tokens count, since packed rows cost what their tokens cost) and num_workers (accepted:
    the tokenizer has threads of its own).

    Class attributes:
        task: its name.
        auto_class: the class of fastbert.models.auto that loads its model.
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
        self._check_head()
        self.options = options
        # Of the latest call; where threads share a pipeline, another's changes no answer.
        self._batch_size: int | None = None

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """The answer for one input, a list of answers for a list, or an iterator over the answers
        for an iterator or a torch Dataset, which is read as the answers are taken.

        Raises:
            TypeError: for an option that this pipeline does not have, or input that is no text.
            ValueError: for a text that is longer than the model's positions.
        """
        self._check(options)
        settings = {**self.options, **options}
        settings.pop("num_workers", None)
        batch_size = settings.pop("batch_size", None)
        if isinstance(inputs, torch.utils.data.Dataset):
            inputs = map(inputs.__getitem__, range(len(inputs)))  # type: ignore[arg-type]
        if isinstance(inputs, Iterator):
            return self._answers(inputs, batch_size, settings)
        many = isinstance(inputs, (list, tuple))
        answers = self._answer(list(inputs) if many else [inputs], batch_size, settings)
        return answers if many else answers[0]

    def _answer(self, items: list[Any], batch_size: int | None, settings: Any) -> list[Any]:
        self._batch_size = batch_size
        with torch.inference_mode():
            return self.answer(items, **settings)

    def _answers(self, inputs: Iterator[Any], batch_size: int | None, settings: Any) -> Any:
        while items := list(itertools.islice(inputs, batch_size or _AHEAD)):
            yield from self._answer(items, batch_size, settings)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.device

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write model and tokenizer into a folder, from which pipeline() makes the same again."""
        self.model.save_pretrained(save_directory)
        self.tokenizer.save_pretrained(save_directory)

    def _check(self, options: Mapping[str, Any]) -> None:
        known = [*_named(self.answer), *_COMMON]
        if self.open_options:
            known += _named(self.tokenizer.__call__)
        unknown = [name for name in options if name not in known]
        if unknown:
            raise TypeError(
                f"{self.task} has no option {', '.join(map(repr, unknown))}; it has "
                f"{', '.join(known)}."
            )
        size = options.get("batch_size")
        if size is not None and size < 1:
            raise ValueError(f"batch_size must be at least 1, not {size}.")

    def _check_head(self) -> None:
        """Refuse a model with another head; any model has hidden states."""
        if self.auto_class == "AutoModel":
            return
        auto = getattr(importlib.import_module("fastbert.models.auto"), self.auto_class)
        wanted = auto.class_for(self.model.config)
        if not isinstance(self.model, wanted):
            raise ValueError(
                f"{self.task} takes a {wanted.__name__}, not a {type(self.model).__name__}; load "
                f"the checkpoint with fastbert.{self.auto_class}."
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
            full = tokens + length > MAX_TOKENS or index - begin == self._batch_size
            if index > begin and full:
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


def _named(function: Callable[..., Any]) -> list[str]:
    """The arguments of a bound method that may be given by name, but for its inputs."""
    return [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in ("items", "text", "text_pair")
        and parameter.kind is not parameter.VAR_KEYWORD
    ]
