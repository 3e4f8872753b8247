"""Model configurations: named hyper-parameters with defaults, and config.json.

The files are those of `transformers` 4 and 5, in both directions. A configuration class declares
its fields as annotated class attributes; every other key that a file or a caller brings is kept as
it is, so that nothing is lost between loading and saving.
"""

from __future__ import annotations

import copy
import json
import math
import operator
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from numbers import Integral
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Literal,
    Self,
    TypeGuard,
    TypeVar,
    dataclass_transform,
    overload,
)

import torch

from fastbert.checkpoints import transaction
from fastbert.checkpoints.files import CONFIG_NAME, HUB_OPTIONS, local_folder, resolve_file
from fastbert.checkpoints.storage import folder_to_save_in, read_json, write_text
from fastbert.modeling import keywords

ConfigT = TypeVar("ConfigT", bound="PreTrainedConfig")

_FLOAT_TAG = "__float__"
_SPECIAL_FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
# Each label takes about 200 bytes.
_LABELS = 10_000_000
_PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
_NOT_SERIALIZED = ("_name_or_path", "_attn_implementation", "_commit_hash", "_from_auto")


def of_transformers(value: object) -> bool:
    """Return whether a value is one of transformers' configurations."""
    module = type(value).__module__.partition(".")[0]
    return module == "transformers" and hasattr(value, "to_dict")


def _values_of(given: Any, kind: type[PreTrainedConfig]) -> dict[str, Any]:
    """Read the values of what from_dict takes.

    Raises:
        ValueError: for transformers' configuration of another model type.
        TypeError: for what is neither that nor a dictionary.
    """
    if of_transformers(given):
        stored = getattr(given, "model_type", "")
        if kind.model_type and stored not in (kind.model_type, *kind.also_reads):
            raise ValueError(
                f"{kind.__name__} cannot be made from a {type(given).__name__} of "
                f"{type(given).__module__}, whose model type is {stored!r}, not "
                f"{kind.model_type!r}."
            )
        given = given.to_dict()
    if not isinstance(given, Mapping):
        raise TypeError(
            f"{kind.__name__}.from_dict takes a dictionary or a configuration of transformers, not "
            f"a {type(given).__name__}."
        )
    return dict(given)


def _as_labels(given: Any) -> dict[int, str]:
    """Return the names of labels by their numbers.

    Raises:
        ValueError: for what is no mapping from whole numbers.
    """
    try:
        return {int(key): label for key, label in given.items()}
    except (AttributeError, TypeError, ValueError):
        raise ValueError(
            f"id2label must give a name for each number, such as {{0: 'no', 1: 'yes'}}, not "
            f"{str(given)[:80]}."
        ) from None


