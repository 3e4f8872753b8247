"""What a call of encode() asks for, and the forms in which it gets its answer."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from torch import Tensor

from fastbert.embedding.front_door import check_limits
from fastbert.embedding.modules import SENTENCE, TOKENS, Features, Shape
from fastbert.embedding.quantize import Precision, quantize, quantize_all, ranges_of
from fastbert.embedding.texts import Tokens
from fastbert.embedding.transformer_settings import TextOptions
from fastbert.embedding.workers import Pool
from fastbert.runtime.progress import Progress

# float32: one vector of shape (dimension,), and vectors of shape (texts, dimension).
Vector = np.ndarray[tuple[int], np.dtype[np.float32]]
Vectors = np.ndarray[tuple[int, int], np.dtype[np.float32]]
# All that encode() may return.
Encoded = np.ndarray | Tensor | list[Tensor] | dict[str, Any] | list[dict[str, Any]] | list[Any]


class EncodeOptions(TypedDict, total=False):
    """Options of SentenceEncoder.encode that do not change the type of its result."""

    prompt_name: str | None
    prompt: str | None
    batch_size: int | None
    show_progress_bar: bool | Progress | None
    device: str | torch.device | list[str] | None
    normalize_embeddings: bool | None
    truncate_dim: int | None
    pool: Pool | None
    chunk_size: int | None
    max_tokens: int | None
    task: str | None
    processing_kwargs: dict[str, dict[str, Any]] | None


@dataclass(frozen=True)
class Request:
    """What is computed for every text, in whatever process.

    Attributes:
        prompt: put before every text.
        max_length: tokens of a text.
        options: how the tokenizer is called.
        batch_size: at most so many texts in one pass; None for any number.
        max_tokens: at most so many tokens in one pass; None for what suits the device.
        output_value: "sentence_embedding", "token_embeddings" or None for everything.
        normalized: whether vectors are scaled to length 1 at the end.
        truncate_dim: values of a vector that are kept; None for all.
    """

    prompt: str
    max_length: int
    options: TextOptions
    batch_size: int | None
    max_tokens: int | None
    output_value: Literal["sentence_embedding", "token_embeddings"] | None
    normalized: bool
    truncate_dim: int | None


@dataclass(frozen=True)
class Form:
    """The form of an answer.

    Attributes:
        single: whether one text was given, rather than a number of them.
        numpy: arrays; else tensors.
        stacked: one tensor, where tensors are wanted; else a list.
        precision: of the values.
    """

    single: bool
    numpy: bool
    stacked: bool
    precision: Precision


def check_truncate_dim(value: int | None) -> int | None:
    """Return a number of values to keep.

    Raises:
        ValueError: for one below 1.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(
            f"truncate_dim is {value!r}; expected the number of values of a vector to keep, at "
            "least 1, or None."
        )
    return value


def of_tokens(features: Features) -> list[Tensor]:
    """Return the hidden states of each text, (tokens, width), in memory of their own."""
    bounds = features.cu_seqlens.tolist()
    rows = features.values[TOKENS]
    return [rows[begin:end].clone() for begin, end in itertools.pairwise(bounds)]


def of_everything(
    features: Features, batch: Sequence[Tokens], shapes: Mapping[str, Shape], prompted: bool
) -> list[dict[str, Any]]:
    """Return all features of each text by name, as sentence-transformers names them.

    Args:
        features: those of the batch.
        batch: the texts.
        shapes: which of the features are by token.
        prompted: whether there is a prompt.
    """
    device = features.cu_seqlens.device
    bounds = features.cu_seqlens.tolist()
    found: list[dict[str, Any]] = []
    for index, tokens in enumerate(batch):
        item: dict[str, Any] = {"input_ids": torch.tensor(tokens.ids, device=device)}
        if tokens.types is not None:
            item["token_type_ids"] = torch.tensor(tokens.types, device=device)
        item["attention_mask"] = torch.ones_like(item["input_ids"])
        item["modality"] = "text"
        if prompted:
            item["prompt_length"] = features.prompt_length
        for name, value in features.values.items():
            rows = slice(bounds[index], bounds[index + 1])
            part = value[rows] if shapes[name].by_token else value[index]
            item[name] = part.clone()
        found.append(item)
    return found


def finished(result: Tensor | list[Any], form: Form) -> Encoded:
    """Turn vectors (texts, dimension), or a list of one answer a text, into the form asked for."""
    if isinstance(result, list):
        if form.precision != "float32":
            matrices = [matrix.float().cpu().numpy() for matrix in result]
            result = list(quantize_all(matrices, form.precision))
        return result[0] if form.single else result
    if form.precision == "float32" and not form.numpy:
        vectors = result.clone()  # out of inference mode
    else:
        values = result.cpu().numpy()
        values = quantize(values, form.precision, ranges_of(values, form.precision))
        if form.numpy:
            return values[0] if form.single else values
        vectors = torch.from_numpy(values)
    if form.single:
        return vectors[0]
    return vectors if form.stacked else list(vectors)


def check_request(request: Request, form: Form) -> None:
    """Refuse what cannot be computed.

    Raises:
        ValueError: for a limit below 1, or values that do not go together.
    """
    check_limits(request.batch_size, request.max_tokens)
    if request.output_value not in (SENTENCE, TOKENS, None):
        raise ValueError(
            f"output_value is {request.output_value!r}; expected {SENTENCE!r}, {TOKENS!r} or None."
        )
    if request.output_value is None and form.precision != "float32":
        raise ValueError("output_value=None returns features as they are; leave precision out.")
