"""The part of a tokenizer that concerns its vocabulary: tokens, ids, added tokens, decoding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, overload

import numpy as np
import torch
from tokenizers import AddedToken

from fastbert.tokenizers.engines.encoding import Encoding, Padding, Truncation
from fastbert.tokenizers.engines.steps import Slot
from fastbert.tokenizers.special import (
    ADDITIONAL,
    SPECIAL_NAMES,
    Ids,
    SpecialSet,
    SpecialTokens,
    TokenLike,
    as_added_token,
)


class Engine(Protocol):
    """The interface of `RustEngine` and `PieceEngine`, which turn texts into encodings.

    Attributes:
        from_file: whether a tokenizer.json says what the vocabulary is.
        described: settings that the tokenizer.json holds beside its steps.
    """

    from_file: bool
    described: dict[str, Any]

    @property
    def vocab_size(self) -> int:
        """The size of the base vocabulary."""
        ...

    @property
    def cleanable(self) -> bool:
        """Whether decoding puts spaces between words, rather than taking them from the tokens."""

    @property
    def total_size(self) -> int:
        """The size of the vocabulary with the added tokens."""
        ...

    @property
    def added_tokens(self) -> dict[int, AddedToken]:
        """The added tokens by their ids, in the order of the ids."""
        ...

    def vocab(self) -> dict[str, int]:
        """Return the id of every token, added tokens included."""
        ...

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token, None where the engine has no unknown token for it."""
        ...

    def id_to_token(self, token_id: int) -> str | None:
        """Return the token of an id, None where there is none."""
        ...

    def add_tokens(self, tokens: Iterable[AddedToken]) -> int:
        """Mark tokens as added and return how many were not in the vocabulary."""
        ...

    def restore_added(self, tokens: dict[int, AddedToken]) -> None:
        """Add tokens that were saved with their ids."""
        ...

    def bind(self, specials: SpecialSet) -> None:
        """Use these special tokens, whose changes are seen, from here on."""
        ...

    def layout(self, pair: bool) -> list[Slot]:
        """Return where special tokens go around one text or two."""
        ...

    def num_special_tokens_to_add(self, pair: bool) -> int:
        """Return how many special tokens one text or two get."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool, **options: Any) -> str:
        """Return the text of ids."""
        ...

    def join(self, tokens: Sequence[str]) -> str:
        """Join tokens to text."""
        ...

    def encode(
        self,
        inputs: Sequence[Any],
        *,
        is_split: bool,
        add_special_tokens: bool,
        split_special_tokens: bool,
        truncation: Truncation | None,
        padding: Padding | None,
    ) -> Sequence[Encoding]:
        """Encode a batch.

        Args:
            inputs: texts, or (text, pair) tuples; where `is_split`, lists of words stand for texts.
            is_split: whether texts are given as lists of words.
            add_special_tokens: put the family's special tokens around each input.
            split_special_tokens: read special tokens in a text as ordinary characters.
            truncation: how to truncate; None for not at all.
            padding: how to pad; None for not at all.

        Returns:
            One encoding for each input; its overflow is in its `overflowing`.
        """
        ...


def to_list(values: Any) -> Any:
    """Turn tensors, arrays and tuples of numbers into (nested) lists; an int stays an int."""
    if isinstance(values, (torch.Tensor, np.ndarray, np.generic)):
        return values.tolist()
    if isinstance(values, (list, tuple)):
        return [to_list(value) for value in values]
    return values


class Vocabulary(SpecialTokens):
    """The part of a tokenizer that converts between tokens and ids, adds tokens and decodes.

    Attributes:
        engine: what tokenises texts.
        clean_up_tokenization_spaces: whether decoding removes spaces before English punctuation.
    """

    engine: Engine
    clean_up_tokenization_spaces: bool

    @property
    def is_fast(self) -> bool:
        """True: offsets, word ids and rows of overflow can be had.

        Programs written for transformers look at this before they ask for those, since its
        tokenizers in Python lack them; here both engines have them.
        """
        return True

    @property
    def backend_tokenizer(self) -> Any:
        """The `tokenizers.Tokenizer` of a class that runs in Rust.

        Raises:
            AttributeError: for a class that does not.
        """
        try:
            return self.engine.backend  # type: ignore[attr-defined]
        except AttributeError:
            raise AttributeError(
                f"This {type(self).__name__} does not run in Rust and has no backend_tokenizer."
            ) from None

    @property
    def _tokenizer(self) -> Any:
        """The `tokenizers.Tokenizer` by the name that transformers' pipelines look for; or None.

        Its token-classification asks the model behind it whether tokens tell that they go on with
        a word, and guesses words from blanks where it finds nothing.
        """
        return getattr(self.engine, "backend", None)

    @property
    def vocab_size(self) -> int:
        """The size of the base vocabulary; `len(tokenizer)` also counts the added tokens."""
        return self.engine.vocab_size

    @property
    def vocab(self) -> dict[str, int]:
        """The id of every token; the same as `get_vocab()`."""
        return self.get_vocab()

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The added tokens by their ids, in the order of the ids, special tokens included."""
        return self.engine.added_tokens

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """The ids of the added tokens."""
        return {token.content: index for index, token in self.engine.added_tokens.items()}

    def __len__(self) -> int:
        return self.engine.total_size

    def __bool__(self) -> bool:
        return True

    def get_vocab(self) -> dict[str, int]:
        """Return the id of every token, added tokens included."""
        return self.engine.vocab()

    def get_added_vocab(self) -> dict[str, int]:
        """Return the ids of the added tokens."""
        return self.added_tokens_encoder

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...  # type: ignore[overload-overlap]
    @overload
    def convert_tokens_to_ids(self, tokens: Iterable[str]) -> list[int]: ...
    @overload
    def convert_tokens_to_ids(self, tokens: None) -> None: ...
    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Return the id of a token, or a list of ids; unknown tokens get `unk_token_id`.

        Where the vocabulary has no unknown token either, None stands for the id.
        """
        if tokens is None:
            return None
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        token_id = self.engine.token_to_id(tokens)
        if token_id is None and (unknown := self.unk_token) is not None:
            return None if unknown == tokens else self.convert_tokens_to_ids(unknown)
        return token_id

    @overload
    def convert_ids_to_tokens(self, ids: int, skip_special_tokens: bool = False) -> str: ...
    @overload
    def convert_ids_to_tokens(self, ids: Ids, skip_special_tokens: bool = False) -> list[str]: ...
    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Return the token of an id, or a list of tokens; None stands for an id without token."""
        ids = to_list(ids)
        if isinstance(ids, int):
            return self.engine.id_to_token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else ()
        return [self.engine.id_to_token(int(i)) for i in ids if int(i) not in skipped]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Join tokens to text."""
        return self.engine.join(tokens)

    def add_tokens(
        self, new_tokens: TokenLike | Sequence[TokenLike], special_tokens: bool = False
    ) -> int:
        """Add tokens that texts are split at before anything else.

        The model must grow too: `model.resize_token_embeddings(len(tokenizer))`.

        Args:
            new_tokens: a token or several; a str stands for a token that strips nothing.
            special_tokens: whether they are special: `decode(skip_special_tokens=True)` then leaves
                them out.

        Returns:
            How many were not in the vocabulary.
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
        replace_extra_special_tokens: bool = True,
        replace_additional_special_tokens: bool | None = None,
    ) -> int:
        """Set special tokens, and add to the vocabulary those that it lacks.

        Args:
            special_tokens_dict: tokens by the names of their attributes: "pad_token",
                "additional_special_tokens" and so on.
            replace_extra_special_tokens: whether the additional special tokens given replace the
                present ones, or join them.
            replace_additional_special_tokens: the older name of it.

        Returns:
            How many were not in the vocabulary.

        Raises:
            TypeError: for a value that is no token or no list of tokens.
            ValueError: for a name that is none of a special token.
        """
        replaces = replace_extra_special_tokens
        if replace_additional_special_tokens is not None:
            replaces = replace_additional_special_tokens
        tokens: list[TokenLike] = []
        for name, value in special_tokens_dict.items():
            if name in (ADDITIONAL, "extra_special_tokens"):
                if isinstance(value, (str, AddedToken)):
                    raise TypeError(f"{name} must be a list of tokens, not {value!r}.")
                extra = [as_added_token(token, special=True) for token in value]
                if replaces:
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

    @overload
    def decode(
        self,
        token_ids: int | Sequence[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **options: Any,
    ) -> str: ...

    @overload
    def decode(
        self,
        token_ids: Sequence[Sequence[int]],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **options: Any,
    ) -> list[str]: ...

    @overload
    def decode(
        self,
        token_ids: torch.Tensor | np.ndarray,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **options: Any,
    ) -> Any: ...

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **options: Any,
    ) -> Any:
        """Turn ids back into text.

        Args:
            token_ids: one id, a row of ids, or a batch of rows.
            skip_special_tokens: leave special tokens out.
            clean_up_tokenization_spaces: remove the spaces before English punctuation; None for the
                tokenizer's own setting. Byte pairs hold the spaces of the text, which all stay.
            **options: sentencepiece and FlauBERT tokenizers take
                `spaces_between_special_tokens` (True).

        Returns:
            The text of an id or a row; a list of texts for a batch.

        Raises:
            TypeError: for an option that the tokenizer does not have.
            ValueError: for ids that are not in the vocabulary.
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
        return self.clean_up_tokenization(text) if clean and self.engine.cleanable else text

    def batch_decode(
        self,
        sequences: Sequence[Sequence[int]] | Sequence[torch.Tensor] | torch.Tensor | np.ndarray,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **options: Any,
    ) -> list[str]:
        """Turn every row of ids back into text; see `decode`."""
        return [
            self.decode(row, skip_special_tokens, clean_up_tokenization_spaces, **options)
            for row in sequences
        ]

    @staticmethod
    def clean_up_tokenization(out_string: str) -> str:
        """Remove the space before . ? ! , and around English contractions."""
        for spaced in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
            out_string = out_string.replace(spaced, spaced.strip())
        return out_string