@dataclass_transform(kw_only_default=False)
class PreTrainedConfig:
    """Base of all configurations.

    Args:
        *args: the fields a subclass declares, in their order.
        **kwargs: fields by name; `num_labels` (count, names become LABEL_0, LABEL_1, ...);
            `torch_dtype` (old name of dtype); anything else is kept as an attribute.

    Attributes:
        architectures: class names the checkpoint was saved from.
        output_hidden_states, output_attentions, return_dict: defaults of the forward arguments.
        dtype: precision of the stored weights, None when unknown.
        chunk_size_feed_forward: columns of the (batch, seqlen) grid that the feed-forward part
            takes at once; 0 for all.
        id2label, label2id: names of the classes of a classification head.
        problem_type: "regression", "single_label_classification", "multi_label_classification",
            or None to judge by num_labels and the dtype of the labels.

    Raises:
        ValueError: for a problem_type that does not exist, one label and a single-label problem, or
            a text where a number is needed.
    """

    model_type: ClassVar[str] = ""
    attribute_map: ClassVar[dict[str, str]] = {}
    _alias_defaults: ClassVar[dict[str, Any]] = {}
    sub_configs: ClassVar[dict[str, type]] = {}
    has_no_defaults_at_init: ClassVar[bool] = False
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    base_model_tp_plan: ClassVar[dict[str, str] | None] = None
    base_model_pp_plan: ClassVar[dict[str, Any] | None] = None
    base_config_key: ClassVar[str] = ""
    # Model types of the same network under another name.
    also_reads: ClassVar[tuple[str, ...]] = ()

    architectures: list[str] | None = None
    output_hidden_states: bool = False
    output_attentions: bool = False
    return_dict: bool = True
    dtype: torch.dtype | None = None
    chunk_size_feed_forward: int = 0
    is_encoder_decoder: bool = False
    id2label: dict[int, str] | None = None
    label2id: dict[str, int] | None = None
    problem_type: str | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        own = [name for name in type(self).default_config_fields() if name not in _BASE_FIELDS]
        if len(args) > len(own):
            raise TypeError(
                f"{type(self).__name__} takes at most {len(own)} positional arguments, "
                f"but {len(args)} were given."
            )
        for name, value in zip(own, args, strict=False):
            if name in kwargs:
                raise TypeError(f"{type(self).__name__} got two values for {name!r}.")
            kwargs[name] = value
        num_labels = kwargs.pop("num_labels", None)
        torch_dtype = kwargs.pop("torch_dtype", None)
        kwargs["dtype"] = _as_dtype(kwargs["dtype"] if kwargs.get("dtype") else torch_dtype)
        self._name_or_path = str(kwargs.pop("name_or_path", kwargs.pop("_name_or_path", "")))
        self._attn_implementation = kwargs.pop("attn_implementation", None)
        kwargs.pop("model_type", None)
        for name, value in type(self).default_config_fields().items():
            setattr(self, name, copy.copy(value))
        self._warn_of_near_names(kwargs)
        # Aliases come last, so that `pad_index=7` holds beside a default `pad_token_id`.
        for name in sorted(kwargs, key=lambda name: name in self.attribute_map):
            setattr(self, name, kwargs[name])
        for name, default in type(self).default_config_fields().items():
            value = getattr(self, name)
            if isinstance(value, str) and isinstance(default, int | float):
                raise ValueError(f"{name} must be a {type(default).__name__}, not {value!r}.")
            if value is None and isinstance(default, float | str):
                raise ValueError(
                    f"{name} must be a {type(default).__name__}, not null; leave it out of the "
                    f"configuration for its default, {default!r}."
                )
        self._settle_labels(num_labels)

    def _warn_of_near_names(self, given: Iterable[str]) -> None:
        """Warn of a name that is nearly a field's: it is kept, but nothing reads it."""
        known = {*type(self).default_config_fields(), *type(self).attribute_map}
        near = {_without_number(name): name for name in known}
        for name in given:
            meant = near.get(_without_number(name))
            if name not in known and meant is not None and not hasattr(type(self), name):
                warnings.warn(
                    f"{type(self).__name__} does not read {name!r}, but {meant!r}; what was given "
                    f"as {name!r} changes nothing.",
                    stacklevel=3,
                )

    def _settle_labels(self, num_labels: int | None) -> None:
        if self.problem_type is not None and self.problem_type not in _PROBLEM_TYPES:
            raise ValueError(
                f"problem_type must be one of {', '.join(_PROBLEM_TYPES)} or None, "
                f"not {self.problem_type!r}."
            )
        if self.id2label is None:
            self.num_labels = 2 if num_labels is None else num_labels
        else:
            self.id2label = _as_labels(self.id2label)
            if self.label2id is None:
                self.label2id = {label: key for key, label in self.id2label.items()}
            if num_labels is not None and num_labels != len(self.id2label):
                self.num_labels = num_labels
        if self.problem_type == "single_label_classification" and self.num_labels == 1:
            raise ValueError(
                "problem_type 'single_label_classification' needs at least two labels; use "
                "num_labels=2 for a yes-or-no question, or problem_type='regression' for one value."
            )

    @classmethod
    def default_config_fields(cls) -> dict[str, Any]:
        """Return every declared field with its default.

        A family's fields come in the order in which its root declares them, so that a family that
        derives from another takes the same positional arguments; what all families share comes
        last.
        """
        owners = [owner for owner in reversed(cls.__mro__) if owner is not PreTrainedConfig]
        fields: dict[str, Any] = {}
        for owner in (*owners, PreTrainedConfig):
            for name, annotation in vars(owner).get("__annotations__", {}).items():
                if not str(annotation).startswith("ClassVar") and not name.startswith("_"):
                    default = cls._alias_defaults.get(name, getattr(cls, name))
                    fields.setdefault(name, default)
        return fields

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, type(self).attribute_map.get(name, name), value)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...  # aliases

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # Aliases are properties rather than a look at every attribute that is read: forwards read
        # many, and torch.compile cannot follow such a look.
        for alias, name in cls.attribute_map.items():
            if alias in vars(cls):
                cls._alias_defaults = {**cls._alias_defaults, alias: vars(cls)[alias]}
            setattr(cls, alias, property(operator.attrgetter(name)))

    @property
    def num_labels(self) -> int:
        """Number of classes; setting another number renames them LABEL_0, LABEL_1, ..."""
        return len(self.id2label or {})

    @num_labels.setter
    def num_labels(self, count: int) -> None:
        if not is_count(count) or not 0 <= count <= _LABELS:
            raise ValueError(
                f"num_labels is a whole number from 0 to {_LABELS}, not {count!r}; correct it in "
                "the configuration."
            )
        if self.id2label is None or len(self.id2label) != count:
            self.id2label = {index: f"LABEL_{index}" for index in range(count)}
            self.label2id = {label: index for index, label in self.id2label.items()}

    @property
    def name_or_path(self) -> str:
        """Where the configuration was loaded from, "" when it was not."""
        return self._name_or_path

    @name_or_path.setter
    def name_or_path(self, value: str) -> None:
        self._name_or_path = str(value)

    @property
    def use_return_dict(self) -> bool:
        """Old name of return_dict."""
        return self.return_dict

    @property
    def _attn_implementation(self) -> str | None:
        """Name of the attention, of this configuration and, once set, of those within it."""
        found: str | None = vars(self).get("_attn_implementation")
        return found

    @_attn_implementation.setter
    def _attn_implementation(self, value: str | dict[str, Any] | None) -> None:
        names = ("", *self.sub_configs)
        chosen = value if isinstance(value, dict) else dict.fromkeys(names, value)
        if "" in chosen:
            vars(self)["_attn_implementation"] = chosen[""]
        for name in self.sub_configs:
            part = getattr(self, name, None)
            if name in chosen and isinstance(part, PreTrainedConfig):
                part._attn_implementation = chosen[name]

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """Old name of dtype."""
        return self.dtype

    @torch_dtype.setter
    def torch_dtype(self, value: str | torch.dtype | None) -> None:
        self.dtype = _as_dtype(value)

    def get_text_config(self, **_: Any) -> PreTrainedConfig:
        """Return the part that configures the text model: all of it, for a text model."""
        return self

    def __iter__(self) -> Iterator[str]:
        return iter(vars(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PreTrainedConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the config.json of a folder, a file or a hub id.

        Args:
            pretrained_model_name_or_path: a folder with config.json, such a file, or a hub id.
            **kwargs: where to look, as for from_pretrained; others are handed back.

        Returns:
            The values, and the arguments left over.
        """
        hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        path = Path(pretrained_model_name_or_path)
        if path.is_file():
            return read_json(path, dict, _untag_floats), kwargs

        def read() -> dict[str, Any]:
            file = resolve_file(pretrained_model_name_or_path, CONFIG_NAME, **hub)
            return read_json(file, dict, _untag_floats)

        folder = local_folder(path, hub.get("subfolder", ""))
        return read() if folder is None else transaction.steady(folder, read), kwargs

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        return_unused_kwargs: Literal[False] = ...,
        **kwargs: Any,
    ) -> Self: ...

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        return_unused_kwargs: Literal[True],
        **kwargs: Any,
    ) -> tuple[Self, dict[str, Any]]: ...

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Self | tuple[Self, dict[str, Any]]:
        """Read a configuration.

        Args:
            pretrained_model_name_or_path: a folder with config.json, such a file, or a hub id.
            return_unused_kwargs: return (config, the kwargs that name no attribute of it).
            **kwargs: values to override; `subfolder`, `revision`, `cache_dir`, `token`,
                `local_files_only`, `force_download` say where to look.

        Raises:
            FileNotFoundError: when there is no such file.
            ValueError: when it is not a JSON object.
        """
        values, kwargs = cls.get_config_dict(pretrained_model_name_or_path, **kwargs)
        stored = values.get("model_type")
        if cls.base_config_key and stored != cls.model_type and cls.base_config_key in values:
            values = values[cls.base_config_key]
            stored = values.get("model_type", cls.model_type)
        if stored and cls.model_type and stored not in (cls.model_type, *cls.also_reads):
            warnings.warn(
                f"{pretrained_model_name_or_path} is a checkpoint of model type {stored!r}; it is "
                f"read as {cls.model_type!r}, which is right only where the two are alike.",
                stacklevel=2,
            )
        values.setdefault("name_or_path", str(pretrained_model_name_or_path))
        values["name_or_path"] = str(pretrained_model_name_or_path)
        read: Self | tuple[Self, dict[str, Any]] = cls.from_dict(
            values, return_unused_kwargs=return_unused_kwargs, **kwargs
        )
        return read

    @classmethod
    def from_dict(
        cls: type[ConfigT],
        config_dict: dict[str, Any] | Any,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Build a configuration from a dictionary, or from transformers' configuration.

        Args:
            config_dict: values by name; or a configuration of transformers of the same model type.
            return_unused_kwargs: return (config, the kwargs that name no attribute of it).
            **kwargs: values that override those of the dictionary; a dictionary for a part that is
                a configuration itself overrides what it names.
        """
        values = dict(_values_of(config_dict, cls))
        if "num_labels" in kwargs:
            values["num_labels"] = kwargs.pop("num_labels")
            values.pop("id2label", None)
            values.pop("label2id", None)
        for name in ("dtype", "torch_dtype", "attn_implementation", "name_or_path"):
            if name in kwargs:
                values["dtype" if name == "torch_dtype" else name] = kwargs.pop(name)
        config = cls(**values)
        unused = {}
        for name, value in kwargs.items():
            if hasattr(config, name):
                part = getattr(config, name)
                if isinstance(part, PreTrainedConfig) and isinstance(value, Mapping):
                    value = type(part)(**{**part.to_dict(), **value})
                setattr(config, name, value)
            else:
                unused[name] = value
        return (config, unused) if return_unused_kwargs else config

    @classmethod
    def from_json_file(cls: type[ConfigT], json_file: str | os.PathLike[str]) -> ConfigT:
        """Build a configuration from a JSON file."""
        return cls(**read_json(Path(json_file), dict, _untag_floats))

    def to_dict(self) -> dict[str, Any]:
        """Everything, as values that JSON can hold, and the model type."""
        values = {
            name: _plain(value) for name, value in vars(self).items() if name not in _NOT_SERIALIZED
        }
        declared = type(self).default_config_fields()
        for alias, name in type(self).attribute_map.items():
            if alias in declared:
                values[alias] = values[name]
        values["model_type"] = type(self).model_type
        return values

    def to_diff_dict(self) -> dict[str, Any]:
        """As to_dict, without the common attributes that have their default value."""
        defaults = PreTrainedConfig().to_dict()
        values = self.to_dict()
        return {
            name: value
            for name, value in values.items()
            if name == "model_type" or name not in defaults or value != defaults[name]
        }

    def to_json_string(self, use_diff: bool = True) -> str:
        """to_diff_dict (or to_dict) as sorted JSON that ends in a newline."""
        values = self.to_diff_dict() if use_diff else self.to_dict()
        return json.dumps(_tag_floats(values), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = True) -> None:
        """Write to_json_string to a file."""
        write_text(Path(json_file_path), self.to_json_string(use_diff))

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write config.json into a folder, which is made when it is not there.

        Args:
            save_directory: the folder.
            push_to_hub: must be False; nothing is uploaded from here.
            **kwargs: arguments of transformers that mean nothing here.

        Raises:
            ValueError: for a file in the folder's place, or push_to_hub=True.
            TypeError: for an unknown argument.
        """
        keywords.check_saving(type(self), push_to_hub, kwargs)
        folder = prepared_folder(save_directory)
        self.to_json_file(folder / CONFIG_NAME)

    def push_to_hub(self, repo_id: str, **_: Any) -> None:
        """Refuse to upload.

        Raises:
            ValueError: always.
        """
        keywords.check_saving(type(self), True, {})

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Refuse to have code travel with a checkpoint.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"{cls.__name__} cannot be registered for {auto_class}: fastbert neither saves nor "
            "runs code beside a checkpoint; import the class and call its from_pretrained."
        )

    def dict_dtype_to_str(self, d: dict[str, Any]) -> None:
        """Turn dtypes in a dictionary, and in those within it, into their names, in place."""
        for name in ("dtype", "torch_dtype"):
            if isinstance(d.get(name), torch.dtype):
                d[name] = _plain(d[name])
        for value in d.values():
            if isinstance(value, dict):
                self.dict_dtype_to_str(value)

    def update(self, config_dict: dict[str, Any]) -> None:
        """Set the attributes that a dictionary names."""
        for name, value in config_dict.items():
            setattr(self, name, value)

    def update_from_string(self, update_str: str) -> None:
        """Set existing attributes from "name=value,name=value", each parsed as its present type.

        Raises:
            ValueError: for a name the configuration does not have, or a value of another type.
            TypeError: for an attribute that is neither bool, int, float nor str.
        """
        for part in update_str.split(","):
            name, _, text = part.partition("=")
            if not hasattr(self, name):
                raise ValueError(f"This configuration has no key {name!r} to update.")
            setattr(self, name, _parse_as(name, text, getattr(self, name)))


def prepared_folder(directory: str | os.PathLike[str]) -> Path:
    """Make the folder of a checkpoint where it is not there, and finish what was begun in it.

    Raises:
        ValueError: for an empty name, or a file in the folder's place.
    """
    folder = folder_to_save_in(directory)
    folder.mkdir(parents=True, exist_ok=True)
    transaction.recover(folder)
    return folder


# The name that transformers had before, and still takes.
PretrainedConfig = PreTrainedConfig

_BASE_FIELDS = frozenset(PreTrainedConfig.default_config_fields())


def _as_dtype(value: str | torch.dtype | None) -> torch.dtype | None:
    if value is None or isinstance(value, torch.dtype):
        return value
    dtype = getattr(torch, str(value).removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{value!r} is not the name of a torch dtype, such as 'float32'.")
    return dtype


def is_count(value: object) -> TypeGuard[int]:
    """Return whether a value is a whole number, of Python or NumPy."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _without_number(name: str) -> str:
    """Return a name so that n_layer and n_layers are the same."""
    return "_".join(word.removesuffix("s") for word in name.lower().split("_") if word)


def _plain(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return value.to_dict() if hasattr(value, "to_dict") else value


def _tag_floats(value: Any) -> Any:
    """JSON has no infinities and no NaN: transformers writes them as {"__float__": name}."""
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT_TAG: "NaN" if math.isnan(value) else str(value).replace("inf", "Infinity")}
    if isinstance(value, dict):
        return {key: _tag_floats(item) for key, item in value.items()}
    return [_tag_floats(item) for item in value] if isinstance(value, list) else value


def _untag_floats(value: dict[str, Any]) -> Any:
    if set(value) == {_FLOAT_TAG}:
        return _SPECIAL_FLOATS.get(value[_FLOAT_TAG], value)
    return value


def _parse_as(name: str, text: str, present: Any) -> Any:
    if isinstance(present, bool):
        if text.lower() in ("true", "1", "y", "yes"):
            return True
        if text.lower() in ("false", "0", "n", "no"):
            return False
        raise ValueError(f"{name} is true or false; {text!r} is neither.")
    if isinstance(present, (int, float)):
        return type(present)(text)
    if isinstance(present, str):
        return text
    raise TypeError(
        f"Only bool, int, float and str values can be updated from a string, not {name}."
    )
