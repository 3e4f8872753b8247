"""The steps of generate(): one token more for every text, until all have ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fastbert.generation.beam_search import Beams
from fastbert.generation.config import GenerationConfig
from fastbert.generation.greedy import likeliest
from fastbert.generation.logits_processors import LogitsProcessor
from fastbert.generation.outputs import GenerateOutput
from fastbert.generation.stopping import StoppingCriterion
from fastbert.kernels.openmp import on_one_thread


class Streamer(Protocol):
    """The interface through which generate() reports growing texts.

    A TextStreamer of transformers has it.
    """

    def put(self, value: Tensor) -> None:
        """Take the prompts (rows, length), then the tokens of every step (rows,)."""

    def end(self) -> None:
        """Take notice that nothing follows."""


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
class Generation:
    """One call of generate()."""

    model: Any
    state: GenerationState
    settings: GenerationConfig
    limit: int
    processors: Sequence[LogitsProcessor]
    criteria: Sequence[StoppingCriterion]
    generator: torch.Generator | None
    kept: dict[str, list[Any]] = field(default_factory=dict)

    def logits(self, ids: Tensor) -> Tensor:
        """Score the next token for ids (rows, length): (rows, vocabulary), of the model's dtype."""
        settings = self.settings
        output = self.model(
            **self.model.generation_inputs(ids, self.state),
            logits_to_keep=1,
            return_dict=True,
            output_attentions=settings.output_attentions,
            output_hidden_states=settings.output_hidden_states,
        )
        self.state.grow()
        logits: Tensor = output.logits[:, -1]
        if settings.output_logits:
            self._keep("logits", logits.float())
        for name in ("attentions", "hidden_states"):
            if getattr(settings, f"output_{name}"):
                self._keep(name, getattr(output, name))
        return logits

    def _keep(self, name: str, value: Any) -> None:
        self.kept.setdefault(name, []).append(value)

    def so_far(self) -> tuple[Tensor, ...] | None:
        """Return the scores of all steps, if they are asked for."""
        return tuple(self.kept.get("scores", ())) if self.settings.output_scores else None

    def scores(self, ids: Tensor, logits: Tensor, *, log: bool = False) -> Tensor:
        """Process logits, or their log: returns float32 (rows, vocabulary)."""
        scores = logits.float()
        if log:
            scores = scores.log_softmax(dim=-1)
        for processor in self.processors:
            scores = processor(ids, scores)
        if self.settings.output_scores:
            self._keep("scores", scores)
        return scores

    def output(
        self, ids: Tensor, sequences_scores: Tensor | None = None, beams: Tensor | None = None
    ) -> GenerateOutput:
        """Return texts with all that was kept beside them."""
        kept: dict[str, Any] = {name: tuple(values) for name, values in self.kept.items()}
        kept |= {"sequences_scores": sequences_scores, "beam_indices": beams}
        return GenerateOutput(ids, **kept, past_key_values=self.state.cache)

    def sample(self, ids: Tensor, streamer: Streamer | None) -> GenerateOutput:
        """Append one token a step, the likeliest or a drawn one."""
        settings = self.settings
        ends = torch.tensor(settings.ends(), device=ids.device)
        filler = _filler(settings)
        done = torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)
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
            token = torch.where(done, torch.full_like(token, filler), token)
            ids = torch.cat([ids, token[:, None]], dim=1)
            if streamer is not None:
                streamer.put(token.cpu())
            done = done | torch.isin(token, ends)
            for criterion in self.criteria:
                done = done | torch.as_tensor(criterion(ids, self.so_far()), device=ids.device)
        if streamer is not None:
            streamer.end()
        return self.output(ids)

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
        while not beams.finished():
            logits = self.logits(beams.ids)
            with on_one_thread(logits):
                scores = self.scores(beams.ids, logits, log=True)
                criteria = [partial(_asked, one, self.so_far()) for one in self.criteria]
                rows = beams.step(scores, settings.do_sample, self.generator, criteria)
            self.state.reorder(rows)
        best = beams.best(settings.num_return_sequences, _filler(settings))
        return self.output(best.ids, best.scores, best.rows)


def _asked(
    criterion: StoppingCriterion, scores: tuple[Tensor, ...] | None, ids: Tensor
) -> bool | Tensor:
    return criterion(ids, scores)


def _filler(settings: GenerationConfig) -> int:
    if settings.pad_token_id is not None:
        return settings.pad_token_id
    return settings.ends()[0] if settings.ends() else 0
