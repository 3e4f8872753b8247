"""Writing a sentence encoder in sentence-transformers' format, which every version of it reads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastbert.checkpoints.files import SAFE_WEIGHTS
from fastbert.checkpoints.storage import write_json
from fastbert.checkpoints.tensor_files import save_safetensors
from fastbert.embedding.activations import activation_named
from fastbert.embedding.folder import GENERAL
from fastbert.embedding.modules import (
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


def save(encoder: SentenceEncoder, directory: str | os.PathLike[str]) -> None:
    """Write an encoder; see SentenceEncoder.save_pretrained."""
    folder = Path(directory)
    known = {TOKENS: Shape(True, int(encoder.model.config.hidden_size))}
    contents = []
    for module in encoder.modules:
        assert isinstance(module, SentenceModule)
        module.shapes(known)
        contents.append((_name(module), _config(module, known), module.state_dict()))
    encoder.model.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    entries = [_entry(0, "Transformer", "")]
    for index, (name, config, state) in enumerate(contents, start=1):
        inside = f"{index}_{name}"
        (folder / inside).mkdir(exist_ok=True)
        write_json(folder / inside / "config.json", config)
        if state:
            save_safetensors(state, folder / inside / SAFE_WEIGHTS)
        entries.append(_entry(index, name, inside))
    write_json(folder / "sentence_bert_config.json", _transformer(encoder))
    general = {
        "model_type": "SentenceTransformer",
        "prompts": encoder.prompts,
        "default_prompt_name": encoder.default_prompt_name,
        "similarity_fn_name": encoder.similarity_fn_name,
        "truncate_dim": encoder.truncate_dim,
    }
    write_json(folder / GENERAL, general)
    # The list comes last: without it the folder is no sentence encoder.
    write_json(folder / "modules.json", entries)


def _entry(index: int, name: str, path: str) -> dict[str, Any]:
    kind = f"sentence_transformers.models.{name}"
    return {"idx": index, "name": str(index), "path": path, "type": kind}


def _name(module: SentenceModule) -> str:
    if type(module) not in _NAMES:
        raise ValueError(
            f"A {type(module).__name__} cannot be saved, since sentence-transformers has no such "
            f"module; expected {', '.join(_NAMES.values())}."
        )
    return _NAMES[type(module)]


def _transformer(encoder: SentenceEncoder) -> dict[str, Any]:
    settings = encoder.settings
    found: dict[str, Any] = {
        "max_seq_length": encoder.max_seq_length,
        "do_lower_case": encoder.do_lower_case,
    }
    found |= {f"{task}_length": length for task, length in settings.lengths.items()}
    text = {name: value for name, value in vars(settings.text).items() if value is not None}
    if any(text[name] is False for name in ("truncation", "add_special_tokens")) or len(text) > 2:
        found["processing_kwargs"] = {"text": text}
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
    activation = module.activation_function
    name = f"{type(activation).__module__}.{type(activation).__qualname__}"
    if repr(activation_named(name, "The Dense to be saved")) != repr(activation):
        raise ValueError(
            f"The activation {activation!r} of a Dense cannot be saved, since only its name is "
            "written; take its arguments' defaults."
        )
    found: dict[str, Any] = {
        "in_features": module.linear.in_features,
        "out_features": module.linear.out_features,
        "bias": module.linear.bias is not None,
        "activation_function": name,
        "module_input_name": module.module_input_name,
        "module_output_name": module.module_output_name,
    }
    return found | ({"use_residual": True} if module.use_residual else {})
