"""Text generation for models that predict the next token: greedy, sampling and beam search."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fastbert.generation.beam_search import Beams, StoppingCriterion
from fastbert.generation.config import GenerationConfig
from fastbert.generation.greedy import likeliest
from fastbert.generation.logits_processors import LogitsProcessor, processors
from fastbert.generation.logits_warpers import warpers
from fastbert.generation.stopping import Decoder, MaxTime, StopStrings
from fastbert.kernels.openmp import on_one_thread
from fastbert.layers.kv_cache import DynamicCache, as_cache
from fastbert.outputs import ModelOutput

__all__ = ["GenerateOutput", "GenerationConfig", "GenerationMixin", "GenerationState", "Streamer"]


class Streamer(Protocol):
    """The interface through which generate() reports growing texts.

    A TextStreamer of transformers has it.
    """

    def put(self, value: Tensor) -> None:
        """Take the prompts (rows, length), then the tokens of every step (rows,)."""

    def end(self) -> None:
        """Take notice that nothing follows."""


@dataclass
class GenerateOutput(ModelOutput):
    """The result of generate().

    Attributes:
        sequences: int64 (batch * num_return_sequences, length), prompts included.
        scores: float32 (rows, vocabulary) of every step, where asked for.
        sequences_scores: float32 (batch * num_return_sequences,) from beam search.
    """

    sequences: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    sequences_scores: Tensor | None = None


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
        """The settings that generate() starts from; may be set."""
        stored = vars(self).get("_generation_config")
        return GenerationConfig.from_model_config(self.config) if stored is None else stored

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        self._generation_config = value

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
        logits_processor: Sequence[LogitsProcessor] | None = None,
        stopping_criteria: Sequence[StoppingCriterion] | None = None,
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
            logits_processor: functions of (ids so far, scores) that return new scores, run behind
                those of the configuration and before temperature, top_k and what else drawing asks.
            stopping_criteria: functions of (ids so far, None) that return whether to stop, one bool
                or one a row.
            streamer: told of texts as they grow: put(ids) gets the prompts (rows, length), then the
                tokens of every step (rows,), on the CPU; end() says that nothing follows. Not with
                beam search.
            tokenizer: the model's, for stop_strings.
            generator: source of random numbers for sampling.
            **kwargs: fields of GenerationConfig.

        Returns:
            int64 (batch * num_return_sequences, length), prompts included, filled with padding
            behind the end; or GenerateOutput with return_dict_in_generate.

        Raises:
            TypeError: for an argument that generate() does not have; it lists those it has.
            ValueError: for settings that contradict each other, or a length beyond the positions.
        """
        _check_adapter(self)
        settings = self._settings(generation_config, kwargs)
        if streamer is not None:
            _check_streamer(streamer, settings)
        if input_ids is None:
            if settings.bos_token_id is None:
                raise ValueError("generate needs input_ids, since the model has no bos_token_id.")
            input_ids = torch.tensor([[settings.bos_token_id]], device=self.device)
        if not input_ids.shape[-1]:
            raise ValueError(
                f"The prompt is empty: input_ids has the shape {tuple(input_ids.shape)}; give at "
                "least one token, or no input_ids to begin with bos_token_id."
            )
        if attention_mask is None:
            attention_mask = _mask_of(input_ids, settings)
        limit = self._limit(settings, attention_mask)
        rows = _repeats(settings)
        cached = settings.use_cache and self.caches()
        state = GenerationState(
            as_cache(None, encoder_hidden_states is not None) if cached else None,
            attention_mask.repeat_interleave(rows, dim=0),
            _repeated(token_type_ids, rows),
            _repeated(encoder_hidden_states, rows),
            _repeated(encoder_attention_mask, rows),
        )
        if isinstance(state.cache, DynamicCache):
            state.cache.reserve(limit)
        # Padding before the prompt is no text, so nothing in it counts as repeated.
        padding = (state.mask != 0).int().argmax(dim=1)
        process = [
            *processors(settings, input_ids.shape[1], padding, limit),
            *(logits_processor or ()),
            *(warpers(settings) if settings.do_sample else ()),
        ]
        if settings.renormalize_logits:
            process.append(lambda _, scores: scores.log_softmax(dim=-1))
        criteria = [*_ends(settings, tokenizer), *(stopping_criteria or ())]
        ids = input_ids.repeat_interleave(rows, dim=0)
        generation = _Generation(self, state, settings, limit, process, criteria, generator)
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
        if set(more) - known:
            raise TypeError(
                f"generate has no argument {', '.join(sorted(set(more) - known))}; it takes "
                f"{', '.join(sorted(known | _ARGUMENTS))}."
            )
        settings = self.generation_config if given is None else given
        if not isinstance(settings, GenerationConfig):
            raise TypeError(
                "generation_config is a fastbert.GenerationConfig, not "
                f"{type(settings).__module__}.{type(settings).__name__}; give its values as "
                "arguments of generate, or as fastbert.GenerationConfig(...)."
            )
        return replace(settings, **more)

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


