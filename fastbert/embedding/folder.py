"""Folders in sentence-transformers' format: modules.json, and the files of the modules it lists."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from fastbert.checkpoints.files import Checkpoint, FileOptions, resolve_file
from fastbert.checkpoints.storage import read_json
from fastbert.embedding.activations import activation_named
from fastbert.embedding.modules import (
    Dense,
    Dropout,
    Normalize,
    Pooling,
    SentenceLayerNorm,
    SentenceModule,
)
from fastbert.embedding.pooling import FLAGS, modes_of
from fastbert.embedding.transformer_settings import TransformerSettings, read_settings

_log = logging.getLogger("fastbert")

GENERAL = "config_sentence_transformers.json"
_MODEL_TYPE = "SentenceTransformer"
CROSS = "CrossEncoder"
_GENERAL_KEYS = {
    "__version__",
    "default_prompt_name",
    "model_type",
    "prompts",
    "requirements",
}
_RESULTS = {_MODEL_TYPE: "one vector a text", CROSS: "scores of a pair of texts"}
_ELSE = "Use sentence-transformers for this model."
_INSTEAD = {
    _MODEL_TYPE: "Load it with fastbert.SentenceEncoder.",
    CROSS: "Load it with fastbert.CrossEncoder.",
}
# Under these, and in modules of their own below them, sentence-transformers has kept its modules.
_PLACES = ("models", "sentence_transformer.modules", "base.modules")
_ELSEWHERE = {
    "Asym": "it sends queries and documents through different models",
    "Router": "it sends queries and documents through different models",
    "BoW": "it counts words and has no transformer",
    "CLIPModel": "it reads images too",
    "CNN": "it convolves hidden states",
    "LSTM": "it is a recurrent network",
    "StaticEmbedding": "it has no transformer",
    "WeightedLayerPooling": "it averages the hidden states of several layers",
    "WordEmbeddings": "it has no transformer",
    "WordWeights": "it weighs tokens by the frequencies of words",
}


@dataclass
class SentenceSpec:
    """A sentence encoder as it is saved.

    Attributes:
        transformer: how the model and its tokenizer are loaded.
        modules: what follows the transformer, in order.
        prompts: texts put before the input, by name.
        default_prompt_name: the prompt used where none is asked for.
        similarity_fn_name: how vectors are compared; None where nothing is said.
        truncate_dim: values of a vector that are kept; None for all.
    """

    transformer: TransformerSettings = field(default_factory=TransformerSettings)
    modules: list[SentenceModule] = field(default_factory=list)
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity_fn_name: str | None = None
    truncate_dim: int | None = None


@dataclass(frozen=True)
class Source:
    """A saved sentence encoder: where its files are.

    Attributes:
        path: a folder or a hub id.
        options: subfolder and the hub's options.
    """

    path: str | os.PathLike[str]
    options: FileOptions

    def at(self, folder: str) -> FileOptions:
        """Return the options for the files of a module's folder."""
        options = self.options.copy()
        inside = str(PurePosixPath(options.pop("subfolder", None) or "", folder))
        if inside != ".":
            options["subfolder"] = inside
        return options

    def name(self, folder: str, name: str) -> str:
        """Return what a file is called in messages."""
        return str(PurePosixPath(str(self.path), folder, name))

    def read(self, name: str, folder: str = "") -> dict[str, Any] | None:
        """Read a JSON object; None where there is no such file."""
        file = resolve_file(self.path, name, optional=True, **self.at(folder))
        return None if file is None else read_json(file, dict)

    def weights(self, folder: str) -> Checkpoint:
        """Open the weights of a module."""
        return Checkpoint.open(self.path, **self.at(folder))


def read_spec(source: Source) -> SentenceSpec:
    """Read modules.json and all files it names; without it, the spec of a plain encoder.

    Raises:
        FileNotFoundError: for a file that is missing.
        ValueError: for a module or a setting that is not supported, or files that do not fit.
    """
    listed = resolve_file(source.path, "modules.json", optional=True, **source.at(""))
    if listed is None:
        return _plain(source)
    spec = SentenceSpec()
    _read_general(spec, source)
    where = source.name("", "modules.json")
    for index, entry in enumerate(entries_of(read_json(listed, list), where)):
        name = class_name(entry["type"], where)
        if (name == "Transformer") != (index == 0):
            raise ValueError(
                f"{where} has {entry['type']!r} as module {index}; expected one Transformer, and "
                "it first. Use sentence-transformers for this model."
            )
        if index == 0:
            spec.transformer = read_settings(source.read, entry["path"], source.name)
        else:
            spec.modules.append(_READERS[name](source, entry["path"]))
    return spec


