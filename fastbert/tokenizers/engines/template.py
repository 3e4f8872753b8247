"""The arrangement of a family's special tokens around one text or two."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SpecialTokensTemplate:
    """Where a family puts its special tokens around one text or two.

    A slot is "A" or "B" for a text, or the name of a special-token attribute without its `_token`:
    "cls" stands for `cls_token`.

    Attributes:
        single: the slots around one text, in order.
        pair: the slots around two texts, in order.
        second_type: token type of the second text and of the special tokens after it.
    """

    single: tuple[str, ...]
    pair: tuple[str, ...]
    second_type: int

    def slots(self, pair: bool) -> tuple[str, ...]:
        """Return the slots for one text or for two."""
        return self.pair if pair else self.single

    def types(self, pair: bool) -> list[int]:
        """Return the token type of every slot: 0, and `second_type` from "B" on."""
        slots = self.slots(pair)
        first_of_second = slots.index("B") if pair else len(slots)
        return [0 if i < first_of_second else self.second_type for i in range(len(slots))]

    def notation(self, pair: bool, names: dict[str, str]) -> list[str]:
        """Write the slots in the notation of `tokenizers.processors.TemplateProcessing`.

        Args:
            pair: whether there are two texts.
            names: the token of each slot that is no text.
        """
        return [
            f"${slot}:{token_type}" if slot in "AB" else f"{names[slot]}:{token_type}"
            for slot, token_type in zip(self.slots(pair), self.types(pair), strict=True)
        ]


BERT_TEMPLATE = SpecialTokensTemplate(("cls", "A", "sep"), ("cls", "A", "sep", "B", "sep"), 1)
