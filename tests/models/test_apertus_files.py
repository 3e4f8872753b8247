"""Checkpoints and configurations of Apertus: every value of a file is obeyed or refused.

The mechanism: what a file says is read by name; what it lacks has the value that the definition
gives it, and never what memory happened to hold.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from apertus_pair import LLAMA3, SIZES, close, exact_norms, ids, pair
from safetensors.torch import load_file, save_file

import fastbert


@pytest.fixture(autouse=True, scope="module")
def exact() -> Iterator[None]:
    yield from exact_norms()


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def saved(folder: Path, **options: Any) -> tuple[Any, Any]:
    ours, theirs = pair(dtype=torch.float32, **options)
    theirs.save_pretrained(folder)
    return ours, theirs


def test_both_ways(tmp_path: Path) -> None:
    ours, theirs = saved(tmp_path / "theirs")
    batch = ids(1, 6)
    read = fastbert.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    assert type(read) is fastbert.ApertusForCausalLM
    assert torch.equal(read(batch).logits, ours(batch).logits)
    read.save_pretrained(tmp_path / "ours", max_shard_size="20KB")
    assert (tmp_path / "ours" / "model.safetensors.index.json").exists()
    back, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(back(batch).logits, theirs(batch).logits)
    again = fastbert.ApertusForCausalLM.from_pretrained(tmp_path / "ours")
    assert torch.equal(again(batch).logits, ours(batch).logits)
    names = ("rope_parameters", "num_key_value_heads", "rms_norm_eps", "eos_token_id")
    for name in names:
        assert getattr(back.config, name) == getattr(theirs.config, name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, "auto", None])
def test_precision(tmp_path: Path, dtype: Any) -> None:
    _, theirs = saved(tmp_path)
    theirs.to(torch.bfloat16).save_pretrained(tmp_path)
    read = fastbert.ApertusForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert read.dtype == torch.bfloat16 == read.model.layers[0].mlp.act_fn.beta.dtype
    assert read.model.rotary_emb.inv_freq.dtype == torch.float32


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    ours, _ = pair(dtype=torch.float32, tie_word_embeddings=True)
    assert ours.lm_head.weight is ours.model.embed_tokens.weight
    ours.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    read = fastbert.ApertusForCausalLM.from_pretrained(tmp_path)
    assert read.lm_head.weight is read.model.embed_tokens.weight
    assert torch.equal(read(ids(1, 5)).logits, ours(ids(1, 5)).logits)


def changed(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, {"format": "pt"})


def test_constants_that_exporters_drop(tmp_path: Path) -> None:
    """transformers leaves them uninitialised."""
    ours, _ = saved(tmp_path)
    changed(tmp_path, lambda s: [s.pop(n) for n in [*s] if n.endswith((".beta", ".eps"))])
    for _ in range(3):
        read = fastbert.ApertusForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(read(ids(1, 5)).logits, ours(ids(1, 5)).logits)


@pytest.mark.parametrize("name", ["alpha_n", "alpha_p"])
def test_slopes_that_are_missing_are_refused(tmp_path: Path, name: str) -> None:
    """They were learned: with those of a new model, texts would look right and be wrong."""
    saved(tmp_path)
    changed(tmp_path, lambda s: s.pop(f"model.layers.1.mlp.act_fn.{name}"))
    with pytest.raises(ValueError, match=rf"lacks weights.*layers\.1\.mlp\.act_fn\.{name}"):
        fastbert.ApertusForCausalLM.from_pretrained(tmp_path)


def test_shapes_and_names_of_single_numbers(tmp_path: Path) -> None:
    """A number may have a dimension or none; beta is not the bias of old LayerNorms."""
    ours, _ = saved(tmp_path)

    def change(state: dict[str, torch.Tensor]) -> None:
        for name in [*state]:
            if ".act_fn." in name:
                state[name] = state[name].reshape(()) if state[name].dim() else state[name][None]
        state["model.layers.0.mlp.act_fn.beta"] = torch.tensor([0.75])

    changed(tmp_path, change)
    read = fastbert.ApertusForCausalLM.from_pretrained(tmp_path)
    act = read.model.layers[0].mlp.act_fn
    assert act.beta.shape == () and act.beta.item() == 0.75 and act.alpha_p.shape == (1,)
    ours.model.layers[0].mlp.act_fn.beta.fill_(0.75)
    assert torch.equal(read(ids(1, 5)).logits, ours(ids(1, 5)).logits)


def test_stored_frequencies_are_passed_over(tmp_path: Path) -> None:
    saved(tmp_path)
    stray = "model.layers.0.self_attn.rotary_emb.inv_freq"
    more = {stray: torch.zeros(4), "model.rotary_emb.inv_freq": torch.ones(4)}
    changed(tmp_path, lambda state: state.update(more))
    fastbert.ApertusForCausalLM.from_pretrained(tmp_path)


def test_missing_weights_of_a_layer_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    changed(tmp_path, lambda s: s.pop("model.layers.1.self_attn.q_norm.weight"))
    with pytest.raises(ValueError, match=r"layers.1.self_attn.q_norm.weight"):
        fastbert.ApertusForCausalLM.from_pretrained(tmp_path)


def test_other_heads_over_the_same_layers(tmp_path: Path) -> None:
    ours, _ = saved(tmp_path)
    base = fastbert.AutoModel.from_pretrained(tmp_path)
    assert type(base) is fastbert.ApertusModel
    hidden = base(ids(1, 5)).last_hidden_state
    close(hidden, ours.model(ids(1, 5)).last_hidden_state, 1e-7)
    base.save_pretrained(tmp_path / "base")
    with pytest.warns(UserWarning, match="lm_head.weight"):
        fastbert.ApertusForCausalLM.from_pretrained(tmp_path / "base")
    with pytest.warns(UserWarning, match="score"):
        tagger = fastbert.AutoModelForTokenClassification.from_pretrained(tmp_path, num_labels=5)
    assert tagger(ids(1, 5)).logits.shape == (1, 5, 5)


def test_the_text_part_of_apertus_1_5(tmp_path: Path) -> None:
    ours, _ = saved(tmp_path)
    text = json.loads((tmp_path / "config.json").read_text()) | {
        "model_type": "apertus1p5_text",
        "output_vocab_size": 40,
    }
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "apertus1p5", "text_config": text, "vision_config": {}})
    )

    def change(state: dict[str, torch.Tensor]) -> None:
        for name in [*state]:
            if name.startswith("model."):
                state[f"model.language_model.{name[6:]}"] = state.pop(name)
        state["lm_head.weight"] = state["lm_head.weight"][:40].clone()
        state["model.vision_model.patch.weight"] = torch.zeros(3, 3)

    changed(tmp_path, change)
    assert type(fastbert.AutoConfig.from_pretrained(tmp_path)) is fastbert.ApertusConfig
    read = fastbert.AutoModelForCausalLM.from_pretrained(tmp_path)
    batch = ids(1, 6)
    assert torch.equal(read(batch).logits, ours(batch).logits[..., :40])
    assert int(read.generate(batch, max_new_tokens=9).max()) < 53
    with pytest.raises(ValueError, match="output_vocab_size"):
        read.resize_token_embeddings(60)
    read.save_pretrained(tmp_path / "again")
    again = fastbert.ApertusForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(again(batch).logits, read(batch).logits)


def test_vocabulary_can_be_resized() -> None:
    ours, _ = pair(dtype=torch.float32)
    before = ours(ids(1, 5)).logits
    ours.resize_token_embeddings(60)
    after = ours(ids(1, 5)).logits
    assert after.shape[-1] == 60 and ours.config.vocab_size == 60
    close(after[..., :53], before, 1e-6)


# Configurations

GIVEN: dict[str, dict[str, Any]] = {
    "nothing": {},
    "v4": {
        "rope_theta": 5e5,
        "rope_scaling": {name: value for name, value in LLAMA3.items() if name != "rope_theta"},
    },
    "type": {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "empty": {"rope_parameters": {}},
    "default": {"rope_parameters": {"rope_type": "default"}, "rope_theta": 7.0},
    "no-context": {
        "rope_parameters": {
            "rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        },
        "max_position_embeddings": 77,
    },
    "partial": {"partial_rotary_factor": 0.5},
    "both": {"rope_parameters": {"rope_type": "default"}, "rope_scaling": LLAMA3},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
    "real": {
        "num_key_value_heads": 8, "qk_norm": True, "post_norm": False, "mlp_bias": False,
        "hidden_dropout": 0.0, "eos_token_id": [2, 68, 72],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", GIVEN)
def test_configurations_mean_what_they_mean_to_transformers(name: str, tmp_path: Path) -> None:
    ours = fastbert.ApertusConfig(**GIVEN[name])
    theirs = transformers.ApertusConfig(**GIVEN[name])
    fields = [f for f in type(ours).default_config_fields() if f in theirs.to_dict()]
    for field in [*fields, "rope_parameters", "num_key_value_heads", "rope_scaling"]:
        assert getattr(ours, field) == getattr(theirs, field), field
    ours.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert "rope_theta" not in stored and "rope_scaling" not in stored
    assert stored["rope_parameters"] == theirs.rope_parameters
    assert (
        transformers.AutoConfig.from_pretrained(tmp_path).rope_parameters == theirs.rope_parameters
    )
    assert fastbert.AutoConfig.from_pretrained(tmp_path) == ours


def test_fields_stand_in_their_order() -> None:
    config = fastbert.ApertusConfig(9, 8, 7, 6, 4, 2)
    assert (config.vocab_size, config.num_attention_heads, config.num_key_value_heads) == (9, 4, 2)
    assert config.keys_to_ignore_at_inference == ["past_key_values"]
    given = {"rope_type": "default", "rope_theta": 3.0}
    assert fastbert.ApertusConfig(rope_parameters=given).rope_parameters is not given


def test_a_bare_theta_is_obeyed() -> None:
    """transformers ignores it."""
    with pytest.warns(UserWarning, match="rope_theta=500000.0"):
        config = fastbert.ApertusConfig(rope_theta=5e5)
    assert config.rope_parameters["rope_theta"] == 5e5 == config.rope_theta
    assert config.rope_parameters["rope_type"] == "llama3"
    assert fastbert.ApertusConfig(rope_theta=12e6) == fastbert.ApertusConfig()


WRONG: dict[str, dict[str, Any]] = {
    "num_attention_heads": {"num_attention_heads": 3, "hidden_size": 33, "num_key_value_heads": 2},
    "multiple of num_attention_heads": {"hidden_size": 66, "num_attention_heads": 4},
    "rotated in pairs": {"hidden_size": 36},
    "vocabulary has 3 tokens": {"vocab_size": 3},
    "vocab_size": {"vocab_size": None},
    "hidden_size is 32.0": {"hidden_size": 32.0},
    "hidden_act is one of": {"hidden_act": torch.tanh},
    "rms_norm_eps must be": {"rms_norm_eps": None},
    "partial_rotary_factor must be 1": {"partial_rotary_factor": 0.5},
    "rms_norm_eps must be a number from 0 .* not nan": {"rms_norm_eps": float("nan")},
    "attention_dropout must be a number from 0 to 1, not 2": {"attention_dropout": 2.0},
    "initializer_range must be a number from 0": {"initializer_range": -1.0},
    "head_dim must be a positive integer or None, not '8'": {"head_dim": "8"},
    "head_dim must be a positive integer": {"head_dim": 8.0},
    "output_vocab_size must be a positive integer": {"output_vocab_size": 0},
    "pad_token_id is the id of one token or None, not 1.5": {"pad_token_id": 1.5},
    "not \\[3\\]": {"pad_token_id": [3]},
    "cannot be tied": {"output_vocab_size": 20, "tie_word_embeddings": True},
}


@pytest.mark.parametrize("message", WRONG)
def test_networks_that_cannot_be_built(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fastbert.ApertusForCausalLM(fastbert.ApertusConfig(**{**SIZES, **WRONG[message]}))


@pytest.mark.parametrize("given", [{"rope_type": "llama3"}, {"rope_type": "yarn"}, "linear"])
def test_scalings_that_lack_something(given: Any) -> None:
    with pytest.raises(ValueError, match="rope_parameters"):
        fastbert.ApertusConfig(rope_parameters=given)
