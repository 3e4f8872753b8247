"""Texts to token ids: what may be encoded, and the tokenizer running ahead of the kernels."""

from __future__ import annotations

import contextlib
import copy
import itertools
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import normalizers
from torch import Tensor

from fastbert.embedding.transformer_settings import TextOptions
from fastbert.tokenizers.base import Tokenizer
from fastbert.tokenizers.engines.rust import RustEngine

# Texts handed to the tokenizer at a time: enough for its own threads, few enough that the
# kernels start soon.
CHUNK_TEXTS = 128
_AHEAD = 3


# What an encoder reads: a text, or two that are read as one.
Text = str | tuple[str, str]


@dataclass(frozen=True)
class Tokens:
    """A tokenised text or pair: its ids, and its token types where the tokenizer gives them."""

    ids: list[int]
    types: list[int] | None

    def __len__(self) -> int:
        return len(self.ids)


def no_sequence(texts: object) -> str | None:
    """Return why an object is no sequence of texts, as the end of a phrase; None where it is."""
    why = None
    if hasattr(texts, "columns") or isinstance(texts, Mapping):
        why = ", whose names would be taken for the texts"
    elif isinstance(texts, set | frozenset):
        why = ", which has no order"
    elif isinstance(texts, np.ndarray) and texts.ndim == 0:
        why = " without dimensions"
    elif isinstance(texts, bytes) or not isinstance(texts, Iterable):
        why = ""
    return why


def checked(texts: object) -> list[str]:
    """Return the texts as a list.

    Raises:
        TypeError: naming what is no text, or no sequence of texts.
    """
    why = no_sequence(texts)
    if why is not None or not isinstance(texts, Iterable):
        raise TypeError(
            f"encode() takes a text or any number of them, but it was given a "
            f"{type(texts).__name__}{why}; pass a str or a list of str."
        )
    inputs = list(texts)
    for index, text in enumerate(inputs):
        if not isinstance(text, str):
            pair = isinstance(text, tuple | list) and all(isinstance(part, str) for part in text)
            told = "; pairs of texts are not embedded" if pair else "; convert it to str first"
            raise TypeError(
                f"encode() takes a text or a sequence of texts, but item {index} is a "
                f"{type(text).__name__}{told}."
            )
    return inputs


def checked_pairs(inputs: object) -> tuple[list[tuple[str, str]], bool]:
    """Return pairs of texts as a list, and whether one pair was given rather than several.

    Raises:
        TypeError: naming what is no pair of texts, or no sequence of pairs.
    """
    why = "" if isinstance(inputs, str) else no_sequence(inputs)
    if why is not None or not isinstance(inputs, Iterable):
        raise TypeError(
            "predict() takes a pair of texts or any number of pairs, but it was given a "
            f"{type(inputs).__name__}{why}; pass (query, text), or a list of such pairs."
        )
    items = inputs.tolist() if isinstance(inputs, np.ndarray) else list(inputs)
    single = bool(items) and isinstance(items[0], str)
    pairs = []
    for index, pair in enumerate([items] if single else items):
        texts = isinstance(pair, tuple | list) and all(isinstance(part, str) for part in pair)
        if not texts or len(pair) != 2:
            what = "the input" if single else f"item {index}"
            told = f"a {type(pair).__name__}"
            if isinstance(pair, tuple | list):
                told += f" of {', '.join(type(part).__name__ for part in pair) or 'nothing'}"
            raise TypeError(f"predict() takes pairs of two str, but {what} is {told}.")
        pairs.append((pair[0], pair[1]))
    return pairs, single