def _plain(source: Source) -> SentenceSpec:
    """Return what sentence-transformers makes of an encoder without modules.json."""
    say_unread(source, "the encoder is pooled by the mean of its tokens")
    config = source.read("config.json") or {}
    named = [str(name) for name in config.get("architectures") or []]
    causal = bool(named) and named[0].endswith("ForCausalLM") and config.get("is_causal", True)
    return SentenceSpec(modules=[Pooling(("lasttoken",) if causal else ("mean",))])


def say_unread(source: Source, instead: str) -> None:
    """Warn of files that nobody reads, since there is no modules.json."""
    for name in (GENERAL, "sentence_bert_config.json"):
        if resolve_file(source.path, name, optional=True, **source.at("")) is not None:
            _log.warning(
                "%s is not read, since there is no modules.json beside it; %s.",
                source.name("", name),
                instead,
            )


def entries_of(content: list[Any], where: str) -> list[dict[str, str]]:
    """Check modules.json and return what it says of each module: its type and its path."""
    if not content:
        raise ValueError(f"{where} lists no module; expected at least a Transformer.")
    found: dict[str, dict[str, str]] = {}
    for index, entry in enumerate(content):
        if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
            raise ValueError(f"{where}: module {index} has no type; expected an object with one.")
        name, path = str(entry.get("name", index)), entry.get("path", "")
        parts = PurePosixPath(path) if isinstance(path, str) else PurePosixPath("/")
        if parts.is_absolute() or ".." in parts.parts or "\\" in str(path):
            raise ValueError(
                f"{where}: module {name!r} has the path {path!r}; expected one inside this folder."
            )
        if name in found:
            raise ValueError(f"{where} lists two modules named {name!r}; give each its own name.")
        found[name] = {"type": entry["type"], "path": path}
    return list(found.values())


def class_name(kind: str, where: str) -> str:
    """Return the class of sentence-transformers that a type names, by its old or new path.

    Raises:
        ValueError: for a class of another package, or one that is not supported.
    """
    package, _, rest = kind.partition(".")
    place, _, name = rest.rpartition(".")
    snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
    homes = {f"{home}.{part}" for home in _PLACES for part in (name, snake)} | {*_PLACES}
    if package == "sentence_transformers" and place in homes and name in {*_READERS, "Transformer"}:
        return name
    if package != "sentence_transformers":
        why = "a class of another package, whose code is not run here"
    elif name in _ELSEWHERE:
        why = f"not supported: {_ELSEWHERE[name]}"
    else:
        why = "not supported"
    raise ValueError(
        f"{where} names a module of type {kind!r}, which is {why}. Supported are Transformer, "
        f"{', '.join(_READERS)} of sentence_transformers; use sentence-transformers itself for "
        "this model."
    )


def _read_general(spec: SentenceSpec, source: Source) -> None:
    """Read config_sentence_transformers.json."""
    content = general_settings(source, _MODEL_TYPE, {"similarity_fn_name", "truncate_dim"})
    spec.prompts = content["prompts"]
    spec.default_prompt_name = content.get("default_prompt_name")
    spec.similarity_fn_name = content.get("similarity_fn_name")
    spec.truncate_dim = content.get("truncate_dim")


def general_settings(source: Source, model_type: str, known: set[str]) -> dict[str, Any]:
    """Read config_sentence_transformers.json; "prompts" is always among what it returns.

    Args:
        source: the folder.
        model_type: what it must describe.
        known: settings that are obeyed, beside those of every kind of model.

    Raises:
        ValueError: for another kind of model, or prompts that are none.
    """
    where = source.name("", GENERAL)
    content = source.read(GENERAL) or {}
    kind = content.get("model_type", _MODEL_TYPE)
    if kind != model_type:
        raise ValueError(
            f"{where} describes a {kind!r}, which makes other results than {_RESULTS[model_type]}; "
            f"expected the model_type {model_type!r}. {_INSTEAD.get(kind, _ELSE)}"
        )
    warn_of_unknown(set(content) - _GENERAL_KEYS - known, where)
    if content.get("requirements"):
        _log.warning(
            "%s asks for versions of packages (%s), which fastbert neither uses nor checks.",
            where,
            json.dumps(content["requirements"]),
        )
    prompts = content.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(
        text is None or isinstance(text, str) for text in prompts.values()
    ):
        raise ValueError(f"{where} has prompts that are no texts by name: {prompts!r}.")
    return {**content, "prompts": {name: text or "" for name, text in prompts.items()}}


