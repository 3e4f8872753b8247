"""Auto classes: the right class for a checkpoint, by the model type in its config.json."""

from __future__ import annotations

import importlib
import os
from typing import Any, ClassVar

from fastbert.checkpoints.files import HUB_OPTIONS
from fastbert.modeling.base import PreTrainedModel
from fastbert.modeling.config import PreTrainedConfig, of_transformers
from fastbert.processors import AlignProcessor, EfficientNetImageProcessor
from fastbert.processors.align import stored_kind
from fastbert.tokenizers import AutoTokenizer

__all__ = [
    "AutoConfig",
    "AutoImageProcessor",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForMaskedLM",
    "AutoModelForMultipleChoice",
    "AutoModelForNextSentencePrediction",
    "AutoModelForPreTraining",
    "AutoModelForQuestionAnswering",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForZeroShotImageClassification",
    "AutoProcessor",
    "AutoTokenizer",
]

# model type -> (room, prefix of its class names)
_FAMILIES = {
    "apertus": ("fastbert.models.apertus", "Apertus"),
    "apertus1p5": ("fastbert.models.apertus", "Apertus"),
    "apertus1p5_text": ("fastbert.models.apertus", "Apertus"),
    "bert": ("fastbert.models.bert", "Bert"),
    "camembert": ("fastbert.models.camembert", "Camembert"),
    "distilbert": ("fastbert.models.distilbert", "DistilBert"),
    "electra": ("fastbert.models.electra", "Electra"),
    "flaubert": ("fastbert.models.flaubert", "Flaubert"),
    "mpnet": ("fastbert.models.mpnet", "MPNet"),
    "rembert": ("fastbert.models.rembert", "RemBert"),
    "roberta": ("fastbert.models.roberta", "Roberta"),
    "xlm-roberta": ("fastbert.models.xlm_roberta", "XLMRoberta"),
    "align_text_model": ("fastbert.models.align", "AlignText"),
    "align_vision_model": ("fastbert.models.align", "AlignVision"),
    "align": ("fastbert.models.align", "Align"),
}
# Where a family's class for a task is not named prefix + task.
_NAMES = {
    ("align", "ForZeroShotImageClassification"): "AlignModel",
    ("bert", "ForCausalLM"): "BertLMHeadModel",
    ("flaubert", "ForMaskedLM"): "FlaubertWithLMHeadModel",
    ("flaubert", "ForPreTraining"): "FlaubertWithLMHeadModel",
    ("flaubert", "ForQuestionAnswering"): "FlaubertForQuestionAnsweringSimple",
    ("camembert", "ForPreTraining"): "CamembertForMaskedLM",
    ("distilbert", "ForPreTraining"): "DistilBertForMaskedLM",
    ("mpnet", "ForPreTraining"): "MPNetForMaskedLM",
    ("rembert", "ForPreTraining"): "RemBertForMaskedLM",
    ("roberta", "ForPreTraining"): "RobertaForMaskedLM",
    ("xlm-roberta", "ForPreTraining"): "XLMRobertaForMaskedLM",
}

# Classes that users registered, "Config" among the tasks. They come first.
_REGISTERED: dict[tuple[str, str], Any] = {}

# Model types with a processor for images.
_WITH_IMAGES = ("align", "align_vision_model")


def _family(model_type: str | None, source: Any) -> tuple[str, str]:
    if not model_type:
        raise ValueError(
            f"The config.json of {source} has no model_type, so that no class can be chosen by it; "
            "name the class, as in BertModel.from_pretrained, or add model_type to the file."
        )
    if model_type not in _FAMILIES:
        known = _FAMILIES.keys() | {name for name, _ in _REGISTERED}
        raise ValueError(
            f"{source} is of model type {model_type!r}, which fastbert does not have; it has "
            f"{', '.join(sorted(known))}. A family of your own is made known by "
            "AutoConfig.register and AutoModel.register."
        )
    return _FAMILIES[model_type]


def _class(model_type: str, task: str, source: Any) -> Any:
    found = _REGISTERED.get((model_type, task))
    registered = any(name == model_type for name, _ in _REGISTERED)
    if found is None and (model_type in _FAMILIES or not registered):
        room, prefix = _family(model_type, source)
        name = _NAMES.get((model_type, task), prefix + task)
        found = getattr(importlib.import_module(room), name, None)
    if found is None:
        raise ValueError(f"There is no {model_type} model for the task {task.removeprefix('For')}.")
    return found


