"""ALIGN's processor: images by one part of it, texts by the other."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any, ClassVar, Self

from fastbert.checkpoints.files import HUB_OPTIONS, resolve_file
from fastbert.checkpoints.storage import json_text, read_json, write_text
from fastbert.processors.efficientnet import (
    IMAGE_FILE,
    PROCESSOR_FILE,
    WITHOUT_MEANING,
    EfficientNetImageProcessor,
)
from fastbert.tokenizers.auto import AutoTokenizer
from fastbert.tokenizers.base import Tokenizer
from fastbert.tokenizers.batch_encoding import BatchEncoding

_TEXT_DEFAULTS = {"padding": "max_length", "max_length": 64}
_IMAGE_OPTIONS = (
    *EfficientNetImageProcessor.DEFAULTS,
    *WITHOUT_MEANING,
    *("do_convert_rgb", "input_data_format"),
)
# Of other processors: transformers' have them all, and only None fits here.
_ABSENT = ("videos", "audio")


class AlignProcessor:
    """An image processor and a tokenizer.

    Args:
        image_processor: for images.
        tokenizer: for texts.
    """

    attributes: ClassVar[list[str]] = ["image_processor", "tokenizer"]

    def __init__(self, image_processor: EfficientNetImageProcessor, tokenizer: Tokenizer) -> None:
        if not isinstance(image_processor, EfficientNetImageProcessor):
            raise TypeError(
                "image_processor is an EfficientNetImageProcessor, not a "
                f"{type(image_processor).__name__}."
            )
        if not isinstance(tokenizer, Tokenizer):
            raise TypeError(
                f"tokenizer is one of fastbert's, not a {type(tokenizer).__name__}; load it with "
                "fastbert.AutoTokenizer."
            )
        self.image_processor = image_processor
        self.tokenizer = tokenizer

    @property
    def model_input_names(self) -> list[str]:
        """The names of what a call returns for texts and images."""
        return [*self.image_processor.model_input_names, *self.tokenizer.model_input_names]

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        *,
        text_kwargs: dict[str, Any] | None = None,
        images_kwargs: dict[str, Any] | None = None,
        common_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> BatchEncoding:
        """Make inputs of the model out of images, texts or both.

        Args:
            images: see EfficientNetImageProcessor.
            text: a text or a list of texts. They are padded to 64 tokens, and not cut, unless
                padding, max_length or truncation say otherwise.
            text_kwargs: options for the tokenizer alone.
            images_kwargs: options for the image processor alone.
            common_kwargs: options of both, return_tensors.
            **options: return_tensors, and options of either.

        Returns:
            What the tokenizer returns, and pixel_values.

        Raises:
            ValueError: for neither images nor texts.
            TypeError: for an option that neither has.
        """
        if images is None and text is None:
            raise ValueError("You need to provide at least one input to call AlignProcessor.")
        options = {**(common_kwargs or {}), **options}
        tensors = options.pop("return_tensors", None)
        shared = {} if tensors is None else {"return_tensors": tensors}
        for_images = {name: options.pop(name) for name in _IMAGE_OPTIONS if name in options}
        for name in _ABSENT:
            if options.get(name, 0) is None:
                del options[name]
        known = inspect.signature(self.tokenizer.__call__).parameters
        unknown = [name for name in (*options, *(text_kwargs or {})) if name not in known]
        if unknown:
            raise TypeError(
                f"AlignProcessor has no option {', '.join(unknown)}; it has those of its tokenizer "
                "and of its image processor."
            )
        data: dict[str, Any] = {}
        encodings = None
        if text is not None:
            given = {**_TEXT_DEFAULTS, **shared, **options, **(text_kwargs or {})}
            chosen = {*options, *(text_kwargs or {})}
            if given["padding"] != "max_length" and not chosen & {"max_length", "truncation"}:
                del given["max_length"]  # it would mean nothing
            encoded = self.tokenizer(text, **given)
            data.update(encoded)
            encodings = encoded.encodings
        if images is not None:
            given = {**shared, **for_images, **(images_kwargs or {})}
            data.update(self.image_processor(images, **given))
        return BatchEncoding(data, encodings)

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """Decode as the tokenizer does."""
        return self.tokenizer.decode(*args, **kwargs)

    def batch_decode(self, *args: Any, **kwargs: Any) -> Any:
        """Decode as the tokenizer does."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> Self:
        """Read both parts of a checkpoint.

        Args:
            pretrained_model_name_or_path: a folder or a hub id.
            **kwargs: where to look, as for a model.

        Raises:
            FileNotFoundError: for a checkpoint that lacks a part.
            TypeError: for another argument.
        """
        hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        kwargs.pop("use_fast", None)
        if kwargs:
            raise TypeError(
                f"{cls.__name__}.from_pretrained has no argument {', '.join(sorted(kwargs))}; set "
                "what its image_processor or tokenizer shall have on those."
            )
        path = pretrained_model_name_or_path
        images = EfficientNetImageProcessor.from_pretrained(path, **hub)
        return cls(images, AutoTokenizer.from_pretrained(path, **hub))

    def to_dict(self) -> dict[str, Any]:
        """Return what processor_config.json holds: all but the tokenizer."""
        return {
            "image_processor": self.image_processor.to_dict(),
            "processor_class": type(self).__name__,
        }

    def to_json_string(self) -> str:
        """Return to_dict() as the text of a file."""
        return json_text(self.to_dict())

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}, {self.tokenizer!r}"

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> list[str]:
        """Write both parts into a folder, which is made when it is not there.

        Returns:
            The paths of the files.
        """
        files = [str(file) for file in self.tokenizer.save_pretrained(save_directory)]
        file = Path(save_directory) / PROCESSOR_FILE
        write_text(file, self.to_json_string())
        return [*files, str(file)]


def stored_kind(path: str | os.PathLike[str], **hub: Any) -> str | None:
    """Return the class of processor that a checkpoint's files name, None where they name none.

    Args:
        path: a folder or a hub id.
        **hub: where to look, as for a model.
    """
    for name in (PROCESSOR_FILE, IMAGE_FILE):
        file = resolve_file(path, name, optional=True, **hub)
        found = None if file is None else read_json(file, dict).get("processor_class")
        if isinstance(found, str):
            return found
    return None
