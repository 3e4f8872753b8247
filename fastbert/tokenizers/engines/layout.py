"""Where a family puts its special tokens around one text or two."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """`single` and `pair` list slots in order: "A" and "B" are the texts, any other slot is a
    special-token attribute without its `_token` ("cls" stands for `cls_token`).

    `second_type` is the token type of the second text and of the specials after it.
    """

    single: tuple[str, ...]
    pair: tuple[str, ...]
    second_type: int

    def slots(self, pair: bool) -> tuple[str, ...]:
        """The slots for one text or for two."""
        return self.pair if pair else self.single

    def types(self, pair: bool) -> list[int]:
        """The token type of every slot: `second_type` from "B" on."""
        slots = self.slots(pair)
        first_of_second = slots.index("B") if pair else len(slots)
        return [0 if i < first_of_second else self.second_type for i in range(len(slots))]

    def template(self, pair: bool, names: dict[str, str]) -> list[str]:
        """The slots in the notation of `tokenizers.processors.TemplateProcessing`.

        `names` gives the token of each special slot.
        """
        return [
            f"${slot}:{kind}" if slot in "AB" else f"{names[slot]}:{kind}"
            for slot, kind in zip(self.slots(pair), self.types(pair), strict=True)
        ]


BERT_LAYOUT = Layout(("cls", "A", "sep"), ("cls", "A", "sep", "B", "sep"), 1)
