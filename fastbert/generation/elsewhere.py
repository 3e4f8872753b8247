"""Arguments and settings of transformers' generate() that this one does not have.

Programs hand on whole sets of arguments, most of which ask for nothing. Those are taken; one that
asks for something is refused by name.
"""

from __future__ import annotations

# Beside None, what asks for nothing: the value that switches a rule off, or one that concerns only
# how transformers computes the same texts.
_ASKS_NOTHING: dict[str, tuple[object, ...]] = {
    "assistant_confidence_threshold": (0.4,),
    "assistant_early_exit": (),
    "assistant_ensemble_weight": (),
    "assistant_lookbehind": (10,),
    "assistant_model": (),
    "cache_config": (),
    "cache_implementation": ("dynamic",),
    "compile_config": (),
    "constraints": (),
    "continuous_batching_config": (),
    "custom_generate": (),
    "decoder_start_token_id": (),
    "disable_compile": (False, True),
    "diversity_penalty": (0.0,),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "force_words_ids": (),
    "guidance_scale": (1.0,),
    "inputs_embeds": (),
    "is_assistant": (False,),
    "low_memory": (False,),
    "max_cache_len": (),
    "max_matching_ngram_size": (),
    "negative_prompt_attention_mask": (),
    "negative_prompt_ids": (),
    "num_assistant_tokens": (20,),
    "num_assistant_tokens_schedule": ("constant",),
    "num_beam_groups": (1,),
    "penalty_alpha": (0.0,),
    "position_ids": (),
    "prefill_chunk_size": (),
    "prompt_lookup_num_tokens": (),
    "speculation_type": (),
    "synced_gpus": (False,),
    "target_lookbehind": (10,),
    "token_healing": (False,),
    "top_h": (),
    "use_mtp": (False,),
    "watermarking_config": (),
}
# Of files by other versions; these switch a rule off, whatever its name.
_OF_ANY: tuple[object, ...] = (None, False, 0, 1.0, [], {})


def is_known(name: str) -> bool:
    """Return whether transformers' generate() has such an argument or setting, and ours has not."""
    return name in _ASKS_NOTHING


def asks(name: str, value: object) -> bool:
    """Return whether a setting of transformers asks for something that is not done here."""
    if name.startswith("_") or name == "transformers_version" or value is None:
        return False
    nothing = _ASKS_NOTHING.get(name, _OF_ANY)
    return not (isinstance(value, bool | int | float | str | list | dict) and value in nothing)
