"""What a pipeline is called with: one input, a list of inputs, or a stream of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset


def stream_of(inputs: Any, task: str) -> Iterator[Any] | None:
    """Return an iterator over inputs that come one by one; None for a single input.

    A stream is any iterable but a list or a tuple, which are answered at once: a generator, a data
    set of torch (with or without a length) or of the `datasets` library, an array, a column of a
    table.

    Args:
        inputs: what a pipeline was called with, neither a list nor a tuple.
        task: the name of the pipeline's task, for error messages.

    Raises:
        TypeError: for a table, of which iteration would give the names of its columns, for a
            DataLoader, whose items are batches, and for a set, which has no order.
    """
    if isinstance(inputs, (str, bytes, bytearray, os.PathLike, Mapping)):
        return None
    if _is_table(inputs):
        raise TypeError(
            f"{task} takes texts, but a {type(inputs).__name__} is a table, of which only the "
            "names of the columns would be read; pass one column of it, such as "
            "table['text'].tolist()."
        )
    if isinstance(inputs, DataLoader):
        raise TypeError(
            f"{task} takes texts one by one, but a DataLoader gives batches of them; pass its "
            "dataset: the pipeline makes its own batches."
        )
    if isinstance(inputs, (set, frozenset)):
        raise TypeError(
            f"{task} answers in the order of its inputs, which a set does not have; pass a list."
        )
    if isinstance(inputs, Dataset) and not isinstance(inputs, IterableDataset):
        return _indexed(inputs)
    # A zero-dimensional array has the method, but cannot be iterated.
    if not isinstance(inputs, Iterable) or getattr(inputs, "ndim", 1) == 0:
        return None
    return iter(inputs)


def _is_table(inputs: Any) -> bool:
    """Recognise the tables of pandas, polars and pyarrow by what they have, without their imports.

    The `datasets` library names its columns too, but iterates over rows.
    """
    columns = hasattr(inputs, "columns") and hasattr(inputs, "shape")
    return columns and not isinstance(inputs, Iterator)


def _indexed(dataset: Dataset[Any]) -> Iterator[Any]:
    """Read a data set by index: to its length, or to its IndexError where it has none."""
    length = len(dataset) if hasattr(dataset, "__len__") else None
    index = 0
    while length is None or index < length:
        try:
            item = dataset[index]
        except IndexError:
            if length is None:
                return
            raise
        yield item
        index += 1
