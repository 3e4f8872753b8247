"""The task text-generation: texts that go on where prompts end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from fastbert.generation.config import GenerationConfig
from fastbert.generation.stopping import StopStrings
from fastbert.pipelines.base import Pipeline
from fastbert.tokenizers.base import Tokenizer

# What is taken where neither the caller nor the checkpoint's generation_config.json says anything.
_USUAL: dict[str, Any] = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7}
_OTHERS = ("logits_processor", "stopping_criteria", "streamer", "tokenizer", "generator")
_OF_GENERATE = (
    *(field.name for field in fields(GenerationConfig)),
    "generation_config",
    *_OTHERS,
)


class TextGeneration(Pipeline):
    """Continues prompts.

    Prompts are continued one after the other unless batch_size says how many go together; then
    shorter ones are padded on the left.
    """

    task = "text-generation"
    auto_class = "AutoModelForCausalLM"
    more_options = _OF_GENERATE

    def __call__(self, inputs: Any = None, **options: Any) -> Any:
        """Continue one prompt, a list of prompts, or an iterator; see Pipeline.

        Args:
            inputs: the prompts; transformers calls them text_inputs.
            **options: those of `answer`, batch_size and num_workers.
        """
        named = options.pop("text_inputs", None)
        if (named is None) == (inputs is None):
            raise TypeError(
                "text-generation takes a text, a chat or a list of them, not "
                f"{'None' if inputs is None else 'two of these'}: give it as the first argument, "
                "or as text_inputs."
            )
        return super().__call__(named if inputs is None else inputs, **options)

    def answer(
        self,
        items: list[Any],
        return_full_text: bool | None = None,
        return_tensors: bool | None = None,
        return_text: bool | None = None,
        clean_up_tokenization_spaces: bool | None = None,
        skip_special_tokens: bool = True,
        prefix: str = "",
        handle_long_generation: str | None = None,
        stop_sequence: str | list[str] | None = None,
        truncation: bool | None = None,
        add_special_tokens: bool | None = None,
        max_length: int | None = None,
        tokenizer_encode_kwargs: dict[str, Any] | None = None,
        continue_final_message: bool | None = None,
        tools: list[Any] | None = None,
        documents: list[Any] | None = None,
        padding: bool | str | None = None,
        **generation: Any,
    ) -> list[Any]:
        """Continue every prompt.

        Args:
            items: texts, and chats: lists of dictionaries with role and content, which the
                tokenizer's chat template writes.
            return_full_text: whether the prompt stands before what was written; None for True.
            return_tensors: whether to return token ids rather than text.
            return_text: the opposite; not together with one of the two before.
            clean_up_tokenization_spaces: as for the tokenizer's decode.
            skip_special_tokens: whether special tokens are left out of the texts.
            prefix: a text that the model reads before every prompt, and that is not returned.
            handle_long_generation: "hole" drops the beginning of prompts that leave no room within
                the model's positions.
            stop_sequence: texts that end a continuation, which they are part of.
            truncation: whether the tokenizer cuts prompts, to max_length where it is given.
            add_special_tokens: as for the tokenizer; None for its default.
            max_length: tokens of prompt and continuation together.
            tokenizer_encode_kwargs: further arguments of the tokenizer, or of its
                apply_chat_template.
            continue_final_message: whether a chat's last message is gone on with; None where it is
                the assistant's.
            tools: what the model of a chat may call; see apply_chat_template.
            documents: what the model of a chat may read; likewise.
            padding: accepted without effect: prompts of a batch are always padded.
            **generation: arguments of the model's generate(), such as max_new_tokens or streamer.

        Returns:
            For every prompt a list of {"generated_text"}, one for each of num_return_sequences; or
            of {"generated_token_ids"}, the prompt's included. The text of a chat is the chat with
            what was written as its last message, unless return_full_text is False.

        Raises:
            ValueError: for options that contradict each other, or a prompt that leaves no room.
        """
        form = _form(return_full_text, return_tensors, return_text)
        if handle_long_generation not in (None, "hole"):
            raise ValueError(
                f"handle_long_generation is None or 'hole', not {handle_long_generation!r}."
            )
        arguments = {
            "add_special_tokens": add_special_tokens,
            "truncation": truncation,
            "max_length": max_length if truncation else None,
        }
        chosen = {name: value for name, value in arguments.items() if value is not None}
        chosen |= tokenizer_encode_kwargs or {}
        if max_length is not None:
            generation["max_length"] = max_length
        settings, others = self._settings(generation, self._length(prefix, chosen))
        decode = {"skip_special_tokens": skip_special_tokens}
        if clean_up_tokenization_spaces is not None:
            decode["clean_up_tokenization_spaces"] = clean_up_tokenization_spaces
        prompts = self._prompts(items)
        of_chats: dict[str, Any] = {
            name: v for name, v in chosen.items() if name != "add_special_tokens"
        }
        of_chats |= {"tools": tools, "documents": documents}
        rows = [
            self._ids(prefix + prompt, chosen)
            if isinstance(prompt, str)
            else self._ids_of_chat(prompt, _goes_on(prompt, continue_final_message), of_chats)
            for prompt in prompts
        ]
        if handle_long_generation == "hole":
            rows = [_with_hole(row, settings, self.longest) for row in rows]
        answers: list[Any] = []
        size = self._batch_size or 1
        for begin in range(0, len(rows), size):
            batch = rows[begin : begin + size]
            written = self._written(batch, settings, others, stop_sequence)
            for at, continuations in enumerate(written):
                prompt, read = prompts[begin + at], self._decode(decode)
                whole = _whole(prompt, continue_final_message)
                answers.append(
                    [_record(form, batch[at], ids, read, whole) for ids in continuations]
                )
        return answers

    def is_one(self, inputs: Any) -> bool:
        """Return whether a list is a chat."""
        return _is_chat(inputs)

    def _prompts(self, items: list[Any]) -> list[Any]:
        """Check that all items are texts or chats and return them."""
        self.texts([item for item in items if not _is_chat(item)])
        for chat in filter(_is_chat, items):
            if not all(isinstance(m, Mapping) and {"role", "content"} <= m.keys() for m in chat):
                raise ValueError(
                    "Every message of a chat is a dictionary with 'role' and 'content'; one of "
                    f"{chat!r} is not."
                )
        return items

    def _ids_of_chat(
        self, chat: Sequence[Any], goes_on: bool, arguments: Mapping[str, Any]
    ) -> list[int]:
        written = self.tokenizer.apply_chat_template(
            chat,
            add_generation_prompt=not goes_on,
            continue_final_message=goes_on,
            **{**arguments, "return_dict": False},
        )
        return list(written)

    def _decode(self, options: Mapping[str, bool]) -> Callable[[Sequence[int]], str]:
        def decode(ids: Sequence[int]) -> str:
            return str(self.tokenizer.decode(list(ids), **options))

        return decode

    def _ids(self, text: str, arguments: Mapping[str, Any]) -> list[int]:
        return list(self.tokenize(text, **arguments)["input_ids"])

    def _length(self, prefix: str, arguments: Mapping[str, Any]) -> int:
        if not prefix:
            return 0
        plain = {"add_special_tokens": False, **arguments}
        return len(self._ids(prefix, plain))

    def _settings(
        self, generation: dict[str, Any], prefix: int
    ) -> tuple[GenerationConfig, dict[str, Any]]:
        """Return the settings of generate(), and its other arguments.

        Args:
            generation: what the caller gave.
            prefix: tokens of the prefix, which lengths of whole texts do not count.
        """
        model: Any = self.model
        given = generation.pop("generation_config", None)
        settings: GenerationConfig = model.generation_config
        if given is not None:
            settings = GenerationConfig.of(given).over(settings)
        named = {n: v for n, v in generation.items() if n not in _OTHERS}
        if asked := [n for n in named if n.startswith("output_") and named[n]]:
            raise ValueError(
                f"text-generation returns texts, and nothing of {', '.join(asked)}; call the "
                "pipeline's model.generate(..., return_dict_in_generate=True) for these."
            )
        others = {n: v for n, v in generation.items() if n not in named}
        stated = settings.stated() | named.keys()
        usual = {n: v for n, v in _USUAL.items() if n not in stated}
        if "max_length" in stated:
            usual.pop("max_new_tokens", None)
            if "max_length" in named:
                usual["max_new_tokens"] = named.get("max_new_tokens")
        if named.get("do_sample", settings.do_sample if "do_sample" in stated else True) is False:
            usual.pop("temperature", None)
        settings = settings.changed(**{**usual, **named})
        if prefix and settings.max_new_tokens is None and settings.max_length is not None:
            settings = replace(settings, max_length=settings.max_length + prefix)
        return replace(settings, return_dict_in_generate=False), others

    def _written(
        self,
        rows: Sequence[list[int]],
        settings: GenerationConfig,
        others: Mapping[str, Any],
        stops: str | list[str] | None,
    ) -> list[list[list[int]]]:
        """Return what is written behind each prompt, num_return_sequences times."""
        model: Any = self.model
        longest = max(map(len, rows))
        given: dict[str, Any] = {"tokenizer": self.tokenizer, **others}
        ids = mask = None
        if longest:
            # An empty prompt among others starts from the beginning of text, as it does alone.
            begin = [] if settings.bos_token_id is None else [settings.bos_token_id]
            ids, mask = _left_padded(
                [row or begin for row in rows], self.tokenizer.pad_token_id or 0, model.device
            )
        elif len(rows) > 1:
            alone = ([row] for row in rows)
            return [self._written(row, settings, others, stops)[0] for row in alone]
        start = 1 if ids is None else ids.shape[1]
        if stops is not None:
            more = given.get("stopping_criteria") or ()
            given["stopping_criteria"] = [*more, StopStrings(stops, self.tokenizer)]
        texts: Tensor = model.generate(ids, settings, attention_mask=mask, **given)
        count = settings.num_return_sequences
        found: list[list[int]] = texts[:, start:].tolist()
        return [found[at * count : (at + 1) * count] for at in range(len(rows))]


def _form(full: bool | None, tensors: bool | None, text: bool | None) -> str:
    """Return "full", "new" or "ids"."""
    if sum(option is not None for option in (full, tensors, text)) > 1:
        raise ValueError(
            "Give one of return_full_text, return_tensors and return_text: each says what is "
            "returned."
        )
    if tensors or text is False:
        return "ids"
    return "new" if full is False else "full"


def _is_chat(item: object) -> bool:
    if not isinstance(item, list | tuple) or not item or not isinstance(item[0], Mapping):
        return False
    return "role" in item[0] or "content" in item[0]


def _goes_on(chat: Sequence[Mapping[str, Any]], wanted: bool | None) -> bool:
    """Return whether the last message of a chat is gone on with."""
    return chat[-1]["role"] == "assistant" if wanted is None else wanted


def _whole(prompt: Any, continued: bool | None) -> Callable[[str], Any]:
    """Return the function that puts what was written behind its prompt."""
    if isinstance(prompt, str):
        return lambda text: prompt + text
    last = prompt[-1]
    if not _goes_on(prompt, continued):
        return lambda text: [*prompt, {"role": "assistant", "content": text}]
    if not isinstance(last["content"], str):
        raise ValueError(
            "Only a message whose content is a text can be gone on with; give "
            "return_full_text=False or continue_final_message=False."
        )
    return lambda text: [*prompt[:-1], {"role": last["role"], "content": last["content"] + text}]


def _record(
    form: str,
    ids: list[int],
    written: list[int],
    decode: Callable[[Sequence[int]], str],
    whole: Callable[[str], Any],
) -> dict[str, Any]:
    if form == "ids":
        return {"generated_token_ids": [*ids, *written]}
    text = decode(written)
    return {"generated_text": whole(text) if form == "full" else text}


def _with_hole(row: list[int], settings: GenerationConfig, longest: int) -> list[int]:
    """Drop the beginning of a prompt, so that what is to be written has room behind it."""
    new = settings.max_new_tokens
    if new is None:
        new = (settings.max_length or 0) - len(row)
    keep = longest - new
    if new < 0 or keep <= 0:
        raise ValueError(
            f"{new} new tokens leave no room for a prompt within the {longest} tokens that the "
            "model takes; ask for fewer."
        )
    return row[-keep:]


def _left_padded(
    rows: Sequence[list[int]], pad: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=device)
    kept = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return ids, torch.tensor(kept, device=device)


class TextPieces:
    """A streamer that hands out text as soon as it can no longer change.

    Args:
        tokenizer: turns ids into text.
        take: gets one piece after the other.
    """

    def __init__(self, tokenizer: Tokenizer, take: Callable[[str], object]) -> None:
        self._tokenizer = tokenizer
        self._take = take
        self._ids: list[int] = []
        self._shown = 0
        self._prompt = True

    def put(self, value: Tensor) -> None:
        """Take the prompt, then one token after the other."""
        if self._prompt:
            self._prompt = False
            return
        self._ids += value.reshape(-1).tolist()
        text = self._text()
        # Without the bytes of a character that is not complete yet.
        self._show(text[: len(text.rstrip("\ufffd"))])

    def end(self) -> None:
        """Hand out the rest, and be ready for the next text."""
        self._show(self._text())
        self._ids, self._shown, self._prompt = [], 0, True

    def _text(self) -> str:
        return str(self._tokenizer.decode(self._ids, skip_special_tokens=True))

    def _show(self, text: str) -> None:
        if len(text) > self._shown:
            self._take(text[self._shown :])
            self._shown = len(text)
