"""The base of every tokenizer class; loading and saving."""

from __future__ import annotations

import inspect
import itertools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from tokenizers import AddedToken

from fastbert.checkpoints.files import HUB_OPTIONS
from fastbert.checkpoints.storage import folder_to_save_in, write_json, write_text
from fastbert.tokenizers import files
from fastbert.tokenizers.chat import Chatting, as_templates, read_templates
from fastbert.tokenizers.engines.rust import RustEngine
from fastbert.tokenizers.keywords import ENDS, is_role, sorted_out, without_ends
from fastbert.tokenizers.reading import DROPPED, as_length, name_unknown, read_settings
from fastbert.tokenizers.special import (
    SPECIAL_NAMES,
    Default,
    SpecialSet,
    TokenLike,
    as_added_token,
    is_plain,
    token_fields,
)
from fastbert.tokenizers.strategies import (
    VERY_LARGE_INTEGER,
    WarnOnce,
    check_flags,
    check_names,
    check_side,
)
from fastbert.tokenizers.vocabulary import Engine

_OTHERS = (files.CHAT_FILE, f"{files.CHAT_FOLDER}/*.jinja", "config.json")


class Tokenizer(Chatting):
    """The base of every tokenizer. A family's class makes an engine and calls this constructor.

    Args:
        engine: what tokenises texts.
        special: tokens with a role, by the names of their attributes ("cls_token" and so on).
        settings: the family's own constructor arguments, saved with the tokenizer.
        model_max_length: tokens that the model takes, None where unknown.
        max_len: an older name of it.
        padding_side: "right" or "left"; None for what a tokenizer.json says, or "right".
        truncation_side: likewise.
        model_input_names: the keys that a call returns by default.
        clean_up_tokenization_spaces: remove the spaces before English punctuation in decoded text.
        split_special_tokens: read special tokens in a text as ordinary characters.
        pad_token_type_id: the token type of padding.
        additional_special_tokens: special tokens without a role.
        extra_special_tokens: more of them; or, as a dict, tokens by the names of attributes that
            only this tokenizer has ("image_token").
        added_tokens_decoder: added tokens by their ids, as they were saved.
        bos_token: the token of that role, where `special` has none.
        eos_token: likewise.
        chat_template: see `apply_chat_template`; a template, or several by their names.
        name_or_path: what the tokenizer was loaded from.
        **unknown: refused.

    Attributes:
        vocab_files_names: names of the vocabulary files, by the constructor's arguments.
        model_input_names: the keys that a call returns, where nothing else is said.

    Raises:
        TypeError: for an unknown argument.
        ValueError: for a side that is none.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {}
    model_input_names = ["input_ids", "token_type_ids", "attention_mask"]

    def __init__(
        self,
        engine: Engine,
        *,
        special: Mapping[str, TokenLike | None],
        settings: dict[str, Any] | None = None,
        model_max_length: int | float | str | None = None,
        max_len: int | float | str | None = None,
        padding_side: str | None = None,
        truncation_side: str | None = None,
        model_input_names: Iterable[str] | None = None,
        clean_up_tokenization_spaces: bool | None = None,
        split_special_tokens: bool = False,
        pad_token_type_id: int = 0,
        additional_special_tokens: Iterable[TokenLike] | None = None,
        extra_special_tokens: Any = None,
        added_tokens_decoder: dict[Any, Any] | None = None,
        bos_token: TokenLike | None = None,
        eos_token: TokenLike | None = None,
        chat_template: Any = None,
        name_or_path: str = "",
        **unknown: Any,
    ) -> None:
        roles = {name: unknown.pop(name) for name in list(unknown) if is_role(name, unknown[name])}
        if unknown:
            raise TypeError(
                f"{type(self).__name__} does not know {', '.join(sorted(unknown))}; it takes "
                f"{', '.join(sorted(self._known_arguments()))}."
            )
        self.engine = engine
        self._settings = dict(settings or {})
        self._extra_config: dict[str, Any] = {}
        self.name_or_path = str(name_or_path)
        limit = as_length(max_len if model_max_length is None else model_max_length)
        self.model_max_length = VERY_LARGE_INTEGER if limit is None else limit
        file = engine.described
        self.padding_side = check_side(
            "padding_side", padding_side or file.get("padding_side", "right")
        )
        self.truncation_side = check_side(
            "truncation_side", truncation_side or file.get("truncation_side", "right")
        )
        names = model_input_names or type(self).model_input_names
        self.model_input_names = check_names("model_input_names", names)
        check_flags({"split_special_tokens": split_special_tokens})
        self.clean_up_tokenization_spaces = bool(clean_up_tokenization_spaces)
        self.split_special_tokens = bool(split_special_tokens)
        self.pad_token_type_id = pad_token_type_id
        self.chat_template = as_templates(chat_template)
        self._warn = WarnOnce()
        self._disobeyed: list[str] = []
        self._roles = tuple(special)
        self.specials = SpecialSet()
        own = {"bos_token": bos_token, "eos_token": eos_token, **special}
        own = {name: self._in_file(token) for name, token in own.items()}
        if own.get("pad_token") is None and self._in_file(Default(file.get("pad_token", ""))):
            own["pad_token"] = file["pad_token"]
        self.specials.named = {
            name: None if own.get(name) is None else as_added_token(own[name], special=True)
            for name in SPECIAL_NAMES
        }
        extra = extra_special_tokens or []
        if isinstance(extra, dict):
            roles, extra = roles | extra, []
        self.specials.own = {
            name: as_added_token(token, special=True) for name, token in roles.items()
        }
        additional = [
            as_added_token(token, special=True)
            for token in [*(additional_special_tokens or []), *extra]
            if self._in_file(token) is not None
        ]
        self.specials.additional = list({token.content: token for token in additional}.values())
        engine.bind(self.specials)
        self._add_initial(added_tokens_decoder or {})
        if engine.from_file and not any(map(engine.num_special_tokens_to_add, (False, True))):
            self._surround()

    def _surround(self) -> None:
        """Put the family's special tokens around texts, since its tokenizer.json puts none there.

        Such files are what training a vocabulary leaves, and what transformers 5 saves of a RemBERT
        without tokenizer.json; transformers 5 puts the family's own tokens there too.
        """
        names = {slot for slot in self.template.pair if slot not in "AB"}
        if isinstance(self.engine, RustEngine) and all(map(self.specials.name_of, names)):
            self._set_template(self.engine)

    def _set_template(self, engine: RustEngine) -> None:
        engine.set_template(self.template, self.specials)

    def _unheard(self, given: Mapping[str, Any]) -> list[str]:
        """Name the special tokens that were given while tokenizer.json puts others in their places.

        Args:
            given: arguments of the constructor.
        """
        if not isinstance(self.engine, RustEngine) or not self.engine.from_file:
            return []
        slots = self.engine.layout(False)
        found = []
        for name, slot, other in (
            ("cls_token", slots[:1], self.bos_token_id),
            ("sep_token", slots[-1:], self.eos_token_id),
        ):
            index = getattr(self, f"{name}_id")
            if index is not None and slot and slot[0].sequence is None:
                found += [name] if not {index, other} & set(slot[0].ids) else []
        unknown = getattr(self.engine.backend.model, "unk_token", None)
        found += ["unk_token"] if unknown not in (None, self.unk_token) else []
        return [name for name in found if given.get(name) is not None]

    def _in_file(self, token: TokenLike | None) -> TokenLike | None:
        """Return None for a token that nobody named and that a tokenizer.json does not have."""
        absent = isinstance(token, Default) and self.engine.token_to_id(str(token)) is None
        return None if absent and self.engine.from_file else token

    def _add_initial(self, decoder: dict[Any, Any]) -> None:
        """Add the saved tokens at their ids, then the special tokens that are missing."""
        saved = {int(key): as_added_token(decoder[key]) for key in sorted(decoder, key=int)}
        self._place_roles(saved)
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

    def _place_roles(self, saved: dict[int, AddedToken]) -> None:
        """Give special tokens that were not saved the ids that they have without added tokens.

        Vocabularies of sentencepiece have no mask; its id is the first behind them, and files of
        older programs do not name it.
        """
        contents = {token.content for token in saved.values()}
        absent = [token for token in self.specials.every() if token.content not in contents]
        if not saved or not absent:
            return
        vocab = self.engine.vocab()
        free = (i for i in itertools.count(self.engine.total_size) if i not in saved)
        for token in absent:
            if token.content not in vocab:
                saved[next(free)] = token

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
        kwargs, hub, from_slow = sorted_out(kwargs)
        known = cls._known_arguments()
        kwargs = without_ends(kwargs, known, cls.__name__)
        unknown = {name for name in set(kwargs) - known if not is_role(name, kwargs[name])}
        if unknown:
            raise TypeError(
                f"{cls.__name__}.from_pretrained does not know {', '.join(sorted(unknown))}; it "
                f"takes {', '.join(sorted(known | set(HUB_OPTIONS)))}."
            )
        folder = files.find_folder(pretrained_model_name_or_path, cls.file_names(), **hub)
        paths = {
            argument: str(folder / name)
            for argument, name in cls.vocab_files_names.items()
            if (folder / name).is_file()
        }
        if from_slow and set(paths) - {"tokenizer_file"}:
            paths.pop("tokenizer_file", None)
        if not cls._enough(set(paths) | set(kwargs)):
            names = " or ".join(cls.vocab_files_names.values())
            raise FileNotFoundError(
                f"'{folder}' holds no vocabulary for {cls.__name__}: it needs {names}, and holds "
                f"{', '.join(sorted(path.name for path in folder.iterdir())) or 'nothing'}."
            )
        config = read_settings(folder, reads_json="tokenizer_file" in cls.vocab_files_names)
        config["chat_template"] = read_templates(folder) or config.get("chat_template")
        config["name_or_path"] = str(pretrained_model_name_or_path)
        if {"model_max_length", "max_len"} & set(kwargs):
            config = {k: v for k, v in config.items() if k not in ("model_max_length", "max_len")}
        told = known - set(ENDS)
        arguments = {k: v for k, v in config.items() if k in told or is_role(k, v)} | kwargs
        tokenizer = cls._from_files({k: v for k, v in paths.items() if k not in kwargs}, arguments)
        rest = {k: v for k, v in config.items() if k not in arguments and v not in ({}, [], "")}
        tokenizer._extra_config = {k: v for k, v in rest.items() if k not in DROPPED}
        tokenizer._disobeyed += tokenizer._unheard(arguments)
        if refused := sorted(set(tokenizer._disobeyed) & set(kwargs)):
            raise ValueError(
                f"'{folder}' has a tokenizer.json whose steps cannot be told {', '.join(refused)}; "
                "leave that out, or change the file."
            )
        name_unknown(folder, cls.__name__, set(rest) | set(tokenizer._disobeyed))
        return tokenizer

    @classmethod
    def file_names(cls) -> list[str]:
        """List the files that `from_pretrained` may want."""
        own = list(cls.vocab_files_names.values())
        return [*own, files.CONFIG_FILE, files.SPECIAL_FILE, files.ADDED_FILE, *_OTHERS]

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
            ValueError: for an empty name, or for legacy_format=False where the tokenizer does not
                run in Rust.
        """
        if Path(save_directory).is_file():
            raise NotADirectoryError(
                f"'{save_directory}' is a file; save_pretrained needs a folder."
            )
        folder = folder_to_save_in(save_directory)
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
        written += self._save_templates(folder, prefix)
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
        # A role without a token is saved as such, or its default would come back.
        unset = {name: None for name in self._roles if self.specials.named.get(name) is None}
        config |= unset | self.special_tokens_map
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
            ("model_input_names", type(self).model_input_names),
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

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without what earlier calls left: caches go by the bytes of a pickle."""
        return self.__dict__ | {"_warn": WarnOnce()}

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name_or_path={self.name_or_path!r}, "
            f"vocab_size={self.vocab_size}, model_max_length={self.model_max_length}, "
            f"engine={type(self.engine).__name__}, padding_side={self.padding_side!r}, "
            f"truncation_side={self.truncation_side!r}, special_tokens={self.special_tokens_map})"
        )
