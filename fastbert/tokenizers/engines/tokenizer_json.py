"""Reading of tokenizer.json, with the ids that it gives."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer

from fastbert.tokenizers import files
from fastbert.tokenizers.engines import holes, steps
from fastbert.tokenizers.engines.rust import RustEngine

_ADDED = "added_tokens"


def added_tokens(text: str) -> dict[int, AddedToken]:
    """Return the added tokens of a tokenizer.json by their ids, without parsing its vocabulary.

    Raises:
        ValueError: for an id or a token that stands there twice.
    """
    found: dict[int, AddedToken] = {}
    for entry in _entries(text):
        index = int(entry["id"])
        fields = {key: value for key, value in entry.items() if key != "id"}
        if index in found or fields["content"] in {token.content for token in found.values()}:
            raise ValueError(
                f"The added tokens of tokenizer.json name '{fields['content']}' or the id {index} "
                "twice, so its ids are not to be trusted."
            )
        found[index] = AddedToken(**fields)
    return found


def _entries(text: str) -> list[dict[str, Any]]:
    at = text.find(f'"{_ADDED}"')
    if at < 0:
        return []
    start = text.find("[", at)
    if text[at + len(_ADDED) + 2 : start].strip() == ":":
        entries: list[dict[str, Any]] = json.JSONDecoder().raw_decode(text, start)[0]
        return entries
    # The vocabulary stands first and holds such a word.
    return json.loads(text).get(_ADDED) or []


def engine_of(
    path: str | os.PathLike[str] | None,
    settings: Mapping[str, bool | None] | None = None,
    *,
    is_text: bool = False,
) -> tuple[RustEngine, list[str]]:
    """Build the engine of a tokenizer.json, as it is but for settings that were given.

    The library counts ids: after a gap, the ids of added tokens would be others than the file's.

    Args:
        path: the tokenizer.json.
        settings: see `steps.override`.
        is_text: whether `path` is the content itself.

    Returns:
        The engine, and the names of settings that this file cannot obey.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: when the file is broken.
    """
    found: Any = "tokenizer_object"
    if not is_text:
        hint = "pass tokenizer_file= (a tokenizer.json), or use from_pretrained(folder)."
        found = files.existing_file(path, "tokenizer file", hint)
    try:
        text = str(path) if is_text else found.read_bytes().decode("utf-8")
        backend = Tokenizer.from_str(text)
        saved = added_tokens(text)
        moved = {i: t for i, t in saved.items() if backend.token_to_id(t.content) != i}
        base = backend.get_vocab(with_added_tokens=False)
        gaps = holes.next_id(base.values()) != backend.get_vocab_size(with_added_tokens=False)
        if moved or gaps:
            data = json.loads(text) | {_ADDED: []}
            if gaps:
                data["model"]["vocab"] |= holes.fillers(base.values())
            backend = Tokenizer.from_str(json.dumps(data))
    except Exception as error:  # the Rust library raises bare Exception
        raise ValueError(
            f"'{found}' is not a tokenizer.json that this tokenizers library reads ({error}); it "
            "is broken or cut short: fetch it again."
        ) from error
    disobeyed = steps.override(backend, settings or {})
    engine = RustEngine(backend, from_file=True)
    if moved or gaps:
        engine.restore_added(saved)
    return engine, disobeyed
