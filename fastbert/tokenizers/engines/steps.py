"""What a tokenizer.json says of its steps, and settings that override them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tokenizers import Tokenizer, normalizers, pre_tokenizers

# Settings of tokenizer_config.json, and what a BertNormalizer calls them.
_OF_NORMALIZER = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
    "clean_text": "clean_text",
}
_OF_BYTE_LEVEL = ("add_prefix_space", "trim_offsets")


class Slot(NamedTuple):
    """A place in a row: one of the texts, or special tokens.

    Attributes:
        sequence: 0 or 1 for a text, None for special tokens.
        tokens: the special tokens.
        ids: their ids.
        type_id: the token type of the place.
    """

    sequence: int | None
    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    type_id: int


def text(sequence: int, type_id: int) -> Slot:
    """Return the place of a text."""
    return Slot(sequence, (), (), type_id)


def layout(backend: Tokenizer, pair: bool) -> list[Slot]:
    """Return where a tokenizer puts special tokens around one text or two."""
    for step in _flat(_state(backend.post_processor), "processors"):
        found = _LAYOUTS.get(step["type"])
        if found is not None:
            return found(step, pair)
    return [text(0, 0), text(1, 1)] if pair else [text(0, 0)]


def _template(step: dict[str, Any], pair: bool) -> list[Slot]:
    slots = []
    for piece in step["pair" if pair else "single"]:
        ((kind, place),) = piece.items()
        if kind == "Sequence":
            slots.append(text("AB".index(place["id"]), place["type_id"]))
        else:
            token = step["special_tokens"][place["id"]]
            slots.append(Slot(None, tuple(token["tokens"]), tuple(token["ids"]), place["type_id"]))
    return slots


def _bert(step: dict[str, Any], pair: bool) -> list[Slot]:
    cls, sep = ((step[name][0],) for name in ("cls", "sep"))
    cls_id, sep_id = ((step[name][1],) for name in ("cls", "sep"))
    first = [Slot(None, cls, cls_id, 0), text(0, 0), Slot(None, sep, sep_id, 0)]
    return [*first, text(1, 1), Slot(None, sep, sep_id, 1)] if pair else first


def _roberta(step: dict[str, Any], pair: bool) -> list[Slot]:
    first = _bert(step, False)
    return [*first, first[2], text(1, 0), first[2]] if pair else first


_LAYOUTS = {
    "TemplateProcessing": _template,
    "BertProcessing": _bert,
    "RobertaProcessing": _roberta,
}


def lowercases(backend: Tokenizer) -> bool:
    """Return whether texts are lower-cased."""
    return _behaviour(backend)["do_lower_case"]


def override(backend: Tokenizer, settings: Mapping[str, bool | None]) -> list[str]:
    """Change the steps of a tokenizer.json where settings were given.

    Args:
        backend: the tokenizer, changed in place.
        settings: do_lower_case, strip_accents, tokenize_chinese_chars, clean_text,
            add_prefix_space or trim_offsets; None for what was not given.

    Returns:
        The names of settings that the steps of this file do not have and do not agree with.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    state = _state(backend.normalizer)
    wanted = {_OF_NORMALIZER[name]: v for name, v in given.items() if name in _OF_NORMALIZER}
    if _set(state, "normalizers", "BertNormalizer", wanted):
        normalizer = normalizers.Sequence([])
        normalizer.__setstate__(json.dumps(state).encode())
        backend.normalizer = normalizer
    state = _state(backend.pre_tokenizer)
    wanted = {name: value for name, value in given.items() if name in _OF_BYTE_LEVEL}
    if _set(state, "pretokenizers", "ByteLevel", wanted):
        pre_tokenizer = pre_tokenizers.Sequence([])
        pre_tokenizer.__setstate__(json.dumps(state).encode())
        backend.pre_tokenizer = pre_tokenizer
    kinds = {step["type"] for step in _flat(_state(backend.pre_tokenizer), "pretokenizers")}
    does = _behaviour(backend) if given.keys() & _OF_NORMALIZER.keys() else {}
    return [
        name
        for name, value in given.items()
        if (does[name] != value if name in does else "ByteLevel" not in kinds)
    ]


def _behaviour(backend: Tokenizer) -> dict[str, bool]:
    """Return what the normaliser does to texts, whatever it is made of."""

    def after(sample: str) -> str:
        return sample if backend.normalizer is None else backend.normalizer.normalize_str(sample)

    return {
        "do_lower_case": "A" not in after("A"),
        "strip_accents": not any(accented in after("é") for accented in ("é", "e\u0301", "\u0301")),
        "tokenize_chinese_chars": "日本" not in after("日本"),
        "clean_text": "\u0007" not in after("a\u0007a"),
    }


def _state(step: Any) -> dict[str, Any] | None:
    """Return a step as it stands in tokenizer.json, None where there is none."""
    return None if step is None else json.loads(step.__getstate__())


def _flat(state: dict[str, Any] | None, inner: str) -> Iterator[dict[str, Any]]:
    """Yield the steps of a sequence, or the one step."""
    if state is None:
        return
    if state["type"] != "Sequence":
        yield state
        return
    for step in state[inner]:
        yield from _flat(step, inner)


def _set(state: dict[str, Any] | None, inner: str, kind: str, wanted: dict[str, bool]) -> bool:
    """Set fields of all steps of a kind, and return whether that changed anything."""
    changed = False
    for step in _flat(state, inner):
        if step["type"] == kind and any(step.get(name) != v for name, v in wanted.items()):
            step.update(wanted)
            changed = True
    return changed


def described(backend: Tokenizer) -> dict[str, Any]:
    """Return the tokenizer's settings that tokenizer.json holds beside its steps."""
    found: dict[str, Any] = {}
    if (cut := backend.truncation) is not None:
        found["truncation_side"] = cut["direction"]
    if (pad := backend.padding) is not None:
        # The token type of padding is 0 whatever the file says, as in transformers.
        found |= {"padding_side": pad["direction"], "pad_token": pad["pad_token"]}
    return found
