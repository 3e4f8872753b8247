"""The heads of Apertus: the next token, and a label for every token."""

from __future__ import annotations

import warnings
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from fastbert.engine.encoder import Wanted
from fastbert.generation.mixin import GenerationMixin, GenerationState
from fastbert.layers.encoder import EncoderOutput
from fastbert.layers.hooks import hooked
from fastbert.layers.linear import Int8Linear, Linear, project
from fastbert.layers.masks import labelled_padding
from fastbert.modeling import tasks
from fastbert.modeling.encoding import CausalOptions, EncoderInputs, Encoding, counted
from fastbert.modeling.kept_columns import kept
from fastbert.models.apertus.base import ApertusOptions, ApertusPreTrainedModel
from fastbert.models.apertus.config import output_size
from fastbert.models.apertus.model import ApertusModel, Scored
from fastbert.models.apertus.prepared import ScoredEncoding
from fastbert.outputs import CausalLMOutputWithPast, TokenClassifierOutput, finish
from fastbert.runtime.packing import PackedBatch


class ApertusCausalOptions(ApertusOptions, CausalOptions, total=False):
    """Keyword arguments of ApertusForCausalLM besides its own."""


class _ApertusHead(ApertusPreTrainedModel, tasks.HeadModel):
    def build_encoder(self, config: Any) -> Any:
        """Make the layers that the head stands on."""
        return ApertusModel(config)

    def encode(
        self, inputs: EncoderInputs, wanted: Wanted, scored: Scored | None = None
    ) -> Encoding:
        """Run the layers; by a call of `model` where somebody looks at it or put it there."""
        model: Any = self.model
        if type(model) is ApertusModel and not hooked(model):
            encoding: Encoding = model.encode(inputs, wanted, scored)
            return encoding
        options: dict[str, Any] = {**inputs.options, "return_dict": True}
        if wanted.keep_padding and inputs.use_cache is False:
            options["keep_padding"] = True
        out = model(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            position_ids=inputs.position_ids,
            past_key_values=inputs.past_key_values,
            inputs_embeds=inputs.inputs_embeds,
            use_cache=inputs.use_cache,
            **options,
        )
        hidden: Tensor = out.last_hidden_state
        batch = PackedBatch.dense(hidden.shape[0], hidden.shape[1], hidden.device)
        asked = inputs.options.get("return_dict")
        grad = torch.is_grad_enabled() and hidden.requires_grad
        return Encoding(
            batch,
            self.plan(grad),
            self.config.return_dict if asked is None else asked,
            EncoderOutput(packed=hidden.flatten(0, 1)),
            {name: getattr(out, name, None) for name in _REST},
        )

    def rows(self, encoding: Encoding, *readers: nn.Module) -> Tensor:
        """Return what a head reads: (tokens, hidden), or the whole grid where somebody looks on."""
        plain = all(type(part) in _PLAIN and not hooked(part) for part in readers)
        return encoding.packed if plain else encoding.padded()


_REST = ("past_key_values", "hidden_states", "attentions")
_PLAIN = (Linear, Int8Linear, nn.Dropout)


