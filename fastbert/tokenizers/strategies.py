"""The meaning of `padding=`, `truncation=` and their companions, for every engine."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fastbert.tokenizers.engines.encoding import Padding, Truncation

logger = logging.getLogger("fastbert.tokenizers")

# Files written without a length limit hold 1e30; anything above this is "no limit".
NO_LIMIT = int(1e20)
VERY_LARGE_INTEGER = int(1e30)

PADDINGS = ("longest", "max_length", "do_not_pad")
TRUNCATIONS = ("longest_first", "only_first", "only_second", "do_not_truncate")


@dataclass
class WarnOnce:
    """Log each named warning the first time only.

    Attributes:
        seen: names of the warnings that were logged.
    """

    seen: dict[str, None] = field(default_factory=dict)

    def __call__(self, name: str, message: str) -> None:
        """Log a message unless one of its name was logged before."""
        if name not in self.seen:
            self.seen[name] = None
            logger.warning(message)


def padding_strategy(padding: object) -> str:
    """Return the name of a padding strategy.

    Args:
        padding: True, False, None, a name, or an enum with such a value.

    Raises:
        ValueError: for anything else.
    """
    value = getattr(padding, "value", padding)
    named = {True: "longest", False: "do_not_pad", None: "do_not_pad"}
    strategy = named[value] if value is None or isinstance(value, bool) else value
    if strategy not in PADDINGS:
        raise ValueError(
            f"padding is {padding!r}; it must be True, False or one of {', '.join(PADDINGS)}."
        )
    return strategy


def truncation_strategy(truncation: object) -> str:
    """Return the name of a truncation strategy.

    Args:
        truncation: True, False, None, a name, or an enum with such a value.

    Raises:
        ValueError: for anything else.
    """
    value = getattr(truncation, "value", truncation)
    named = {True: "longest_first", False: "do_not_truncate", None: "do_not_truncate"}
    strategy = named[value] if value is None or isinstance(value, bool) else value
    if strategy not in TRUNCATIONS:
        raise ValueError(
            f"truncation is {truncation!r}; it must be True, False or one of "
            f"{', '.join(TRUNCATIONS)}."
        )
    return strategy


def check_side(name: str, side: str) -> str:
    """Return `side` if it is "right" or "left".

    Raises:
        ValueError: otherwise; it names the argument.
    """
    if side not in ("right", "left"):
        raise ValueError(f"{name} is {side!r}; it must be 'right' or 'left'.")
    return side


def check_flags(settings: Mapping[str, object]) -> None:
    """Check that settings are True, False, or None where they were not given.

    Raises:
        TypeError: for another value, which Python would take for True.
    """
    for name, value in settings.items():
        if value is not None and not isinstance(value, bool):
            raise TypeError(f"{name} is {value!r}; it must be true or false.")


def check_names(name: str, value: object) -> list[str]:
    """Return a list of names.

    Raises:
        TypeError: for anything else, such as a single str.
    """
    listed = list(value) if isinstance(value, (list, tuple)) else []
    if not listed or not all(isinstance(one, str) for one in listed):
        raise TypeError(f"{name} is {value!r}; it must be a list of names.")
    return listed


def check_count(name: str, value: object, least: int) -> None:
    """Check that `value` is None or an int of at least `least`.

    Raises:
        TypeError: for another type.
        ValueError: for a smaller number.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise TypeError(f"{name} is {value!r}; it must be an integer.")
    if value is not None and value < least:
        raise ValueError(f"{name} is {value}; it must be at least {least}.")


def resolve(
    *,
    padding: object,
    truncation: object,
    max_length: int | None,
    stride: int,
    pad_to_multiple_of: int | None,
    padding_side: str,
    truncation_side: str,
    overflow: bool,
    model_max_length: int,
    pad: tuple[str | None, int | None, int],
    warn: Callable[[str, str], None],
) -> tuple[Truncation | None, Padding | None]:
    """Decide what to truncate and pad to from the arguments of a tokenizer's call.

    A bare `max_length` (no padding, no truncation) truncates, with a warning, as `transformers`
    does.

    Args:
        padding: True, False or the name of a strategy.
        truncation: True, False, None or the name of a strategy.
        max_length: tokens of a row; None for the model's limit.
        stride: tokens that a row and its overflow share.
        pad_to_multiple_of: the padded length is a multiple of it.
        padding_side: "right" or "left".
        truncation_side: "right" or "left".
        overflow: whether what is cut off is wanted, as rows of its own.
        model_max_length: tokens that the model takes.
        pad: pad_token, pad_token_id and pad_token_type_id.
        warn: is called with the name and the text of a warning.

    Returns:
        How to truncate and how to pad; None for not at all.

    Raises:
        TypeError: for a number that is no integer.
        ValueError: for an unknown strategy, for padding without a pad token, and for a truncation
            length that is no multiple of `pad_to_multiple_of` when padding too.
    """
    check_count("max_length", max_length, 0)
    check_count("stride", stride, 0)
    check_count("pad_to_multiple_of", pad_to_multiple_of, 1)
    if max_length is not None and padding is False and truncation is None:
        warn(
            "implicit truncation",
            "max_length was given without truncation=; truncating with 'longest_first'. Pass "
            "truncation=True to say so, or truncation=False to keep long texts whole.",
        )
        truncation = "longest_first"
    pad_by = padding_strategy(padding)
    cut_by = truncation_strategy(truncation)
    if padding is True and max_length is not None and cut_by == "do_not_truncate":
        warnings.warn(
            "max_length is ignored with padding=True and no truncation; to pad to it, pass "
            "padding='max_length'.",
            stacklevel=4,
        )
    limited = model_max_length <= NO_LIMIT
    if max_length is None and pad_by == "max_length":
        if limited:
            max_length = model_max_length
        else:
            warn(
                "padding without limit",
                "padding='max_length' was asked for, but neither max_length nor the tokenizer's "
                "model_max_length says how long; not padding.",
            )
            pad_by = "do_not_pad"
    if max_length is None and cut_by != "do_not_truncate":
        if limited:
            max_length = model_max_length
        else:
            warn(
                "truncation without limit",
                "truncation was asked for, but neither max_length nor the tokenizer's "
                "model_max_length says how long; not truncating.",
            )
            cut_by = "do_not_truncate"
    token, token_id, type_id = pad
    if pad_by != "do_not_pad" and (token is None or token_id is None or token_id < 0):
        raise ValueError(
            "Padding was asked for, but this tokenizer has no pad token; set tokenizer.pad_token, "
            "or add one with tokenizer.add_special_tokens({'pad_token': '[PAD]'})."
        )
    cuts, pads = cut_by != "do_not_truncate", pad_by != "do_not_pad"
    if cuts and pads and pad_to_multiple_of and max_length and max_length % pad_to_multiple_of:
        raise ValueError(
            f"Truncation to {max_length} tokens and padding to a multiple of {pad_to_multiple_of} "
            "contradict each other; choose a max_length that is such a multiple."
        )
    cut = Truncation(max_length or 0, cut_by, stride, truncation_side, overflow) if cuts else None
    if not pads:
        return cut, None
    assert token is not None and token_id is not None
    length = max_length if pad_by == "max_length" else None
    return cut, Padding(length, pad_to_multiple_of, padding_side, token, token_id, type_id)
