"""The two ends of an encoder: the arguments that go in, and what it hands to a head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self, TypedDict, TypeVar

import torch
from torch import Tensor

from fastbert.layers.encoder import EncoderOutput
from fastbert.outputs import ModelOutput
from fastbert.runtime.packing import PackedBatch
from fastbert.runtime.plan import Plan

Output = TypeVar("Output", bound=ModelOutput)


class TokenizerExtras(TypedDict, total=False):
    """What tokenizers return beside a model's inputs: accepted, so that all of it can be passed.

    None of it changes a result.
    """

    special_tokens_mask: Any
    offset_mapping: Any
    length: Any
    overflowing_tokens: Any
    num_truncated_tokens: Any
    overflow_to_sample_mapping: Any


class RareOptions(TokenizerExtras, total=False):
    """Keyword arguments that every forward takes and few callers give.

    Attributes:
        head_mask: (heads,) or (layers, heads), multiplies the attention weights; None keeps all.
        cache_position: accepted, not needed.
        num_items_in_batch: what a loss divides by, see `fastbert.modeling.losses`; means nothing
            where no loss is computed.
    """

    head_mask: Tensor | None
    cache_position: Tensor | None
    num_items_in_batch: Tensor | int | None


class Options(RareOptions, total=False):
    """Keyword arguments that every forward takes besides its own.

    Attributes:
        output_attentions: whether to return the attention weights; None for the configuration's
            value, as for the next two.
        output_hidden_states: whether to return the hidden states of every layer.
        return_dict: whether to return a dataclass rather than a tuple.
    """

    output_attentions: bool | None
    output_hidden_states: bool | None
    return_dict: bool | None


class CausalOptions(Options, total=False):
    """Keyword arguments of heads that predict the next token.

    Attributes:
        shift_labels: labels already moved by one column, in place of labels. No named argument:
            transformers' Trainer would wait for each argument whose name has "label" in it before
            it computes a loss.
    """

    shift_labels: Tensor | None


class UntypedOptions(Options, total=False):
    """Keyword arguments of families without token types.

    Attributes:
        token_type_ids: accepted, since some tokenizers return them; nothing reads them, as in
            transformers.
    """

    token_type_ids: Tensor | None


def counted(options: RareOptions) -> dict[str, Any]:
    """Return num_items_in_batch, where it was given, as the keyword argument of a loss."""
    count = options.get("num_items_in_batch")
    return {} if count is None else {"num_items_in_batch": count}


def refuse_count(options: RareOptions, head: str) -> None:
    """Refuse num_items_in_batch where a loss is a sum of means over different things.

    Raises:
        ValueError: where it was given.
    """
    if counted(options):
        raise ValueError(
            f"{head} adds losses that are means over different things, so it cannot divide by "
            "num_items_in_batch; leave it out. A trainer leaves it out where the model says "
            "accepts_loss_kwargs = False."
        )


@dataclass
class EncoderInputs:
    """The arguments of a forward that go to the encoder; None where they were not given.

    A family whose forward takes more derives a class with more fields.

    Attributes:
        input_ids: int64 (batch, length).
        attention_mask: (batch, length), zero for padding, or a wider mask; (length,) and
            (1, length) stand for the same row in all sequences.
        token_type_ids: int64 (batch, length) or (1, length).
        position_ids: int64 (batch, length) or (1, length).
        inputs_embeds: (batch, length, embedding width), in place of input_ids.
        encoder_hidden_states: (batch, encoder length, hidden), for cross-attention.
        encoder_attention_mask: (batch, encoder length), zero for padding.
        past_key_values: a cache, or tuples over layers of keys and values.
        use_cache: whether a decoder returns a cache; None for the configuration's value.
        options: the keywords that every forward takes.
    """

    # Fields with one value for every token.
    PER_TOKEN: ClassVar[tuple[str, ...]] = (
        "input_ids",
        "attention_mask",
        "token_type_ids",
        "position_ids",
        "inputs_embeds",
    )

    input_ids: Tensor | None = None
    attention_mask: Tensor | None = None
    token_type_ids: Tensor | None = None
    position_ids: Tensor | None = None
    inputs_embeds: Tensor | None = None
    encoder_hidden_states: Tensor | None = None
    encoder_attention_mask: Tensor | None = None
    past_key_values: Any = None
    use_cache: bool | None = None
    options: Options = field(default_factory=Options)

    def named(self) -> dict[str, Any]:
        """Return what was given, by the names of a forward's arguments, the ids first."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "options"}
        return {**given, **self.options}

    def flattened(self) -> Self:
        """Join the first two dimensions of every input that has a value for each token."""
        given = {name: getattr(self, name) for name in self.PER_TOKEN}
        flat = {
            name: value.flatten(0, 1)
            for name, value in given.items()
            # What was given for all texts, or flat already, stays as it is.
            if value is not None and value.dim() > 2
        }
        return replace(self, **flat)


