"""The engine that runs in the Rust library `tokenizers`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from fastbert.locks import Lock
from fastbert.tokenizers.engines import cutting, holes, steps
from fastbert.tokenizers.engines.encoding import Encoding, Padding, Truncation
from fastbert.tokenizers.engines.template import SpecialTokensTemplate
from fastbert.tokenizers.special import SpecialSet


class RustEngine:
    """An engine over a `tokenizers.Tokenizer`; see the protocol `Engine`.

    Truncation and padding are state of the library's object, so a lock lets one call run at a time.
    Between calls there is none, so that a pickle does not tell what was called before.

    Args:
        backend: the library's tokenizer; it belongs to the engine from here on.
        from_file: whether it was read from a tokenizer.json, rather than built from a vocabulary.

    Attributes:
        described: settings that the tokenizer.json holds beside its steps.
    """

    def __init__(self, backend: Tokenizer, *, from_file: bool = False) -> None:
        self.backend = backend
        self.from_file = from_file
        self.described = steps.described(backend) if from_file else {}
        self._start()

    def _start(self) -> None:
        self._lock = Lock()
        self._configure(None, None, False)
        base = self.backend.get_vocab(with_added_tokens=False)
        self._base_holes = {token: i for token, i in base.items() if holes.is_filler(token)}
        self._refresh()

    def _refresh(self) -> None:
        added = self.backend.get_added_tokens_decoder()
        self._contents = {i: t.content for i, t in added.items() if not holes.is_filler(t.content)}
        between = {t.content: i for i, t in added.items() if i not in self._contents}
        self._holes = self._base_holes | between

    def __getstate__(self) -> dict[str, Any]:
        return {
            "serialized": self.serialized(pretty=False),
            "from_file": self.from_file,
            "described": self.described,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.backend = Tokenizer.from_str(state["serialized"])
        self.from_file, self.described = state["from_file"], state["described"]
        self._start()

    @property
    def vocab_size(self) -> int:
        """The size of the base vocabulary."""
        return self.backend.get_vocab_size(with_added_tokens=False)

    @property
    def total_size(self) -> int:
        """The size of the vocabulary with the added tokens."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def vocab(self) -> dict[str, int]:
        """Return the id of every token, added tokens included."""
        found = self.backend.get_vocab(with_added_tokens=True)
        for name in self._holes:
            del found[name]
        return found

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token, None where it is not in the vocabulary."""
        return None if token in self._holes else self.backend.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """Return the token of an id, None where there is none."""
        # The library gives the normalised form of added tokens; their own is wanted.
        added = self._contents.get(token_id)
        if added is not None or token_id < 0:
            return added
        token = self.backend.id_to_token(token_id)
        return None if token in self._holes else token

    @property
    def added_tokens(self) -> dict[int, AddedToken]:
        """The added tokens by their ids, in the order of the ids."""
        added = self.backend.get_added_tokens_decoder()
        return {index: added[index] for index in sorted(self._contents)}

    def add_tokens(self, tokens: Iterable[AddedToken]) -> int:
        """Mark tokens as added and return how many were not in the vocabulary."""
        added = self.backend.add_tokens(list(tokens))
        self._refresh()
        return added

    def restore_added(self, tokens: dict[int, AddedToken]) -> None:
        """Add tokens that were saved with their ids.

        Raises:
            ValueError: where the tokens would get other ids.
        """
        present = self.backend.get_added_tokens_decoder()
        end = self.total_size
        fresh: list[AddedToken] = []
        for index, token in sorted(tokens.items()):
            if present.get(index) == token:
                continue
            if token.content and self.backend.token_to_id(token.content) is None:
                # The library counts; an id after a gap is reached by filling the gap.
                between = holes.fillers([], end, index)
                fresh += [AddedToken(name, normalized=False) for name in between]
                end = max(end, index) + 1
            fresh.append(token)
        self.add_tokens(fresh)
        moved = {
            token.content: (index, now)
            for index, token in tokens.items()
            if token.content and (now := self.token_to_id(token.content)) != index
        }
        if moved:
            listed = ", ".join(f"'{t}' was {was}, is {now}" for t, (was, now) in moved.items())
            raise ValueError(
                f"Added tokens were saved with other ids than this vocabulary gives ({listed}): "
                "the tokenizer's files do not belong together."
            )

    def bind(self, specials: SpecialSet) -> None:
        """Do nothing: the post-processor holds the special tokens it was built with."""

    def set_template(self, template: SpecialTokensTemplate, specials: SpecialSet) -> None:
        """Put special tokens around texts as a template says."""
        names = {slot: name for slot in template.pair if (name := specials.name_of(slot))}
        self.backend.post_processor = processors.TemplateProcessing(
            single=template.notation(False, names),
            pair=template.notation(True, names),
            special_tokens=[(name, self.backend.token_to_id(name)) for name in names.values()],
        )

    def set_ends(self, first: str | None, last: str | None) -> None:
        """Put these tokens before and behind each text, and no others anywhere."""
        ends = {name: self.backend.token_to_id(name) for name in (first, last) if name is not None}

        def around(text: str, type_id: int) -> list[str]:
            pieces = (first, text, last)
            return [f"{piece}:{type_id}" for piece in pieces if piece is not None]

        self.backend.post_processor = processors.TemplateProcessing(
            single=around("$A", 0),
            pair=around("$A", 0) + around("$B", 1),
            special_tokens=list(ends.items()),
        )

    def layout(self, pair: bool) -> list[steps.Slot]:
        """Return where special tokens go around one text or two."""
        return steps.layout(self.backend, pair)

    def num_special_tokens_to_add(self, pair: bool) -> int:
        """Return how many special tokens one text or two get."""
        return self.backend.num_special_tokens_to_add(pair)

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
        """Encode a batch; see `Engine.encode`.

        Raises:
            ValueError: for a truncation that is not possible, or half of a surrogate pair.
        """
        long = cutting.long_inputs(inputs, is_split, truncation)
        if not long or truncation is None:
            return self._run(
                inputs, is_split, add_special_tokens, split_special_tokens, truncation, padding
            )
        kept = [one for index, one in enumerate(inputs) if index not in long]
        rows = list(
            self._run(kept, is_split, add_special_tokens, split_special_tokens, truncation, None)
        )
        for index in long:
            given = inputs[index]
            texts = list(given) if isinstance(given, tuple) else [given]
            whole = self._run(texts, is_split, False, split_special_tokens, None, None)
            slots = self.layout(len(texts) == 2)
            row = cutting.row(whole, slots, truncation, add_special_tokens)
            if row is None:
                # The library says what is wrong with this truncation.
                one = [given]
                (row,) = self._run(
                    one, is_split, add_special_tokens, split_special_tokens, truncation, None
                )
            rows.insert(index, row)
        if padding is not None:
            cutting.pad(rows, padding)
        return rows

    def _run(
        self,
        inputs: Sequence[Any],
        is_split: bool,
        add_special_tokens: bool,
        split_special_tokens: bool,
        truncation: Truncation | None,
        padding: Padding | None,
    ) -> Sequence[Any]:
        with self._lock:
            try:
                self._configure(truncation, padding, split_special_tokens)
                return self.backend.encode_batch(
                    list(inputs), is_pretokenized=is_split, add_special_tokens=add_special_tokens
                )
            except BaseException as error:  # a Rust panic is no Exception
                told = _sentence(error, truncation) or _unencodable(error, inputs)
                if told is None:
                    raise
                raise told from error
            finally:
                self._configure(None, None, False)

    def _configure(
        self, truncation: Truncation | None, padding: Padding | None, split_special_tokens: bool
    ) -> None:
        backend = self.backend
        if truncation is None:
            backend.no_truncation()
        else:
            backend.enable_truncation(
                truncation.max_length,
                stride=truncation.stride,
                strategy=truncation.strategy,
                direction=truncation.side,
            )
        if padding is None:
            backend.no_padding()
        else:
            backend.enable_padding(
                direction=padding.side,
                pad_id=padding.token_id,
                pad_type_id=padding.type_id,
                pad_token=padding.token,
                length=padding.length,
                pad_to_multiple_of=padding.multiple,
            )
        if backend.encode_special_tokens != split_special_tokens:
            backend.encode_special_tokens = split_special_tokens

    @property
    def cleanable(self) -> bool:
        """See `Engine`."""
        return type(self.backend.model).__name__ != "BPE"

    def serialized(self, pretty: bool = True) -> str:
        """Return the content of tokenizer.json, without truncation and padding."""
        with self._lock:
            return self.backend.to_str(pretty=pretty)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool, **options: Any) -> str:
        """Return the text of ids.

        Raises:
            TypeError: for any option: this engine has none.
            ValueError: for a negative id.
        """
        if options:
            raise TypeError(
                f"decode() does not take {', '.join(sorted(options))} with this tokenizer; it "
                "takes token_ids, skip_special_tokens and clean_up_tokenization_spaces."
            )
        try:
            gaps = set(self._holes.values())
            known = [index for index in ids if index not in gaps] if gaps else list(ids)
            return self.backend.decode(known, skip_special_tokens=skip_special_tokens)
        except OverflowError as error:
            raise ValueError(
                f"Ids begin at 0, but {min(ids)} is among those to decode; labels, for one, hold "
                "-100 where there is none: replace it with pad_token_id first."
            ) from error

    def join(self, tokens: Sequence[str]) -> str:
        """Join tokens to text."""
        decoder = self.backend.decoder
        return " ".join(tokens) if decoder is None else decoder.decode(list(tokens))


def _sentence(error: BaseException, cut: Truncation | None) -> ValueError | None:
    """Say what to do about the library's errors of truncation; None for other errors."""
    message = str(error)
    if cut is not None and "stride" in message:
        return ValueError(
            f"stride is {cut.stride}, which is not smaller than the tokens of text that max_length "
            f"{cut.max_length} leaves in a row; use a smaller stride or a larger max_length."
        )
    if cut is not None and "Second sequence not provided" in message:
        return ValueError("truncation='only_second' needs a second text, and there is none.")
    if cut is not None and "too short" in message:
        return ValueError(
            f"truncation='{cut.strategy}' cannot bring a pair down to {cut.max_length} tokens: "
            "that text is too short; use 'longest_first', or a larger max_length."
        )
    return None


def _unencodable(error: BaseException, inputs: Any) -> ValueError | None:
    """Say that a text holds half of a surrogate pair, which the library calls no str; else None."""
    if not isinstance(error, TypeError):
        return None
    if not isinstance(inputs, str):
        found = (_unencodable(error, part) for part in inputs)
        return next((told for told in found if told is not None), None)
    for position, character in enumerate(inputs):
        if "\ud800" <= character <= "\udfff":
            around = inputs[max(position - 20, 0) : position + 20]
            return ValueError(
                f"A text holds U+{ord(character):X}, half of a surrogate pair, which is no "
                f"character ({around!r}); decode its source as what it is, or replace such halves: "
                "text.encode('utf-8', 'replace').decode()."
            )
    return None
