"""Sizes of a configuration, held against reason before anything is built."""

from __future__ import annotations

from fastbert.modeling.config import PreTrainedConfig, is_count

# The deepest published encoders have about 100 layers. One takes a tenth of a millisecond to build.
MOST_LAYERS = 10_000
_LARGEST = 2**31 - 1
# Name -> the least that makes sense. Other names of the same sizes are aliases of these.
_SIZES = {
    "vocab_size": 1,
    "hidden_size": 1,
    "num_hidden_layers": 0,
    "num_attention_heads": 1,
    "intermediate_size": 1,
    "max_position_embeddings": 1,
    "type_vocab_size": 0,
}


def check_sizes(config: PreTrainedConfig) -> None:
    """Refuse sizes from which no model can be built, or none within reason.

    Raises:
        ValueError: for a size that is no whole number, or out of range.
    """
    fields = type(config).default_config_fields()
    for name, least in _SIZES.items():
        size = getattr(config, name, None)
        # None is right in a field whose default it is.
        if size is None and fields.get(config.attribute_map.get(name, name)) is None:
            continue
        most = MOST_LAYERS if name == "num_hidden_layers" else _LARGEST
        if not is_count(size) or not least <= size <= most:
            raise ValueError(
                f"{name} is {size!r}, but it is a whole number from {least} to {most}; correct it "
                "in the configuration."
            )
    _check_padding(config)


def _check_padding(config: PreTrainedConfig) -> None:
    """Refuse a pad_token_id that is no row of the table; -1 is the last one, as torch counts.

    Raises:
        ValueError: for an index that the table of words does not have.
    """
    padding, rows = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", None)
    if is_count(padding) and is_count(rows) and not -rows <= padding < rows:
        raise ValueError(
            f"pad_token_id is {padding}, but the vocabulary has {rows} tokens (vocab_size); "
            "correct one of the two in the configuration."
        )
