"""The special tokens of a tokenizer: `cls_token`, `cls_token_id` and so on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self, overload

import numpy as np
import torch
from tokenizers import AddedToken

SPECIAL_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
ADDITIONAL = "additional_special_tokens"

_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")

TokenLike = str | AddedToken
# A row of ids.
Ids = Sequence[int] | torch.Tensor | np.ndarray


class Default(str):
    """A special token that nobody named: the family's own.

    Where a tokenizer.json describes the vocabulary, it holds only if that vocabulary has it.
    """

    __slots__ = ()


class DefaultMask(Default):
    """A mask token that nobody named; it stands for a word together with the space before it."""

    __slots__ = ()


def as_added_token(value: object, *, special: bool | None = None) -> AddedToken:
    """Make an AddedToken of a token in any of its forms.

    A str becomes a token that strips nothing and, when special, is matched before normalisation.

    Args:
        value: a str, an AddedToken, or the dict that configuration files hold.
        special: whether the token is special; None leaves that as it is.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(value, AddedToken):
        if not special or value.special:
            return value
        return AddedToken(**(token_fields(value) | {"special": True}))
    if isinstance(value, str):
        is_special = bool(special)
        return AddedToken(
            str(value),
            lstrip=isinstance(value, DefaultMask),
            special=is_special,
            normalized=not is_special,
        )
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        fields = {k: v for k, v in value.items() if k not in ("__type", "id")}
        if special is not None:
            fields["special"] = special
        if not all(isinstance(fields.get(name, False), bool) for name in _FLAGS):
            raise TypeError(f"The flags of a token must be true or false, but it is {value!r}.")
        if strange := set(fields) - set(_FLAGS) - {"content"}:
            raise TypeError(f"{value!r} has flags that tokens do not have: {sorted(strange)}.")
        return AddedToken(**fields)
    raise TypeError(f"A token must be a str or an AddedToken, not {value!r}.")


def content(token: TokenLike | None) -> str:
    """Return the string of a token."""
    return str(getattr(token, "content", token))


def token_fields(token: AddedToken) -> dict[str, Any]:
    """Return the dict that configuration files hold for a token."""
    return {
        "content": token.content,
        "lstrip": token.lstrip,
        "normalized": token.normalized,
        "rstrip": token.rstrip,
        "single_word": token.single_word,
        "special": token.special,
    }


def is_plain(token: AddedToken) -> bool:
    """Return whether a str stands for the token: it strips nothing, and is matched as it is."""
    return not (token.lstrip or token.rstrip or token.single_word or token.normalized)


class SpecialSet:
    """The special tokens of one tokenizer, shared with its engine, which sees every change.

    Attributes:
        named: the tokens with a role, by the names of their attributes; None where one is not set.
        own: special tokens of this model alone, by the names of their attributes ("image_token").
        additional: special tokens that have no role of their own.
    """

    def __init__(self) -> None:
        self.named: dict[str, AddedToken | None] = {}
        self.own: dict[str, AddedToken] = {}
        self.additional: list[AddedToken] = []

    def name_of(self, slot: str) -> str | None:
        """Return the string of a template's slot ("cls" for `cls_token`), None where not set."""
        token = self.named.get(f"{slot}_token")
        return None if token is None else token.content

    def every(self) -> list[AddedToken]:
        """List every special token once, in the order of the attributes."""
        seen: dict[str, AddedToken] = {}
        named = (self.named.get(name) for name in SPECIAL_NAMES)
        for token in [*named, *self.own.values(), *self.additional]:
            if token is not None:
                seen.setdefault(token.content, token)
        return list(seen.values())

    def strings(self) -> list[str]:
        """List the strings of every special token, each once."""
        return [token.content for token in self.every()]


