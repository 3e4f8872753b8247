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
        num_beams: continuations kept at each step of beam search; 1 for none.
        length_penalty: the score of a beam is its log-probability / length ** length_penalty.
        early_stopping: True: stop with num_beams finished; False: when the running ones are not
            likely to beat them; "never": when they cannot.
        repetition_penalty: scores of tokens that were there are divided (multiplied if negative)
            by this.
        no_repeat_ngram_size: no n-gram of this size occurs twice; 0 for no such rule.
        num_return_sequences: continuations returned for each prompt.
        eos_token_id: one id or several, each of which ends a text.
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
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    num_return_sequences: int = 1
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    output_scores: bool = False
    return_dict_in_generate: bool = False

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
        return json_text({k: v for k, v in asdict(self).items() if v != defaults[k]})

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
