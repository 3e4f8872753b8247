"""What the models return: dataclasses that are also dictionaries and, by position, tuples.

Shapes: B sequences, L columns of the padded grid, H the hidden width, V the vocabulary. Rows of
tokens that the attention mask removed are zero. `hidden_states` holds num_layers + 1 tensors
(B, L, H), the embeddings first; `attentions` one tensor (B, heads, L, L) a layer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, TypeVar, cast

from torch import Tensor
from torch.utils import _pytree

Layers = tuple[Tensor | None, ...] | None


class ModelOutput(OrderedDict[str, Any]):
    """Base of all outputs: fields by name or key, those that are not None by position too.

    A subclass is a dataclass. Fields that are None are no keys; setting one to a value makes it a
    key. Nothing can be deleted.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _pytree.register_pytree_node(
            cls,
            lambda output: (list(output.values()), list(output.keys())),
            lambda values, keys: cls(**dict(zip(keys, values, strict=True))),
            serialized_type_name=f"fastbert.{cls.__name__}",
        )

    def __post_init__(self) -> None:
        for name in self.field_names():
            value = getattr(self, name)
            if value is not None:
                super().__setitem__(name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if value is not None and name in vars(self):
            super().__setitem__(name, value)
        super().__setattr__(name, value)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return super().__getitem__(key)
        return self.to_tuple()[key]

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """Names of the fields, in order."""
        # dataclasses.fields() of a class stops torch.compile.
        names: tuple[str, ...] = tuple(cls.__dataclass_fields__)  # type: ignore[attr-defined]
        return names

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in order."""
        values = (getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]
        return tuple(value for value in values if value is not None)

    def __reduce__(self) -> Any:
        return (_rebuild, (type(self), dict(self.items())))

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            f"A {type(self).__name__} keeps the fields it was made with; "
            "take dict(output) to add or remove keys."
        )

    __delitem__ = _refuse
    pop = _refuse
    popitem = _refuse
    update = _refuse
    setdefault = _refuse
    clear = _refuse


def _rebuild(cls: type[ModelOutput], values: dict[str, Any]) -> ModelOutput:
    return cls(**values)


@dataclass
class BaseModelOutput(ModelOutput):
    """last_hidden_state (B, L, H)."""

    last_hidden_state: Tensor | None = None
    hidden_states: Layers = None
    attentions: Layers = None


@dataclass
class BaseModelOutputWithPooling(ModelOutput):
    """last_hidden_state (B, L, H) and pooler_output (B, H)."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: Layers = None
    attentions: Layers = None


@dataclass
class BaseModelOutputWithPoolingAndCrossAttentions(ModelOutput):
    """last_hidden_state (B, L, H), pooler_output (B, H) and what a decoder adds: the key/value
    cache, and one tensor (B, heads, L, encoder L) a layer of cross-attention probabilities."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: Layers = None
    past_key_values: Any = None
    attentions: Layers = None
    cross_attentions: Layers = None


@dataclass
class CausalLMOutputWithCrossAttentions(ModelOutput):
    """loss (), logits (B, L, V) or those that logits_to_keep selects, and the key/value cache."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Any = None
    hidden_states: Layers = None
    attentions: Layers = None
    cross_attentions: Layers = None


@dataclass
class _Scored(ModelOutput):
    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: Layers = None
    attentions: Layers = None


@dataclass
class MaskedLMOutput(_Scored):
    """loss () and logits (B, L, V), or (positions, V) where logits_to_keep selects positions."""


@dataclass
class NextSentencePredictorOutput(_Scored):
    """loss () and logits (B, 2): the second text follows, or does not."""


@dataclass
class SequenceClassifierOutput(_Scored):
    """loss () and logits (B, num_labels)."""


@dataclass
class MultipleChoiceModelOutput(_Scored):
    """loss () and logits (B, choices)."""


@dataclass
class TokenClassifierOutput(_Scored):
    """loss () and logits (B, L, num_labels)."""


@dataclass
class QuestionAnsweringModelOutput(ModelOutput):
    """loss (), start_logits and end_logits (B, L)."""

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: Layers = None
    attentions: Layers = None


@dataclass
class BertForPreTrainingOutput(ModelOutput):
    """loss (), prediction_logits (B, L, V) and seq_relationship_logits (B, 2)."""

    loss: Tensor | None = None
    prediction_logits: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    hidden_states: Layers = None
    attentions: Layers = None


@dataclass
class FlaubertForQuestionAnsweringOutput(ModelOutput):
    """loss () alone when the answer is given; else the best starts, with S = start_n_top and
    E = end_n_top: start_top_log_probs, start_top_index (B, S), end_top_log_probs, end_top_index
    (B, E * S) with the end varying slowest, and cls_logits (B,). The names say log_probs, as
    transformers does, but the values are probabilities."""

    loss: Tensor | None = None
    start_top_log_probs: Tensor | None = None
    start_top_index: Tensor | None = None
    end_top_log_probs: Tensor | None = None
    end_top_index: Tensor | None = None
    cls_logits: Tensor | None = None
    hidden_states: Layers = None
    attentions: Layers = None


Output = TypeVar("Output", bound=ModelOutput)


def finish(output: Output, return_dict: bool, keep: Iterable[str] = ()) -> Output:
    """Return the output itself, or the tuple that return_dict=False asks for.

    Args:
        output: what a forward computed.
        return_dict: whether to return `output` as it is.
        keep: fields that hold their place in the tuple even when they are None.

    Returns:
        `output`. The tuple is not in the annotation: whoever asks for one knows it.
    """
    if return_dict:
        return output
    keep = set(keep)
    values = ((name, getattr(output, name)) for name in output.field_names())
    return cast(Output, tuple(v for name, v in values if v is not None or name in keep))
