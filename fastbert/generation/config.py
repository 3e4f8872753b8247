"""The settings of generate(), and generation_config.json."""

from __future__ import annotations

import os
import warnings
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self, Unpack

from fastbert.checkpoints.files import FileOptions, resolve_file
from fastbert.checkpoints.storage import json_text, read_json, write_text

GENERATION_CONFIG = "generation_config.json"
# Values of settings that switch a rule of transformers off.
_NOTHING: tuple[Any, ...] = (None, False, 0, 1.0, [], {})


@dataclass(frozen=True)
class GenerationConfig:
    """The settings of generate(); every one may be given to generate() itself.

    Attributes:
        max_length: tokens of prompt and continuation together; None for prompt + 20.
        max_new_tokens: tokens of the continuation, before max_length.
        min_length: no end before so many tokens, the prompt included.
        min_new_tokens: no end before so many tokens of the continuation.
        do_sample: draw tokens rather than take the likeliest.
        temperature: scores are divided by it before tokens are drawn.
        top_k: tokens are drawn from so many of the likeliest; 0 keeps all.
        top_p: tokens are drawn from the likeliest that reach this share of the probability.
        min_p: only tokens at least so likely, compared with the likeliest, are drawn; None for all.
        typical_p: tokens are drawn from the most typical ones that reach this share.
        epsilon_cutoff: less likely tokens are not drawn; 0 for no such rule.
        eta_cutoff: the same with a bound that falls where many tokens are possible.
        num_beams: continuations kept at each step of beam search; 1 for none.
        length_penalty: the score of a beam is its log-probability / length ** length_penalty.
        early_stopping: True: stop with num_beams finished; False: when the running ones are not
            likely to beat them; "never": when they cannot.
        repetition_penalty: scores of tokens that were there are divided (multiplied if negative)
            by this.
        no_repeat_ngram_size: no n-gram of this size occurs twice; 0 for no such rule.
        bad_words_ids: sequences of tokens that do not occur.
        sequence_bias: [token ids, bias] pairs, or biases by tuples of token ids: added to the
            score of the token that would complete the sequence.
        suppress_tokens: tokens that are not written.
        begin_suppress_tokens: tokens that no continuation begins with.
        forced_bos_token_id: the token behind a prompt of one token.
        forced_eos_token_id: the token (or the only possible ones) at the length's end.
        exponential_decay_length_penalty: (n, factor): from n tokens of the continuation on, ends
            grow likelier by factor ** (tokens beyond n).
        remove_invalid_values: replace NaN and infinity in scores.
        renormalize_logits: make log-probabilities of scores after all changes.
        num_return_sequences: continuations returned for each prompt.
        eos_token_id: one id or several, each of which ends a text.
        stop_strings: a string or several, each of which ends a text; generate() then needs
            `tokenizer`.
        max_time: seconds after which texts end.
        use_cache: keep keys and values of earlier tokens, where the model is a decoder.
        bos_token_id: the prompt where none is given.
        pad_token_id: fills a text behind its end; in a prompt it stands for no token.
        output_scores: whether the scores of every step are returned too.
        return_dict_in_generate: whether a GenerateOutput is returned rather than the ids alone.
    """

    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int = 0
    min_new_tokens: int | None = None
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: list[list[int]] | None = None
    sequence_bias: dict[tuple[int, ...], float] | list[Any] | None = None
    suppress_tokens: list[int] | None = None
    begin_suppress_tokens: list[int] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | list[int] | None = None
    exponential_decay_length_penalty: tuple[int, float] | None = None
    remove_invalid_values: bool = False
    renormalize_logits: bool = False
    num_return_sequences: int = 1
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    stop_strings: str | list[str] | None = None
    max_time: float | None = None
    pad_token_id: int | None = None
    output_scores: bool = False
    return_dict_in_generate: bool = False

    def __post_init__(self) -> None:
        """Take None for the default where a setting has one, as transformers does."""
        for field in fields(self):
            if getattr(self, field.name) is None and field.default is not None:
                object.__setattr__(self, field.name, field.default)

    @classmethod
    def from_model_config(cls, config: object) -> Self:
        """Return the defaults, with the special tokens of a model's configuration."""
        return cls(
            bos_token_id=getattr(config, "bos_token_id", None),
            eos_token_id=getattr(config, "eos_token_id", None),
            pad_token_id=getattr(config, "pad_token_id", None),
        )

    @classmethod
    def from_checkpoint(
        cls, path: str | os.PathLike[str], config: object, **hub: Unpack[FileOptions]
    ) -> Self:
        """Read generation_config.json of a checkpoint, where there is one.

        Settings that generate() does not have are left out, and named in a warning unless they ask
        for nothing.

        Args:
            path: a folder or a hub id.
            config: the model's configuration, for the defaults.
            **hub: those of resolve_file.

        Raises:
            ValueError: when the file is not a JSON object.
        """
        defaults = cls.from_model_config(config)
        file = resolve_file(path, GENERATION_CONFIG, optional=True, **hub)
        if file is None:
            return defaults
        values = read_json(file, dict)
        known = {field.name for field in fields(cls)}
        left = sorted(k for k, v in values.items() if _asks(k, v) and k not in known)
        if left:
            warnings.warn(
                f"{file} asks for {', '.join(left)}, which generate() does not have: its texts may "
                "differ from those of transformers.",
                stacklevel=5,
            )
        stated = {k: v for k, v in values.items() if k in known}
        config = replace(defaults, **stated)
        # What a file says may be what would be taken without it; whoever has other defaults asks.
        object.__setattr__(config, "_stated", frozenset(stated))
        return config

    def stated(self) -> frozenset[str]:
        """Return the names of the settings that the file, or whoever made this, has set."""
        found: frozenset[str] | None = vars(self).get("_stated")
        if found is not None:
            return found
        plain = asdict(GenerationConfig())
        return frozenset(name for name, value in asdict(self).items() if value != plain[name])

    def to_json_string(self) -> str:
        """Return what stands in generation_config.json: the values that are not the defaults."""
        defaults = asdict(GenerationConfig())
        values = {k: v for k, v in asdict(self).items() if v != defaults[k]}
        if isinstance(self.sequence_bias, dict):
            # JSON has no tuples for keys.
            values["sequence_bias"] = [[list(k), v] for k, v in self.sequence_bias.items()]
        return json_text(values)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write generation_config.json."""
        write_text(Path(save_directory) / GENERATION_CONFIG, self.to_json_string())

    def ends(self) -> list[int]:
        """List all tokens that end a text."""
        if self.eos_token_id is None:
            return []
        return (
            list(self.eos_token_id) if isinstance(self.eos_token_id, list) else [self.eos_token_id]
        )


def _asks(name: str, value: object) -> bool:
    """Return whether an entry of generation_config.json asks for something."""
    return not name.startswith("_") and name != "transformers_version" and value not in _NOTHING
