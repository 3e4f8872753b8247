"""Text generation for models that predict the next token: greedy, sampling and beam search."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from fastbert.generation.checks import check_generator, check_prompts, check_settings
from fastbert.generation.config import GenerationConfig, left_in
from fastbert.generation.elsewhere import asks, is_known
from fastbert.generation.logits_processors import LogitsProcessor, PrefixAllowedTokens, processors
from fastbert.generation.logits_warpers import warpers
from fastbert.generation.outputs import GenerateOutput, transition_scores
from fastbert.generation.steps import Generation, GenerationState, Streamer
from fastbert.generation.stopping import Decoder, MaxTime, StoppingCriterion, StopStrings
from fastbert.layers.cache_view import as_cache
from fastbert.layers.kv_cache import DynamicCache

__all__ = ["GenerateOutput", "GenerationConfig", "GenerationMixin", "GenerationState", "Streamer"]


class GenerationMixin:
    """The method generate() for models that predict the next token.

    Attributes:
        config: the model's configuration.
        base_model: the model's encoder.
        device: where the model computes.
    """

    config: Any
    base_model: Any
    device: torch.device

    @property
    def generation_config(self) -> GenerationConfig:
        """The settings that generate() starts from; it and each of them may be set."""
        stored: GenerationConfig | None = vars(self).get("_generation_config")
        if stored is not None:
            return stored
        shown: GenerationConfig | None = vars(self).get("_shown_generation_config")
        if shown is None or not shown.touched:
            # The configuration may have changed; what somebody changed here stays.
            shown = GenerationConfig.from_model_config(self.config)
            self._shown_generation_config = shown
        return shown

    @generation_config.setter
    def generation_config(self, value: Any) -> None:
        if value is None:
            vars(self).pop("_generation_config", None)
            vars(self).pop("_shown_generation_config", None)
        else:
            self._generation_config = GenerationConfig.of(value)

    @classmethod
    def can_generate(cls) -> bool:
        """Return True: the model has the method generate()."""
        return True

    def caches(self) -> bool:
        """Return whether tokens that were scored once need not be scored again."""
        return bool(self.config.is_decoder)

    def prepare_inputs_for_generation(self, input_ids: Tensor, **inputs: Any) -> dict[str, Any]:
        """Return the inputs as they are: peft asks for this method, generate() for the next."""
        return {"input_ids": input_ids, **inputs}

    def compute_transition_scores(
        self,
        sequences: Tensor,
        scores: Sequence[Tensor],
        beam_indices: Tensor | None = None,
        normalize_logits: bool = False,
    ) -> Tensor:
        """Return the score of every token that was written; see transition_scores."""
        return transition_scores(sequences, scores, beam_indices, normalize_logits)

    def most_tokens(self) -> int | None:
        """Return how many tokens a text may have; None where positions have no end."""
        return int(self.base_model.longest())

    def generation_inputs(self, ids: Tensor, state: GenerationState) -> dict[str, Any]:
        """Return arguments of forward that score, in the last column, the token behind `ids`.

        Args:
            ids: (rows, length), prompts and what was generated so far.
            state: what the model is given again at every step.
        """
        past = 0 if state.cache is None else state.cache.get_seq_length()
        types = state.token_type_ids
        return {
            "input_ids": ids[:, past:],
            "attention_mask": state.mask,
            "position_ids": self.base_model.positions_from_mask(state.mask)[:, past:],
            "token_type_ids": None if types is None else types[:, past:],
            "past_key_values": state.cache,
            "use_cache": state.cache is not None,
            "encoder_hidden_states": state.encoder_hidden_states,
            "encoder_attention_mask": state.encoder_attention_mask,
        }

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        logits_processor: Sequence[LogitsProcessor] | None = None,
        stopping_criteria: Sequence[StoppingCriterion] | None = None,
        prefix_allowed_tokens_fn: PrefixAllowedTokens | None = None,
        streamer: Streamer | None = None,
        tokenizer: Decoder | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> Tensor | GenerateOutput:
        """Continue prompts.

        Args:
            input_ids: (batch, length), padded on the left where lengths differ; None for the
                beginning-of-text token alone.
            generation_config: how to proceed; None for the model's own.
            attention_mask: (batch, length), zero for padding; None finds it by the padding token,
                where that is not also an end token.
            token_type_ids: (batch, length), of the prompt; what follows has the type of its last
                token. None for zeros.
            encoder_hidden_states: (batch, encoder length, hidden), for cross-attention.
            encoder_attention_mask: (batch, encoder length), zero for padding.
            past_key_values: the cache of the first tokens of input_ids, which are not computed
                again; it is grown. With one text for each prompt only.
            logits_processor: functions of (ids so far, scores) that return new scores, run behind
                those of the configuration and before temperature, top_k and what else drawing asks.
            stopping_criteria: functions of (ids so far, scores of all steps) that return whether to
                stop, one bool or one a row; without output_scores, None stands for the scores.
            prefix_allowed_tokens_fn: a function of (number of the prompt, ids of a text so far)
                that returns the tokens which may follow, asked for each text or beam at each step.
            streamer: told of texts as they grow: put(ids) gets the prompts (rows, length), then the
                tokens of every step (rows,), on the CPU; end() says that nothing follows. Not with
                beam search.
            tokenizer: the model's, for stop_strings.
            generator: source of random numbers for sampling.
            **kwargs: fields of GenerationConfig, and `inputs` for input_ids. What transformers
                has beside these is taken where it asks for nothing.

        Returns:
            int64 (batch * num_return_sequences, length), prompts included, filled with padding
            behind the end; or GenerateOutput with return_dict_in_generate.

        Raises:
            TypeError: for an argument that generate() does not have, listing those it has, and for
                prompts or settings of another kind.
            ValueError: for settings that contradict each other, a length beyond the positions, or
                a mask of another shape.
        """
        _check_adapter(self)
        input_ids = _prompts(input_ids, kwargs)
        settings = self._settings(generation_config, kwargs)
        check_settings(settings)
        check_generator(generator)
        if streamer is not None:
            _check_streamer(streamer, settings)
        if input_ids is None:
            if settings.bos_token_id is None:
                raise ValueError("generate needs input_ids, since the model has no bos_token_id.")
            input_ids = torch.tensor([[settings.bos_token_id]], device=self.device)
        check_prompts(input_ids, attention_mask)
        if not input_ids.shape[-1]:
            raise ValueError(
                f"The prompt is empty: input_ids has the shape {tuple(input_ids.shape)}; give at "
                "least one token, or no input_ids to begin with bos_token_id."
            )
        if attention_mask is None:
            attention_mask = _mask_of(input_ids, settings)
            check_prompts(input_ids, attention_mask)
        elif attention_mask.shape[0] != input_ids.shape[0]:
            attention_mask = attention_mask.expand(input_ids.shape)
        limit = self._limit(settings, attention_mask)
        rows = _repeats(settings)
        cached = settings.use_cache and self.caches()
        if past_key_values is not None and not cached:
            raise ValueError(
                "past_key_values are given, but no cache is used: that takes use_cache=True and a "
                "model whose configuration says is_decoder=True."
            )
        cross = encoder_hidden_states is not None
        state = GenerationState(
            self._cache(past_key_values, cross, input_ids, rows) if cached else None,
            attention_mask.repeat_interleave(rows, dim=0),
            _repeated(token_type_ids, rows),
            _repeated(encoder_hidden_states, rows),
            _repeated(encoder_attention_mask, rows),
        )
        if isinstance(state.cache, DynamicCache):
            state.cache.reserve(limit - 1)  # the last token is not read
        # Padding before the prompt is no text, so nothing in it counts as repeated.
        padding = (state.mask != 0).int().argmax(dim=1)
        process = [
            *processors(settings, input_ids.shape[1], padding, limit, prefix_allowed_tokens_fn),
            *(logits_processor or ()),
            *(warpers(settings) if settings.do_sample else ()),
        ]
        if settings.renormalize_logits:
            process.append(lambda _, scores: scores.log_softmax(dim=-1))
        criteria = [*_ends(settings, tokenizer), *(stopping_criteria or ())]
        ids = input_ids.repeat_interleave(rows, dim=0)
        generation = Generation(self, state, settings, limit, process, criteria, generator)
        if settings.num_beams == 1:
            output = generation.sample(ids, streamer)
        else:
            output = generation.beam_search(ids)
        if settings.return_dict_in_generate:
            return output
        assert output.sequences is not None
        return output.sequences

    def _settings(self, given: object, more: dict[str, Any]) -> GenerationConfig:
        """Return the given settings, or the model's own, with the arguments in `more`."""
        known = {field.name for field in fields(GenerationConfig)}
        beyond = sorted(n for n in more if n not in known and (asks(n, more[n]) or not is_known(n)))
        if beyond:
            raise TypeError(
                f"generate has no argument {', '.join(beyond)}; it takes "
                f"{', '.join(sorted(known | _ARGUMENTS))}."
            )
        settings = self.generation_config
        if given is not None:
            settings = GenerationConfig.of(given).over(settings)
        elif "_generation_config" in vars(self) and (left := left_in(self.config)):
            raise ValueError(
                f"model.config says {', '.join(f'{n}={v!r}' for n, v in sorted(left.items()))}, "
                "which generate does not read there; set model.generation_config, or give it as "
                "arguments."
            )
        return settings.changed(**{n: v for n, v in more.items() if n in known})

    def _cache(self, given: Any, cross: bool, ids: Tensor, rows: int) -> Any:
        """Return the cache to start with: a new one, or the caller's."""
        cache = as_cache(given, cross)
        held = cache.get_seq_length()
        if held and rows > 1:
            raise ValueError(
                f"past_key_values hold one text for each prompt, but {rows} are to be written; "
                "repeat the prompts and the cache, or leave the cache out."
            )
        if held >= ids.shape[1]:
            raise ValueError(
                f"past_key_values hold {held} tokens, and input_ids has {ids.shape[1]}: give the "
                "whole text, which ends with at least one token that is not in the cache."
            )
        return cache

    def _limit(self, settings: GenerationConfig, mask: Tensor) -> int:
        """Return the length at which every text ends; padding before a prompt takes no position."""
        prompt = mask.shape[1]
        unused = prompt - int((mask != 0).sum(dim=1).max()) if mask.shape[0] else 0
        most = self.most_tokens()
        longest = None if most is None else most + unused
        if settings.max_new_tokens is not None:
            limit = prompt + settings.max_new_tokens
        elif settings.max_length is not None:
            limit = settings.max_length
        else:
            limit = prompt + 20 if longest is None else min(prompt + 20, longest)
        if limit <= prompt:
            raise ValueError(
                f"The prompt has {prompt} tokens, so max_length={limit} leaves no room for a "
                "continuation; raise it, or give max_new_tokens."
            )
        if longest is not None and limit > longest:
            raise ValueError(
                f"{limit - unused} tokens were asked for, but the model has positions for "
                f"{longest - unused}."
            )
        return limit


