"""Checkpoints and inputs that do not fit: each says what is wrong, none goes unnoticed."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import fastbert

SIZES: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 20}
DENSE = "encoder.layer.1.output.dense.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    fastbert.BertModel(fastbert.BertConfig(**SIZES)).save_pretrained(tmp_path)
    return tmp_path


def configured(folder: Path, **values: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def test_layers_that_the_configuration_does_not_have_are_told(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"16 tensors of layers .* such as encoder\.layer\.1\."):
        fastbert.BertModel.from_pretrained(configured(folder, num_hidden_layers=1))
    flaubert = fastbert.FlaubertModel(
        fastbert.FlaubertConfig(n_words=40, emb_dim=16, n_layers=2, n_heads=2)
    )
    flaubert.save_pretrained(folder / "flaubert")
    with pytest.warns(UserWarning, match=r"tensors of layers .* such as attentions\.1\."):
        fastbert.FlaubertModel.from_pretrained(configured(folder / "flaubert", n_layers=1))


def test_heads_that_are_not_wanted_are_no_news(folder: Path) -> None:
    model = fastbert.BertForPreTraining(fastbert.BertConfig(**SIZES))
    model.save_pretrained(folder / "both")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastbert.BertModel.from_pretrained(folder / "both", add_pooling_layer=False)
        fastbert.BertForMaskedLM.from_pretrained(folder / "both")


def test_weights_that_are_integers_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[DENSE] = tensors[DENSE].to(torch.int8)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=rf"holds {DENSE} as torch.int8, but weights are floating"):
        fastbert.BertModel.from_pretrained(folder)


@pytest.mark.parametrize("name", ["hidden_size", "num_attention_heads", "layer_norm_eps"])
def test_a_text_in_place_of_a_number_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be a (int|float), not '48'"):
        fastbert.BertModel.from_pretrained(configured(folder, **{name: "48"}))


def test_a_mask_in_place_of_ids_is_refused() -> None:
    model = fastbert.BertModel(fastbert.BertConfig(**SIZES))
    with pytest.raises(TypeError, match=r"input_ids must be integers.*torch\.bool"):
        model(torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"indices must have shape \(1, 3\), but has \(1, 4\)"):
        model(torch.ones(1, 3, dtype=torch.long), position_ids=torch.arange(4)[None])


def test_tied_weights_that_are_stored_apart_stay_two(folder: Path) -> None:
    model = fastbert.BertForMaskedLM(fastbert.BertConfig(**SIZES, tie_word_embeddings=False))
    decoder = model.cls.predictions.decoder
    decoder.weight = torch.nn.Parameter(torch.randn(40, 16))
    model.save_pretrained(folder / "apart")
    configured(folder / "apart", tie_word_embeddings=True)
    with pytest.warns(UserWarning, match="stored with different values, so they stay two"):
        again = fastbert.BertForMaskedLM.from_pretrained(folder / "apart")
    assert torch.equal(again.cls.predictions.decoder.weight, decoder.weight)
    words = again.bert.embeddings.word_embeddings.weight
    assert torch.equal(words, model.bert.embeddings.word_embeddings.weight)
