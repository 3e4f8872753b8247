"""Text generation for models that predict the next token: greedy, sampling and beam search."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastbert.beams import Beams
from fastbert.cache import as_cache
from fastbert.checkpoint import resolve_file, write_beside
from fastbert.outputs import ModelOutput

GENERATION_CONFIG = "generation_config.json"
LogitsProcessor = Callable[[Tensor, Tensor], Tensor]
StoppingCriterion = Callable[[Tensor, Any], Any]


@dataclass
class GenerateOutput(ModelOutput):
    """sequences (batch * num_return_sequences, length); scores, one tensor (rows, vocabulary) a
    step, where asked for; sequences_scores (rows,) from beam search."""

    sequences: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    sequences_scores: Tensor | None = None


@dataclass(frozen=True)
class GenerationConfig:
    """How generate() proceeds; every field may be given to generate() itself.

    Attributes:
        max_length: tokens of prompt and continuation together; None for prompt + 20.
        max_new_tokens: tokens of the continuation, before max_length.
        min_length, min_new_tokens: no end before so many.
        do_sample: draw tokens rather than take the likeliest.
        temperature, top_k, top_p: shape of the distribution to draw from; top_k 0 keeps all.
        num_beams: continuations kept at each step of beam search; 1 for none.
        length_penalty: the score of a beam is its log-probability / length ** length_penalty.
        early_stopping: True: stop with num_beams finished; False: when the running ones are not
            likely to beat them; "never": when they cannot.
        repetition_penalty: scores of tokens that were there are divided (multiplied if negative)
            by this.
        no_repeat_ngram_size: no n-gram of this size occurs twice; 0 for no such rule.
        num_return_sequences: continuations returned for each prompt.
        eos_token_id: one id or several, each of which ends a text.
        output_scores, return_dict_in_generate: what is returned.
    """

    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int = 0
    min_new_tokens: int | None = None
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    num_return_sequences: int = 1
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    output_scores: bool = False
    return_dict_in_generate: bool = False

    @classmethod
    def from_model_config(cls, config: Any) -> GenerationConfig:
        """The defaults, and the special tokens of a model."""
        return cls(
            bos_token_id=getattr(config, "bos_token_id", None),
            eos_token_id=getattr(config, "eos_token_id", None),
            pad_token_id=getattr(config, "pad_token_id", None),
        )

    @classmethod
    def from_checkpoint(
        cls, path: str | os.PathLike[str], config: Any, **hub: Any
    ) -> GenerationConfig:
        """What generation_config.json of a checkpoint says, where there is one, over the
        defaults of its model. Keys that mean nothing here are left out."""
        defaults = cls.from_model_config(config)
        file = resolve_file(path, GENERATION_CONFIG, optional=True, **hub)
        if file is None:
            return defaults
        values = json.loads(Path(file).read_text(encoding="utf-8"))
        known = {field.name for field in fields(cls)}
        return replace(defaults, **{k: v for k, v in values.items() if k in known})

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write generation_config.json: the values that are not the defaults."""
        defaults = asdict(GenerationConfig())
        values = {k: v for k, v in asdict(self).items() if v != defaults[k]}
        text = json.dumps(values, indent=2, sort_keys=True) + "\n"
        path = Path(save_directory) / GENERATION_CONFIG
        write_beside(path, lambda target: target.write_text(text, encoding="utf-8"))

    def ends(self) -> list[int]:
        """All tokens that end a text."""
        if self.eos_token_id is None:
            return []
        return (
            list(self.eos_token_id) if isinstance(self.eos_token_id, list) else [self.eos_token_id]
        )