_ARGUMENTS = set(inspect.signature(GenerationMixin.generate).parameters) - {"self", "kwargs"}


@dataclass
class GenerationState:
    """Inputs of a model that it is given again at every step.

    Attributes:
        cache: keys and values of earlier tokens, None where the model keeps none.
        mask: (rows, length), zero for padding; grows with the text.
        token_type_ids: (rows, length) or None; grows with the text.
        encoder_hidden_states: (rows, encoder length, hidden) or None.
        encoder_attention_mask: (rows, encoder length) or None.
    """

    cache: Any
    mask: Tensor
    token_type_ids: Tensor | None = None
    encoder_hidden_states: Tensor | None = None
    encoder_attention_mask: Tensor | None = None

    def grow(self) -> None:
        """Make room for one more token in every row."""
        self.mask = F.pad(self.mask, (0, 1), value=1)
        types = self.token_type_ids
        self.token_type_ids = None if types is None else torch.cat([types, types[:, -1:]], dim=1)

    def reorder(self, rows: Tensor) -> None:
        """Go on with these rows, in this order.

        The encoder's inputs stay: they are alike for all beams of a text.
        """
        self.mask = self.mask[rows]
        self.token_type_ids = None if self.token_type_ids is None else self.token_type_ids[rows]
        if self.cache is not None:
            self.cache.reorder_cache(rows)


@dataclass
class _Generation:
    """One call of generate()."""

    model: Any
    state: GenerationState
    settings: GenerationConfig
    limit: int
    processors: Sequence[LogitsProcessor]
    criteria: Sequence[StoppingCriterion]
    generator: torch.Generator | None

    def logits(self, ids: Tensor) -> Tensor:
        """Score the next token for ids (rows, length): (rows, vocabulary), of the model's dtype."""
        output = self.model(
            **self.model.generation_inputs(ids, self.state),
            logits_to_keep=1,
            return_dict=True,
            output_attentions=False,
            output_hidden_states=False,
        )
        self.state.grow()
        logits: Tensor = output.logits[:, -1]
        return logits

    def scores(self, ids: Tensor, logits: Tensor, *, log: bool = False) -> Tensor:
        """Process logits, or their log: returns float32 (rows, vocabulary)."""
        scores = logits.float()
        if log:
            scores = scores.log_softmax(dim=-1)
        for processor in self.processors:
            scores = processor(ids, scores)
        return scores

    def sample(self, ids: Tensor, streamer: Streamer | None) -> GenerateOutput:
        """Append one token a step, the likeliest or a drawn one."""
        settings = self.settings
        ends = torch.tensor(settings.ends(), device=ids.device)
        filler = _filler(settings)
        done = torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)
        kept: list[Tensor] = []
        if streamer is not None:
            streamer.put(ids.cpu())
        while ids.shape[1] < self.limit and not bool(done.all()):
            logits = self.logits(ids)
            with on_one_thread(logits):
                scores = self.scores(ids, logits)
                if settings.do_sample:
                    token = torch.multinomial(scores.softmax(-1), 1, generator=self.generator)
                    token = token.squeeze(1)
                else:
                    token = likeliest(scores)
            if settings.output_scores:
                kept.append(scores)
            token = torch.where(done, torch.full_like(token, filler), token)
            ids = torch.cat([ids, token[:, None]], dim=1)
            if streamer is not None:
                streamer.put(token.cpu())
            done = done | torch.isin(token, ends)
            for criterion in self.criteria:
                done = done | torch.as_tensor(criterion(ids, None), device=ids.device)
        if streamer is not None:
            streamer.end()
        return GenerateOutput(ids, tuple(kept) if settings.output_scores else None)

    def beam_search(self, ids: Tensor) -> GenerateOutput:
        """Keep the num_beams best continuations of each prompt at every step."""
        settings = self.settings
        beams = Beams(
            ids,
            settings.num_beams,
            settings.ends(),
            self.limit,
            settings.length_penalty,
            settings.early_stopping,
        )
        kept: list[Tensor] = []
        while not beams.finished():
            logits = self.logits(beams.ids)
            with on_one_thread(logits):
                scores = self.scores(beams.ids, logits, log=True)
                rows = beams.step(scores, settings.do_sample, self.generator, self.criteria)
            if settings.output_scores:
                kept.append(scores)
            self.state.reorder(rows)
        sequences, values = beams.best(settings.num_return_sequences, _filler(settings))
        return GenerateOutput(sequences, tuple(kept) if settings.output_scores else None, values)


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


def _filler(settings: GenerationConfig) -> int:
    if settings.pad_token_id is not None:
        return settings.pad_token_id
    return settings.ends()[0] if settings.ends() else 0
