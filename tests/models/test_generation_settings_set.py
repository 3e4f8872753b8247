"""Settings of generate() are set where programs set them: on model.generation_config."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from apertus_pair import ids, pair

import fastbert
from fastbert import GenerationConfig


def written(model: Any, **given: Any) -> int:
    return int(model.generate(ids(1, 4), **given).shape[1]) - 4


def test_settings_of_a_model_can_be_set() -> None:
    ours, _ = pair(dtype=torch.float32)
    ours.generation_config.max_new_tokens = 3
    assert written(ours) == 3 == ours.generation_config.max_new_tokens
    assert "max_new_tokens" in ours.generation_config.stated()
    ours.generation_config.eos_token_id = torch.tensor([2, 7])
    assert ours.generation_config.ends() == [2, 7]
    assert ours.generation_config.pad_token_id == 3  # of the configuration
    assert written(copy.deepcopy(ours)) == 3 == written(pickle.loads(pickle.dumps(ours)))
    ours.generation_config.max_new_tokens = None
    assert "max_new_tokens" not in ours.generation_config.stated()
    assert written(ours, max_new_tokens=2) == 2
    ours.generation_config = None
    assert ours.generation_config == GenerationConfig.from_model_config(ours.config)


def test_settings_follow_the_configuration_until_they_are_set() -> None:
    ours, _ = pair(dtype=torch.float32)
    assert ours.generation_config.eos_token_id == 2
    ours.config.eos_token_id = [2, 9]
    assert ours.generation_config.eos_token_id == [2, 9]
    ours.generation_config.max_new_tokens = 2
    ours.config.eos_token_id = 5
    assert ours.generation_config.eos_token_id == [2, 9]


def test_settings_of_transformers_can_be_put_there() -> None:
    ours, _ = pair(dtype=torch.float32)
    ours.generation_config = transformers.GenerationConfig(max_new_tokens=5, eos_token_id=2)
    assert written(ours) == 5
    with pytest.raises(ValueError, match="asks for penalty_alpha"):
        ours.generation_config = transformers.GenerationConfig(penalty_alpha=0.6)
    with pytest.raises(TypeError, match=r"not builtins\.dict"):
        ours.generation_config = {"max_new_tokens": 5}


def test_settings_that_do_not_exist() -> None:
    settings = GenerationConfig(max_new_tokens=3)
    settings.cache_implementation = None  # asks for nothing
    settings.num_beam_groups = 1
    for name in ("penalty_alpha", "max_new_token"):
        with pytest.raises(AttributeError, match=f"no setting {name}; it has .*max_new_tokens"):
            setattr(settings, name, 4)
    assert settings == GenerationConfig(max_new_tokens=3)


def test_settings_from_files_and_dictionaries(tmp_path: Path) -> None:
    transformers.GenerationConfig(max_new_tokens=7, eos_token_id=[2, 9]).save_pretrained(tmp_path)
    read = GenerationConfig.from_pretrained(tmp_path, do_sample=True)
    assert (read.max_new_tokens, read.ends(), read.do_sample) == (7, [2, 9], True)
    with pytest.raises(FileNotFoundError):
        GenerationConfig.from_pretrained(tmp_path / "nowhere")
    theirs = transformers.GenerationConfig(top_k=5).to_dict()
    assert GenerationConfig.from_dict(theirs, num_beams=2) == GenerationConfig(top_k=5, num_beams=2)
    with pytest.raises(ValueError, match="asks for penalty_alpha"):
        GenerationConfig.from_dict({"penalty_alpha": 0.6})
    assert read.update(num_beams=3, mine=1) == {"mine": 1} and read.num_beams == 3


def test_caches_are_made_as_in_transformers() -> None:
    ours, _ = pair(dtype=torch.float32)
    batch = ids(2, 5)
    with torch.no_grad():
        expected = ours(batch).logits[:, 3:]
        for cache in (fastbert.DynamicCache(config=ours.config), fastbert.DynamicCache()):
            assert not cache.is_initialized and cache.get_max_cache_shape() == -1
            first = ours(batch[:, :3], past_key_values=cache)
            assert cache.is_initialized and cache.get_mask_sizes(2) == (5, 0)
            kept = first.past_key_values.to_legacy_cache()
            for other in (cache, fastbert.DynamicCache(kept), cache.from_legacy_cache(kept)):
                found = ours(batch[:, 3:], past_key_values=copy.deepcopy(other)).logits
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        room = fastbert.StaticCache(ours.config, 9, max_batch_size=2, dtype=torch.float32)
        ours(batch, past_key_values=room)
        assert room.get_max_cache_shape() == 9
    for made in (fastbert.DynamicCache, lambda **o: fastbert.StaticCache(None, 3, **o)):
        with pytest.raises(ValueError, match="offloading=False"):
            made(offloading=True)
    with pytest.raises(TypeError, match=r"is given as config=\.\.\."):
        fastbert.DynamicCache(ours.config)
    assert ours.get_decoder() is ours.model and ours.model.get_decoder() is ours.model
