"""Outputs of the models: dataclasses that are also dictionaries and, by position, tuples.

Shapes: B sequences, L columns of the padded grid, H the hidden width, V the vocabulary. The hidden
states of tokens that the attention mask removes are zero. Fields that were not asked for are None.
Every output has

* `hidden_states`: num_layers + 1 tensors (B, L, H), the embeddings first;
* `attentions`: one tensor (B, heads, L, L) of attention probabilities for each layer;

and losses are scalars, present when labels were given.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, TypeVar, cast

from torch import Tensor
from torch.utils import _pytree

Layers = tuple[Tensor | None, ...] | None

# Where transformers keeps the base of its outputs.
_THEIRS = "transformers.utils.generic"


class ModelOutput(OrderedDict[str, Any]):
    """Base of all outputs: fields by name or key, those that are not None by position too.

    A subclass is a dataclass. A field that is None is no key; setting it to a value makes it one.
    Nothing can be deleted. In place of its fields it takes one mapping, or one iterable of (name,
    value) pairs: accelerate and nn.DataParallel make outputs anew as `type(output)(...)` of those.

    Raises:
        TypeError: for a mapping or pairs with a name that is no field.
    """

    # dataclasses.fields() of a class stops torch.compile, so its own dictionary is read.
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __init_subclass__(cls) -> None:
        _pytree.register_pytree_node(
            cls,
            lambda output: (list(output.values()), list(output.keys())),
            lambda values, keys: cls(**dict(zip(keys, values, strict=True))),
            serialized_type_name=f"fastbert.{cls.__name__}",
        )

    def __post_init__(self) -> None:
        names = tuple(self.__dataclass_fields__)
        first = getattr(self, names[0]) if names else None
        if first is not None and not isinstance(first, Tensor):
            pairs = _pairs(first)
            if pairs is not None:
                self._take(pairs)
                return
        for name in names:
            value = getattr(self, name)
            if value is not None:
                OrderedDict.__setitem__(self, name, value)

    def _take(self, pairs: dict[str, Any]) -> None:
        """Set the fields that stand together in the place of the first one."""
        names = self.field_names()
        unknown = [name for name in pairs if name not in names]
        if unknown or any(getattr(self, name) is not None for name in names[1:]):
            raise TypeError(
                f"A {type(self).__name__} takes its fields ({', '.join(names)}), or one mapping of "
                f"them and nothing else; {', '.join(map(repr, unknown or names[1:]))} does not fit."
            )
        setattr(self, names[0], None)
        for name in names:
            if pairs.get(name) is not None:
                self[name] = pairs[name]

    # object.__setattr__ is OrderedDict's too, and the name under which torch.compile traces it.
    def __setattr__(self, name: str, value: Any) -> None:
        if value is not None and name in vars(self):
            OrderedDict.__setitem__(self, name, value)
        object.__setattr__(self, name, value)

    def __setitem__(self, key: str, value: Any) -> None:
        OrderedDict.__setitem__(self, key, value)
        object.__setattr__(self, key, value)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return OrderedDict.__getitem__(self, key)
        return self.to_tuple()[key]

    # transformers 5.24 looks for past_key_values under the name "cache", in its own outputs.
    def __contains__(self, key: object) -> bool:
        return OrderedDict.__contains__(self, key)

    def get(self, key: str, default: Any = None) -> Any:
        """Return a field that is not None, or the default."""
        return OrderedDict.get(self, key, default)

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """Return the names of the fields, in order."""
        # dataclasses.fields() of a class stops torch.compile.
        names: tuple[str, ...] = tuple(cls.__dataclass_fields__)
        return names

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the fields that are not None, in order."""
        values = (getattr(self, field.name) for field in fields(self))
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


def join_transformers() -> None:
    """Make outputs instances of transformers' ModelOutput too, once that library is loaded.

    Its pipelines ask for that class, and take outputs of another for plain dictionaries.
    """
    theirs = getattr(sys.modules.get(_THEIRS), "ModelOutput", None)
    if theirs is not None:
        ModelOutput.__bases__ = (theirs,)


def _pairs(first: Any) -> dict[str, Any] | None:
    """Return the fields that a mapping or (name, value) pairs hold; None for anything else."""
    if isinstance(first, Mapping | Iterator):
        return dict(first)
    if isinstance(first, list | tuple) and first and all(map(_is_pair, first)):
        return dict(first)
    return None


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], str)


def _rebuild(cls: type[ModelOutput], values: dict[str, Any]) -> ModelOutput:
    return cls(**values)


@dataclass
class BaseModelOutput(ModelOutput):
    """An encoder's output.

    Attributes:
        last_hidden_state: (B, L, H).
        hidden_states: see the module.
        attentions: see the module.
    """

    last_hidden_state: Tensor | None = None
    hidden_states: Layers = None
    attentions: Layers = None


@dataclass
class BaseModelOutputWithPast(ModelOutput):
    """The output of a decoder.

    Attributes:
        last_hidden_state: (B, L, H).
        past_key_values: the key/value cache, where use_cache asked for it.
        hidden_states: see the module.
        attentions: see the module.
    """

    last_hidden_state: Tensor | None = None
    past_key_values: Any = None
    hidden_states: Layers = None
    attentions: Layers = None


