"""Chats of a tokenizer: its templates, their files, and what they make of messages."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastbert.checkpoints.storage import write_text
from fastbert.tokenizers import files
from fastbert.tokenizers.assembling import Assembling
from fastbert.tokenizers.chat_rendering import render

# One template, or several by their names.
Templates = str | dict[str, str] | None


class Chatting(Assembling):
    """What a tokenizer does with chats.

    Attributes:
        chat_template: source of a jinja template, or several by their names ("default",
            "tool_use"); None where there is none. May be set.
    """

    chat_template: Templates = None

    def get_chat_template(
        self, chat_template: str | None = None, tools: Sequence[Any] | None = None
    ) -> str:
        """Choose a template.

        Args:
            chat_template: a template, or the name of one of several; None for the tokenizer's own.
            tools: what the model may call; "tool_use" is then the tokenizer's own.

        Raises:
            ValueError: where the tokenizer has none, or several and none is the usual one.
        """
        own = self.chat_template
        if chat_template is not None:
            return own.get(chat_template, chat_template) if isinstance(own, dict) else chat_template
        if isinstance(own, dict):
            names = (["tool_use"] if tools is not None else []) + ["default"]
            found = [own[name] for name in names if name in own]
            if found:
                return found[0]
            raise ValueError(
                f"The tokenizer has several chat templates and none is the default; name one of "
                f"{', '.join(sorted(own))} as chat_template."
            )
        if own is None:
            raise ValueError(
                "The tokenizer has no chat template; give one as chat_template, or set "
                "tokenizer.chat_template."
            )
        return own

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        sanitize_control_tokens: bool = False,
        padding: Any = False,
        truncation: Any = False,
        max_length: int | None = None,
        return_tensors: Any = None,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Write a chat as a model's template has it, and tokenise it.

        Args:
            conversation: a list of dictionaries with role and content, or a list of such lists.
            tools: what the model may call, as JSON schemas.
            documents: dictionaries that the model may read.
            chat_template: see get_chat_template.
            add_generation_prompt: end where an answer begins.
            continue_final_message: end with the last message, so that the model goes on with it; a
                name says which of its fields it is.
            tokenize: return ids rather than text.
            sanitize_control_tokens: refused where it is True.
            padding: see the tokenizer's call; as are those below.
            truncation: see padding.
            max_length: see padding.
            return_tensors: see padding.
            return_dict: return a BatchEncoding rather than the ids alone.
            return_assistant_tokens_mask: refused where it is True.
            tokenizer_kwargs: further arguments of the tokenizer's call.
            **kwargs: further values for the template, which go before special tokens.

        Returns:
            A BatchEncoding, ids, or text; a list of ids or texts for a list of chats.

        Raises:
            ImportError: without jinja2.
            TypeError: for messages or documents that are no dictionaries.
            ValueError: for an empty chat, options that contradict each other, tools that are
                functions, or a chat that the template refuses.
        """
        for name, wanted in (
            ("sanitize_control_tokens", sanitize_control_tokens),
            ("return_assistant_tokens_mask", return_assistant_tokens_mask),
        ):
            if wanted:
                raise ValueError(f"apply_chat_template does not do {name}; leave it out.")
        if continue_final_message and add_generation_prompt:
            raise ValueError(
                "continue_final_message ends with the last message, add_generation_prompt with the "
                "beginning of an answer; give one of them."
            )
        _check(tools, documents)
        template = self.get_chat_template(chat_template, tools)
        chats, several = _chats(conversation)
        field = continue_final_message
        values = {**self.special_tokens_map, **kwargs, "tools": tools, "documents": documents}
        texts = [
            render(
                template,
                chat,
                add_generation_prompt=add_generation_prompt,
                continued=(field if isinstance(field, str) else "content") if field else None,
                values=values,
            )
            for chat in chats
        ]
        text = texts if several else texts[0]
        if not tokenize:
            return text
        # The template has written the special tokens.
        encoded = self(
            text,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            return_tensors=return_tensors,
            **{"add_special_tokens": False, **(tokenizer_kwargs or {})},
        )
        return encoded if return_dict else encoded["input_ids"]

    def _save_templates(self, folder: Path, prefix: str) -> list[Path]:
        """Write the templates as transformers reads them, and return the paths."""
        own = self.chat_template
        templates = own if isinstance(own, dict) else {} if own is None else {"default": own}
        written = []
        for name, template in templates.items():
            path = folder / (prefix + files.CHAT_FILE)
            if name != "default":
                path = folder / (prefix + files.CHAT_FOLDER) / f"{name}.jinja"
            path.parent.mkdir(exist_ok=True)
            write_text(path, template)
            written.append(path)
        return written


def _chats(given: Any) -> tuple[list[Any], bool]:
    """Return a list of chats, and whether several were given."""
    if hasattr(given, "messages"):
        given = given.messages
    if not isinstance(given, list | tuple):
        raise TypeError(
            "A chat is a list of dictionaries with 'role' and 'content', not a "
            f"{type(given).__name__}."
        )
    if not given:
        raise ValueError("The chat is empty; give at least one message.")
    if not (isinstance(given[0], list | tuple) or hasattr(given[0], "messages")):
        return [given], False
    return [getattr(chat, "messages", chat) for chat in given], True


def _check(tools: Sequence[Any] | None, documents: Sequence[Any] | None) -> None:
    for tool in tools or ():
        if inspect.isroutine(tool):
            raise ValueError(
                f"A tool is given as a JSON schema, not as the function {tool.__name__}; "
                "transformers.utils.get_json_schema makes one of it."
            )
        if not isinstance(tool, Mapping):
            raise ValueError(f"A tool is a JSON schema, a dictionary, not {tool!r}.")
    for document in documents or ():
        if not isinstance(document, Mapping):
            raise TypeError(f"A document is a dictionary with title and text, not {document!r}.")


def as_templates(given: Any) -> Templates:
    """Return templates from the forms that files have: a text, a dictionary, or named entries.

    Raises:
        ValueError: for anything else.
    """
    try:
        if isinstance(given, list | tuple):
            given = {entry["name"]: entry["template"] for entry in given}
    except (KeyError, TypeError):
        given = NotImplemented
    texts = given.values() if isinstance(given, dict) else [given]
    if given is not None and not all(isinstance(text, str) for text in texts):
        raise ValueError(
            "chat_template is a text, a dictionary of texts, or a list of entries with name and "
            "template."
        )
    return given or None


def read_templates(folder: Path) -> Templates:
    """Read the template files of a folder; None where it has none."""
    found = {path.stem: path for path in sorted((folder / files.CHAT_FOLDER).glob("*.jinja"))}
    if (folder / files.CHAT_FILE).is_file():
        found["default"] = folder / files.CHAT_FILE
    texts = {name: path.read_text(encoding="utf-8") for name, path in found.items()}
    return texts["default"] if texts.keys() == {"default"} else texts or None
