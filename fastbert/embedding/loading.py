"""From a folder to the parts of a sentence encoder."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from fastbert.checkpoints import transaction
from fastbert.checkpoints.files import HUB_OPTIONS, local_folder
from fastbert.embedding.folder import Source, read_spec
from fastbert.embedding.transformer_settings import TransformerSettings
from fastbert.modeling.base import PreTrainedModel
from fastbert.models.auto import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from fastbert.tokenizers.base import Tokenizer

Read = TypeVar("Read")

_log = logging.getLogger("fastbert")

# A tokenizer that knows no limit has a larger number than this.
_NO_LIMIT = 10**9


def loaded(
    path: str | os.PathLike[str],
    given: Sequence[Mapping[str, Any] | None],
    max_seq_length: int | None,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Load the arguments of SentenceEncoder's constructor.

    Args:
        path: a local folder, or a hub id.
        given: model_kwargs, tokenizer_kwargs, processor_kwargs and config_kwargs of
            SentenceEncoder.from_pretrained, which documents the others too.
        max_seq_length: the caller's.
        options: those of the hub and of the model's from_pretrained.
    """
    hub: Any = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
    source = Source(path, hub)
    return of_one_save(source, lambda: _read(source, given, max_seq_length, options))


def of_one_save(source: Source, read: Callable[[], Read]) -> Read:
    """Read files of a folder that all are of one save, whoever saves into it meanwhile.

    Args:
        source: where they are.
        read: reads them all.

    Raises:
        ValueError: where a save was cut short, and may not be finished here.
    """
    folder = local_folder(source.path, source.options.get("subfolder", ""))
    if folder is None:
        return read()

    def whole() -> Read:
        if not transaction.settled(folder):
            raise ValueError(
                f"A save into {folder} was cut short before its files were in their places, and "
                "this process may not finish it; load the folder once with the right to write "
                "into it, or save again."
            )
        return read()

    return transaction.steady(folder, whole)


def _read(
    source: Source,
    given: Sequence[Mapping[str, Any] | None],
    max_seq_length: int | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    spec = read_spec(source)
    return read_parts(AutoModel, source, spec.transformer, given, max_seq_length, options) | {
        "prompts": spec.prompts,
        "default_prompt_name": spec.default_prompt_name,
        "modules": spec.modules,
        "similarity_fn_name": spec.similarity_fn_name,
        "truncate_dim": spec.truncate_dim,
    }


def read_parts(
    kind: type[AutoModel] | type[AutoModelForSequenceClassification],
    source: Source,
    settings: TransformerSettings,
    given: Sequence[Mapping[str, Any] | None],
    max_seq_length: int | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Load a model, its tokenizer, and how texts are tokenised.

    Args:
        kind: what the model is loaded with.
        source: where the files are.
        settings: of the folder's Transformer module; its lengths are cut to what the model takes.
        given: model_kwargs, tokenizer_kwargs, processor_kwargs and config_kwargs of the caller.
        max_seq_length: the caller's.
        options: of the model's from_pretrained.

    Returns:
        model, tokenizer, max_seq_length, do_lower_case and settings, by name.
    """
    model_kwargs, tokenizer_kwargs, processor_kwargs, config_kwargs = (dict(d or {}) for d in given)
    path, where = source.path, source.at(settings.folder)
    values = {**settings.config_kwargs, **config_kwargs, **settings.model_kwargs, **model_kwargs}
    if "dtype" in options:
        values.pop("torch_dtype", None)
    read = {**settings.processor_kwargs, **tokenizer_kwargs, **processor_kwargs}
    # A name of sentence-transformers for the same limit.
    asked = read.pop("model_max_length", None)
    model: PreTrainedModel = kind.from_pretrained(path, **where, **{**values, **options})
    if not hasattr(model.base_model, "longest"):
        raise ValueError(
            f"{path} is of {type(model).__name__}, which reads images; expected a model of texts "
            "alone. For its vectors, load it with fastbert.AutoModel and call get_text_features, "
            "or save its text tower into a folder of its own."
        )
    tokenizer = AutoTokenizer.from_pretrained(path, **where, **read)
    _fit(settings, model, tokenizer, path)
    limits = (max_seq_length, asked, settings.max_seq_length)
    return {
        "model": model,
        "tokenizer": tokenizer,
        "max_seq_length": next((limit for limit in limits if limit is not None), None),
        "do_lower_case": settings.do_lower_case,
        "settings": settings,
    }


def _fit(
    settings: TransformerSettings, model: PreTrainedModel, tokenizer: Tokenizer, path: object
) -> None:
    """Cut the lengths that files give to what the model has positions for, and say so."""
    longest = int(model.base_model.longest())

    def fitting(value: int, name: str) -> int:
        if longest < value:
            _log.warning(
                "%s has %s = %d, but the model has positions for %d tokens; longer texts are cut.",
                path,
                name,
                value,
                longest,
            )
        return min(value, longest)

    if settings.max_seq_length is not None:
        settings.max_seq_length = fitting(settings.max_seq_length, "max_seq_length")
    elif tokenizer.model_max_length is not None and tokenizer.model_max_length < _NO_LIMIT:
        fitting(tokenizer.model_max_length, "model_max_length")
    for task, value in settings.lengths.items():
        settings.lengths[task] = fitting(value, f"{task}_length")
    if settings.text.max_length is not None:
        cut = fitting(settings.text.max_length, "processing_kwargs.text.max_length")
        settings.text = replace(settings.text, max_length=cut)