@dataclass
class BaseModelOutputWithPooling(ModelOutput):
    """The output of an encoder with a pooler.

    Attributes:
        last_hidden_state: (B, L, H).
        pooler_output: (B, H), None without a pooler.
        hidden_states: see the module.
        attentions: see the module.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: Layers = None
    attentions: Layers = None


@dataclass
class BaseModelOutputWithPoolingAndCrossAttentions(ModelOutput):
    """The output of an encoder that may also be a decoder.

    Attributes:
        last_hidden_state: (B, L, H).
        pooler_output: (B, H), None without a pooler.
        hidden_states: see the module.
        past_key_values: the key/value cache, where use_cache asked for it.
        attentions: see the module.
        cross_attentions: one tensor (B, heads, L, encoder L) for each layer.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: Layers = None
    past_key_values: Any = None
    attentions: Layers = None
    cross_attentions: Layers = None


@dataclass
class BaseModelOutputWithPastAndCrossAttentions(ModelOutput):
    """What a stack of layers returns where it is called by hand.

    Attributes:
        last_hidden_state: (B, L, H).
        past_key_values: the key/value cache, where use_cache asked for it.
        hidden_states: see the module.
        attentions: see the module.
        cross_attentions: one tensor (B, heads, L, encoder L) for each layer.
    """

    last_hidden_state: Tensor | None = None
    past_key_values: Any = None
    hidden_states: Layers = None
    attentions: Layers = None
    cross_attentions: Layers = None


@dataclass
class CausalLMOutputWithCrossAttentions(ModelOutput):
    """The output of a model that predicts the next token.

    Attributes:
        loss: scalar.
        logits: (B, L, V), or the columns that logits_to_keep selects.
        past_key_values: the key/value cache, where use_cache asked for it.
        hidden_states: see the module.
        attentions: see the module.
        cross_attentions: one tensor (B, heads, L, encoder L) for each layer.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Any = None
    hidden_states: Layers = None
    attentions: Layers = None
    cross_attentions: Layers = None


@dataclass
class CausalLMOutputWithPast(ModelOutput):
    """The output of a decoder that predicts the next token.

    Attributes:
        loss: scalar.
        logits: (B, L, V), or the columns that logits_to_keep selects.
        past_key_values: the key/value cache, where use_cache asked for it.
        hidden_states: see the module.
        attentions: see the module.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Any = None
    hidden_states: Layers = None
    attentions: Layers = None


@dataclass
class _Scored(ModelOutput):
    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: Layers = None
    attentions: Layers = None


@dataclass
class MaskedLMOutput(_Scored):
    """Scalar loss and logits (B, L, V), or (positions, V) where logits_to_keep selects some."""


@dataclass
class NextSentencePredictorOutput(_Scored):
    """Scalar loss and logits (B, 2): the second text follows, or does not."""


@dataclass
class SequenceClassifierOutput(_Scored):
    """Scalar loss and logits (B, num_labels)."""


@dataclass
class MultipleChoiceModelOutput(_Scored):
    """Scalar loss and logits (B, choices)."""


@dataclass
class TokenClassifierOutput(_Scored):
    """Scalar loss and logits (B, L, num_labels)."""


@dataclass
class QuestionAnsweringModelOutput(ModelOutput):
    """Scalar loss, start_logits and end_logits (B, L)."""

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: Layers = None
    attentions: Layers = None


@dataclass
class BertForPreTrainingOutput(ModelOutput):
    """Scalar loss, prediction_logits (B, L, V) and seq_relationship_logits (B, 2)."""

    loss: Tensor | None = None
    prediction_logits: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    hidden_states: Layers = None
    attentions: Layers = None


@dataclass
class FlaubertForQuestionAnsweringOutput(ModelOutput):
    """The loss alone where the answer is given, else the most probable answers.

    The names say log_probs, as in transformers, but the values are probabilities.

    Attributes:
        loss: scalar.
        start_top_log_probs: (B, start_n_top), the probabilities of the best starts.
        start_top_index: int64 (B, start_n_top), their columns.
        end_top_log_probs: (B, end_n_top * start_n_top), the best ends for each start; the end
            varies slowest.
        end_top_index: int64 (B, end_n_top * start_n_top), their columns.
        cls_logits: (B,), how probable it is that there is no answer.
        hidden_states: see the module.
        attentions: see the module.
    """

    loss: Tensor | None = None
    start_top_log_probs: Tensor | None = None
    start_top_index: Tensor | None = None
    end_top_log_probs: Tensor | None = None
    end_top_index: Tensor | None = None
    cls_logits: Tensor | None = None
    hidden_states: Layers = None
    attentions: Layers = None


Output = TypeVar("Output", bound=ModelOutput)


class Unfinished(Protocol):
    """What a forward knows besides its own results.

    Attributes:
        return_dict: whether the caller wants a dataclass rather than a tuple.
        rest: further values by the names of fields; None is no value.
    """

    return_dict: bool
    rest: Mapping[str, object]


def finish(output: Output, encoding: Unfinished, keep: Iterable[str] = ()) -> Output:
    """Complete the output of a forward by what else was asked for.

    Args:
        output: the forward's own results; its other fields are filled as far as it has them.
        encoding: the pass that they come from.
        keep: fields that hold their place in a tuple even when they are None.

    Returns:
        `output`, or with return_dict=False the tuple of its values. The tuple is not in the
        annotation: whoever asks for one knows it.
    """
    if _THEIRS in sys.modules and ModelOutput.__bases__ == (OrderedDict,):
        join_transformers()
    for name in output.__dataclass_fields__:
        value = encoding.rest.get(name)
        if value is not None:
            setattr(output, name, value)
    if encoding.return_dict:
        return output
    keep = set(keep)
    values = ((name, getattr(output, name)) for name in output.field_names())
    return cast(Output, tuple(v for name, v in values if v is not None or name in keep))