class GenerationMixin:
    """What a model that predicts the next token inherits besides."""

    config: Any
    base_model: Any
    device: torch.device

    @property
    def generation_config(self) -> GenerationConfig:
        """Defaults of generate(); may be set."""
        stored = vars(self).get("_generation_config")
        return GenerationConfig.from_model_config(self.config) if stored is None else stored

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        self._generation_config = value

    def can_generate(self) -> bool:
        return True

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        logits_processor: Sequence[LogitsProcessor] = (),
        stopping_criteria: Sequence[StoppingCriterion] = (),
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> Any:
        """Continue prompts.

        Args:
            input_ids: (batch, length), padded on the left where lengths differ; None for the
                beginning-of-text token alone.
            generation_config: how to proceed; None for the model's own.
            attention_mask: (batch, length), zero for padding; None finds it by the padding token,
                where that is not also an end token.
            encoder_hidden_states, encoder_attention_mask: for cross-attention.
            logits_processor: functions of (ids so far, scores) that return new scores, run before
                those of the configuration.
            stopping_criteria: functions of (ids so far, None) that return whether to stop, one bool
                or one a row.
            generator: source of random numbers for sampling.
            **kwargs: fields of GenerationConfig.

        Returns:
            int64 (batch * num_return_sequences, length), prompts included, filled with padding
            behind the end; or GenerateOutput with return_dict_in_generate.

        Raises:
            ValueError: for settings that contradict each other, or a length beyond the positions.
        """
        known = {field.name for field in fields(GenerationConfig)}
        if set(kwargs) - known:
            raise TypeError(
                f"generate has no argument {', '.join(sorted(set(kwargs) - known))}; it takes "
                f"{', '.join(sorted(known))}."
            )
        settings = replace(generation_config or self.generation_config, **kwargs)
        if input_ids is None:
            if settings.bos_token_id is None:
                raise ValueError("generate needs input_ids, since the model has no bos_token_id.")
            input_ids = torch.tensor([[settings.bos_token_id]], device=self.device)
        limit = self._limit(settings, input_ids.shape[1])
        if attention_mask is None:
            attention_mask = _mask_of(input_ids, settings)
        rows = _repeats(settings)
        session = _Session(
            self,
            settings.use_cache and self.config.is_decoder,
            attention_mask.repeat_interleave(rows, dim=0),
            _repeated(encoder_hidden_states, rows),
            _repeated(encoder_attention_mask, rows),
        )
        # Padding before the prompt is no text, so nothing in it counts as repeated.
        padding = (session.mask != 0).int().argmax(dim=1)
        process = [*logits_processor, *_processors(settings, input_ids.shape[1], padding)]
        ids = input_ids.repeat_interleave(rows, dim=0)
        run = _sample if settings.num_beams == 1 else _beam_search
        output = run(session, ids, settings, limit, process, stopping_criteria, generator)
        return output if settings.return_dict_in_generate else output.sequences

    def _limit(self, settings: GenerationConfig, prompt: int) -> int:
        longest = self.base_model.longest()
        if settings.max_new_tokens is not None:
            limit = prompt + settings.max_new_tokens
        elif settings.max_length is not None:
            limit = settings.max_length
        else:
            limit = min(prompt + 20, longest)
        if limit <= prompt:
            raise ValueError(
                f"The prompt has {prompt} tokens, so max_length={limit} leaves no room for a "
                "continuation; raise it, or give max_new_tokens."
            )
        if limit > longest:
            raise ValueError(
                f"{limit} tokens were asked for, but the model has positions for {longest}."
            )
        return limit


class _Session:
    """The model between two steps: its cache, and the mask that grows with the text."""

    def __init__(
        self,
        model: Any,
        use_cache: bool,
        mask: Tensor,
        encoder_states: Tensor | None,
        encoder_mask: Tensor | None,
    ) -> None:
        self.model = model
        self.mask = mask
        self.cache = as_cache(None, encoder_states is not None) if use_cache else None
        self.encoder = {
            "encoder_hidden_states": encoder_states,
            "encoder_attention_mask": encoder_mask,
        }

    def scores(self, ids: Tensor) -> Tensor:
        """Scores of the next token for ids (rows, length): float32 (rows, vocabulary)."""
        positions = self.model.base_model.positions_from_mask(self.mask)
        past = 0 if self.cache is None else self.cache.get_seq_length()
        output = self.model(
            input_ids=ids[:, past:],
            attention_mask=self.mask,
            position_ids=positions[:, past:],
            past_key_values=self.cache,
            use_cache=self.cache is not None,
            logits_to_keep=1,
            return_dict=True,
            output_attentions=False,
            output_hidden_states=False,
            **self.encoder,
        )
        self.mask = F.pad(self.mask, (0, 1), value=1)
        return output.logits[:, -1].float()

    def reorder(self, rows: Tensor) -> None:
        """Go on with these rows, in this order."""
        self.mask = self.mask[rows]
        if self.cache is not None:
            self.cache.reorder_cache(rows)


