"""The settings of generate(), and generation_config.json."""

from __future__ import annotations

import os
import warnings
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self, Unpack

from fastbert.checkpoints.files import FileOptions, resolve_file
from fastbert.checkpoints.storage import json_text, read_json, write_text
from fastbert.generation.elsewhere import asks, is_known

GENERATION_CONFIG = "generation_config.json"
# Settings that generate() returns more for; in a model's configuration they ask for that, too.
_RETURNED = ("output_attentions", "output_hidden_states")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Of a configuration, what concerns models with an encoder of their own.
_UNREAD = ("decoder_start_token_id", "encoder_no_repeat_ngram_size")
# What None as an argument of generate() means where it is not the default: no such rule.
_OFF: dict[str, Any] = {"top_k": 0}


@dataclass
class GenerationConfig:
    """The settings of generate(); every one may be given to generate() itself, or set here.

    Attributes:
        max_length: tokens of prompt and continuation together; None for prompt + 20.
        max_new_tokens: tokens of the continuation, before max_length.
        min_length: no end before so many tokens, the prompt included.
        min_new_tokens: no end before so many tokens of the continuation; min_length then counts
            no more.
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
        output_logits: likewise what the model scored, before any change.
        output_attentions: likewise its attention weights.
        output_hidden_states: likewise its hidden states.
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
    output_logits: bool = False
    output_attentions: bool = False
    output_hidden_states: bool = False
    return_dict_in_generate: bool = False

    def __new__(cls, *args: Any, **values: Any) -> Self:
        """Note which settings are given, so that others may be taken from elsewhere."""
        made = super().__new__(cls)
        default = {field.name: field.default for field in fields(cls)}
        given = {**dict(zip(default, args, strict=False)), **values}
        # dataclasses.replace() gives every field, and so says of none that somebody chose it.
        whole = given.keys() >= default.keys()
        stated = {n for n, v in given.items() if v is not None and not (whole and v == default[n])}
        object.__setattr__(made, "_stated", frozenset(stated))
        return made

    def __post_init__(self) -> None:
        """Take None for the default where a setting has one, as transformers does."""
        for field in fields(self):
            if getattr(self, field.name) is None and field.default is not None:
                object.__setattr__(self, field.name, field.default)
        object.__setattr__(self, "eos_token_id", _plain(self.eos_token_id))
        object.__setattr__(self, "_whole", True)

    def __setattr__(self, name: str, value: Any) -> None:
        """Change a setting, which counts as said from now on; None takes that back.

        Raises:
            AttributeError: for a setting that generate() does not have.
        """
        default = _DEFAULTS.get(name, _DEFAULTS)
        if default is _DEFAULTS:
            if is_known(name) and not asks(name, value):
                return
            raise AttributeError(
                f"generate() has no setting {name}; it has {', '.join(sorted(_DEFAULTS))}."
            )
        if name == "eos_token_id":
            value = _plain(value)
        object.__setattr__(self, name, default if value is None else value)
        if "_whole" in vars(self):
            said = self.stated() - {name} if value is None else self.stated() | {name}
            object.__setattr__(self, "_stated", said)
            object.__setattr__(self, "_touched", True)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], **more: Any) -> Self:
        """Read the generation_config.json of a checkpoint.

        Args:
            path: a folder or a hub id.
            **more: settings that stand over those of the file, and the arguments of resolve_file.

        Raises:
            FileNotFoundError: where there is no such file.
        """
        settings = {name: more.pop(name) for name in [*more] if name in _DEFAULTS}
        resolve_file(path, GENERATION_CONFIG, **more)
        return cls.from_checkpoint(path, cls(), **more).changed(**settings)

    @classmethod
    def from_dict(cls, values: dict[str, Any], **more: Any) -> Self:
        """Return the settings with these values.

        Args:
            values: by name, as `to_dict` returns them; those of transformers, too.
            **more: settings that stand over them.

        Raises:
            ValueError: where they ask for what generate() does not have.
        """
        given = {**values, **more}
        beyond = sorted(n for n, v in given.items() if n not in _DEFAULTS and asks(n, v))
        if beyond:
            raise ValueError(
                f"generation_config asks for {', '.join(beyond)}, which generate does not have; "
                "take that out."
            )
        return cls(**{n: v for n, v in given.items() if n in _DEFAULTS and v is not None})

    def update(self, **settings: Any) -> dict[str, Any]:
        """Change the settings that are known by these names; return the others."""
        for name in settings.keys() & _DEFAULTS.keys():
            setattr(self, name, settings[name])
        return {name: value for name, value in settings.items() if name not in _DEFAULTS}

    @classmethod
    def of(cls, given: Any) -> Self:
        """Return given settings: those of this class as they are, those of transformers as ours.

        Raises:
            TypeError: for an object of another class.
            ValueError: where transformers' ask for what generate() does not have.
        """
        if isinstance(given, cls):
            return given
        kind = type(given)
        if kind.__module__.partition(".")[0] != "transformers" or not hasattr(given, "to_dict"):
            raise TypeError(
                "generation_config is a fastbert.GenerationConfig or transformers' one, not "
                f"{kind.__module__}.{kind.__name__}; give its values as arguments of generate, or "
                "as fastbert.GenerationConfig(...)."
            )
        values: dict[str, Any] = given.to_dict()
        return cls.from_dict(values)

    @classmethod
    def from_model_config(cls, config: object) -> Self:
        """Return the defaults, with what a model's configuration says of generating.

        Files of old versions hold such settings, such as num_beams, in config.json.
        """
        values = {field.name: getattr(config, field.name, None) for field in fields(cls)}
        if any(values[name] for name in _RETURNED):
            values["return_dict_in_generate"] = True
        # False of these is said by every configuration, and of None no one needs to hear.
        said = {n: v for n, v in values.items() if v is not None and (v or n not in _RETURNED)}
        return cls(**said)

    @classmethod
    def from_checkpoint(
        cls, path: str | os.PathLike[str], config: object, **hub: Unpack[FileOptions]
    ) -> Self:
        """Read generation_config.json of a checkpoint, where there is one.

        Settings that generate() does not have are left out, and named in a warning unless they ask
        for nothing.

        Args:
            path: a folder or a hub id.
            config: the model's configuration: all settings where there is no file, otherwise the
                special tokens that the file does not name.
            **hub: those of resolve_file.

        Raises:
            ValueError: when the file is not a JSON object.
        """
        file = resolve_file(path, GENERATION_CONFIG, optional=True, **hub)
        known = {field.name for field in fields(cls)}
        if file is None:
            values = {n: v for n, v in vars(config).items() if is_known(n) and n not in _UNREAD}
        else:
            values = read_json(file, dict)
        left = sorted(k for k, v in values.items() if k not in known and asks(k, v))
        if left:
            warnings.warn(
                f"{file or path} asks for {', '.join(left)}, which generate() does not have: its "
                "texts may differ from those of transformers.",
                stacklevel=5,
            )
        if file is None:
            return cls.from_model_config(config)
        tokens = {n: getattr(config, n, None) for n in _TOKENS}
        return cls(**{**tokens, **{k: v for k, v in values.items() if k in known}})

    @property
    def touched(self) -> bool:
        """Whether a setting was changed since this was made."""
        return "_touched" in vars(self)

    def stated(self) -> frozenset[str]:
        """Return the names of the settings that the file, or whoever made this, has set."""
        found: frozenset[str] = vars(self)["_stated"]
        return found

    def over(self, other: GenerationConfig) -> Self:
        """Return these settings, with those of another for what nobody has set here."""
        mine = {name: getattr(self, name) for name in self.stated()}
        return replace(self, **{**vars_of(other), **mine})._saying(self.stated() | other.stated())

    def changed(self, **settings: Any) -> Self:
        """Return these settings with some others, as arguments of generate() have them.

        Args:
            **settings: by name; None switches a setting off.
        """
        plain = {n: _plain(v) if n == "eos_token_id" else v for n, v in settings.items()}
        values: dict[str, Any] = {n: _OFF.get(n) if v is None else v for n, v in plain.items()}
        return replace(self, **values)._saying(self.stated() | settings.keys())

    def _saying(self, stated: frozenset[str]) -> Self:
        object.__setattr__(self, "_stated", stated)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return all settings by name."""
        return asdict(self)

    def to_diff_dict(self) -> dict[str, Any]:
        """Return what was set, by name: pipelines of transformers ask for this."""
        return {name: getattr(self, name) for name in sorted(self.stated())}

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


_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(GenerationConfig)}


def _plain(ids: Any) -> Any:
    """Return ids in a tensor, a tuple or a set as an int or a list of ints; others as they are."""
    if hasattr(ids, "tolist"):
        return ids.tolist()
    return list(ids) if isinstance(ids, tuple | set | frozenset | range) else ids


def vars_of(settings: GenerationConfig) -> dict[str, Any]:
    """Return the values by name, without copies."""
    return {field.name: getattr(settings, field.name) for field in fields(settings)}


def left_in(config: Any) -> dict[str, Any]:
    """Return what a model's configuration says of generating beside the fields it declares."""
    declared = type(config).default_config_fields()
    names = {field.name for field in fields(GenerationConfig)} - declared.keys()
    return {n: v for n, v in vars(config).items() if n in names and v is not None}
