"""The engine in Python, for algorithms that `tokenizers` cannot express."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from tokenizers import AddedToken

from fastbert.tokenizers.engines import holes, steps
from fastbert.tokenizers.engines.encoding import Padding, PieceEncoding, Span, Truncation
from fastbert.tokenizers.engines.stretch import Cut, Stretch, append, assemble, constant
from fastbert.tokenizers.engines.template import SpecialTokensTemplate
from fastbert.tokenizers.engines.windows import pad_all, windows
from fastbert.tokenizers.special import SpecialSet


class Pieces(NamedTuple):
    """The tokens of a stretch of text that holds no added tokens.

    Attributes:
        tokens: the tokens, in order.
        words: the index of each token's word.
        spans: returns the characters of each token in the stretch.
    """

    tokens: list[str]
    words: list[int]
    spans: Callable[[], list[Span]]


class PieceModel(Protocol):
    """A vocabulary and the algorithm that cuts text into it."""

    @property
    def size(self) -> int:
        """The size of the base vocabulary, as `vocab_size` reports it."""
        ...

    def vocab(self) -> dict[str, int]:
        """Return the id of every token, without added tokens."""
        ...

    def pieces(self, text: str) -> Pieces:
        """Cut a stretch of text that holds no added tokens."""
        ...

    def to_id(self, piece: str) -> int:
        """Return the id of a piece, or the unknown token's."""
        ...

    def to_piece(self, index: int) -> str | None:
        """Return the piece of an id, None where there is none."""
        ...

    def join(self, tokens: Sequence[str], specials: set[str]) -> str:
        """Join pieces to text; some of them may be special tokens, which `specials` lists."""
        ...