def _register(model_type: str, task: str, kind: Any, exist_ok: bool) -> None:
    """Let a class stand for a model type and a task.

    Raises:
        ValueError: for a type that is empty, or that has a class for the task already.
    """
    if not model_type:
        raise ValueError(f"The configuration of {kind.__name__} must name a model_type.")
    taken = _REGISTERED.get((model_type, task))
    if not exist_ok and (model_type in _FAMILIES or taken not in (None, kind)):
        raise ValueError(
            f"The model type {model_type!r} is taken; give the family another model_type, or pass "
            "exist_ok=True to use your class in its place."
        )
    _REGISTERED[model_type, task] = kind


def _check_kind(argument: str, given: Any, base: type) -> None:
    if not (isinstance(given, type) and issubclass(given, base)):
        raise TypeError(
            f"{argument} must be a class derived from fastbert's {base.__name__}, not {given!r}."
        )


def _stored_type(path: Any, hub: dict[str, Any]) -> str:
    values, _ = PreTrainedConfig.get_config_dict(path, **hub)
    stored = values.get("model_type") or ""
    if not isinstance(stored, str):
        raise ValueError(f"The config.json of {path} names the model type {stored!r}, not a text.")
    return stored


def _hub(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}


class AutoConfig:
    """The configuration of a checkpoint, whichever family it is of."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> Any:
        """Read config.json and build the class that its model_type names.

        Args:
            pretrained_model_name_or_path: a folder with config.json, such a file, or a hub id.
            **kwargs: as for PreTrainedConfig.from_pretrained.

        Raises:
            FileNotFoundError: for a path that does not exist or lacks config.json.
            ValueError: for a model type that fastbert does not have.
        """
        path = pretrained_model_name_or_path
        found = _class(_stored_type(path, _hub(kwargs)), "Config", path)
        return found.from_pretrained(path, **kwargs)

    @classmethod
    def for_model(cls, model_type: str, *args: Any, **kwargs: Any) -> Any:
        """Build the configuration of a model type from its fields."""
        return _class(model_type, "Config", "The configuration asked for")(*args, **kwargs)

    @staticmethod
    def register(model_type: str, config: type[PreTrainedConfig], exist_ok: bool = False) -> None:
        """Make the configuration of a family of your own known.

        Args:
            model_type: as in its config.json.
            config: the class, whose model_type is the same.
            exist_ok: whether it may take the place of another class.

        Raises:
            TypeError: for a class that is no configuration of fastbert's.
            ValueError: for another model_type than the class has, or one that is taken.
        """
        _check_kind("config", config, PreTrainedConfig)
        if config.model_type != model_type:
            raise ValueError(
                f"The model_type of {config.__name__} is {config.model_type!r}, not "
                f"{model_type!r}; pass the one that the class has."
            )
        _register(model_type, "Config", config, exist_ok)


class _AutoModel:
    """Base of the auto classes. Subclasses name the task."""

    task: ClassVar[str]

    def __init__(self) -> None:
        name = type(self).__name__
        raise TypeError(
            f"{name} is not built itself; use {name}.from_pretrained(path) or "
            f"{name}.from_config(config)."
        )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> Any:
        """Load a checkpoint as the class that its model type has for this task.

        Args:
            pretrained_model_name_or_path: a folder or a hub id.
            *args: those of that class's from_pretrained.
            **kwargs: likewise.

        Raises:
            ValueError: for a model type that fastbert does not have, or not for this task.
        """
        path, config = pretrained_model_name_or_path, kwargs.get("config")
        if isinstance(config, PreTrainedConfig) or of_transformers(config):
            model_type = str(getattr(config, "model_type", ""))
        else:
            model_type = _stored_type(path if config is None else config, _hub(kwargs))
        return _class(model_type, cls.task, path).from_pretrained(path, *args, **kwargs)

    @classmethod
    def register(
        cls,
        config_class: type[PreTrainedConfig],
        model_class: type[PreTrainedModel],
        exist_ok: bool = False,
    ) -> None:
        """Make a model of a family of your own known for this task.

        Args:
            config_class: its configuration.
            model_class: the class, whose config_class is the same.
            exist_ok: whether it may take the place of another class.

        Raises:
            TypeError: for classes that are not fastbert's.
            ValueError: for a model of another configuration, or a model type that is taken.
        """
        _check_kind("config_class", config_class, PreTrainedConfig)
        _check_kind("model_class", model_class, PreTrainedModel)
        if model_class.config_class is not config_class:
            raise ValueError(
                f"The config_class of {model_class.__name__} is "
                f"{model_class.config_class.__name__}, not {config_class.__name__}; pass the one "
                "that the model has."
            )
        _register(config_class.model_type, cls.task, model_class, exist_ok)

    @classmethod
    def class_for(cls, config: PreTrainedConfig) -> Any:
        """Return the class that a configuration's family has for this task."""
        return _class(config.model_type, cls.task, type(config).__name__)

    @classmethod
    def from_config(cls, config: PreTrainedConfig, **kwargs: Any) -> Any:
        """Build a model with random weights."""
        kind = cls.class_for(config)
        if of_transformers(config):
            config = kind.config_class.from_dict(config)
        return kind._from_config(config, **kwargs)


