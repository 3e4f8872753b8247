"""Which classes of transformers are computed by which of ours: one entry a family."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """An encoder of transformers that has a twin here.

    Attributes:
        encoder: name of its class, there and here.
        pads_with_zeros: whether its hidden states are zero where the attention mask is.
        further: arguments of its forward that BERT's has not.
        unread: arguments that its forward takes, and does not look at.
        pooled_heads: names of its heads that read the pooler's output alone, or whose own forward
            takes the first token.
        first_token_heads: names of its heads that read the first token alone, in a module
            `classifier` that gets the hidden states of all.
        first_token_parts: the classes that do so.
        token_heads: names of its heads that score every token by itself.
    """

    encoder: str
    pads_with_zeros: bool = False
    further: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    pooled_heads: tuple[str, ...] = ()
    first_token_heads: tuple[str, ...] = ()
    first_token_parts: tuple[str, ...] = ()
    token_heads: tuple[str, ...] = ()


def _roberta(name: str) -> Family:
    return Family(
        f"{name}Model",
        pooled_heads=(f"{name}ForMultipleChoice",),
        first_token_heads=(f"{name}ForSequenceClassification",),
        first_token_parts=(f"{name}ClassificationHead",),
        token_heads=(f"{name}ForMaskedLM",),
    )


_FAMILIES = (
    Family(
        "BertModel",
        pooled_heads=(
            "BertForSequenceClassification",
            "BertForMultipleChoice",
            "BertForNextSentencePrediction",
        ),
        token_heads=("BertForMaskedLM",),
    ),
    _roberta("Camembert"),
    _roberta("Roberta"),
    _roberta("XLMRoberta"),
    Family(
        "RemBertModel",
        pooled_heads=("RemBertForSequenceClassification", "RemBertForMultipleChoice"),
        token_heads=("RemBertForMaskedLM",),
    ),
    Family(
        "DistilBertModel",
        unread=("token_type_ids",),
        pooled_heads=("DistilBertForSequenceClassification",),
    ),
    Family(
        "ElectraModel",
        first_token_heads=("ElectraForSequenceClassification",),
        first_token_parts=("ElectraClassificationHead",),
    ),
    Family(
        "MPNetModel",
        unread=("token_type_ids",),
        first_token_heads=("MPNetForSequenceClassification",),
        first_token_parts=("MPNetClassificationHead",),
    ),
    Family("FlaubertModel", pads_with_zeros=True, further=("langs", "lengths")),
    Family("AlignTextModel"),
)
FAMILIES = {family.encoder: family for family in _FAMILIES}
# What a class of one's own may define without changing what its forward computes.
_HARMLESS = {
    "__init__", "__repr__", "__str__", "_init_weights", "init_weights", "post_init", "train",
    "eval", "from_pretrained", "save_pretrained", "state_dict", "load_state_dict",
}  # fmt: skip


def base_of(kind: type) -> Any:
    """Return the class that an encoder's class is, or is an accelerated form of."""
    return kind.__dict__.get("fastbert_base", kind)


def origin_of(kind: type) -> Any:
    """Return the class of transformers, of a known family, that a class is or is derived from."""
    for base in kind.__mro__:
        theirs = base.__module__.startswith("transformers.models.")
        if theirs and base.__name__ in FAMILIES and base_of(base) is base:
            return base
    return None


def own_methods(kind: type) -> list[str]:
    """Return what a class derived from one of transformers does in its own way in a pass."""
    origin, found = origin_of(kind), []
    for base in kind.__mro__[: kind.__mro__.index(origin)]:
        # One that was derived from an accelerated class, as fully_shard of torch does.
        found += ["__class__"] if "fastbert_base" in vars(base) else []
        for name, value in vars(base).items():
            method = inspect.isroutine(value) or isinstance(value, (property, classmethod))
            if method and name not in _HARMLESS and hasattr(origin, name):
                found.append(name)
    return found


def family_of(kind: type) -> Family | None:
    """Return the family whose forward an encoder's class has; None where it has another."""
    base = base_of(kind)
    origin = origin_of(base)
    return None if origin is None or own_methods(base) else FAMILIES[origin.__name__]