def _prompts(ids: Tensor | None, more: dict[str, Any]) -> Tensor | None:
    """Return input_ids, which transformers calls `inputs`; takes those out of `more`."""
    inputs: Tensor | None = more.pop("inputs", None)
    if inputs is not None and ids is not None:
        raise TypeError("inputs is another name of input_ids; give one of the two.")
    return ids if inputs is None else inputs


_ARGUMENTS = set(inspect.signature(GenerationMixin.generate).parameters) - {"self", "kwargs"}


def _ends(settings: GenerationConfig, tokenizer: Decoder | None) -> list[StoppingCriterion]:
    found: list[StoppingCriterion] = []
    if settings.max_time is not None:
        found.append(MaxTime(settings.max_time))
    if settings.stop_strings is not None:
        found.append(StopStrings(settings.stop_strings, tokenizer))
    return found


def _check_adapter(model: object) -> None:
    """Refuse prompts that peft learned: it would put them in by a method that is not called."""
    adapter = getattr(vars(model).get("prepare_inputs_for_generation"), "__self__", None)
    if getattr(getattr(adapter, "active_peft_config", None), "is_prompt_learning", False):
        raise ValueError(
            "generate() does not read the prompts that this adapter learned; of peft, it runs "
            "adapters that change weights, such as LoRA."
        )


def _check_streamer(streamer: object, settings: GenerationConfig) -> None:
    if not all(callable(getattr(streamer, name, None)) for name in ("put", "end")):
        raise TypeError(f"A streamer has the methods put and end; {streamer!r} has not.")
    if settings.num_beams > 1:
        raise ValueError(
            "A streamer needs num_beams=1: beam search settles no token before its end."
        )


def _repeats(settings: GenerationConfig) -> int:
    if settings.num_beams > 1:
        if settings.num_return_sequences > settings.num_beams:
            raise ValueError(
                f"{settings.num_beams} beams cannot return {settings.num_return_sequences} "
                "sequences; lower num_return_sequences or raise num_beams."
            )
        return settings.num_beams
    if settings.num_return_sequences > 1 and not settings.do_sample:
        raise ValueError("Greedy search finds one continuation; use do_sample=True or num_beams.")
    return settings.num_return_sequences


def _repeated(x: Tensor | None, count: int) -> Tensor | None:
    return None if x is None else x.repeat_interleave(count, dim=0)


def _mask_of(ids: Tensor, settings: GenerationConfig) -> Tensor:
    pad = settings.pad_token_id
    if pad is None or pad in settings.ends():
        return torch.ones_like(ids)
    return (ids != pad).long()