class ApertusForCausalLM(_ApertusHead, GenerationMixin, tasks.VocabularyHead):
    """Scores of the vocabulary for the next token."""

    accepts_loss_kwargs = True
    loss_type = "ForCausalLM"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def build_head(self, config: Any) -> None:
        """Make `lm_head`."""
        self.lm_head: nn.Module = Linear(config.hidden_size, output_size(config), bias=False)

    def tied_weights(self) -> dict[str, str]:
        """See PreTrainedModel.tied_weights; an int8 head has weights of its own."""
        return {} if isinstance(self.lm_head, Int8Linear) else super().tied_weights()

    def get_output_embeddings(self) -> nn.Module:
        """Return the projection to the vocabulary."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the projection to the vocabulary."""
        self.lm_head = new_embeddings

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """See PreTrainedModel.resize_token_embeddings.

        Raises:
            ValueError: for a model whose embeddings have other words than its scores, or whose
                head is int8.
        """
        if output_size(self.config) != self.config.vocab_size:
            raise ValueError(
                "This model scores other words than it reads (output_vocab_size), so its "
                "vocabulary has no one size to change."
            )
        if isinstance(self.lm_head, Int8Linear):
            raise ValueError(
                "The head of this model is int8, which has no rows to add to; change the "
                "vocabulary of the floating model, save it, and load that with "
                "quantization='int8'."
            )
        return super().resize_token_embeddings(*args, **kwargs)

    def scores(self, encoding: Encoding, keep: Any = 0) -> Tensor:
        """See VocabularyHead.scores."""
        if isinstance(encoding, ScoredEncoding) and encoding.logits is not None:
            return encoding.logits
        rows = self.rows(encoding, self.lm_head)
        if rows.dim() == 3 and isinstance(keep, int):
            return self.score(kept(rows, keep), encoding)
        return super().scores(encoding, keep)

    def _scored(self, keep: Any) -> Scored:
        """Say what an engine may score: columns of a number, where nobody changed how."""
        kind = type(self)
        own = kind.score is ApertusForCausalLM.score and kind.scores is ApertusForCausalLM.scores
        own = own and "score" not in vars(self) and "scores" not in vars(self)
        plain = own and type(keep) is int and keep >= 0
        return Scored(self.lm_head, keep if plain else 0, plain)

    def score(self, hidden: Tensor, encoding: Encoding) -> Tensor:
        """Score hidden states: (tokens, hidden) to (tokens, vocabulary)."""
        return project(self.lm_head, hidden, encoding.plan)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **options: Unpack[ApertusCausalOptions],
    ) -> CausalLMOutputWithPast:
        """Predict the next token.

        Args:
            input_ids: see ApertusModel.forward, as for what is not described here.
            attention_mask: likewise.
            position_ids: likewise.
            past_key_values: likewise.
            inputs_embeds: likewise.
            labels: int64 (batch, length), -100 where there is none; shifted here by one column.
                With logits_to_keep=n they are the labels of those n columns.
            use_cache: whether to return a cache; None for config.use_cache, with labels too.
            logits_to_keep: as `keep` in `scores`.
            **options: those of ApertusCausalOptions.

        Returns:
            CausalLMOutputWithPast, or its tuple with return_dict=False.
        """
        shift_labels = options.pop("shift_labels", None)
        mask = attention_mask
        keep = labelled_padding(labels, mask, shift=1) or labelled_padding(shift_labels, mask)
        inputs = EncoderInputs(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            use_cache=use_cache,
            options=options,
        )
        encoding = self.encode(inputs, Wanted(keep_padding=keep), self._scored(logits_to_keep))
        logits = self.scores(encoding, logits_to_keep)
        loss = None
        if labels is not None or shift_labels is not None:
            _check_labels(logits, labels if shift_labels is None else shift_labels)
            shifted = {} if shift_labels is None else {"shift_labels": shift_labels}
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                vocab_size=logits.shape[-1],
                **shifted,
                **counted(options),
            )
        return finish(CausalLMOutputWithPast(loss, logits), encoding)

    # Generation

    def caches(self) -> bool:
        """Return True: Apertus is a decoder whatever its configuration says."""
        return True

    def most_tokens(self) -> int | None:
        """Return None: rotary positions have no table that could end."""
        return None

    def generation_inputs(self, ids: Tensor, state: GenerationState) -> dict[str, Any]:
        """See GenerationMixin.generation_inputs.

        Raises:
            ValueError: for token types or an encoder's output, which Apertus does not read.
        """
        if state.token_type_ids is not None or state.encoder_hidden_states is not None:
            raise ValueError("Apertus takes neither token_type_ids nor encoder_hidden_states.")
        past = 0 if state.cache is None else state.cache.get_seq_length()
        if not past and ids.shape[1] > self.base_model.longest():
            warnings.warn(
                f"The prompt has {ids.shape[1]} tokens, more than the {self.base_model.longest()} "
                "that this model was made for; it runs, but what it writes may make no sense.",
                stacklevel=2,
            )
        return {
            "input_ids": ids[:, past:],
            "attention_mask": state.mask,
            "position_ids": self.base_model.positions_from_mask(state.mask)[:, past:],
            "past_key_values": state.cache,
            "use_cache": state.cache is not None,
        }


def _check_labels(logits: Tensor, labels: Tensor | None) -> None:
    if labels is not None and not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a torch tensor, not a {type(labels).__name__}.")
    if labels is not None and labels.numel() != logits.numel() // max(logits.shape[-1], 1):
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} do not fit logits of shape "
            f"{tuple(logits.shape)}; with logits_to_keep=n give the labels of those n columns."
        )


class ApertusForTokenClassification(_ApertusHead):
    """A label for every token."""

    accepts_loss_kwargs = True
    loss_type = "ForTokenClassification"

    def build_head(self, config: Any) -> None:
        """Make `dropout` and `score`."""
        values = vars(config)
        chosen = [values.get(name) for name in ("classifier_dropout", "hidden_dropout")]
        self.dropout = nn.Dropout(next((p for p in chosen if p is not None), 0.1))
        bias = values.get("token_classification_bias", True)
        self.score = Linear(config.hidden_size, config.num_labels, bias=bias)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **options: Unpack[ApertusOptions],
    ) -> TokenClassifierOutput:
        """Score the labels of every token.

        Args:
            input_ids: see ApertusModel.forward, as for what is not described here.
            attention_mask: likewise.
            position_ids: likewise.
            past_key_values: likewise.
            inputs_embeds: likewise.
            labels: int64 (batch, length), -100 where there is none.
            use_cache: likewise; the cache itself is not returned.
            **options: those of ApertusOptions.

        Returns:
            TokenClassifierOutput, or its tuple with return_dict=False.
        """
        inputs = EncoderInputs(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            # None is needed but to tell texts in one row from positions that jump.
            use_cache=False if use_cache is None and position_ids is None else use_cache,
            options=options,
        )
        keep = labelled_padding(labels, attention_mask)
        encoding = self.encode(inputs, Wanted(keep_padding=keep))
        hidden = self.dropout(self.rows(encoding, self.dropout, self.score))
        logits = project(self.score, hidden, encoding.plan)
        logits = logits if logits.dim() == 3 else encoding.batch.pad(logits)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits.to(_loss_dtype(logits)),
                labels=labels,
                config=self.config,
                **counted(options),
            )
        return finish(TokenClassifierOutput(loss, logits), encoding)


def _loss_dtype(logits: Tensor) -> Any:
    return logits.dtype if logits.dtype.itemsize >= 4 else logits.float().dtype
