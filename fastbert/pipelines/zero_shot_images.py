"""Labels chosen at run time for images, each by how alike the image and a sentence are."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fastbert.modeling.base import PreTrainedModel
from fastbert.pipelines.base import Pipeline
from fastbert.processors.efficientnet import EfficientNetImageProcessor
from fastbert.processors.images import is_image, opened
from fastbert.tokenizers.base import Tokenizer

# Images that are computed together; their maps, not their number, decide what that costs.
_IMAGES = 8
_ARRAYS = (np.ndarray, torch.Tensor)


class ZeroShotImageClassification(Pipeline):
    """Labels chosen at run time, each scored by how alike the image and a sentence about it are.

    Args:
        model: a model of texts and images.
        tokenizer: the model's.
        image_processor: the model's.
        **options: as for Pipeline.
    """

    task = "zero-shot-image-classification"
    auto_class = "AutoModelForZeroShotImageClassification"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        image_processor: EfficientNetImageProcessor | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, tokenizer, **options)
        if not isinstance(image_processor, EfficientNetImageProcessor):
            raise TypeError(
                f"{self.task} needs image_processor=, an EfficientNetImageProcessor, not a "
                f"{type(image_processor).__name__}."
            )
        self.image_processor = image_processor

    def __call__(
        self, inputs: Any = None, candidate_labels: Any = None, *, image: Any = None, **options: Any
    ) -> Any:
        """Answer as Pipeline does; the labels may be the second argument.

        Args:
            inputs: an image of Pillow, the path of one, its text in base 64, an array of pixels, a
                list of these, or a stream of them.
            candidate_labels: see answer.
            image: another name of inputs.
            **options: see answer.

        Raises:
            TypeError: for no images, or the same under both names.
        """
        if (inputs is None) == (image is None):
            raise TypeError(f"{self.task} takes an image, or several, as its first argument.")
        inputs = image if inputs is None else inputs
        if candidate_labels is not None:
            options["candidate_labels"] = candidate_labels
        # An array has rows, and an image or a file may be iterated; none is a stream of images.
        if is_image(inputs) or isinstance(inputs, io.IOBase):
            return super().__call__([inputs], **options)[0]
        return super().__call__(inputs, **options)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write model, tokenizer and image processor into a folder; see Pipeline."""
        super().save_pretrained(save_directory)
        self.image_processor.save_pretrained(save_directory)

    @property
    def longest(self) -> int:
        """The most tokens of one text; see Pipeline."""
        model: Any = self.model
        return int(min(self.tokenizer.model_max_length, model.text_model.longest()))

    def answer(
        self,
        items: list[Any],
        candidate_labels: Sequence[str] | None = None,
        hypothesis_template: str = "This is a photo of {}.",
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> list[Any]:
        """Score labels by how alike the image and a sentence about them are.

        Args:
            items: images of Pillow, the paths or texts of some, or arrays of pixels.
            candidate_labels: at least one label, or one text with commas between labels.
            hypothesis_template: the sentence that a label is put into, at "{}".
            tokenizer_kwargs: options of the tokenizer for those sentences.
            timeout: accepted without effect: no image is ever fetched.

        Returns:
            A list of {"score", "label"} for every image, the best label first.

        Raises:
            ValueError: for no labels, or a template without "{}".
            TypeError: for something else than an image.
        """
        labels: list[str] = (
            [one.strip() for one in candidate_labels.split(",") if one.strip()]
            if isinstance(candidate_labels, str)
            else list(() if candidate_labels is None else candidate_labels)
        )
        if not labels:
            raise ValueError(f"{self.task} needs at least one label: candidate_labels=[...].")
        sentences = _sentences(self.texts(labels), hypothesis_template)
        if not items:
            return []
        model: Any = self.model
        asked = {"padding": True, **(tokenizer_kwargs or {})}
        encoded = self.tokenize(sentences, **asked).convert_to_tensors("pt").to(self.device)
        texts = _unit(model.get_text_features(**encoded).pooler_output)
        answers: list[Any] = []
        size = min(self._batch_size or _IMAGES, _IMAGES)
        for start in range(0, len(items), size):
            upright = [
                item if isinstance(item, _ARRAYS) else opened(item)
                for item in items[start : start + size]
            ]
            pixels = self.image_processor(upright, return_tensors="pt")["pixel_values"]
            images = _unit(model.get_image_features(pixels).pooler_output)
            scores = (images @ texts.t() / model.temperature).float().softmax(-1)
            for row in scores.tolist():
                pairs = sorted(zip(row, labels, strict=True), key=lambda pair: -pair[0])
                answers.append([{"score": score, "label": label} for score, label in pairs])
        return answers


def _sentences(labels: list[str], template: Any) -> list[str]:
    """Put every label into the sentence about it.

    Raises:
        ValueError: for a template that has no place for a label, or another one.
    """
    try:
        sentences = [template.format(label) for label in labels]
        if template.format("") != template:
            return sentences
    except (AttributeError, IndexError, KeyError, ValueError):
        pass
    raise ValueError(
        f"The hypothesis_template {template!r} has no place for the label, or places for more than "
        "that; put {} into it once."
    )


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    lengths: torch.Tensor = vectors.norm(p=2, dim=-1, keepdim=True)
    return vectors / lengths
