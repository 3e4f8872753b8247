"""The base of every tokenizer class; loading and saving."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from tokenizers import AddedToken

from fastbert.checkpoints.files import HUB_OPTIONS
from fastbert.checkpoints.storage import read_json, write_json, write_text
from fastbert.tokenizers import files
from fastbert.tokenizers.assembling import Assembling
from fastbert.tokenizers.engines.rust import RustEngine
from fastbert.tokenizers.special import (
    ADDITIONAL,
    SPECIAL_NAMES,
    SpecialSet,
    TokenLike,
    as_added_token,
    is_plain,
    token_fields,
)
from fastbert.tokenizers.strategies import VERY_LARGE_INTEGER, WarnOnce, check_side
from fastbert.tokenizers.vocabulary import Engine


class Tokenizer(Assembling):
    """The base of every tokenizer. A family's class makes an engine and calls this constructor.

    Args:
        engine: what tokenises texts.
        special: tokens with a role, by the names of their attributes ("cls_token" and so on).
        settings: the family's own constructor arguments, saved with the tokenizer.
        model_max_length: tokens that the model takes, None where unknown.
        padding_side: "right" or "left".
        truncation_side: "right" or "left".
        model_input_names: the keys that a call returns by default.
        clean_up_tokenization_spaces: remove the spaces before English punctuation in decoded text.
        split_special_tokens: read special tokens in a text as ordinary characters.
        pad_token_type_id: the token type of padding.
        additional_special_tokens: special tokens without a role.
        extra_special_tokens: more of them; a dict is ignored.
        added_tokens_decoder: added tokens by their ids, as they were saved.
        bos_token: the token of that role, where `special` has none.
        eos_token: likewise.
        name_or_path: what the tokenizer was loaded from.
        **unknown: refused.

    Attributes:
        vocab_files_names: names of the vocabulary files, by the constructor's arguments.
        default_input_names: the keys that a call returns, where nothing else is said.

    Raises:
        TypeError: for an unknown argument.
        ValueError: for a side that is none.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {}
    default_input_names: ClassVar[tuple[str, ...]] = (
        "input_ids",
        "token_type_ids",
        "attention_mask",
    )

    def __init__(
        self,
        engine: Engine,
        *,
        special: Mapping[str, TokenLike | None],
        settings: dict[str, Any] | None = None,
        model_max_length: int | None = None,
        padding_side: str = "right",
        truncation_side: str = "right",
        model_input_names: Iterable[str] | None = None,
        clean_up_tokenization_spaces: bool | None = None,
        split_special_tokens: bool = False,
        pad_token_type_id: int = 0,
        additional_special_tokens: Iterable[TokenLike] | None = None,
        extra_special_tokens: Any = None,
        added_tokens_decoder: dict[Any, Any] | None = None,
        bos_token: TokenLike | None = None,
        eos_token: TokenLike | None = None,
        name_or_path: str = "",
        **unknown: Any,
    ) -> None:
        if unknown:
            raise TypeError(
                f"{type(self).__name__} does not know {', '.join(sorted(unknown))}; it takes "
                f"{', '.join(sorted(self._known_arguments()))}."
            )
        self.engine = engine
        self._settings = dict(settings or {})
        self._extra_config: dict[str, Any] = {}
        self.name_or_path = str(name_or_path)
        limit = model_max_length
        self.model_max_length = VERY_LARGE_INTEGER if limit is None else limit
        self.padding_side = check_side("padding_side", padding_side)
        self.truncation_side = check_side("truncation_side", truncation_side)
        self.model_input_names = list(model_input_names or self.default_input_names)
        self.clean_up_tokenization_spaces = bool(clean_up_tokenization_spaces)
        self.split_special_tokens = bool(split_special_tokens)
        self.pad_token_type_id = pad_token_type_id
        self._warn = WarnOnce()
        own = {"bos_token": bos_token, "eos_token": eos_token, **special}
        self.specials = SpecialSet()
        self.specials.named = {
            name: None if own.get(name) is None else as_added_token(own[name], special=True)
            for name in SPECIAL_NAMES
        }
        extra = [] if isinstance(extra_special_tokens, dict) else list(extra_special_tokens or [])
        additional = [
            as_added_token(token, special=True)
            for token in [*(additional_special_tokens or []), *extra]
        ]
        self.specials.additional = list({token.content: token for token in additional}.values())
        engine.bind(self.specials)
        self._add_initial(added_tokens_decoder or {})

    def _add_initial(self, decoder: dict[Any, Any]) -> None:
        """Add the saved tokens at their ids, then the special tokens that are missing."""
        saved = {int(key): as_added_token(decoder[key]) for key in sorted(decoder, key=int)}
        self.engine.restore_added(saved)
        known = {token.content: token for token in self.engine.added_tokens.values()}
        # A token that strips spaces says so; a plain one leaves the flags it was added with.
        self.engine.add_tokens(
            [
                token
                for token in self.all_special_tokens_extended
                if token.content not in known
                or (known[token.content] != token and not is_plain(token))
            ]
        )

    @classmethod
    def _known_arguments(cls) -> set[str]:
        names: set[str] = set()
        for owner in cls.__mro__[:-1]:
            made: Any = vars(owner).get("__init__")
            for name, parameter in inspect.signature(made).parameters.items() if made else ():
                if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                    names.add(name)
        return names - {"self", "engine", "fresh", "special", "settings"}

    # ---- loading -------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> Self:
        """Load a tokenizer from a folder, or by hub id where `huggingface_hub` is installed.

        Reads the family's vocabulary files, tokenizer_config.json, special_tokens_map.json and
        added_tokens.json, written by fastbert or by transformers 4 or 5.

        Args:
            pretrained_model_name_or_path: a folder or a hub id.
            **kwargs: subfolder, revision, cache_dir, local_files_only, token and force_download
                say where to look; others override what the files say.

        Raises:
            FileNotFoundError: for a missing folder or vocabulary.
            TypeError: for an unknown argument.
            ValueError: for a broken file.
        """
        hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        unknown = set(kwargs) - cls._known_arguments()
        if unknown:
            raise TypeError(
                f"{cls.__name__}.from_pretrained does not know {', '.join(sorted(unknown))}; it "
                f"takes {', '.join(sorted(cls._known_arguments() | set(HUB_OPTIONS)))}."
            )
        folder = files.find_folder(pretrained_model_name_or_path, cls.file_names(), **hub)
        paths = {
            argument: str(folder / name)
            for argument, name in cls.vocab_files_names.items()
            if (folder / name).is_file()
        }
        if not cls._enough(set(paths) | set(kwargs)):
            names = " or ".join(cls.vocab_files_names.values())
            raise FileNotFoundError(
                f"'{folder}' holds no vocabulary for {cls.__name__}: it needs {names}, and holds "
                f"{', '.join(sorted(path.name for path in folder.iterdir())) or 'nothing'}."
            )
        config = cls._read_settings(folder)
        config["name_or_path"] = str(pretrained_model_name_or_path)
        known = cls._known_arguments()
        arguments = {key: value for key, value in config.items() if key in known} | kwargs
        tokenizer = cls._from_files({k: v for k, v in paths.items() if k not in kwargs}, arguments)
        tokenizer._extra_config = {
            key: value for key, value in config.items() if key not in known and key not in _DROPPED
        }
        return tokenizer

    @classmethod
    def file_names(cls) -> list[str]:
        """List the files that `from_pretrained` may want."""
        own = list(cls.vocab_files_names.values())
        return [*own, files.CONFIG_FILE, files.SPECIAL_FILE, files.ADDED_FILE, "config.json"]

    @classmethod
    def _enough(cls, arguments: set[str]) -> bool:
        """Return whether the files found (by argument name) are enough to build from."""
        return bool(arguments & set(cls.vocab_files_names))

    @classmethod
    def _from_files(cls, paths: dict[str, str], arguments: dict[str, Any]) -> Self:
        """Call the constructor with the files found and the settings read."""
        build: Any = cls  # family constructors take other arguments than this class's
        made: Self = build(**paths, **arguments)
        return made

    @classmethod
    def _read_settings(cls, folder: Path) -> dict[str, Any]:
        """Read tokenizer_config.json, completed from the other files as transformers does."""
        config: dict[str, Any] = {}
        if (folder / files.CONFIG_FILE).is_file():
            config = dict(read_json(folder / files.CONFIG_FILE, dict))
        for name in (
            "tokenizer_file",
            "vocab_file",
            "merges_file",
            "vocab",
            "merges",
            "init_inputs",
        ):
            config.pop(name, None)
        for name in SPECIAL_NAMES:
            if isinstance(config.get(name), dict):
                config[name] = as_added_token(config[name], special=True)
        if "added_tokens_decoder" in config:
            _use_added_flags(config)
            return config
        if (folder / files.SPECIAL_FILE).is_file():
            for name, value in read_json(folder / files.SPECIAL_FILE, dict).items():
                if name == ADDITIONAL:
                    tokens = [as_added_token(token, special=True) for token in value]
                    before = [as_added_token(t, special=True) for t in config.get(name) or []]
                    contents = {token.content for token in before}
                    config[name] = before + [t for t in tokens if t.content not in contents]
                else:
                    config[name] = (
                        as_added_token(value, special=True) if isinstance(value, dict) else value
                    )
        decoder: dict[int, AddedToken] = {}
        if (folder / files.ADDED_FILE).is_file():
            specials = {
                str(getattr(config.get(name), "content", config.get(name)))
                for name in SPECIAL_NAMES
            }
            specials |= {as_added_token(token).content for token in config.get(ADDITIONAL) or []}
            for content, index in read_json(folder / files.ADDED_FILE, dict).items():
                decoder[int(index)] = as_added_token(content, special=content in specials)
        if "tokenizer_file" in cls.vocab_files_names or decoder:
            serialized = folder / files.TOKENIZER_FILE
            if serialized.is_file():
                for entry in read_json(serialized, dict).get("added_tokens", []):
                    fields = {key: value for key, value in entry.items() if key != "id"}
                    decoder[int(entry["id"])] = AddedToken(**fields)
        if decoder:
            config["added_tokens_decoder"] = decoder
            _use_added_flags(config)
        return config

    # ---- saving --------------------------------------------------------------------------------

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        """Write the tokenizer's files, which `from_pretrained` here and in transformers reads.

        Each file appears whole or not at all.

        Args:
            save_directory: a folder, made when it is not there.
            legacy_format: False writes only tokenizer.json (Rust tokenizers), True only the
                vocabulary files, None both.
            filename_prefix: put before every file's name, with a hyphen.

        Returns:
            The paths of the files.

        Raises:
            NotADirectoryError: for a file in the folder's place.
            ValueError: for legacy_format=False where the tokenizer does not run in Rust.
        """
        folder = Path(save_directory)
        if folder.is_file():
            raise NotADirectoryError(f"'{folder}' is a file; save_pretrained needs a folder.")
        if legacy_format is False and not isinstance(self.engine, RustEngine):
            raise ValueError(
                f"legacy_format=False writes tokenizer.json, which {type(self).__name__} does not "
                "have; leave it out."
            )
        folder.mkdir(parents=True, exist_ok=True)
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        written = [folder / (prefix + files.CONFIG_FILE), folder / (prefix + files.SPECIAL_FILE)]
        write_json(written[0], self._config(), ensure_ascii=False)
        write_json(written[1], self._special_tokens_file(), ensure_ascii=False)
        added = {t: i for t, i in self.added_tokens_encoder.items() if i >= self.vocab_size}
        if legacy_format is not False:
            written += [Path(path) for path in self.save_vocabulary(str(folder), filename_prefix)]
            if added:
                written.append(folder / (prefix + files.ADDED_FILE))
                write_json(written[-1], added, ensure_ascii=False)
        if isinstance(self.engine, RustEngine) and legacy_format is not True:
            written.append(folder / (prefix + files.TOKENIZER_FILE))
            write_text(written[-1], self.engine.serialized())
        return tuple(str(path) for path in written)

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write the vocabulary files alone and return their paths."""
        raise NotImplementedError

    def _class_name(self) -> str:
        """Return the class that transformers should load the saved files with."""
        return type(self).__name__

    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = self._extra_config | self._settings
        config |= {name: None for name in ("bos_token", "eos_token") if name in config}
        config |= self.special_tokens_map
        config |= {
            "added_tokens_decoder": {
                str(index): token_fields(token) for index, token in self.engine.added_tokens.items()
            },
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            "model_max_length": self.model_max_length,
            "tokenizer_class": self._class_name(),
        }
        for name, default in (
            ("padding_side", "right"),
            ("truncation_side", "right"),
            ("split_special_tokens", False),
            ("model_input_names", list(self.default_input_names)),
        ):
            if getattr(self, name) != default:
                config[name] = getattr(self, name)
        return config

    def _special_tokens_file(self) -> dict[str, Any]:
        def entry(token: AddedToken) -> Any:
            fields = token_fields(token)
            fields.pop("special")
            return token.content if is_plain(token) else fields

        return {
            name: [entry(token) for token in value] if isinstance(value, list) else entry(value)
            for name, value in self.special_tokens_map_extended.items()
        }

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name_or_path={self.name_or_path!r}, "
            f"vocab_size={self.vocab_size}, model_max_length={self.model_max_length}, "
            f"engine={type(self.engine).__name__}, padding_side={self.padding_side!r}, "
            f"truncation_side={self.truncation_side!r}, special_tokens={self.special_tokens_map})"
        )


# Keys of older configuration files that say nothing about the tokenizer.
_DROPPED = (
    "tokenizer_class",
    "special_tokens_map_file",
    "max_length",
    "stride",
    "truncation_strategy",
    "pad_to_multiple_of",
    "backend",
    "is_local",
    "local_files_only",
)


def _use_added_flags(config: dict[str, Any]) -> None:
    """Give special tokens that are plain strings the flags their added token was saved with."""
    saved = [as_added_token(token) for token in config["added_tokens_decoder"].values()]
    flags = {token.content: token for token in saved}
    for name in SPECIAL_NAMES:
        value = config.get(name)
        if isinstance(value, str) and value in flags:
            config[name] = flags[value]
