"""Chats to text: jinja templates of checkpoints, run in jinja's sandbox with what they expect."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib import metadata
from typing import Any, NoReturn

import numpy as np

# Names under which a message's reasoning is given; templates read the first, or the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")
_TAG = "CONTINUE_FINAL_MESSAGE_TAG "


def render(
    template: str,
    messages: Sequence[Any],
    *,
    add_generation_prompt: bool,
    continued: str | None,
    values: Mapping[str, Any],
) -> str:
    """Write a chat as the text that a model was trained on.

    Args:
        template: source of a jinja template.
        messages: dictionaries with role and content, or what can be read as such.
        add_generation_prompt: whether the text ends where an answer begins.
        continued: the field of the last message that the text ends with, or None.
        values: what the template sees besides.

    Raises:
        ImportError: without jinja2, or with one whose sandbox is known to leak.
        TypeError: for messages that are no dictionaries.
        ValueError: for a broken template, a chat that it refuses, or nothing to continue.
    """
    chat = [_message(one) for one in messages]
    final = None if continued is None else _tag_final(chat, continued, template)
    _check_jinja()
    import jinja2

    try:
        text: str = _compiled(template).render(
            messages=chat, add_generation_prompt=add_generation_prompt, **_plain(dict(values))
        )
    except jinja2.exceptions.TemplateError as error:
        raise ValueError(f"The chat template cannot write this chat: {error}") from error
    return text if final is None else _cut(text, final)


def _message(given: Any) -> dict[str, Any]:
    message = _plain(given)
    if not isinstance(message, dict):
        raise TypeError(
            f"A chat is a list of dictionaries with 'role' and 'content'; {given!r} is none."
        )
    # Templates take an absent key for what it is, but may write the word None.
    message = {name: value for name, value in message.items() if value is not None}
    found = [message[name] for name in _REASONING if name in message]
    if found:
        message = {"thinking": found[0], **message, "reasoning_content": found[0]}
    return message


def _plain(value: Any) -> Any:
    """Return values of plain types: templates are strangers' code, and objects have methods."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) is bool:
        return value
    # Classes derived from these may have methods of their own.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_plain(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if callable(getattr(value, "model_dump", None)):
        return _plain(value.model_dump())
    return f"<{type(value).__name__}>"


def _tag_final(chat: list[dict[str, Any]], field: str, template: str) -> str:
    """Mark the end of the last message, and return the message."""
    final = chat[-1].get(field) if chat else None
    names = [field]
    if field in _REASONING:
        names = [name for name in _REASONING if chat and chat[-1].get(name) == final]
    if final is None or not any(name in template for name in names):
        raise ValueError(
            f"continue_final_message needs a last message with '{field}', and a chat template that "
            "writes it."
        )
    if isinstance(final, list | tuple):
        for block in reversed(final):
            if "text" in block:
                text: str = block["text"]
                block["text"] = text + _TAG
                return text
        raise ValueError("continue_final_message finds no text in the last message.")
    for name in names:
        chat[-1][name] = final + _TAG
    return str(final)


def _cut(text: str, final: str) -> str:
    """Return the text up to the end of the last message."""
    if final.strip() not in text or _TAG.strip() not in text:
        raise ValueError(
            "continue_final_message needs a chat template that writes the whole last message; this "
            "one leaves something out."
        )
    at = text.rindex(_TAG.strip())
    # A template that trims messages trims the mark's space as well.
    return text[:at] if text.startswith(_TAG, at) else text[:at].rstrip()


def _check_jinja() -> None:
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "Chat templates need the package jinja2: pip install 'jinja2>=3.1.6'."
        ) from error
    found = metadata.version("jinja2")
    # Numbers alone: a release candidate has letters behind them.
    if tuple(map(int, re.findall(r"\d+", found)[:3])) < (3, 1, 6):
        raise ImportError(
            f"Chat templates need jinja2 3.1.6 or newer, since the sandbox of {found} can be left: "
            "pip install -U jinja2."
        )


@functools.lru_cache(maxsize=32)
def _compiled(template: str) -> Any:
    import jinja2
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """Reads blocks that name what the assistant wrote."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            """Return the body of a block."""
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Namespace(jinja2.utils.Namespace):
        """A namespace that keeps no names of Python's own."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            self, *rest = args
            values = dict(*rest, **kwargs)
            for name in values:
                _check_name(name)
            jinja2.utils.Namespace.__init__(self, values)

        def __setitem__(self, name: str, value: Any) -> None:
            _check_name(name)
            super().__setitem__(name, value)

    def _check_name(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace has no {name!r}")

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.exceptions.TemplateError(message)

    class Dict:
        """The dict of templates, without the attributes of the type."""

        def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict(*args, **kwargs)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            """Return a dictionary of these keys."""
            return dict.fromkeys(*args)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": Dict(),
        "namespace": Namespace,
    }
    return environment.from_string(template)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON; jinja's own filter writes for web pages."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
