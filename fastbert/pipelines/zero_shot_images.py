"""Labels chosen at run time for images, each by how alike the image and a sentence are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fastbert.modeling.base import PreTrainedModel
from fastbert.pipelines.base import Pipeline
from fastbert.processors.efficientnet import EfficientNetImageProcessor
from fastbert.processors.images import is_image, opened
from fastbert.tokenizers.base import Tokenizer

# Images that are computed together; their maps, not their number, decide what that costs.
_IMAGES = 8


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

    def __call__(self, inputs: Any, candidate_labels: Any = None, **options: Any) -> Any:
        """Answer as Pipeline does; the labels may be the second argument.

        Args:
            inputs: an image of Pillow, the path of one, a list of these, or a stream of them.
            candidate_labels: see answer.
            **options: see answer.
        """
        if candidate_labels is not None:
            options["candidate_labels"] = candidate_labels
        # An array has rows, and an image may be iterated; neither is a stream of images.
        if not isinstance(inputs, (list, tuple)) and is_image(inputs):
            return super().__call__([inputs], **options)[0]
        return super().__call__(inputs, **options)

    def answer(
        self,
        items: list[Any],
        candidate_labels: Sequence[str] | None = None,
        hypothesis_template: str = "This is a photo of {}.",
    ) -> list[Any]:
        """Score labels by how alike the image and a sentence about them are.

        Args:
            items: images of Pillow, or the paths of some.
            candidate_labels: at least one label, or one text with commas between labels.
            hypothesis_template: the sentence that a label is put into, at "{}".

        Returns:
            A list of {"score", "label"} for every image, the best label first.

        Raises:
            ValueError: for no labels, or a template without "{}".
            TypeError: for something else than an image.
        """
        labels: list[str] = (
            [one.strip() for one in candidate_labels.split(",") if one.strip()]
            if isinstance(candidate_labels, str)
            else list(candidate_labels or [])
        )
        if not labels:
            raise ValueError(f"{self.task} needs at least one label: candidate_labels=[...].")
        sentences = [hypothesis_template.format(label) for label in self.texts(labels)]
        if hypothesis_template.format("") == hypothesis_template:
            raise ValueError(
                f"The hypothesis_template {hypothesis_template!r} has no place for the label; put "
                "{} into it."
            )
        if not items:
            return []
        model: Any = self.model
        encoded = self.tokenize(sentences, padding=True, return_tensors="pt").to(self.device)
        texts = _unit(model.get_text_features(**encoded).pooler_output)
        answers: list[Any] = []
        size = min(self._batch_size or _IMAGES, _IMAGES)
        for start in range(0, len(items), size):
            upright = [opened(item) for item in items[start : start + size]]
            pixels = self.image_processor(upright, return_tensors="pt")["pixel_values"]
            images = _unit(model.get_image_features(pixels).pooler_output)
            scores = (images @ texts.t() / model.temperature).float().softmax(-1)
            for row in scores.tolist():
                pairs = sorted(zip(row, labels, strict=True), key=lambda pair: -pair[0])
                answers.append([{"score": score, "label": label} for score, label in pairs])
        return answers


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    lengths: torch.Tensor = vectors.norm(p=2, dim=-1, keepdim=True)
    return vectors / lengths
