"""Models in sentence-transformers' format: what modules.json and the files it names say."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastbert.checkpoints.files import Checkpoint, resolve_file
from fastbert.checkpoints.storage import read_json
from fastbert.embedding.pooling import Dense, modes_of

Module = dict[str, Any]

_SETTINGS_FILES = (
    "sentence_bert_config.json",
    "sentence_camembert_config.json",
    "sentence_roberta_config.json",
)


@dataclass
class SentenceSpec:
    """A sentence encoder as it is saved.

    Attributes:
        transformer: subfolder of the model and its tokenizer.
        modes: pooling modes, in the order in which their vectors are concatenated.
        dense: projections of the pooled vectors, in order.
        normalized: whether vectors are scaled to length 1.
        max_seq_length: tokens of a text, special tokens included; None for the model's own limit.
        do_lower_case: whether texts are lower-cased before they are tokenised.
        prompts: texts put before the input, by name.
        default_prompt_name: the prompt used where none is asked for.
    """

    transformer: str = ""
    modes: tuple[str, ...] = ("mean",)
    dense: list[Dense] = field(default_factory=list)
    normalized: bool = False
    max_seq_length: int | None = None
    do_lower_case: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None


def read_spec(path: str | os.PathLike[str]) -> SentenceSpec:
    """Read modules.json and the files it names; without it, the spec of a plain encoder."""
    spec = SentenceSpec()
    file = resolve_file(path, "modules.json", optional=True)
    if file is None:
        return spec
    for module in read_json(file, list):
        _READERS.get(str(module["type"]).rsplit(".", 1)[-1], _refuse)(spec, path, module)
    for name in _SETTINGS_FILES:
        settings = _settings(path, name, spec.transformer)
        if settings is not None:
            spec.max_seq_length = settings.get("max_seq_length")
            spec.do_lower_case = bool(settings.get("do_lower_case", False))
            break
    general = _settings(path, "config_sentence_transformers.json") or {}
    spec.prompts = {name: text for name, text in (general.get("prompts") or {}).items() if text}
    spec.default_prompt_name = general.get("default_prompt_name")
    return spec


def _settings(path: str | os.PathLike[str], name: str, folder: str = "") -> dict[str, Any] | None:
    """Read a JSON object of a checkpoint; None where there is no such file."""
    file = resolve_file(path, name, subfolder=folder, optional=True)
    return None if file is None else read_json(file, dict)


def _module_config(path: str | os.PathLike[str], folder: str) -> tuple[dict[str, Any], Path]:
    """Read config.json of a module's folder; the second value is its path, for messages."""
    file = resolve_file(path, "config.json", subfolder=folder)
    return read_json(file, dict), Path(path, folder, "config.json")


def _read_transformer(spec: SentenceSpec, path: str | os.PathLike[str], module: Module) -> None:
    spec.transformer = module.get("path") or ""


def _read_pooling(spec: SentenceSpec, path: str | os.PathLike[str], module: Module) -> None:
    spec.modes = modes_of(*_module_config(path, module["path"]))


def _read_dense(spec: SentenceSpec, path: str | os.PathLike[str], module: Module) -> None:
    folder = module["path"]
    dense = Dense(*_module_config(path, folder))
    weights = Checkpoint.open(path, subfolder=folder)
    dense.load_state_dict({name: weights.read(name).float() for name in dense.state_dict()})
    spec.dense.append(dense)


def _read_normalize(spec: SentenceSpec, path: str | os.PathLike[str], module: Module) -> None:
    spec.normalized = True


def _skip(spec: SentenceSpec, path: str | os.PathLike[str], module: Module) -> None:
    """Leave out a module that does nothing outside of training."""


def _refuse(spec: SentenceSpec, path: str | os.PathLike[str], module: Module) -> None:
    raise ValueError(
        f"{path}/modules.json names a module of type {module['type']!r}, which is not supported; "
        f"expected {', '.join(_READERS)}."
    )


_READERS: dict[str, Callable[[SentenceSpec, str | os.PathLike[str], Module], None]] = {
    "Transformer": _read_transformer,
    "Pooling": _read_pooling,
    "Dense": _read_dense,
    "Normalize": _read_normalize,
    "Dropout": _skip,
}
