"""Folders of cross-encoders: those that sentence-transformers saves, and plain classifiers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from fastbert.checkpoints.files import HUB_OPTIONS, resolve_file
from fastbert.checkpoints.storage import read_json
from fastbert.embedding.activations import activation_named
from fastbert.embedding.folder import (
    CROSS,
    GENERAL,
    Source,
    class_name,
    entries_of,
    general_settings,
    say_unread,
)
from fastbert.embedding.loading import of_one_save, read_parts
from fastbert.embedding.saving import Parts, activation_path, save_parts, transformer_config
from fastbert.embedding.transformer_settings import SCORES, TransformerSettings, read_settings
from fastbert.models.auto import AutoModelForSequenceClassification

if TYPE_CHECKING:
    from fastbert.embedding.cross_encoder import CrossEncoder

HEAD = "ForSequenceClassification"
# Where config.json may name the activation of the scores: today, and before version 4.
_SECTION, _ELDER = "sentence_transformers", "sbert_ce_default_activation_function"


def loaded(
    path: str | os.PathLike[str],
    given: Sequence[Mapping[str, Any] | None],
    max_length: int | None,
    activation_fn: Any,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Load the arguments of CrossEncoder's constructor.

    Args:
        path: a local folder, or a hub id.
        given: model_kwargs, tokenizer_kwargs, processor_kwargs and config_kwargs of
            CrossEncoder.from_pretrained, which documents the others too.
        max_length: the caller's.
        activation_fn: the caller's; None for the folder's.
        options: those of the hub and of the model's from_pretrained.
    """
    hub: Any = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
    source = Source(path, hub)

    def read() -> dict[str, Any]:
        settings, general = _read_settings(source)
        where = source.name(settings.folder, "config.json")
        config = source.read("config.json", settings.folder) or {}
        _check_head(config, where)
        kind = AutoModelForSequenceClassification
        found = read_parts(kind, source, settings, given, max_length, options)
        _check_precision(general, found["model"], source.name("", GENERAL))
        named = general.get("activation_fn"), source.name("", GENERAL)
        if named[0] is None:
            named = _named_activation(config), where
        chosen = activation_fn
        if chosen is None and named[0] is not None:
            chosen = activation_named(*named)
        return found | {
            "activation_fn": chosen,
            "prompts": general.get("prompts"),
            "default_prompt_name": general.get("default_prompt_name"),
        }

    return of_one_save(source, read)


def _read_settings(source: Source) -> tuple[TransformerSettings, dict[str, Any]]:
    """Read how the transformer is loaded and fed, and what is said of the whole."""
    listed = resolve_file(source.path, "modules.json", optional=True, **source.at(""))
    if listed is None:
        say_unread(source, "the scores are those of the model's own head")
        return TransformerSettings(), {}
    general = general_settings(source, CROSS, {"activation_fn", "keep_in_fp32_modules"})
    where = source.name("", "modules.json")
    entries = entries_of(read_json(listed, list), where)
    for index, entry in enumerate(entries):
        if class_name(entry["type"], where) != "Transformer" or index:
            raise ValueError(
                f"{where} has {entry['type']!r} as module {index}; expected one Transformer, whose "
                "head gives the scores. Use sentence-transformers for this model."
            )
    return read_settings(source.read, entries[0]["path"], source.name, SCORES), general


def _check_head(config: Mapping[str, Any], where: str) -> None:
    """Refuse a checkpoint without a head, whose scores would be random.

    Raises:
        ValueError: for a model of another task.
    """
    named = [str(name) for name in config.get("architectures") or []]
    if named and not any(name.endswith(HEAD) for name in named):
        raise ValueError(
            f"{where} is of a {named[0]}, which has no head that scores pairs; expected a "
            f"...{HEAD}, such as cross-encoders are. For vectors of texts, use "
            "fastbert.SentenceEncoder."
        )


def _check_precision(general: Mapping[str, Any], model: Any, where: str) -> None:
    """Refuse layers that a folder wants in float32 where the model is not."""
    names = general.get("keep_in_fp32_modules")
    if names and model.dtype.itemsize < 4:
        raise ValueError(
            f"{where} keeps {', '.join(map(str, names))} in float32, which a model in "
            f"{str(model.dtype).removeprefix('torch.')} does not do here; load it with "
            "dtype='float32'."
        )


def _named_activation(config: Mapping[str, Any]) -> object:
    """Return the activation that config.json names; None for none."""
    section = config.get(_SECTION)
    if isinstance(section, Mapping) and "activation_fn" in section:
        return section["activation_fn"]
    return config.get(_ELDER)


def save(encoder: CrossEncoder, directory: str | os.PathLike[str]) -> None:
    """Write a cross-encoder; see CrossEncoder.save_pretrained."""
    activation = encoder.activation_fn
    if not isinstance(activation, nn.Module):
        raise ValueError(
            f"activation_fn is {activation!r}, which cannot be saved, since only names of "
            "activations of torch.nn are; set one of these, torch.nn.Sigmoid() for example."
        )
    name = activation_path(activation, "The CrossEncoder to be saved")
    config = encoder.model.config
    # Versions of sentence-transformers before 6 read it here.
    setattr(config, _SECTION, {"activation_fn": name})
    if hasattr(config, _ELDER):
        delattr(config, _ELDER)
    general = {
        "model_type": CROSS,
        "prompts": encoder.prompts,
        "default_prompt_name": encoder.default_prompt_name,
        "activation_fn": name,
    }
    transformer = SCORES.settings() | transformer_config(
        encoder.max_seq_length, encoder.do_lower_case, encoder.settings.text
    )
    save_parts(encoder.model, encoder.tokenizer, directory, Parts(general, transformer))
