"""Tokens, ids, added tokens and decoding: the part of a tokenizer that is about its vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from tokenizers import AddedToken

from fastbert.tokenizers.engines.encoding import Encoding, Padding, Truncation
from fastbert.tokenizers.special import (
    ADDITIONAL,
    SPECIAL_NAMES,
    SpecialSet,
    SpecialTokens,
    TokenLike,
    as_added_token,
)


class Engine(Protocol):
    """What turns texts into Encodings: `RustEngine` or `PieceEngine`."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def total_size(self) -> int: ...
    @property
    def added_tokens(self) -> dict[int, AddedToken]: ...
    def vocab(self) -> dict[str, int]: ...
    def token_to_id(self, token: str) -> int | None: ...
    def id_to_token(self, token_id: int) -> str | None: ...
    def add_tokens(self, tokens: Iterable[AddedToken]) -> int: ...
    def restore_added(self, tokens: dict[int, AddedToken]) -> None: ...
    def bind(self, specials: SpecialSet) -> None: ...
    def num_special_tokens_to_add(self, pair: bool) -> int: ...
    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool, **options: Any) -> str: ...
    def join(self, tokens: Sequence[str]) -> str: ...
    def encode(
        self,
        inputs: Sequence[Any],
        *,
        is_split: bool,
        add_special_tokens: bool,
        split_special_tokens: bool,
        truncation: Truncation | None,
        padding: Padding | None,
    ) -> Sequence[Encoding]: ...


def to_list(values: Any) -> Any:
    """Tensors, arrays and tuples of numbers as (nested) lists; an int stays an int."""
    if isinstance(values, (torch.Tensor, np.ndarray, np.generic)):
        return values.tolist()
    if isinstance(values, (list, tuple)):
        return [to_list(value) for value in values]
    return values


class Vocabulary(SpecialTokens):
    """Converts between tokens and ids, adds tokens, decodes."""

    engine: Engine
    clean_up_tokenization_spaces: bool

    @property
    def is_fast(self) -> bool:
        """True: offsets, word ids and overflow rows are there to be asked for.

        Programs written for transformers ask this before they use those, which its tokenizers in
        Python lack; here both engines have them.
        """
        return True

    @property
    def backend_tokenizer(self) -> Any:
        """The `tokenizers.Tokenizer` of a class that runs in Rust; AttributeError in others."""
        try:
            return self.engine.backend  # type: ignore[attr-defined]
        except AttributeError:
            raise AttributeError(
                f"This {type(self).__name__} does not run in Rust and has no backend_tokenizer."
            ) from None

    @property
    def vocab_size(self) -> int:
        """Size of the base vocabulary; `len(tokenizer)` also counts the added tokens."""
        return self.engine.vocab_size

    @property
    def vocab(self) -> dict[str, int]:
        """Same as `get_vocab()`."""
        return self.get_vocab()

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Id to AddedToken, in the order of ids, special tokens included."""
        return self.engine.added_tokens

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """Token to id for the same tokens."""
        return {token.content: index for index, token in self.engine.added_tokens.items()}

    def __len__(self) -> int:
        return self.engine.total_size

    def __bool__(self) -> bool:
        return True

    def get_vocab(self) -> dict[str, int]:
        """Token to id, added tokens included."""
        return self.engine.vocab()

    def get_added_vocab(self) -> dict[str, int]:
        """Same as `added_tokens_encoder`."""
        return self.added_tokens_encoder

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """The id of a token, or a list of ids; unknown tokens get `unk_token_id`."""
        if tokens is None:
            return None
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        token_id = self.engine.token_to_id(tokens)
        if token_id is None and (unknown := self.unk_token) is not None:
            return None if unknown == tokens else self.convert_tokens_to_ids(unknown)
        return token_id

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or a list of tokens."""
        ids = to_list(ids)
        if isinstance(ids, int):
            return self.engine.id_to_token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else ()
        return [self.engine.id_to_token(int(i)) for i in ids if int(i) not in skipped]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Joins tokens into text."""
        return self.engine.join(tokens)

    def add_tokens(
        self, new_tokens: TokenLike | Sequence[TokenLike], special_tokens: bool = False
    ) -> int:
        """Adds tokens that the text is split at before anything else; returns how many.

        A str becomes a token that strips nothing. With `special_tokens` they are skipped by
        `decode(skip_special_tokens=True)`. The model
        must grow too: `model.resize_token_embeddings(len(tokenizer))`.
        """
        if isinstance(new_tokens, (str, AddedToken)):
            new_tokens = [new_tokens]
        known = set(self.all_special_tokens)
        tokens: list[AddedToken] = []
        for value in new_tokens or []:
            special = special_tokens or str(getattr(value, "content", value)) in known
            token = as_added_token(value, special=special)
            if token.content:
                tokens.append(token)
        added = self.engine.add_tokens(tokens)
        self.specials.additional += [t for t in tokens if t.special and t.content not in known]
        return added

    def add_special_tokens(
        self,
        special_tokens_dict: dict[str, TokenLike | Sequence[TokenLike]],
        replace_additional_special_tokens: bool = True,
    ) -> int:
        """Sets special tokens by attribute name ("pad_token", "additional_special_tokens", ...)
        and adds to the vocabulary those it lacks; returns how many were added."""
        tokens: list[TokenLike] = []
        for name, value in special_tokens_dict.items():
            if name in (ADDITIONAL, "extra_special_tokens"):
                if isinstance(value, (str, AddedToken)):
                    raise TypeError(f"{name} must be a list of tokens, not {value!r}.")
                extra = [as_added_token(token, special=True) for token in value]
                if replace_additional_special_tokens:
                    self.specials.additional = list(extra)
                else:
                    known = set(self.additional_special_tokens)
                    self.specials.additional += [t for t in extra if t.content not in known]
                tokens += extra
            elif name in SPECIAL_NAMES:
                if not isinstance(value, (str, AddedToken)):
                    raise TypeError(f"{name} must be a str or an AddedToken, not {value!r}.")
                self._set_special(name, value)
                tokens.append(as_added_token(value, special=True))
            else:
                raise ValueError(
                    f"'{name}' is no special token; the names are {', '.join(SPECIAL_NAMES)} and "
                    f"{ADDITIONAL}."
                )
        return self.add_tokens(tokens, special_tokens=True)

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **options: Any,
    ) -> Any:
        """The text of one row of ids (an int, list, array or 1-D tensor); of a batch, a list.

        `clean_up_tokenization_spaces` removes the spaces before English punctuation; None takes
        the tokenizer's own setting. Sentencepiece and FlauBERT tokenizers also take
        `spaces_between_special_tokens` (True).
        """
        ids = to_list(token_ids)
        ids = [ids] if isinstance(ids, int) else ids
        if ids and isinstance(ids[0], list):
            return self.batch_decode(
                ids, skip_special_tokens, clean_up_tokenization_spaces, **options
            )
        text = self.engine.decode(
            ids,
            skip_special_tokens=skip_special_tokens,
            **options,
        )
        clean = clean_up_tokenization_spaces
        clean = self.clean_up_tokenization_spaces if clean is None else clean
        return self.clean_up_tokenization(text) if clean else text

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **options: Any,
    ) -> list[str]:
        """`decode` for every row."""
        return [
            self.decode(row, skip_special_tokens, clean_up_tokenization_spaces, **options)
            for row in sequences
        ]

    @staticmethod
    def clean_up_tokenization(out_string: str) -> str:
        """Removes the space before . ? ! , and around English contractions."""
        for spaced in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
            out_string = out_string.replace(spaced, spaced.strip())
        return out_string
