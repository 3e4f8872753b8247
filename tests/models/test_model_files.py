"""Configurations and checkpoints: both versions of transformers, their quirks, and damage."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import fastbert
from fastbert.layers.linear import Int8Linear


@pytest.mark.parametrize("family", oracle.TASKS)
def test_configurations_go_there_and_back(family: str, tmp_path: Path) -> None:
    ours, theirs = (getattr(lib, f"{family}Config") for lib in (fastbert, transformers))
    for name, value in theirs().to_dict().items():
        if name not in ("transformers_version", "architectures", "_name_or_path"):
            assert ours().to_dict()[name] == value, f"{family} {name}"
    config = ours(num_labels=3, output_attentions=True, my_own="kept", layer_norm_eps=1e-5)
    config.save_pretrained(tmp_path)
    again = ours.from_pretrained(tmp_path)
    assert again == config and again.my_own == "kept" and again.output_attentions
    assert again.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    read = theirs.from_pretrained(tmp_path)
    assert read.num_labels == 3 and read.layer_norm_eps == 1e-5
    read.save_pretrained(tmp_path)
    assert ours.from_pretrained(tmp_path).to_dict()["id2label"] == config.id2label


def test_configuration_surface(tmp_path: Path) -> None:
    config = fastbert.BertConfig(100, 16, num_attention_heads=2, torch_dtype="bfloat16")
    assert (config.vocab_size, config.hidden_size, config.dtype) == (100, 16, torch.bfloat16)
    assert "hidden_size" in list(config) and config.get_text_config() is config
    assert "return_dict" not in config.to_diff_dict() and config.to_dict()["return_dict"] is True
    config.update_from_string("hidden_size=32,hidden_dropout_prob=0.5,use_cache=false")
    assert (config.hidden_size, config.hidden_dropout_prob, config.use_cache) == (32, 0.5, False)
    config.update({"extra": float("inf")})
    config.to_json_file(tmp_path / "a.json")
    assert fastbert.BertConfig.from_json_file(tmp_path / "a.json").extra == float("inf")
    loaded, unused = fastbert.BertConfig.from_pretrained(
        tmp_path / "a.json", num_labels=5, nonsense=1, return_unused_kwargs=True
    )
    assert loaded.num_labels == 5 and unused == {"nonsense": 1}
    flaubert = fastbert.FlaubertConfig(n_words=55, hidden_size=24)
    assert (flaubert.vocab_size, flaubert.emb_dim) == (55, 24)
    with pytest.raises(ValueError, match="no key 'nothing'"):
        config.update_from_string("nothing=1")
    with pytest.raises(ValueError, match="problem_type must be one of"):
        fastbert.BertConfig(problem_type="ranking")


@pytest.mark.parametrize("family", ["Bert", "Roberta", "XLMRoberta", "Camembert"])
def test_positional_arguments_of_a_configuration(family: str) -> None:
    """The order is that of the published signatures, in a family that derives from another too."""
    config = getattr(fastbert, f"{family}Config")(32005, 48, 3, 4)
    assert (config.vocab_size, config.hidden_size) == (32005, 48)
    assert (config.num_hidden_layers, config.num_attention_heads) == (3, 4)
    assert config.pad_token_id == int(family != "Bert")
    fields = list(type(config).default_config_fields())
    last = fields.index("pad_token_id") + 1
    assert fields[last - 2] == "layer_norm_eps"
    if family != "Bert":
        expected = ["bos_token_id", "eos_token_id", "position_embedding_type", "use_cache"]
        assert fields[last : last + 4] == expected


@pytest.mark.parametrize("name", oracle.CLASSES)
def test_models_go_there_and_back(name: str, tmp_path: Path) -> None:
    theirs, ours = oracle.shared_pair(name)
    ids = oracle.random_ids()
    ids = torch.stack([ids] * 2, 1) if name.endswith("ForMultipleChoice") else ids
    theirs.save_pretrained(tmp_path / "theirs")
    loaded, report = getattr(fastbert, name).from_pretrained(
        tmp_path / "theirs", backend="reference", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ours.save_pretrained(tmp_path / "ours", max_shard_size="20KB")
    back = getattr(transformers, name).from_pretrained(tmp_path / "ours")
    for key, value in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[key].double(), value), key
    with torch.no_grad():
        assert torch.equal(loaded(ids)[0], ours(ids)[0])
    stored = set()
    for file in (tmp_path / "ours").glob("*.safetensors"):
        stored |= set(load_file(file))
    expected = set(load_file(tmp_path / "theirs" / "model.safetensors"))
    assert stored == expected


def tiny(tmp_path: Path, name: str = "BertForMaskedLM") -> tuple[Any, dict[str, torch.Tensor]]:
    _, ours = oracle.pair(name)
    ours = ours.float()
    ours.save_pretrained(tmp_path)
    return ours, load_file(tmp_path / "model.safetensors")


def same(one: Any, other: Any) -> None:
    for key, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


def test_old_names_buffers_and_ties(tmp_path: Path) -> None:
    ours, state = tiny(tmp_path)
    assert not any("decoder" in key for key in state)
    old = {
        key.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): value
        for key, value in state.items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(24)[None]
    old["cls.predictions.decoder.bias"] = old.pop("cls.predictions.bias")
    save_file(old, tmp_path / "model.safetensors")
    again, report = fastbert.BertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    same(ours, again)


def test_prefixes(tmp_path: Path) -> None:
    ours, _ = tiny(tmp_path)
    encoder = fastbert.BertModel.from_pretrained(tmp_path, add_pooling_layer=False)
    same(ours.bert, encoder)
    encoder.save_pretrained(tmp_path / "encoder")
    with pytest.warns(UserWarning, match=r"no weights for .*cls\.predictions.*need training"):
        model = fastbert.BertForMaskedLM.from_pretrained(tmp_path / "encoder")
    same(encoder, model.bert)
    assert float(model.cls.predictions.transform.dense.weight.abs().max()) > 0


def test_torch_files_and_state_dicts(tmp_path: Path) -> None:
    ours, state = tiny(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    same(ours, fastbert.BertForMaskedLM.from_pretrained(tmp_path))
    same(ours, fastbert.BertForMaskedLM.from_pretrained(None, config=ours.config, state_dict=state))
    ours.save_pretrained(tmp_path / "bin", safe_serialization=False)
    same(ours, fastbert.BertForMaskedLM.from_pretrained(tmp_path / "bin"))
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(ValueError, match="torch cannot read"):
        fastbert.BertForMaskedLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16, torch.float64])
def test_precisions(dtype: Any, tmp_path: Path) -> None:
    ours, _ = tiny(tmp_path)
    model = fastbert.BertForMaskedLM.from_pretrained(tmp_path, dtype=dtype)
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert {p.dtype for p in model.parameters()} == {wanted} and model.dtype == wanted
    same(ours.to(wanted), model)
    model.save_pretrained(tmp_path)
    assert fastbert.BertForMaskedLM.from_pretrained(tmp_path).dtype == wanted


def test_all_problems_are_listed(tmp_path: Path) -> None:
    _, state = tiny(tmp_path)
    state["bert.pooler.dense.weight"] = torch.zeros(2)
    state["bert.embeddings.word_embeddings.weight"] = torch.zeros(5, oracle.HIDDEN)
    del state["bert.embeddings.LayerNorm.bias"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError) as error:
        fastbert.BertForMaskedLM.from_pretrained(tmp_path)
    for part in (
        "word_embeddings.weight is (5, 32), not (61, 32)",
        "LayerNorm.bias",
        "bert.pooler",
    ):
        assert part in str(error.value)
    with pytest.raises(ValueError, match=r"lacks weights of the encoder.*LayerNorm\.bias"):
        fastbert.BertForMaskedLM.from_pretrained(tmp_path, ignore_mismatched_sizes=True)


def test_damage_is_named(tmp_path: Path) -> None:
    tiny(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole = weights.read_bytes()
    for bad, message in (
        (whole[:-9], "truncated"),
        (whole[:5], "truncated inside its header"),
        (struct.pack("<Q", 1 << 60) + whole[8:], "not a safetensors file"),
        (whole[:8] + b"!" + whole[9:], "not valid safetensors"),
    ):
        weights.write_bytes(bad)
        with pytest.raises(ValueError, match=message):
            fastbert.BertForMaskedLM.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no weights: looked for model\.safetensors"):
        fastbert.BertForMaskedLM.from_pretrained(tmp_path)
    config.write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        fastbert.BertForMaskedLM.from_pretrained(tmp_path)
    config.write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="model type 'gpt2', which fastbert does not have"):
        fastbert.AutoModel.from_pretrained(tmp_path)
    config.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        fastbert.AutoModel.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        fastbert.BertModel.from_pretrained(tmp_path / "nowhere" / "at" / "all")
    with pytest.raises(TypeError, match="no argument nonsense"):
        tiny(tmp_path)
        fastbert.BertForMaskedLM.from_pretrained(tmp_path, nonsense=1)


@pytest.mark.parametrize("name", ["BertForMaskedLM", "FlaubertModel", "RemBertModel"])
def test_int8_is_saved_bit_by_bit(name: str, tmp_path: Path) -> None:
    ours, _ = tiny(tmp_path, name)
    kind = getattr(fastbert, name)
    wanted = fastbert.QuantizationConfig(load_in_8bit=True)
    model = kind.from_pretrained(tmp_path, quantization_config=wanted)
    assert all(
        isinstance(b.q, Int8Linear) and isinstance(b.down, Int8Linear) for b in model.blocks()
    )
    model.save_pretrained(tmp_path / "int8")
    again = kind.from_pretrained(tmp_path / "int8")
    ids = oracle.random_ids()
    with torch.no_grad():
        assert torch.equal(model(ids)[0], again(ids)[0])
        assert torch.equal(
            kind.from_pretrained(tmp_path, quantization="int8")(ids)[0], again(ids)[0]
        )
        cosine = torch.cosine_similarity(model(ids)[0].flatten(), ours(ids)[0].flatten(), dim=0)
    assert float(cosine) > 0.99
    with pytest.raises(ValueError, match="quantization is None, 'int8'"):
        kind.from_pretrained(tmp_path, quantization="int4")


@pytest.mark.parametrize("prefix", oracle.TEXT_FAMILIES)
def test_auto_classes(prefix: str, tmp_path: Path) -> None:
    config = getattr(fastbert, f"{prefix}Config")(**oracle.FAMILIES[prefix])
    for task in ("MaskedLM", "SequenceClassification", "TokenClassification", "MultipleChoice"):
        auto = getattr(fastbert, f"AutoModelFor{task}")
        model = auto.from_config(config)
        model.save_pretrained(tmp_path)
        assert type(auto.from_pretrained(tmp_path)) is type(model)
    assert type(fastbert.AutoConfig.from_pretrained(tmp_path)) is type(config)
    with pytest.raises(TypeError, match="from_pretrained"):
        fastbert.AutoModel()
