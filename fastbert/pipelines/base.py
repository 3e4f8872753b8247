"""The base of all pipelines: options, and passes over tokenised texts in packed batches."""

from __future__ import annotations

import inspect
import itertools
import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from fastbert.embedding.batching import batches, tokens_of_a_pass
from fastbert.modeling.base import PreTrainedModel
from fastbert.models import auto
from fastbert.pipelines.inputs import stream_of
from fastbert.tokenizers.base import Tokenizer
from fastbert.tokenizers.batch_encoding import BatchEncoding

# One tokenised text: ids, mask and token types by the names of the model's inputs.
Row = Mapping[str, Sequence[int]]
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# Options of every pipeline, besides those of its answer method.
_COMMON = ("batch_size", "num_workers")
# Inputs taken from an iterator at a time, where no batch_size says how many.
_AHEAD = 64


class Pipeline:
    """A model, its tokenizer and default options; call it with one input or a list of them.

    Every pipeline has the options batch_size (at most so many texts in one pass; by default only
    their tokens count, since packed hidden states cost what their tokens cost) and num_workers
    (accepted without effect: the tokenizer has threads of its own).

    Args:
        model: a model with the head that the task needs, in eval mode.
        tokenizer: its tokenizer.
        **options: defaults for the options of the calls.

    Attributes:
        task: the name of the task.
        auto_class: the class of fastbert.models.auto that loads a model for the task.
        answer: a method that takes a list of inputs and the options, and returns one answer for
            each input; every pipeline documents its own.
        more_options: names of options that `answer` takes without naming them.
        open_options: whether options that `answer` does not name go to the tokenizer.

    Raises:
        TypeError: for an option that the pipeline does not have.
        ValueError: for a model with another head, or a batch_size below 1.
    """

    task: ClassVar[str]
    auto_class: ClassVar[str]
    answer: Callable[..., list[Any]]
    open_options: ClassVar[bool] = False
    more_options: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer, **options: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._check(options)
        self._check_head()
        self.options = options
        # The latest call's. A call of another thread may change it, which changes no answer: no
        # text's result depends on the texts that share its batch.
        self._batch_size: int | None = None

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Answer one input, a list of inputs, or an iterator.

        Args:
            inputs: one input, a list or tuple of them, or a stream of them: an iterator, a data
                set (also one without a length), an array, a column of a table.
            **options: those of the `answer` method, batch_size and num_workers.

        Returns:
            The answer of one input; a list of answers for a list or tuple; for a stream an iterator
            over the answers, which reads its source as answers are taken.

        Raises:
            TypeError: for an option that this pipeline does not have, input that is no text, a
                table, a DataLoader or a set.
            ValueError: for a text that is longer than the model's positions.
        """
        self._check(options)
        settings = {**self.options, **options}
        settings.pop("num_workers", None)
        batch_size = settings.pop("batch_size", None)
        if isinstance(inputs, (list, tuple)) and not self.is_one(inputs):
            return self._answer(list(inputs), batch_size, settings)
        stream = None if self.is_one(inputs) else stream_of(inputs, self.task)
        if stream is not None:
            return self._answers(stream, batch_size, settings)
        return self._answer([inputs], batch_size, settings)[0]

    def is_one(self, inputs: Any) -> bool:
        """Return whether a list is one input rather than several, as a chat is."""
        return False

    def _answer(
        self, items: list[Any], batch_size: int | None, settings: dict[str, Any]
    ) -> list[Any]:
        self._batch_size = batch_size
        with torch.inference_mode():
            return self.answer(items, **settings)

    def _answers(
        self, inputs: Iterator[Any], batch_size: int | None, settings: dict[str, Any]
    ) -> Iterator[Any]:
        while items := list(itertools.islice(inputs, batch_size or _AHEAD)):
            yield from self._answer(items, batch_size, settings)

    @property
    def device(self) -> torch.device:
        """The device on which the model computes."""
        return self.model.device

    @property
    def labels(self) -> dict[int, str]:
        """The names of the labels that the model's head scores, by their indices."""
        return self.model.config.id2label or {}

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write model and tokenizer into a folder, from which pipeline() makes the same again."""
        self.model.save_pretrained(save_directory)
        self.tokenizer.save_pretrained(save_directory)

    def _check(self, options: Mapping[str, Any]) -> None:
        known = [*_named(self.answer), *_COMMON, *self.more_options]
        if self.open_options:
            known += _named(self.tokenizer.__call__)
        unknown = [name for name in options if name not in known]
        if unknown:
            raise TypeError(
                f"{self.task} has no option {', '.join(map(repr, unknown))}; it has "
                f"{', '.join(known)}."
            )
        size = options.get("batch_size")
        if size is not None and (not isinstance(size, int) or size < 1):
            raise ValueError(f"batch_size must be at least 1, a whole number, not {size!r}.")

    def _check_head(self) -> None:
        """Refuse a model with another head; any model has hidden states."""
        if self.auto_class == "AutoModel":
            return
        wanted: type = getattr(auto, self.auto_class).class_for(self.model.config)
        if not isinstance(self.model, wanted):
            raise ValueError(
                f"{self.task} takes a {wanted.__name__}, not a {type(self.model).__name__}; load "
                f"the checkpoint with fastbert.{self.auto_class}."
            )

    def tokenize(self, *texts: Any, **arguments: Any) -> BatchEncoding:
        """Call the tokenizer; truncation, where asked for, is to what the model can take.

        Raises:
            TypeError: for return_tensors, since texts become tensors a batch at a time.
        """
        if arguments.get("return_tensors") is not None:
            raise TypeError(
                f"{self.task} makes the model's tensors itself; leave out the tokenizer's "
                "return_tensors."
            )
        if arguments.get("truncation"):
            arguments.setdefault("max_length", self.longest)
        return self.tokenizer(*texts, **arguments)

    @property
    def longest(self) -> int:
        """The most tokens of one text: the tokenizer's limit or the model's positions."""
        return int(min(self.tokenizer.model_max_length, self.model.base_model.longest()))

    def texts(self, items: list[Any]) -> list[str]:
        """Check that all items are texts and return them."""
        for item in items:
            if not isinstance(item, str):
                raise TypeError(
                    f"{self.task} takes a text or a list of texts, not "
                    f"{_named_type(item)}; pass the texts themselves."
                )
        return items

    def rows(self, encoded: Mapping[str, Any]) -> list[dict[str, Sequence[int]]]:
        """Split what a tokenizer returned for a list of texts into one dictionary a text."""
        names = [name for name in _INPUTS if name in encoded]
        count = len(encoded["input_ids"])
        return [{name: encoded[name][index] for name in names} for index in range(count)]

    def batches(self, rows: Sequence[Row]) -> Iterator[tuple[range, dict[str, Tensor]]]:
        """Pad tokenised texts in batches of bounded size.

        The model packs a batch at once, and a text's result does not depend on its neighbours.

        Args:
            rows: tokenised texts.

        Yields:
            The indices of a batch's texts, and the model's inputs on its device.
        """
        begin = 0
        most = tokens_of_a_pass(self.model.device)
        for batch in batches(rows, _length, self._batch_size, most):
            yield range(begin, begin + len(batch)), self._padded(batch)
            begin += len(batch)

    def _padded(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        lengths = [len(row["input_ids"]) for row in rows]
        pad = self.tokenizer.pad_token_id or 0
        fill = {"input_ids": pad, "attention_mask": 0, "token_type_ids": 0}
        batch = {}
        for name in ("input_ids", "token_type_ids"):
            if name in rows[0]:
                shape = (len(rows), max(lengths))
                grid = torch.full(shape, fill[name], dtype=torch.int64, device="cpu")
                for index, row in enumerate(rows):
                    grid[index, : lengths[index]] = torch.tensor(
                        row[name], dtype=torch.int64, device="cpu"
                    )
                batch[name] = grid.to(self.model.device)
        mask = torch.from_numpy(np.arange(max(lengths)) < np.array(lengths)[:, None])
        for index, row in enumerate(rows):
            if "attention_mask" in row:
                mask[index, : lengths[index]] &= torch.from_numpy(
                    np.array(row["attention_mask"]) != 0
                )
        batch["attention_mask"] = mask.to(self.model.device)
        return batch

    def token_outputs(self, rows: Sequence[Row], field: str | int) -> list[Tensor]:
        """Run the model and return one output per token.

        Args:
            rows: tokenised texts.
            field: name or index of an output of shape (batch, length, ...).

        Returns:
            float32 on the CPU, (tokens, ...) for every text.
        """
        found: list[Tensor] = []
        for indices, inputs in self.batches(rows):
            values = self.model(**inputs)[field].float().cpu()
            found += [
                values[at, : len(rows[index]["input_ids"])] for at, index in enumerate(indices)
            ]
        return found

    def text_outputs(self, rows: Sequence[Row], field: str | int) -> list[Tensor]:
        """Run the model and return one output per text.

        Args:
            rows: tokenised texts.
            field: name or index of an output of shape (batch, ...).

        Returns:
            float32 on the CPU, one value or vector for every text.
        """
        found: list[Tensor] = []
        for _, inputs in self.batches(rows):
            found += list(self.model(**inputs)[field].float().cpu())
        return found


def _length(row: Row) -> int:
    return len(row["input_ids"])


def _named_type(item: Any) -> str:
    if isinstance(item, Mapping):
        return f"a {type(item).__name__} of {', '.join(map(str, list(item)[:5])) or 'nothing'}"
    return type(item).__name__


def _named(function: Callable[..., Any]) -> list[str]:
    """List the arguments of a bound method that may be given by name, except its inputs."""
    return [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in ("items", "text", "text_pair")
        and parameter.kind is not parameter.VAR_KEYWORD
    ]


def check_limit(name: str, value: object) -> None:
    """Refuse a limit that is no whole number of at least 1.

    Args:
        name: that of the argument, for the error.
        value: what was given.

    Raises:
        ValueError: naming both.
    """
    whole = hasattr(value, "__index__") and not isinstance(value, bool)
    if not whole or operator.index(cast(Any, value)) < 1:
        raise ValueError(f"{name} must be at least 1, as a whole number, not {value!r}.")