class AutoProcessor:
    """What makes a model's inputs: its processor, or its tokenizer where it reads texts alone."""

    def __init__(self) -> None:
        raise TypeError("AutoProcessor is used as AutoProcessor.from_pretrained(path).")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> Any:
        """Load the processor of a checkpoint.

        Args:
            pretrained_model_name_or_path: a folder or a hub id.
            **kwargs: those of that class's from_pretrained.

        Raises:
            FileNotFoundError: for a checkpoint that lacks a part.
        """
        path, hub = pretrained_model_name_or_path, _hub(kwargs)
        if stored_kind(path, **hub) == AlignProcessor.__name__:
            return AlignProcessor.from_pretrained(path, **kwargs)
        if _stored_type(path, hub) in _WITH_IMAGES:
            return AlignProcessor.from_pretrained(path, **kwargs)
        return AutoTokenizer.from_pretrained(path, **kwargs)


class AutoImageProcessor:
    """What makes pixel values of images."""

    def __init__(self) -> None:
        raise TypeError("AutoImageProcessor is used as AutoImageProcessor.from_pretrained(path).")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> EfficientNetImageProcessor:
        """Load the image processor of a checkpoint.

        Args:
            pretrained_model_name_or_path: a folder or a hub id.
            **kwargs: those of EfficientNetImageProcessor.from_pretrained.

        Raises:
            FileNotFoundError: for a checkpoint that has none.
            ValueError: for one of another kind.
        """
        path = pretrained_model_name_or_path
        found = EfficientNetImageProcessor.from_pretrained(path, **kwargs)
        named = str(getattr(found, "image_processor_type", "EfficientNet"))
        if not named.startswith("EfficientNet"):
            raise ValueError(
                f"The images of {path} are for a {named}, which fastbert does not have; it has "
                "EfficientNetImageProcessor, whose from_pretrained reads these settings all the "
                "same."
            )
        return found


class AutoModel(_AutoModel):
    """The encoder of a checkpoint, without a head."""

    task = "Model"


class AutoModelForPreTraining(_AutoModel):
    """The model a family is trained with: BertForPreTraining, and masked tokens elsewhere."""

    task = "ForPreTraining"


class AutoModelForMaskedLM(_AutoModel):
    """Masked tokens."""

    task = "ForMaskedLM"


class AutoModelForCausalLM(_AutoModel):
    """Next tokens."""

    task = "ForCausalLM"


class AutoModelForNextSentencePrediction(_AutoModel):
    """Whether a second text follows the first."""

    task = "ForNextSentencePrediction"


class AutoModelForSequenceClassification(_AutoModel):
    """Labels for whole texts."""

    task = "ForSequenceClassification"


class AutoModelForMultipleChoice(_AutoModel):
    """The best of several texts."""

    task = "ForMultipleChoice"


class AutoModelForTokenClassification(_AutoModel):
    """Labels for tokens."""

    task = "ForTokenClassification"


class AutoModelForQuestionAnswering(_AutoModel):
    """Both ends of an answer."""

    task = "ForQuestionAnswering"


class AutoModelForZeroShotImageClassification(_AutoModel):
    """How alike images and texts are."""

    task = "ForZeroShotImageClassification"