class _SpecialToken:
    """The attribute of one special token: reads as str or None, takes str, AddedToken or None."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: SpecialTokens, owner: type) -> str | None: ...
    def __get__(self, instance: SpecialTokens | None, owner: type) -> Self | str | None:
        if instance is None:
            return self
        return instance.specials.name_of(self.name.removesuffix("_token"))

    def __set__(self, instance: SpecialTokens, value: TokenLike | None) -> None:
        instance._set_special(self.name, value)


class _SpecialTokenId:
    """The attribute of a special token's id: int, or None where there is no such token."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name.removesuffix("_id")

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: SpecialTokens, owner: type) -> int | None: ...
    def __get__(self, instance: SpecialTokens | None, owner: type) -> Self | int | None:
        if instance is None:
            return self
        token = instance.specials.name_of(self.name.removesuffix("_token"))
        return None if token is None else instance.convert_tokens_to_ids(token)

    def __set__(self, instance: SpecialTokens, value: int | None) -> None:
        token = None if value is None else instance.convert_ids_to_tokens(value)
        if value is not None and not isinstance(token, str):
            raise ValueError(f"{self.name}_id cannot be {value}: no token has that id.")
        instance._set_special(self.name, token)


class SpecialTokens:
    """The part of a tokenizer that holds its special tokens.

    Attributes:
        specials: the special tokens.
    """

    bos_token = _SpecialToken()
    eos_token = _SpecialToken()
    unk_token = _SpecialToken()
    sep_token = _SpecialToken()
    pad_token = _SpecialToken()
    cls_token = _SpecialToken()
    mask_token = _SpecialToken()
    bos_token_id = _SpecialTokenId()
    eos_token_id = _SpecialTokenId()
    unk_token_id = _SpecialTokenId()
    sep_token_id = _SpecialTokenId()
    pad_token_id = _SpecialTokenId()
    cls_token_id = _SpecialTokenId()
    mask_token_id = _SpecialTokenId()

    specials: SpecialSet

    def __getattr__(self, name: str) -> Any:
        """Return a special token of this model alone, or its id."""
        own: dict[str, AddedToken] = {}
        if not name.startswith("_") and "specials" in self.__dict__:
            own = self.specials.own
        if name in own:
            return own[name].content
        if name.endswith("_token_id") and (token := own.get(name.removesuffix("_id"))):
            return self.convert_tokens_to_ids(token.content)
        if hasattr(type(self), name):
            # A property said itself why it has no value.
            return object.__getattribute__(self, name)
        raise AttributeError(f"'{type(self).__name__}' has no attribute '{name}'.")

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Return the id of a token, or a list of ids."""
        raise NotImplementedError

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Return the token of an id, or a list of tokens."""
        raise NotImplementedError

    def _set_special(self, name: str, value: TokenLike | None) -> None:
        if value is not None and not isinstance(value, (str, AddedToken)):
            raise TypeError(f"{name} must be a str, an AddedToken or None, not {value!r}.")
        self.specials.named[name] = None if value is None else as_added_token(value, special=True)

    @property
    def additional_special_tokens(self) -> list[str]:
        """The special tokens that have no role of their own; may be set."""
        return [token.content for token in self.specials.additional]

    @additional_special_tokens.setter
    def additional_special_tokens(self, values: Iterable[TokenLike] | None) -> None:
        self.specials.additional = [as_added_token(value, special=True) for value in values or []]

    @property
    def additional_special_tokens_ids(self) -> list[int]:
        """The ids of `additional_special_tokens`."""
        ids: list[int] = self.convert_tokens_to_ids(self.additional_special_tokens)
        return ids

    # The names of transformers 5.
    extra_special_tokens = additional_special_tokens
    extra_special_tokens_ids = additional_special_tokens_ids

    @property
    def all_special_tokens_extended(self) -> list[AddedToken]:
        """Every special token once, in the order of the attributes."""
        return self.specials.every()

    @property
    def all_special_tokens(self) -> list[str]:
        """The strings of every special token, each once."""
        return self.specials.strings()

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of `all_special_tokens`."""
        ids: list[int] = self.convert_tokens_to_ids(self.all_special_tokens)
        return ids

    @property
    def special_tokens_map_extended(self) -> dict[str, AddedToken | list[AddedToken]]:
        """The special tokens that are set, as AddedTokens by the names of their attributes."""
        found: dict[str, AddedToken | list[AddedToken]] = {
            name: token
            for name in SPECIAL_NAMES
            if (token := self.specials.named.get(name)) is not None
        }
        found |= self.specials.own
        if self.specials.additional:
            found[ADDITIONAL] = list(self.specials.additional)
        return found

    @property
    def special_tokens_map(self) -> dict[str, str | list[str]]:
        """The special tokens that are set, as strings by the names of their attributes."""
        return {
            name: [t.content for t in value] if isinstance(value, list) else value.content
            for name, value in self.special_tokens_map_extended.items()
        }
