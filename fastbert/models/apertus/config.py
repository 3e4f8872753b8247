"""Configuration of Apertus, and what its network can be built from."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, TypeGuard

from fastbert.layers.rotary import REFUSED, REQUIRED
from fastbert.modeling.config import PreTrainedConfig
from fastbert.ops.activations import ACTIVATIONS

_SCALED = ("llama3", "yarn", "longrope")


class ApertusConfig(PreTrainedConfig):
    """Configuration of Apertus, and of the text part of Apertus 1.5.

    Positions are configured by rope_parameters, or by rope_scaling and rope_theta as in files of
    transformers 4; a file is always written in the first form. head_dim and output_vocab_size (rows
    of lm_head, where they are not those of the embeddings) count where they are present.
    """

    model_type = "apertus"
    base_config_key = "text_config"
    also_reads = ("apertus1p5_text", "apertus1p5")
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    default_theta: ClassVar[float] = 12000000.0

    vocab_size: int = 131072
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    hidden_act: str = "xielu"
    max_position_embeddings: int = 65536
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    use_cache: bool = True
    pad_token_id: int | None = 3
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] | None = None
    attention_bias: bool = False
    attention_dropout: float = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        theta = kwargs.pop("rope_theta", None)
        scaling = kwargs.pop("rope_scaling", None)
        partial = kwargs.pop("partial_rotary_factor", None)
        super().__init__(*args, **kwargs)
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        given = scaling or self.rope_parameters
        self.rope_parameters = self._settled(given, theta, partial)

    def _settled(
        self, given: Mapping[str, Any] | None, theta: float | None, partial: float | None = None
    ) -> dict[str, Any]:
        """Return complete rope_parameters.

        Args:
            given: rope_parameters or rope_scaling; None for the family's own.
            theta: the base, where `given` has none; None for the family's own.
            partial: share of a head that is rotated, where `given` has none.

        Raises:
            ValueError: for a scaling that lacks what it needs, or no dictionary.
        """
        if given is not None and not isinstance(given, Mapping):
            raise ValueError(f"rope_parameters is a dictionary or None, not {given!r}.")
        if given and all(isinstance(value, Mapping) for value in given.values()):
            raise ValueError(
                f"rope_parameters has a dictionary for each of {', '.join(map(str, given))}, but "
                "all layers of Apertus rotate alike; give one dictionary with rope_type and "
                "rope_theta."
            )
        if given is None:
            settled = _default_rope()
            if theta is not None and theta != self.default_theta:
                warnings.warn(
                    f"rope_theta={theta} is taken with the scaling that Apertus has by default "
                    "(transformers 5 ignores it and takes 12e6); give rope_parameters with "
                    "rope_type and rope_theta to say what is meant.",
                    stacklevel=4,
                )
                settled["rope_theta"] = theta
        else:
            settled = dict(given)
        settled.setdefault("rope_theta", self.default_theta if theta is None else theta)
        if partial is not None:
            settled.setdefault("partial_rotary_factor", partial)
        kind = settled.setdefault("rope_type", settled.get("type", "default"))
        if kind in _SCALED:
            outside = vars(self).get("original_max_position_embeddings")
            context = self.max_position_embeddings if outside is None else outside
            name = "original_max_position_embeddings"
            settled[name] = settled.get(name, context) if outside is None else outside
        if kind == "yarn" and settled.get("factor", 0) is None:
            settled["factor"] = self.max_position_embeddings / settled[name]
        absent = [name for name in REQUIRED.get(kind, ()) if settled.get(name) is None]
        if absent:
            raise ValueError(
                f"Missing required keys in rope_parameters for 'rope_type'={kind!r}: "
                f"{', '.join(absent)}."
            )
        return settled

    @property
    def rope_scaling(self) -> dict[str, Any] | None:
        """The older name of rope_parameters."""
        return self.rope_parameters

    @rope_scaling.setter
    def rope_scaling(self, value: Mapping[str, Any] | None) -> None:
        self.rope_parameters = self._settled(value, self.rope_theta)

    @property
    def rope_theta(self) -> float:
        """The base of the wavelengths, which stands in rope_parameters."""
        return float((self.rope_parameters or {}).get("rope_theta", self.default_theta))

    @rope_theta.setter
    def rope_theta(self, value: float) -> None:
        self.rope_parameters = {**(self.rope_parameters or _default_rope()), "rope_theta": value}


def _default_rope() -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "rope_theta": ApertusConfig.default_theta,
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }


def head_dim(config: ApertusConfig) -> int:
    """Return the columns of a head."""
    given = vars(config).get("head_dim")
    return int(config.hidden_size // config.num_attention_heads if given is None else given)


def output_size(config: ApertusConfig) -> int:
    """Return how many words lm_head scores."""
    given = vars(config).get("output_vocab_size")
    return int(config.vocab_size if given is None else given)


_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)


# Their largest values.
_NUMBERS = {
    "rms_norm_eps": sys.float_info.max,
    "attention_dropout": 1.0,
    "initializer_range": sys.float_info.max,
}


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_buildable(config: ApertusConfig) -> None:
    """Refuse a configuration from which no network follows.

    Raises:
        ValueError: saying which values do not fit together.
    """
    for name in _SIZES:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive integer, not {value!r}.")
    layers = config.num_hidden_layers
    if not isinstance(layers, int) or layers < 0:
        raise ValueError(f"num_hidden_layers must be an integer from 0 on, not {layers!r}.")
    for name, most in _NUMBERS.items():
        value = getattr(config, name)
        if not _is_number(value) or not 0 <= value <= most:
            raise ValueError(f"{name} must be a number from 0 to {most:g}, not {value!r}.")
    for name in ("head_dim", "output_vocab_size"):
        value = vars(config).get(name)
        if value is not None and (not _is_number(value) or isinstance(value, float) or value < 1):
            raise ValueError(f"{name} must be a positive integer or None, not {value!r}.")
    _check_heads(config)
    pad = config.pad_token_id
    if pad is not None and (not _is_number(pad) or isinstance(pad, float)):
        raise ValueError(f"pad_token_id is the id of one token or None, not {pad!r}.")
    if pad is not None and not -config.vocab_size <= pad < config.vocab_size:
        raise ValueError(
            f"pad_token_id {pad} stands in no vocabulary of {config.vocab_size} words; give a "
            "smaller one, or None."
        )
    act = config.hidden_act
    if not isinstance(act, str) or act not in ("xielu", *ACTIVATIONS):
        known = ", ".join(["xielu", *sorted(ACTIVATIONS)])
        raise ValueError(f"hidden_act is one of {known}, not {act!r}.")
    if output_size(config) != config.vocab_size and config.tie_word_embeddings:
        raise ValueError(
            f"lm_head scores {output_size(config)} words and the embeddings have "
            f"{config.vocab_size}, so the two cannot be tied; set tie_word_embeddings=False."
        )


def _check_heads(config: ApertusConfig) -> None:
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads or 1
    if heads % kv_heads:
        raise ValueError(
            f"num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({kv_heads})."
        )
    if vars(config).get("head_dim") is None and config.hidden_size % heads:
        raise ValueError(
            f"hidden_size ({config.hidden_size}) must be a multiple of num_attention_heads "
            f"({heads}), or head_dim be given."
        )
    if head_dim(config) < 2 or head_dim(config) % 2:
        raise ValueError(
            f"A head has {head_dim(config)} columns, but they are rotated in pairs; the number "
            "must be even."
        )
    rope = config.rope_parameters or {}
    for name in ("rope_theta", *REQUIRED.get(rope.get("rope_type", ""), ())):
        value = rope.get(name)
        if not _is_number(value) or not 0 < value < math.inf:
            raise ValueError(f"{name} in rope_parameters must be a number above 0, not {value!r}.")
    if rope.get("rope_type") in REFUSED or rope.get("rope_type") not in REQUIRED:
        return  # refused with its reason where the angles are made
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(
            "Apertus rotates whole heads, so partial_rotary_factor must be 1, not "
            f"{rope['partial_rotary_factor']!r}."
        )
