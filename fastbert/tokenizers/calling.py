"""The part of a tokenizer that is called with texts: one contract for families and engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from fastbert.tokenizers.batch_encoding import BatchEncoding, as_tensor_type
from fastbert.tokenizers.engines.encoding import Encoding
from fastbert.tokenizers.engines.template import SpecialTokensTemplate
from fastbert.tokenizers.strategies import WarnOnce, check_count, check_side, resolve
from fastbert.tokenizers.vocabulary import Vocabulary

Texts = str | Sequence[str] | Sequence[Sequence[str]] | Sequence[tuple[str, str]]


def _checked(name: str, text: Any, is_split: bool) -> tuple[list[Any], bool]:
    """Return `text` as a list of examples, and whether it was a batch.

    An example is a str, or a list of str where `is_split`.

    Raises:
        TypeError: at the first example that is no such thing.
    """
    expected = (
        "a list of words, or a batch (list) of such lists, with is_split_into_words=True"
        if is_split
        else "a str, or a batch (list) of str"
    )
    if is_split:
        if not isinstance(text, (list, tuple)):
            raise TypeError(f"{name} is {type(text).__name__}; it must be {expected}.")
        batched = bool(text) and isinstance(text[0], (list, tuple))
        examples = [list(words) if isinstance(words, tuple) else words for words in text]
        examples = examples if batched else [examples]
        for row, words in enumerate(examples):
            if not isinstance(words, list):
                raise TypeError(f"{name}[{row}] is {words!r}; it must be a list of words.")
            for word in words:
                if not isinstance(word, str):
                    raise TypeError(
                        f"{name}[{row}] holds {word!r} ({type(word).__name__}); a word must be a "
                        "str."
                    )
        return examples, batched
    if isinstance(text, str):
        return [text], False
    if not isinstance(text, (list, tuple)):
        raise TypeError(f"{name} is {type(text).__name__}; it must be {expected}.")
    for row, one in enumerate(text):
        if not isinstance(one, str):
            raise TypeError(
                f"{name}[{row}] is {type(one).__name__}; it must be a str{_hint(one, row)}. A "
                "pair of texts is a tuple of two, or two arguments: tokenizer(texts, others)."
            )
    return list(text), True


def _hint(one: Any, row: int) -> str:
    if isinstance(one, int):
        return " (token ids are for encode(), batch_encode_plus() and prepare_for_model())"
    return " (pass is_split_into_words=True for lists of words)" if row == 0 else ""


def _is_pair(one: Any) -> bool:
    return isinstance(one, (list, tuple)) and len(one) == 2 and all(isinstance(t, str) for t in one)


def silent(name: str, message: str) -> None:
    """Swallow a warning, as verbose=False asks for."""


class Calling(Vocabulary):
    """The part of a tokenizer that turns texts into a BatchEncoding.

    Attributes:
        template: where the family's special tokens go.
        model_max_length: tokens that the model takes, 1e30 where unknown.
        padding_side: "right" or "left".
        truncation_side: "right" or "left".
        model_input_names: the keys that are returned by default.
        split_special_tokens: whether special tokens in a text are read as ordinary characters.
        pad_token_type_id: the token type of padding.
    """

    template: ClassVar[SpecialTokensTemplate]
    model_max_length: int
    padding_side: str
    truncation_side: str
    model_input_names: list[str]
    split_special_tokens: bool
    pad_token_type_id: int
    _warn: WarnOnce

    def __call__(
        self,
        text: Texts | None = None,
        text_pair: Texts | None = None,
        text_target: Texts | None = None,
        text_pair_target: Texts | None = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        split_special_tokens: bool | None = None,
    ) -> BatchEncoding:
        """Encode a text, a batch of texts, or pairs of them.

        Args:
            text: a str or a list of str; a list of (text, pair); with `is_split_into_words` a list
                of words or a list of such lists.
            text_pair: the second text of each pair, in the same form as `text`.
            text_target: texts encoded alike; beside `text` their ids become the key "labels", alone
                they are the result.
            text_pair_target: the second text of each pair of targets.
            add_special_tokens: False leaves the special tokens out; the Python classes (those
                without "Fast", BertTokenizerLegacy) then give a pair the token type 0 throughout.
            padding: True or "longest", "max_length", or False.
            truncation: True or "longest_first", "only_first", "only_second", or False. A text that
                is too long is shortened only when asked; otherwise it is kept whole.
            max_length: tokens of a row, for padding and truncation; None for `model_max_length`.
            stride: tokens that a row and its overflow share.
            is_split_into_words: whether texts are given as lists of words.
            pad_to_multiple_of: the padded length is a multiple of it.
            padding_side: "right" or "left"; None for the tokenizer's own.
            return_tensors: "pt" (int64 torch tensors of shape (batch, seqlen)), "np", or None for
                lists.
            return_token_type_ids: whether to return them; None goes by `model_input_names`.
            return_attention_mask: likewise.
            return_overflowing_tokens: whether the tokens cut off follow as rows of their own;
                "overflow_to_sample_mapping" then says which text each row is from.
            return_special_tokens_mask: whether to return 1 for every special token.
            return_offsets_mapping: whether "offset_mapping" holds the (start, end) characters of
                each token.
            return_length: whether "length" holds the number of tokens of each row.
            verbose: whether to log warnings.
            split_special_tokens: whether special tokens in a text are read as ordinary characters;
                None for the tokenizer's own setting.

        Returns:
            The keys input_ids, token_type_ids and attention_mask (those in `model_input_names`),
            then what was asked for. One text without `return_tensors` gives flat lists.

        Raises:
            TypeError: for anything but texts.
            ValueError: for contradictory arguments.
        """
        if text is None and text_target is None:
            raise ValueError("There is nothing to encode: pass text or text_target.")
        options: dict[str, Any] = {
            "add_special_tokens": add_special_tokens,
            "padding": padding,
            "truncation": truncation,
            "max_length": max_length,
            "stride": stride,
            "is_split": is_split_into_words,
            "pad_to_multiple_of": pad_to_multiple_of,
            "padding_side": padding_side,
            "return_tensors": return_tensors,
            "return_token_type_ids": return_token_type_ids,
            "return_attention_mask": return_attention_mask,
            "return_overflowing_tokens": return_overflowing_tokens,
            "return_special_tokens_mask": return_special_tokens_mask,
            "return_offsets_mapping": return_offsets_mapping,
            "return_length": return_length,
            "verbose": verbose,
            "split_special_tokens": split_special_tokens,
        }
        encoded = None if text is None else self._encode("text", text, text_pair, **options)
        if text_target is None:
            assert encoded is not None
            return encoded
        target = self._encode("text_target", text_target, text_pair_target, **options)
        if encoded is None:
            return target
        encoded["labels"] = target["input_ids"]
        return encoded

    def _encode(
        self,
        name: str,
        text: Any,
        text_pair: Any,
        *,
        add_special_tokens: bool,
        padding: Any,
        truncation: Any,
        max_length: int | None,
        stride: int,
        is_split: bool,
        pad_to_multiple_of: int | None,
        padding_side: str | None,
        return_tensors: Any,
        return_token_type_ids: bool | None,
        return_attention_mask: bool | None,
        return_overflowing_tokens: bool,
        return_special_tokens_mask: bool,
        return_offsets_mapping: bool,
        return_length: bool,
        verbose: bool,
        split_special_tokens: bool | None,
    ) -> BatchEncoding:
        tensor_type = as_tensor_type(return_tensors)
        check_count("stride", stride, 0)
        inputs, batched = self._examples(name, text, text_pair, is_split)
        side = self.padding_side if padding_side is None else padding_side
        cut, pad = resolve(
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            stride=stride if return_overflowing_tokens else 0,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=check_side("padding_side", side),
            truncation_side=check_side("truncation_side", self.truncation_side),
            overflow=return_overflowing_tokens,
            model_max_length=self.model_max_length,
            pad=(self.pad_token, self.pad_token_id, self.pad_token_type_id),
            warn=self._warn if verbose else silent,
        )
        if cut is not None:
            self._check_room(cut.max_length, cut.stride, inputs, add_special_tokens)
        split = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        try:
            encodings = self.engine.encode(
                inputs,
                is_split=is_split,
                add_special_tokens=add_special_tokens,
                split_special_tokens=split,
                truncation=cut,
                padding=pad,
            )
            rows: list[Encoding] = list(encodings)
        except Exception as error:
            broken = _not_text(inputs)
            if broken is None:
                raise
            raise broken from error
        source = list(range(len(rows)))
        if return_overflowing_tokens:
            groups = [[one, *one.overflowing] for one in encodings]
            rows = [row for group in groups for row in group]
            source = [i for i, group in enumerate(groups) for _ in group]
        wanted = self.model_input_names
        types, mask = return_token_type_ids, return_attention_mask
        data: dict[str, list[Any]] = {"input_ids": [row.ids for row in rows]}
        if "token_type_ids" in wanted if types is None else types:
            data["token_type_ids"] = [row.type_ids for row in rows]
        if "attention_mask" in wanted if mask is None else mask:
            data["attention_mask"] = [row.attention_mask for row in rows]
        if return_special_tokens_mask:
            data["special_tokens_mask"] = [row.special_tokens_mask for row in rows]
        if return_offsets_mapping:
            data["offset_mapping"] = [row.offsets for row in rows]
        if return_length:
            data["length"] = [len(ids) for ids in data["input_ids"]]
        if return_overflowing_tokens:
            data["overflow_to_sample_mapping"] = source
        if verbose and max_length is None and cut is None:
            self._warn_too_long(data["input_ids"])
        if not batched and tensor_type is None and not return_overflowing_tokens:
            flat = {key: value if key == "length" else value[0] for key, value in data.items()}
            return BatchEncoding(flat, rows)
        return BatchEncoding(data, rows, tensor_type=tensor_type)

    def _examples(
        self, name: str, text: Any, text_pair: Any, is_split: bool
    ) -> tuple[list[Any], bool]:
        """Return the engine's inputs, texts or (text, pair) tuples, and whether it is a batch."""
        if text_pair is None and not is_split and isinstance(text, (list, tuple)):
            # A batch of pairs, one example each, as cross-encoders are fed.
            pairs = [tuple(one) for one in text if _is_pair(one)]
            if pairs and len(pairs) == len(text):
                return pairs, True
        first, batched = _checked(name, text, is_split)
        if text_pair is None:
            return first, batched
        pair_name = name.replace("text", "text_pair")
        second, pair_batched = _checked(pair_name, text_pair, is_split)
        if batched and not pair_batched:
            raise TypeError(
                f"{name} is a batch of {len(first)}, so {pair_name} must be a batch of as many, "
                "not a single text."
            )
        if len(first) != len(second):
            raise ValueError(
                f"{name} holds {len(first)} texts and {pair_name} {len(second)}; they must be as "
                "many."
            )
        return list(zip(first, second, strict=True)), batched

    def _check_room(
        self, max_length: int, stride: int, inputs: list[Any], add_special_tokens: bool
    ) -> None:
        """Raise a ValueError where special tokens and stride leave no room for text."""
        pair = bool(inputs) and isinstance(inputs[0], tuple)
        specials = self.engine.num_special_tokens_to_add(pair) if add_special_tokens else 0
        if max_length < specials:
            raise ValueError(
                f"max_length is {max_length}, but the {specials} special tokens alone are longer; "
                "use a larger max_length, or add_special_tokens=False."
            )
        if stride and stride >= max_length - specials:
            raise ValueError(
                f"stride is {stride}, but max_length {max_length} leaves "
                f"{max_length - specials} tokens for text in a row; the stride must be smaller."
            )

    def _warn_too_long(self, ids: list[list[int]]) -> None:
        longest = max(map(len, ids), default=0)
        if longest > self.model_max_length:
            self._warn(
                "too long",
                f"A text has {longest} tokens, but the model takes at most "
                f"{self.model_max_length}; it was kept whole and the model will refuse it. Pass "
                "truncation=True to shorten such texts.",
            )

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **options: Any
    ) -> list[str]:
        """Return the tokens of a text (and of a second one) as strings."""
        return self(text, pair, add_special_tokens=add_special_tokens, **options).tokens()


def _not_text(inputs: Sequence[Any]) -> ValueError | None:
    """Return a ValueError that names the first input that is no Unicode text; None without one."""
    for number, given in enumerate(inputs):
        parts = given if isinstance(given, (list, tuple)) else [given]
        for part in parts:
            for text in part if isinstance(part, (list, tuple)) else [part]:
                try:
                    text.encode("utf-8")
                except UnicodeEncodeError as error:
                    return ValueError(
                        f"Text {number} holds half a character ({text[error.start]!r}, at "
                        f"{error.start}), as broken UTF-16 or JSON leaves it; text.encode('utf-8', "
                        "'replace').decode('utf-8') puts a question mark there."
                    )
    return None