def lower_cased(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer that lower-cases texts before all else, as sentence-transformers does.

    Special tokens in a text keep their case. The tokenizer that is given stays as it is.
    """
    tokenizer = copy.deepcopy(tokenizer)
    if isinstance(tokenizer.engine, RustEngine):
        backend = tokenizer.engine.backend
        before: Any = backend.normalizer
        several = type(before) is normalizers.Sequence
        steps = list(before) if several else [before]
        if not any(isinstance(step, normalizers.Lowercase) for step in steps):
            rest = [step for step in steps if step is not None]
            backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *rest])
    return tokenizer


def lower(text: str, tokenizer: Tokenizer) -> str:
    """Lower-case a text for a tokenizer that has no normalizer to do it; special tokens stay."""
    names = sorted(tokenizer.all_special_tokens, key=len, reverse=True)
    parts = re.split("(" + "|".join(map(re.escape, names)) + ")", text) if names else [text]
    return "".join(
        part if part in names else "".join(char.lower() for char in part) for part in parts
    )


@dataclass(frozen=True)
class TextReader:
    """What turns texts into tokens.

    Attributes:
        tokenizer: the tokenizer, which lower-cases by itself where it can.
        max_length: tokens that a text is cut to.
        options: how the tokenizer is called.
        lowered: whether texts are lower-cased here.
    """

    tokenizer: Tokenizer
    max_length: int
    options: TextOptions
    lowered: bool

    def read(self, texts: Sequence[Text], prefix: str = "") -> list[Tokens]:
        """Tokenise texts, or pairs of them, behind a prefix."""
        inputs = [prefix + (text if isinstance(text, str) else text[0]) for text in texts]
        seconds = [text[1] for text in texts if not isinstance(text, str)]
        if self.lowered:
            inputs = [lower(text, self.tokenizer) for text in inputs]
            seconds = [lower(text, self.tokenizer) for text in seconds]
        encoded = self.tokenizer(
            inputs,
            seconds or None,
            truncation=self.options.truncation,
            max_length=self.max_length if self.options.truncation else None,
            padding=False,
            add_special_tokens=self.options.add_special_tokens,
            return_attention_mask=False,
        )
        types = encoded.get("token_type_ids") or [None] * len(inputs)
        return [Tokens(*pair) for pair in zip(encoded["input_ids"], types, strict=True)]

    def prompt_length(self, prompt: str) -> int:
        """Return how many tokens a prompt has at the beginning of a text.

        It is tokenised alone; a special token at its end belongs to the text.
        """
        if not prompt:
            return 0
        ids = self.read([prompt])[0].ids
        return len(ids) - bool(ids and ids[-1] in self.tokenizer.all_special_ids)

    def ahead(self, texts: Sequence[Text], prefix: str) -> Generator[Tokens, None, None]:
        """Tokenise texts in chunks, ahead of the caller, who must close the generator."""

        def work(begin: int) -> list[Tokens]:
            return self.read(texts[begin : begin + CHUNK_TEXTS], prefix)

        starts = range(0, len(texts), CHUNK_TEXTS)
        with contextlib.closing(_ahead(work, starts)) as chunks:
            for chunk in chunks:
                yield from chunk


def _ahead(
    work: Callable[[int], list[Tokens]], arguments: Sequence[int]
) -> Generator[list[Tokens], None, None]:
    """Yield work(argument) for every argument, in order, up to _AHEAD calls ahead of the caller."""
    if len(arguments) <= 1:
        yield from map(work, arguments)
        return
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="fastbert-tokenizer") as pool:
        pending: deque[Future[list[Tokens]]] = deque()
        try:
            for argument in arguments:
                pending.append(pool.submit(work, argument))
                if len(pending) > _AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def grids(batch: Sequence[Tokens]) -> tuple[Tensor, Tensor | None, Tensor]:
    """Lay out a batch as grids (texts, longest): int64 ids, token types if any, bool real tokens.

    Where no token stands there is a zero.
    """
    if len(batch) == 1:
        # A query: its ids are the grid.
        ids, types = torch.tensor([batch[0].ids], dtype=torch.int64), batch[0].types
        real = torch.ones(ids.shape, dtype=torch.bool)
        return ids, None if types is None else torch.tensor([types], dtype=torch.int64), real
    lengths = np.array([len(tokens) for tokens in batch])
    kept = np.arange(lengths.max(initial=0)) < lengths[:, None]
    grid = None
    if batch and batch[0].types is not None:
        grid = _grid([tokens.types or [] for tokens in batch], kept)
    return _grid([tokens.ids for tokens in batch], kept), grid, torch.from_numpy(kept)


def _grid(lists: Sequence[Sequence[int]], real: np.ndarray) -> Tensor:
    grid = np.zeros(real.shape, dtype=np.int64)
    grid[real] = np.fromiter(itertools.chain.from_iterable(lists), np.int64, int(real.sum()))
    return torch.from_numpy(grid)
