"""Label schemes of token classification: prefixes, kinds of entities, and where entities begin.

A scheme marks by a prefix where in an entity a token stands: IO, BIO, BIOES (also written BMES) and
BILOU. Whether a model's labels have prefixes is decided over all of them together, since a single
label does not tell: "B-movie" may be a kind of its own.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

OUTSIDE = "O"
_PREFIXED = re.compile(r"([BIESLUM])-(.+)", re.DOTALL)
# Labels that stand for no class of tokens, in models whose labels were made together with padding.
_PLACEHOLDER = re.compile(r"X|PAD|\[.*\]|<.*>")
# Letters that come together: last and single of BIOES, middle of BMES; last and unit of BILOU.
_COMPANIONS = (frozenset("ESM"), frozenset("LU"))
_OPENING, _CLOSING = frozenset("BSU"), frozenset("ESLU")


@dataclass(frozen=True)
class Tag:
    """A label taken apart.

    Attributes:
        prefix: one of B, I, E, S, L, U and M; empty for a label without prefix.
        kind: the kind of entity; the whole label where it has no prefix.
    """

    prefix: str
    kind: str


class LabelScheme:
    """Reads the labels of one model.

    Args:
        labels: all labels of the model.
    """

    def __init__(self, labels: Iterable[str]) -> None:
        known = set(labels)
        prefixes = _prefixes(known)
        self._tags = {label: _tag(label, prefixes) for label in known}
        self._whole = {tag.kind for tag in self._tags.values() if not tag.prefix}

    def tag(self, label: str) -> Tag:
        """Take a label of the model apart."""
        return self._tags[label]

    def begins(self, before: str, label: str, same_word: bool) -> bool:
        """Return whether a token begins an entity anew, rather than going on with the one before.

        Args:
            before: the label of the token before.
            label: the token's label.
            same_word: whether both are parts of one word. Such parts share what the word has: an
                end or a single may then follow itself.
        """
        last, tag = self._tags[before], self._tags[label]
        if last.kind != tag.kind or bool(last.prefix) != bool(tag.prefix):
            return True
        if same_word and label == before and tag.prefix in _CLOSING:
            return False
        return tag.prefix in _OPENING or last.prefix in _CLOSING

    def is_ignored(self, label: str, ignored: Iterable[str]) -> bool:
        """Return whether an entity of this label's kind is to be left out.

        A kind of the scheme that is named as a whole label is (an entity of the kind "O", beside
        "O" for no entity) is not meant by that name.
        """
        tag = self._tags[label]
        return tag.kind in ignored and not (tag.prefix and tag.kind in self._whole)


def _tag(label: str, prefixes: frozenset[str]) -> Tag:
    match = _PREFIXED.fullmatch(label)
    if match is None or match[1] not in prefixes:
        return Tag("", label)
    return Tag(match[1], match[2])


def _prefixes(labels: set[str]) -> frozenset[str]:
    """Return the letters that are prefixes here; none where the labels follow no scheme."""
    letters: defaultdict[str, set[str]] = defaultdict(set)
    others = False
    for label in labels:
        match = _PREFIXED.fullmatch(label)
        if match is not None:
            letters[match[2]].add(match[1])
        elif label != OUTSIDE and not _PLACEHOLDER.fullmatch(label):
            others = True
    # A kind with several letters, B or I among them, can only be one of a scheme. Where every label
    # has a letter, a single B or I is enough.
    sure = [found for found in letters.values() if len(found) > 1 and found & {"B", "I"}]
    active = set().union(*sure)
    if sure or not others:
        active |= set().union(*letters.values()) & {"B", "I"}
    for companions in _COMPANIONS:
        if active & companions:
            active |= companions
    return frozenset(active)
