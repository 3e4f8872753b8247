"""Folders that sentence-transformers saves, around tiny random models of transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentence_transformers as st
import torch
import transformers
from torch import nn

import fastbert

WORDS = ["the", "a", "cat", "dog", "sat", "on", "mat", "ran", "far", "query", "passage", ":", "in"]
WORDS += ["under", "house", "red", "blue", ".", ",", "!"]
TEXTS = ["the cat sat on the mat", "A dog", "", "far far far red house under blue mat .", "query"]
HIDDEN = 32


def tiny(path: Path, kind: str = "bert") -> Path:
    """Write a tiny random model of transformers with a WordPiece tokenizer."""
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s", "##ed"]
    path.mkdir(parents=True, exist_ok=True)
    (path / "vocab.txt").write_text("\n".join(vocab))
    sizes = {
        "vocab_size": len(vocab),
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    }
    torch.manual_seed(0)
    if kind == "bert":
        config: Any = transformers.BertConfig(max_position_embeddings=40, **sizes)
        model: Any = transformers.BertModel(config)
    else:
        config = transformers.CamembertConfig(
            max_position_embeddings=42, pad_token_id=1, type_vocab_size=1, **sizes
        )
        model = transformers.CamembertModel(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.eval().save_pretrained(path)
    tokenizer = transformers.BertTokenizer(str(path / "vocab.txt"), do_lower_case=False)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(path)
    return path


def saved(
    folder: Path, source: Path, modules: list[nn.Module], safe: bool = True, **settings: Any
) -> Path:
    """Save the modules, with random weights, behind the transformer of a folder."""
    from sentence_transformers.sentence_transformer.modules import Transformer

    for module in modules:
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.3)
    model = st.SentenceTransformer(
        modules=[Transformer(str(source)), *modules], device="cpu", **settings
    )
    model.save(str(folder), create_model_card=False, safe_serialization=safe)
    return folder


def edited(source: Path, target: Path, name: str, change: Callable[[Any], Any]) -> Path:
    """Change a JSON file of a folder, or of a copy of it."""
    if source != target:
        shutil.copytree(source, target, dirs_exist_ok=True)
    file = target / name
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(change(content)))
    return target


def both(folder: Path, **options: Any) -> tuple[fastbert.SentenceEncoder, Any]:
    """Load a folder with both libraries."""
    ours = fastbert.SentenceEncoder.from_pretrained(folder, **options)
    return ours, st.SentenceTransformer(str(folder), device="cpu", **options)