def warn_of_unknown(names: set[str], where: str) -> None:
    """Say which settings of a file have no meaning here, as they have none in the library."""
    if names:
        _log.warning(
            "%s has settings that mean nothing to sentence-transformers 6 or fastbert and are not "
            "obeyed: %s.",
            where,
            ", ".join(sorted(names)),
        )


def _module_config(source: Source, folder: str) -> tuple[dict[str, Any], str]:
    """Read config.json of a module's folder; the second value is its name, for messages."""
    file = resolve_file(source.path, "config.json", **source.at(folder))
    return read_json(file, dict), source.name(folder, "config.json")


def _refuse_unknown(config: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(config) - known)
    if unknown:
        raise ValueError(
            f"{where} has the settings {', '.join(unknown)}, which are unknown; expected "
            f"{', '.join(sorted(known))}. Use the version of sentence-transformers that wrote it."
        )


def _checked(config: Mapping[str, Any], kinds: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the values of a config.json that are given, after a look at their types."""
    values = {name: config[name] for name in kinds if name in config}
    for name, value in values.items():
        kind = kinds[name]
        if not isinstance(value, kind) or (kind is int and (isinstance(value, bool) or value < 1)):
            raise ValueError(f"{where} has {name} = {value!r}, which makes no sense there.")
    return values


def _read_pooling(source: Source, folder: str) -> Pooling:
    config, where = _module_config(source, folder)
    # Widths are those of the hidden states, whatever the file says.
    known = {*FLAGS, "pooling_mode", "include_prompt"}
    _refuse_unknown(config, {*known, "word_embedding_dimension", "embedding_dimension"}, where)
    given = _checked(config, {"include_prompt": bool}, where)
    return Pooling(modes_of(config, where), given.get("include_prompt", True))


_DENSE = {
    "in_features": int,
    "out_features": int,
    "bias": bool,
    "module_input_name": str,
    "module_output_name": str | None,
    "use_residual": bool,
}


def _read_dense(source: Source, folder: str) -> Dense:
    config, where = _module_config(source, folder)
    warn_of_unknown(set(config) - {*_DENSE, "activation_function"}, where)
    given = _checked(config, _DENSE, where)
    if not {"in_features", "out_features"} <= set(given):
        raise ValueError(f"{where} lacks in_features or out_features; save the model again.")
    name = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    module = Dense(**given, activation_function=activation_named(name, where))
    _fill(module, source, folder)
    return module


def _read_normalize(source: Source, folder: str) -> Normalize:
    config = source.read("config.json", folder) if folder else None
    where = source.name(folder, "config.json")
    kinds = {"module_input_name": str, "module_output_name": str | None}
    warn_of_unknown(set(config or {}) - set(kinds), where)
    return Normalize(**_checked(config or {}, kinds, where))


def _read_layer_norm(source: Source, folder: str) -> SentenceLayerNorm:
    config, where = _module_config(source, folder)
    _refuse_unknown(config, {"dimension"}, where)
    given = _checked(config, {"dimension": int}, where)
    if not given:
        raise ValueError(f"{where} lacks the dimension; save the model again.")
    module = SentenceLayerNorm(given["dimension"])
    _fill(module, source, folder)
    return module


def _read_dropout(source: Source, folder: str) -> Dropout:
    config = source.read("config.json", folder) if folder else None
    value = (config or {}).get("dropout", 0.2)
    return Dropout(float(value) if isinstance(value, int | float) else 0.2)


def _fill(module: SentenceModule, source: Source, folder: str) -> None:
    """Read a module's weights.

    Raises:
        ValueError: when the file holds other tensors than the module has.
    """
    stored, expected = source.weights(folder), module.state_dict()
    shapes = {name: stored.shape(name) for name in stored.files}
    if shapes != {name: tuple(tensor.shape) for name, tensor in expected.items()}:
        wanted = {name: tuple(tensor.shape) for name, tensor in expected.items()}
        raise ValueError(
            f"The weights in {source.name(folder, '')} are {shapes}, but config.json there "
            f"describes {wanted}; the files do not belong together."
        )
    module.load_state_dict({name: stored.read(name).float() for name in expected})


_READERS: dict[str, Callable[[Source, str], SentenceModule]] = {
    "Pooling": _read_pooling,
    "Dense": _read_dense,
    "Normalize": _read_normalize,
    "LayerNorm": _read_layer_norm,
    "Dropout": _read_dropout,
}