# What must lie where a model does. The small rest, which tokenizers leave on the CPU, is brought.
_COMPUTED_WITH = ("input_ids", "inputs_embeds", "encoder_hidden_states")


def check_devices(inputs: EncoderInputs, device: torch.device, plan: Plan, model: str) -> None:
    """Refuse inputs that lie elsewhere than a model, and what has no values.

    Args:
        inputs: the arguments of the forward.
        device: of the model's weights.
        plan: what the pass would run on.
        model: name of its class.

    Raises:
        ValueError: naming both devices.
        NotImplementedError: where the weights have no values.
    """
    if device.type == "meta" and plan.by_reference:
        raise NotImplementedError(
            f"The weights of this {model} hold no values (device meta), as accelerate's offload "
            "hooks leave them until each module is called, and without values no pass is computed, "
            "not for its shapes either: it reads the mask and all weights at once; load the model "
            "without offloading, or bring it to a device by from_pretrained."
        )
    for name, given in vars(inputs).items():
        if not isinstance(given, Tensor) or given.device == device:
            continue
        if given.is_meta or name in _COMPUTED_WITH:
            raise misplaced(name, given.device, device, model)


def misplaced(name: str, found: torch.device, device: torch.device, model: str) -> ValueError:
    """Return the error for an input that does not lie where a model does."""
    empty = ", where tensors have no values" if found.type == "meta" else ""
    return ValueError(
        f"{name} lies on the device {found}{empty}, but the weights of this {model} lie on "
        f"{device}; make it there, or bring the two together with .to()."
    )


@dataclass
class Encoding:
    """One pass through an encoder, before any head.

    Attributes:
        batch: where the computed tokens stand in the padded grid.
        plan: the backends, for the head's own ops.
        return_dict: whether the caller wants a dataclass rather than a tuple.
        output: the last hidden states, and what was asked for besides.
        rest: by name, what the output of a forward holds beside a head's results, as far as it was
            asked for: hidden_states, past_key_values, attentions, cross_attentions.
        scores_padding: whether masked tokens that were computed are scored by a head too.
    """

    batch: PackedBatch
    plan: Plan
    return_dict: bool
    output: EncoderOutput
    rest: Mapping[str, object] = field(default_factory=dict)
    scores_padding: bool = True

    @property
    def packed(self) -> Tensor:
        """The last hidden states, packed (batch.total, hidden)."""
        if self.output.packed is not None:
            return self.output.packed
        assert self.output.grid is not None
        return self.batch.pack(self.output.grid)

    def padded(self) -> Tensor:
        """Return the last hidden states (batch, seqlen, hidden), zero where a token was removed."""
        grid = self.output.grid
        return self.batch.pad(self.packed) if grid is None else grid

    def first_tokens(self) -> Tensor:
        """Return the last hidden state of column 0 of every sequence, (batch, hidden)."""
        if self.batch.batch_size == 0:
            return self.packed[:0]
        return self.packed.index_select(0, self.batch.first_token_rows())