class PieceEngine:
    """An engine in Python; see the protocol `Engine`.

    It splits texts at added tokens, cuts the rest with a `PieceModel`, adds special tokens,
    truncates and pads, all of which `RustEngine` has from its library.

    Args:
        model: the vocabulary and its algorithm.
        template: where special tokens go.
        lower: whether to lower-case everything but special tokens, character by character.
    """

    from_file = False

    def __init__(
        self, model: PieceModel, template: SpecialTokensTemplate, *, lower: bool = False
    ) -> None:
        self.model = model
        self.template = template
        self.described: dict[str, Any] = {}
        self.lower = lower
        self._added: dict[int, AddedToken] = {}
        self._added_ids: dict[str, int] = {}
        self.specials = SpecialSet()
        self._ids: dict[str, int] = {}
        self._next_id = 0
        self._refresh()

    def _refresh(self) -> None:
        self._added_ids = {token.content: index for index, token in self._added.items()}
        self._ids = self.model.vocab() | self._added_ids
        # More than there are tokens, where some ids have none.
        self._next_id = max(self.model.size, holes.next_id(self._ids.values()))
        longest_first = sorted(self._added_ids, key=len, reverse=True)
        self._splitter = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        kept = [t.content for t in self._added.values() if t.special]
        kept += [t.content for t in self._added.values() if not t.special and t.normalized]
        self._kept = re.compile("|".join(map(re.escape, kept)) or r"(?!)")

    # ---- vocabulary ----------------------------------------------------------------------------

    @property
    def cleanable(self) -> bool:
        """See `Engine`."""
        return True

    @property
    def vocab_size(self) -> int:
        """The size of the base vocabulary."""
        return self.model.size

    @property
    def total_size(self) -> int:
        """The size of the vocabulary with the added tokens."""
        return self._next_id

    @property
    def added_tokens(self) -> dict[int, AddedToken]:
        """The added tokens by their ids, in the order of the ids."""
        return dict(sorted(self._added.items()))

    def vocab(self) -> dict[str, int]:
        """Return the id of every token, added tokens included."""
        return dict(self._ids)

    def token_to_id(self, token: str) -> int:
        """Return the id of a token, or the unknown token's."""
        found = self._ids.get(token)
        return self.model.to_id(token) if found is None else found

    def id_to_token(self, token_id: int) -> str | None:
        """Return the token of an id, None where there is none."""
        added = self._added.get(token_id)
        return self.model.to_piece(token_id) if added is None else added.content

    def add_tokens(self, tokens: Iterable[AddedToken]) -> int:
        """Mark tokens as added; those that are not in the vocabulary get the next ids.

        Returns:
            How many were not in the vocabulary.
        """
        fresh: dict[str, int] = {}
        for token in tokens:
            content = token.content
            if self.lower and not token.special and token.normalized:
                content = content.lower()
                token = AddedToken(
                    content,
                    single_word=token.single_word,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=True,
                )
            if not content:
                continue
            index = self._ids.get(content, fresh.get(content))
            if index is None:
                index = fresh[content] = self._next_id + len(fresh)
            self._added[index] = token
        self._refresh()
        return len(fresh)

    def restore_added(self, tokens: dict[int, AddedToken]) -> None:
        """Add tokens that were saved with their ids.

        Raises:
            ValueError: where an id is that of another token.
        """
        known = {index: content for content, index in self._ids.items()}
        for index, token in tokens.items():
            content = known.get(index, token.content)
            if content != token.content and index not in self._added:
                raise ValueError(
                    f"The added token '{token.content}' was saved with the id {index}, which is "
                    f"'{content}' in this vocabulary: the tokenizer's files do not belong together."
                )
        self._added.update(tokens)
        self._refresh()

    def bind(self, specials: SpecialSet) -> None:
        """Use these special tokens, whose changes are seen, from here on."""
        self.specials = specials

    def num_special_tokens_to_add(self, pair: bool) -> int:
        """Return how many special tokens one text or two get."""
        return len(self.template.slots(pair)) - (2 if pair else 1)

    def layout(self, pair: bool) -> list[steps.Slot]:
        """Return where special tokens go around one text or two.

        Raises:
            ValueError: for a special token that is not set.
        """
        found: list[steps.Slot] = []
        slots = self.template.slots(pair)
        for slot, type_id in zip(slots, self.template.types(pair), strict=True):
            if slot in "AB":
                found.append(steps.text("AB".index(slot), type_id))
                continue
            token = self.specials.name_of(slot)
            if token is None:
                raise ValueError(
                    f"This tokenizer has no {slot}_token, which its layout ({' '.join(slots)}) "
                    "needs; set it, or pass add_special_tokens=False."
                )
            found.append(steps.Slot(None, (token,), (self.token_to_id(token),), type_id))
        return found

    # ---- text to tokens ------------------------------------------------------------------------

    def _lowered(self, text: str) -> tuple[str, list[int] | None]:
        """Lower-case a text except its special tokens; also return every character's source."""
        parts: list[str] = []
        positions: list[int] = []
        last = 0
        for match in [*self._kept.finditer(text), None]:
            stop = len(text) if match is None else match.start()
            for index in range(last, stop):
                low = text[index].lower()
                parts.append(low)
                positions += [index] * len(low)
            if match is not None:
                parts.append(match[0])
                positions += range(match.start(), match.end())
                last = match.end()
        return "".join(parts), positions

    def _stretches(self, text: str, positions: list[int] | None) -> list[Stretch]:
        """Split a text at added tokens; their flags move spaces and neighbours as they say."""
        parts: list[Stretch] = []
        last = 0
        for match in [*self._splitter.finditer(text), None]:
            bounds = (len(text), len(text)) if match is None else match.span()
            for start, end in ((last, bounds[0]), bounds):
                if start < end:
                    where = None if positions is None else positions[start:end]
                    parts.append(Stretch(text[start:end], start, where))
            last = bounds[1]
        for i, part in enumerate(parts):
            token = self._added.get(self._added_ids.get(part.text, -1))
            if token is None:
                continue
            left = parts[i - 1] if i else None
            right = parts[i + 1] if i + 1 < len(parts) else None
            left_end = left.text[-1:] if left else ""
            right_start = right.text[:1] if right else ""
            if token.rstrip and right:
                right.lstrip()
            if token.lstrip and left:
                left.rstrip()
            if token.single_word and left and left_end not in ("", " "):
                append(left, part)
                part.text = ""
            elif token.single_word and right and right_start not in ("", " "):
                append(part, right)
                right.text, right.start, right.positions = part.text, part.start, part.positions
                part.text = ""
        return parts

    def cut(self, text: str, split_special_tokens: bool = False) -> Cut:
        """Tokenise one text, without special tokens around it."""
        lowered, positions = self._lowered(text) if self.lower else (text, None)
        if split_special_tokens:
            parts = [Stretch(lowered, 0, positions)]
        else:
            parts = self._stretches(lowered, positions)
        result = Cut()
        word = 0
        for part in parts:
            if not part.text:
                continue
            if not split_special_tokens and part.text in self._added_ids:
                span = part.span(0, len(part.text))
                result.add([part.text], [self._added_ids[part.text]], [word], constant([span]))
                word += 1
                continue
            tokens, words, spans = self.model.pieces(part.text)
            if tokens:
                indices = [word + one for one in words]
                ids = [self.token_to_id(one) for one in tokens]
                result.add(tokens, ids, indices, part.moved(spans))
                word = indices[-1] + 1
        return result

    def _cut_words(self, words: Sequence[str], split_special_tokens: bool) -> Cut:
        """Tokenise each word on its own; offsets are within the word."""
        result = Cut()
        for index, word in enumerate(words):
            one = self.cut(word, split_special_tokens)
            result.add(one.tokens, one.ids, [index] * len(one.ids), one.spans)
        return result

    def encode(
        self,
        inputs: Sequence[Any],
        *,
        is_split: bool,
        add_special_tokens: bool,
        split_special_tokens: bool,
        truncation: Truncation | None,
        padding: Padding | None,
    ) -> list[PieceEncoding]:
        """Encode a batch; see `Engine.encode`.

        Raises:
            ValueError: for a truncation that is not possible, or a missing special token.
        """
        cut = self._cut_words if is_split else self.cut
        rows: list[PieceEncoding] = []
        for one in inputs:
            texts = one if isinstance(one, tuple) else (one,)
            cuts = [cut(text, split_special_tokens) for text in texts]
            specials = self.num_special_tokens_to_add(len(cuts) == 2) if add_special_tokens else 0
            spans = windows([len(c.ids) for c in cuts], truncation, specials)
            slots = self._layout_of(len(cuts) == 2, add_special_tokens)
            made = [assemble(cuts, window, slots) for window in spans]
            made[0].overflowing = made[1:]
            rows.append(made[0])
        if padding is not None:
            pad_all(rows, padding)
        return rows

    def _layout_of(self, pair: bool, add_special_tokens: bool) -> list[steps.Slot]:
        if add_special_tokens:
            return self.layout(pair)
        # transformers' Python classes tell two texts apart only where special tokens do.
        return [steps.text(sequence, 0) for sequence in range(2 if pair else 1)]

    # ---- tokens to text ------------------------------------------------------------------------

    def join(self, tokens: Sequence[str]) -> str:
        """Join tokens to text."""
        return self.model.join(tokens, set(self.specials.strings()))

    def decode(
        self,
        ids: Sequence[int],
        *,
        skip_special_tokens: bool,
        spaces_between_special_tokens: bool = True,
        **options: Any,
    ) -> str:
        """Return the text of ids; added tokens that are not special stand by themselves.

        Args:
            ids: ids of the vocabulary.
            skip_special_tokens: leave special tokens out.
            spaces_between_special_tokens: put a space between added tokens and the text.
            **options: none; anything else is refused.

        Raises:
            TypeError: for an unknown option.
            ValueError: for an id that is not in the vocabulary.
        """
        if options:
            raise TypeError(
                f"decode() does not take {', '.join(sorted(options))}; it takes token_ids, "
                "skip_special_tokens, clean_up_tokenization_spaces and "
                "spaces_between_special_tokens."
            )
        skip = set(self.specials.strings())
        apart = {token for token in self._added_ids if token not in skip}
        # The base vocabulary's own special tokens are joined by the model, later ones are not.
        apart |= {
            token.content
            for token in self.specials.additional
            if self.token_to_id(token.content) >= self.vocab_size
        }
        texts: list[str] = []
        run: list[str] = []
        for index in ids:
            token = self.id_to_token(index)
            if token is None:
                raise ValueError(
                    f"Token id {index} is not in the vocabulary of {self.total_size} tokens."
                )
            if skip_special_tokens and token in skip:
                continue
            if token not in apart:
                run.append(token)
                continue
            if run and (text := self.model.join(run, skip)):
                texts.append(text)
            run = []
            texts.append(token)
        if run:
            texts.append(self.model.join(run, skip))
        return (" " if spaces_between_special_tokens else "").join(texts)
