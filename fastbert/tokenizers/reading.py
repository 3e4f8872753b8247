"""Settings of a saved tokenizer, of whatever age its files are."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from fastbert.checkpoints.storage import read_json
from fastbert.tokenizers import files
from fastbert.tokenizers.engines.tokenizer_json import added_tokens
from fastbert.tokenizers.special import ADDITIONAL, SPECIAL_NAMES, as_added_token, content

logger = logging.getLogger("fastbert.tokenizers")

_DECODER = "added_tokens_decoder"
_EXTRA = "extra_special_tokens"
# Where files lay when the tokenizer was saved; they are looked for beside the settings.
_WHEREABOUTS = (
    "tokenizer_file",
    "vocab_file",
    "merges_file",
    "vocab",
    "merges",
    "init_inputs",
    "name_or_path",
)
# Settings that say nothing about ids: names, places, templates of chats, defaults of calls that
# transformers does not read either, and what only built a tokenizer that is now in its own file.
DROPPED = (
    "tokenizer_class",
    "special_tokens_map_file",
    "full_tokenizer_file",
    "tokenizer_config_file",
    "added_tokens_file",
    "max_length",
    "stride",
    "truncation_strategy",
    "pad_to_multiple_of",
    "backend",
    "is_local",
    "local_files_only",
    "trust_remote_code",
    "use_fast",
    "from_slow",
)
_IRRELEVANT = (
    "auto_map",
    "processor_class",
    "chat_template",
    "feature_extractor_type",
    "image_processor_type",
    "transformers_version",
    "model_type",
    "language",
    "errors",
    "legacy",
    "use_default_system_prompt",
    "verbose",
    "return_tensors",
    "dropout",
    "vocab_size",
    "max_position_embeddings",
    "add_bos_token",
    "add_eos_token",
    "keep_accents",
    "remove_space",
    "cls_token_box",
    "sep_token_box",
    "pad_token_box",
    "pad_token_label",
    "only_label_first_subword",
    "_commit_hash",
    "from_pt",
)


def read_settings(folder: Path, *, reads_json: bool) -> dict[str, Any]:
    """Read tokenizer_config.json, completed from the other files as transformers does.

    Args:
        folder: where the files are.
        reads_json: whether the class runs a tokenizer.json.

    Returns:
        Arguments of the constructor, as far as the files give them, and settings of other names.

    Raises:
        TypeError: for a token that is none.
        ValueError: for broken JSON, or files that contradict one another.
    """
    config = _optional(folder / files.CONFIG_FILE)
    config = {key: value for key, value in config.items() if key not in _WHEREABOUTS}
    saved = config.pop(_DECODER, None)
    for name, value in list(config.items()):
        if name.endswith("_token") and isinstance(value, dict):
            config[name] = as_added_token(value, special=True)
    special = _optional(folder / files.SPECIAL_FILE)
    for name, value in special.items():
        _merge_special(config, name, value, wins=saved is None)
    config = {
        name: value
        for name, value in config.items()
        # null stands for a token that is not there; elsewhere for a setting that was not made.
        if value is not None or name in SPECIAL_NAMES
    }
    decoder: dict[int, AddedToken] = {}
    for key, value in (saved or {}).items():
        _insert(decoder, key, as_added_token(value), _DECODER)
    specials = {_content(config.get(name)) for name in SPECIAL_NAMES}
    specials |= {_content(token) for token in config.get(ADDITIONAL) or []}
    extra = config.get(_EXTRA) or []
    specials |= {_content(t) for t in (extra.values() if isinstance(extra, dict) else extra)}
    for name, index in _optional(folder / files.ADDED_FILE).items():
        known = {token.content for token in decoder.values()}
        if saved is None or name not in known:
            token = as_added_token(name, special=name in specials)
            _insert(decoder, index, token, files.ADDED_FILE)
    serialized = folder / files.TOKENIZER_FILE
    if saved is None and serialized.is_file() and (reads_json or decoder):
        try:
            found = added_tokens(serialized.read_text(encoding="utf-8"))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"'{serialized}' has broken added tokens ({error}).") from error
        for index, token in found.items():
            _insert(decoder, index, token, files.TOKENIZER_FILE)
    if decoder:
        config[_DECODER] = decoder
        flags = {token.content: token for token in decoder.values()}
        for name in SPECIAL_NAMES:
            # A plain string has the flags its added token was saved with.
            if isinstance(config.get(name), str):
                config[name] = flags.get(config[name], config[name])
    return config


def _optional(path: Path) -> dict[str, Any]:
    return dict(read_json(path, dict)) if path.is_file() else {}


def _content(token: Any) -> str:
    return content(token.get("content") if isinstance(token, dict) else token)


def _merge_special(config: dict[str, Any], name: str, value: Any, *, wins: bool) -> None:
    """Merge an entry of special_tokens_map.json, which goes before the settings, or behind them."""
    if value is None:
        config.setdefault(name, None)
    elif name in (ADDITIONAL, _EXTRA) and isinstance(value, list):
        if not wins and config.get(name) is not None:
            return
        tokens = [*(config.get(name) or []), *value] if wins else value
        config[name] = list({_content(t): as_added_token(t, special=True) for t in tokens}.values())
    elif wins or config.get(name) is None:
        is_token = isinstance(value, dict) and name != _EXTRA
        config[name] = as_added_token(value, special=True) if is_token else value


def _insert(decoder: dict[int, AddedToken], key: Any, token: AddedToken, where: str) -> None:
    """Put a token at its id.

    Raises:
        ValueError: for an id that is none, or that another token has, and for a token with two.
    """
    try:
        index = int(key)
    except (TypeError, ValueError):
        index = -1
    if index < 0 or isinstance(key, (bool, float)):
        raise ValueError(
            f"{where} gives the token '{token.content}' the id {key!r}; an id is a number from 0."
        )
    there = decoder.get(index, token)
    elsewhere = [i for i, other in decoder.items() if other.content == token.content and i != index]
    if there.content != token.content or (elsewhere and token.content):
        other = f"'{there.content}'" if there.content != token.content else f"the id {elsewhere[0]}"
        raise ValueError(
            f"{where} gives the token '{token.content}' the id {index}, where the files have "
            f"{other} already: they do not belong together."
        )
    decoder[index] = token


def name_unknown(folder: Path, cls: str, unknown: set[str]) -> None:
    """Log the settings of tokenizer_config.json that a tokenizer does not obey."""
    strange = sorted(unknown - set(DROPPED) - set(_IRRELEVANT))
    if strange:
        logger.warning(
            "%s of '%s' has settings that %s does not know and does not obey: %s.",
            files.CONFIG_FILE,
            folder,
            cls,
            ", ".join(strange),
        )


def as_length(value: Any) -> int | None:
    """Return a length limit that was saved as a number of any kind or as text.

    Raises:
        ValueError: for anything else.
    """
    if value is None:
        return None
    try:
        if isinstance(value, bool):
            raise ValueError
        number = int(value) if isinstance(value, int) else int(float(value))
    except (TypeError, ValueError, OverflowError):
        number = 0
    if number < 1:
        raise ValueError(f"model_max_length is {value!r}; it must be a number of tokens from 1.")
    return number