def _sample(
    session: _Session,
    ids: Tensor,
    settings: GenerationConfig,
    limit: int,
    processors: Sequence[LogitsProcessor],
    criteria: Sequence[StoppingCriterion],
    generator: torch.Generator | None,
) -> GenerateOutput:
    """One token a step, the likeliest or a drawn one."""
    ends = torch.tensor(settings.ends(), device=ids.device)
    filler = _filler(settings)
    done = torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)
    kept: list[Tensor] = []
    while ids.shape[1] < limit and not bool(done.all()):
        scores = session.scores(ids)
        for processor in processors:
            scores = processor(ids, scores)
        if settings.output_scores:
            kept.append(scores)
        if settings.do_sample:
            token = torch.multinomial(scores.softmax(-1), 1, generator=generator).squeeze(1)
        else:
            token = scores.argmax(dim=-1)
        token = torch.where(done, torch.full_like(token, filler), token)
        ids = torch.cat([ids, token[:, None]], dim=1)
        done = done | torch.isin(token, ends)
        for criterion in criteria:
            done = done | torch.as_tensor(criterion(ids, None), device=ids.device)
    return GenerateOutput(ids, tuple(kept) if settings.output_scores else None)


def _beam_search(
    session: _Session,
    ids: Tensor,
    settings: GenerationConfig,
    limit: int,
    processors: Sequence[LogitsProcessor],
    criteria: Sequence[StoppingCriterion],
    generator: torch.Generator | None,
) -> GenerateOutput:
    """The num_beams best continuations of each prompt at every step."""
    beams = Beams(
        ids,
        settings.num_beams,
        settings.ends(),
        limit,
        settings.length_penalty,
        settings.early_stopping,
    )
    kept: list[Tensor] = []
    while not beams.finished():
        scores = session.scores(beams.ids).log_softmax(dim=-1)
        for processor in processors:
            scores = processor(beams.ids, scores)
        if settings.output_scores:
            kept.append(scores)
        session.reorder(beams.step(scores, settings.do_sample, generator, criteria))
    sequences, values = beams.best(settings.num_return_sequences, _filler(settings))
    return GenerateOutput(sequences, tuple(kept) if settings.output_scores else None, values)


def _processors(settings: GenerationConfig, prompt: int, padding: Tensor) -> list[LogitsProcessor]:
    steps: list[LogitsProcessor] = []
    if settings.repetition_penalty != 1.0:
        steps.append(
            lambda ids, scores: _penalise(ids, scores, settings.repetition_penalty, padding)
        )
    if settings.no_repeat_ngram_size > 0:
        steps.append(lambda ids, scores: _forbid_ngrams(ids, scores, settings.no_repeat_ngram_size))
    least = max(settings.min_length, prompt + (settings.min_new_tokens or 0))
    if least > prompt and settings.ends():
        steps.append(lambda ids, scores: _forbid_ends(ids, scores, settings.ends(), least))
    if settings.do_sample:
        if settings.temperature <= 0:
            raise ValueError(
                "temperature must be positive; for the likeliest token use do_sample=False."
            )
        steps.append(lambda _, scores: scores / settings.temperature)
        # Beam search must find as many candidates as it keeps.
        least_kept = max(2, 1 + len(settings.ends())) if settings.num_beams > 1 else 1
        if settings.top_k:
            steps.append(lambda _, scores: _top_k(scores, max(settings.top_k, least_kept)))
        if settings.top_p < 1.0:
            steps.append(lambda _, scores: _top_p(scores, settings.top_p, least_kept))
    return steps


def _penalise(ids: Tensor, scores: Tensor, penalty: float, padding: Tensor) -> Tensor:
    text = torch.arange(ids.shape[1], device=ids.device) >= padding[:, None]
    seen = torch.zeros(scores.shape, dtype=torch.long, device=scores.device)
    seen = seen.scatter_add(1, ids, text.long()) > 0
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def _forbid_ngrams(ids: Tensor, scores: Tensor, size: int) -> Tensor:
    scores = scores.clone()
    if ids.shape[1] < size:
        return scores
    for row, text in enumerate(ids.tolist()):
        tail = tuple(text[len(text) - size + 1 :])
        for start in range(len(text) - size + 1):
            if tuple(text[start : start + size - 1]) == tail:
                scores[row, text[start + size - 1]] = -float("inf")
    return scores


def _forbid_ends(ids: Tensor, scores: Tensor, ends: list[int], least: int) -> Tensor:
    if ids.shape[1] >= least:
        return scores
    return scores.index_fill(1, torch.tensor(ends, device=scores.device), -float("inf"))


def _top_k(scores: Tensor, count: int) -> Tensor:
    lowest = scores.topk(min(count, scores.shape[1])).values[:, -1:]
    return scores.masked_fill(scores < lowest, -float("inf"))


def _top_p(scores: Tensor, share: float, least: int) -> Tensor:
    ordered, order = scores.sort(dim=-1)
    drop = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - share
    drop[:, -least:] = False
    return scores.masked_fill(drop.scatter(1, order, drop), -float("inf"))


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
