"""Keywords of `from_pretrained` that no constructor takes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken

from fastbert.checkpoints.files import HUB_OPTIONS
from fastbert.tokenizers.special import SPECIAL_NAMES

logger = logging.getLogger("fastbert.tokenizers")

# Keywords of transformers that have nothing to say here.
_IGNORED = (
    "trust_remote_code",
    "code_revision",
    "use_fast",
    "proxies",
    "resume_download",
    "mirror",
    "user_agent",
    "legacy",
    "device_map",
    "torch_dtype",
    "dtype",
    "_from_auto",
    "_from_pipeline",
    "_commit_hash",
)
# Whether texts begin and end with certain tokens. What files say of that, tokenizer.json has done.
ENDS = ("add_bos_token", "add_eos_token")
# Those of a call, which neither transformers nor fastbert takes from here.
_OF_CALLS = (
    "max_length",
    "truncation",
    "padding",
    "stride",
    "return_tensors",
    "add_special_tokens",
    "pad_to_multiple_of",
)


def sorted_out(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """Return the keywords of the constructor, those of the hub, and whether to go by vocabularies.

    Raises:
        ValueError: for a file of another kind.
    """
    kwargs = dict(given)
    if kwargs.pop("gguf_file", None) is not None:
        raise ValueError("fastbert reads no tokenizers from GGUF files; use the original's folder.")
    from_slow = bool(kwargs.pop("from_slow", False))
    if (token := kwargs.pop("use_auth_token", None)) is not None:
        kwargs.setdefault("token", token)
    if ignored := [name for name in _OF_CALLS if kwargs.pop(name, None) is not None]:
        logger.warning(
            "from_pretrained does not use %s: pass such arguments when the tokenizer is called.",
            ", ".join(ignored),
        )
    hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if kwargs.get(name) is not None}
    dropped = (*_IGNORED, *HUB_OPTIONS)
    return {key: value for key, value in kwargs.items() if key not in dropped}, hub, from_slow


def without_ends(kwargs: dict[str, Any], known: set[str], name: str) -> dict[str, Any]:
    """Return the keywords without those that ask a family for other ends of a text than its own.

    Args:
        kwargs: what is left of the keywords.
        known: those that the class takes.
        name: of the class.
    """
    if idle := [keyword for keyword in ENDS if keyword in kwargs and keyword not in known]:
        logger.warning(
            "%s puts the special tokens of its family around texts, whatever is said, as in "
            "transformers, of %s; PreTrainedTokenizerFast obeys that.",
            name,
            " and ".join(idle),
        )
    return {key: value for key, value in kwargs.items() if key not in idle}


def is_role(name: str, value: Any) -> bool:
    """Return whether a setting is a special token of a role that only some tokenizers have."""
    is_token = isinstance(value, (str, AddedToken))
    return is_token and name.endswith("_token") and name not in (*SPECIAL_NAMES, "token")
