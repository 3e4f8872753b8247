"""Writing a sentence encoder in sentence-transformers' format, which every version of it reads."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fastbert.checkpoints.files import SAFE_WEIGHTS
from fastbert.checkpoints.saving import SaveOptions
from fastbert.checkpoints.storage import folder_to_save_in, json_text
from fastbert.checkpoints.tensor_files import save_safetensors
from fastbert.checkpoints.transaction import Staging
from fastbert.embedding.activations import activation_named
from fastbert.embedding.folder import GENERAL
from fastbert.embedding.modules import (
    NORM_EPS,
    TOKENS,
    Dense,
    Dropout,
    Normalize,
    Pooling,
    SentenceLayerNorm,
    SentenceModule,
    Shape,
)
from fastbert.embedding.pooling import FLAGS, MODES
from fastbert.embedding.transformer_settings import TRANSFORMER_FILES, TextOptions
from fastbert.modeling.base import PreTrainedModel
from fastbert.modeling.saving import save as save_model
from fastbert.models.auto import AutoTokenizer
from fastbert.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    from fastbert.embedding.sentence import SentenceEncoder

# Names that sentence-transformers has always known its modules by.
_NAMES = {
    Pooling: "Pooling",
    Dense: "Dense",
    Normalize: "Normalize",
    SentenceLayerNorm: "LayerNorm",
    Dropout: "Dropout",
}
_TENSORS = {
    Dense: {"linear.weight", "linear.bias", "residual.weight", "activation_function.weight"},
    SentenceLayerNorm: {"norm.weight", "norm.bias"},
}


@dataclass(frozen=True)
class Parts:
    """What a folder in sentence-transformers' format consists of, beside model and tokenizer.

    Attributes:
        general: the content of config_sentence_transformers.json.
        transformer: that of sentence_bert_config.json.
        modules: of what follows the transformer: name, config.json, tensors.
    """

    general: Mapping[str, Any]
    transformer: Mapping[str, Any]
    modules: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Tensor]]] = ()


def save(encoder: SentenceEncoder, directory: str | os.PathLike[str]) -> None:
    """Write an encoder; see SentenceEncoder.save_pretrained."""
    known = {TOKENS: Shape(True, int(encoder.model.config.hidden_size))}
    contents = []
    for module in encoder.modules:
        assert isinstance(module, SentenceModule)
        module.shapes(known)
        contents.append((_name(module), _config(module, known), _state(module)))
    general = {
        "model_type": "SentenceTransformer",
        "prompts": encoder.prompts,
        "default_prompt_name": encoder.default_prompt_name,
        "similarity_fn_name": encoder.similarity_fn_name,
        "truncate_dim": encoder.truncate_dim,
    }
    settings = encoder.settings
    transformer = transformer_config(
        encoder.max_seq_length, encoder.do_lower_case, settings.text
    ) | {f"{task}_length": length for task, length in settings.lengths.items()}
    save_parts(encoder.model, encoder.tokenizer, directory, Parts(general, transformer, contents))


def save_parts(
    model: PreTrainedModel, tokenizer: Tokenizer, directory: str | os.PathLike[str], parts: Parts
) -> None:
    """Write a folder that sentence-transformers reads, in one transaction.

    Files of a former tokenizer, and an adapter's, which readers would take for parts of what is
    saved, are removed.

    Args:
        model: written as by its save_pretrained.
        tokenizer: likewise.
        directory: the folder, made when it is not there.
        parts: the rest.
    """
    folder = folder_to_save_in(directory)

    def beside(staging: Staging) -> None:
        tokenizer.save_pretrained(staging.folder)
        entries = [_entry(0, "Transformer", "")]
        for index, (name, config, state) in enumerate(parts.modules, start=1):
            inside = staging.folder / f"{index}_{name}"
            inside.mkdir()
            (inside / "config.json").write_text(json_text(config), encoding="utf-8")
            if state:
                save_safetensors(state, inside / SAFE_WEIGHTS)
            entries.append(_entry(index, name, inside.name))
        for name, content in (
            (TRANSFORMER_FILES[0], parts.transformer),
            (GENERAL, parts.general),
            ("modules.json", entries),
        ):
            (staging.folder / name).write_text(json_text(content), encoding="utf-8")
        former = {*AutoTokenizer.file_names(), *TRANSFORMER_FILES, "adapter_config.json"} - {
            "config.json"
        }
        staging.removes |= {name for name in former if (folder / name).is_file()}

    save_model(model, folder, None, SaveOptions(), beside)


def _entry(index: int, name: str, path: str) -> dict[str, Any]:
    kind = f"sentence_transformers.models.{name}"
    return {"idx": index, "name": str(index), "path": path, "type": kind}


def _state(module: SentenceModule) -> dict[str, Tensor]:
    """Return the tensors of a module, by the names that the format has for them."""
    state = module.state_dict()
    more = set(state) - _TENSORS.get(type(module), set())
    if more or (isinstance(module, SentenceLayerNorm) and module.norm.eps != NORM_EPS):
        told = f"its tensors {', '.join(sorted(more))}" if more else "its norm's eps"
        raise ValueError(
            f"A {type(module).__name__} cannot be saved, since sentence-transformers' format has "
            f"no place for {told}; put a plain one in its place (merge adapters, remove "
            "parametrizations)."
        )
    return state


def _name(module: SentenceModule) -> str:
    if type(module) not in _NAMES:
        raise ValueError(
            f"A {type(module).__name__} cannot be saved, since sentence-transformers has no such "
            f"module; expected {', '.join(_NAMES.values())}."
        )
    return _NAMES[type(module)]


def transformer_config(
    max_seq_length: int, do_lower_case: bool, text: TextOptions
) -> dict[str, Any]:
    """Return the content of sentence_bert_config.json.

    Args:
        max_seq_length: tokens of a text.
        do_lower_case: whether texts are lower-cased.
        text: how the tokenizer is called.
    """
    found: dict[str, Any] = {"max_seq_length": max_seq_length, "do_lower_case": do_lower_case}
    if text != TextOptions():
        said = {name: value for name, value in vars(text).items() if value is not None}
        found["processing_kwargs"] = {"text": said}
    return found


def _config(module: SentenceModule, known: Mapping[str, Shape]) -> dict[str, Any]:
    """Return the content of a module's config.json, given the shapes behind it."""
    if isinstance(module, Pooling):
        found: dict[str, Any] = {
            "word_embedding_dimension": known[TOKENS].width,
            "include_prompt": module.include_prompt,
        }
        if module.modes == tuple(mode for mode in MODES if mode in module.modes):
            return found | {flag: mode in module.modes for flag, mode in FLAGS.items()}
        return found | {"pooling_mode": list(module.modes)}
    if isinstance(module, Dense):
        return _dense(module)
    if isinstance(module, Normalize):
        return {
            "module_input_name": module.module_input_name,
            "module_output_name": module.module_output_name,
        }
    if isinstance(module, SentenceLayerNorm):
        return {"dimension": module.norm.weight.shape[0]}
    assert isinstance(module, Dropout)
    return {"dropout": module.dropout}


def _dense(module: Dense) -> dict[str, Any]:
    name = activation_path(module.activation_function, "The Dense to be saved")
    found: dict[str, Any] = {
        "in_features": module.linear.in_features,
        "out_features": module.linear.out_features,
        "bias": module.linear.bias is not None,
        "activation_function": name,
        "module_input_name": module.module_input_name,
        "module_output_name": module.module_output_name,
    }
    return found | ({"use_residual": True} if module.use_residual else {})


def activation_path(activation: nn.Module, whose: str) -> str:
    """Return the name that an activation is saved under.

    Args:
        activation: a module of torch.nn.
        whose: who has it, for messages.

    Raises:
        ValueError: for one that its name alone does not describe.
    """
    name = f"{type(activation).__module__}.{type(activation).__qualname__}"
    if repr(activation_named(name, whose)) != repr(activation):
        raise ValueError(
            f"{whose} has the activation {activation!r}, which cannot be saved, since only its "
            "name is written; take its arguments' defaults."
        )
    return name
