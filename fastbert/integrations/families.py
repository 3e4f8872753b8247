"""Which classes of transformers are computed by which of ours: one entry a family."""

from __future__ import annotations

from dataclasses import dataclass


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
