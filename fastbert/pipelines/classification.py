"""The tasks text-classification, and zero-shot-classification with a model of entailment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from fastbert.pipelines.base import Pipeline, check_limit
from fastbert.tokenizers.batch_encoding import BatchEncoding

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "softmax": lambda scores: scores.softmax(-1),
    "none": lambda scores: scores,
}


class TextClassification(Pipeline):
    """Labels of texts or of pairs of texts."""

    task = "text-classification"
    auto_class = "AutoModelForSequenceClassification"
    open_options = True

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Answer as Pipeline does; one text without top_k gives a list of its one label."""
        answer = super().__call__(inputs, **options)
        return [answer] if isinstance(inputs, str) and "top_k" not in options else answer

    def answer(
        self,
        items: list[Any],
        top_k: int | str | None = "",
        function_to_apply: str | None = None,
        **tokenizer_kwargs: Any,
    ) -> list[Any]:
        """Score the labels of every text or pair of texts.

        Args:
            items: texts, or pairs as {"text": ..., "text_pair": ...} or [text, other].
            top_k: how many labels; None for all.
            function_to_apply: "sigmoid", "softmax" or "none"; by default what the configuration's
                problem_type and number of labels ask for.
            **tokenizer_kwargs: for the tokenizer, such as truncation=True.

        Returns:
            {"label", "score"} for every item; with top_k a list of them, the best first.

        Raises:
            TypeError: for an item that is neither a text nor a pair.
            ValueError: for an unknown function_to_apply, or a top_k that is no number of labels.
        """
        one = isinstance(top_k, str) and not top_k
        if not one and top_k is not None:
            check_limit("top_k", top_k)
        rows = [self._row(item, tokenizer_kwargs) for item in items]
        name = function_to_apply or self._function()
        apply = _FUNCTIONS.get(name.lower()) if isinstance(name, str) else None
        if apply is None:
            raise ValueError(
                f"function_to_apply is {', '.join(_FUNCTIONS)} or None, not {function_to_apply!r}."
            )
        answers: list[Any] = []
        for logits in self.text_outputs(rows, "logits"):
            scores = apply(logits).tolist()
            ranked = sorted(range(len(scores)), key=lambda index: -scores[index])
            labels = [{"label": self.labels[index], "score": scores[index]} for index in ranked]
            answers.append(labels[0] if one else labels[: cast("int | None", top_k)])
        return answers

    def _function(self) -> str:
        """Name the function that turns this model's logits into scores."""
        config = self.model.config
        if config.problem_type == "regression":
            return "none"
        if config.problem_type == "multi_label_classification" or config.num_labels == 1:
            return "sigmoid"
        return "softmax"

    def _row(self, item: Any, arguments: dict[str, Any]) -> BatchEncoding:
        """Tokenise one text or pair of texts."""
        return self.tokenize(*_pair(item), **arguments)


def _pair(item: Any) -> tuple[str, ...]:
    """Return a text, or a text and its other one."""
    parts: tuple[Any, ...] = (item,)
    if isinstance(item, Mapping):
        if not {"text"} <= set(item) <= {"text", "text_pair"}:
            raise TypeError(
                'text-classification reads {"text": ..., "text_pair": ...}, but this input has '
                f"{', '.join(map(repr, item)) or 'no keys'}; pass these two, or the text alone."
            )
        parts = (item["text"],)
        if item.get("text_pair") is not None:
            parts = (item["text"], item["text_pair"])
    elif isinstance(item, (list, tuple)) and len(item) == 2:
        parts = tuple(item)
    elif isinstance(item, list) and len(item) == 1 and isinstance(item[0], list):
        # The oldest form of a pair in transformers.
        parts = tuple(item[0]) if len(item[0]) == 2 else (item,)
    for part in parts:
        if not isinstance(part, str):
            raise TypeError(
                'text-classification takes texts, or pairs as {"text": ..., "text_pair": ...}, not '
                f"{type(part).__name__}."
            )
    return parts


class ZeroShotClassification(Pipeline):
    """Labels chosen at run time, each scored by whether the text entails a sentence about it."""

    task = "zero-shot-classification"
    auto_class = "AutoModelForSequenceClassification"

    def __call__(self, inputs: Any, candidate_labels: Any = None, **options: Any) -> Any:
        """Answer as Pipeline does; the labels may be the second argument."""
        if candidate_labels is not None:
            options["candidate_labels"] = candidate_labels
        return super().__call__(inputs, **options)

    def answer(
        self,
        items: list[Any],
        candidate_labels: str | Iterable[str] | None = None,
        hypothesis_template: str = "This example is {}.",
        multi_label: bool = False,
    ) -> list[Any]:
        """Score labels by whether the text entails a sentence about them.

        Args:
            items: texts; cut where text and hypothesis together are too long.
            candidate_labels: a list, array or column of labels, or one text with commas between
                them.
            hypothesis_template: the sentence that a label is put into, at "{}".
            multi_label: score every label by itself, entailment against contradiction.

        Returns:
            {"sequence", "labels", "scores"} for every text, the best label first.

        Raises:
            TypeError: for labels that cannot be listed, or a template that is no text.
            ValueError: for no labels, a template without "{}", or a model whose labels name no
                entailment.
        """
        labels = _labels(candidate_labels)
        if not isinstance(hypothesis_template, str):
            raise TypeError(
                "hypothesis_template is a text with {} for the label, not "
                f"{type(hypothesis_template).__name__}; leave it out for the usual one."
            )
        if hypothesis_template.format(labels[0]) == hypothesis_template:
            raise ValueError(
                f"The hypothesis_template {hypothesis_template!r} has no place for the label; put "
                "{} into it."
            )
        entailment = self._entailment()
        if not items:
            return []
        encoded = self.tokenize(
            [text for text in self.texts(items) for _ in labels],
            [hypothesis_template.format(label) for _ in items for label in labels],
            truncation="only_first",
        )
        logits = torch.stack(self.text_outputs(self.rows(encoded), "logits"))
        logits = logits.reshape(len(items), len(labels), -1)
        if multi_label or len(labels) == 1:
            contradiction = -1 if entailment == 0 else 0
            scores = logits[..., [contradiction, entailment]].softmax(-1)[..., 1]
        else:
            scores = logits[..., entailment].softmax(-1)
        answers = []
        for text, row in zip(items, scores.numpy(), strict=True):
            order = np.argsort(row)[::-1]
            answers.append(
                {
                    "sequence": text,
                    "labels": [labels[index] for index in order],
                    "scores": row[order].tolist(),
                }
            )
        return answers

    def _entailment(self) -> int:
        """Find the index of the label that stands for entailment."""
        indices = self.model.config.label2id or {}
        for label, index in indices.items():
            if label.lower().startswith("entail"):
                return int(index)
        known = ", ".join(map(repr, indices))
        raise ValueError(
            "zero-shot-classification needs a model of entailment: one label of its configuration "
            f"must begin with 'entail', but it has {known}."
        )


def _labels(given: str | Iterable[str] | None) -> list[str]:
    """List the labels to choose from.

    Raises:
        TypeError: for what holds no labels.
        ValueError: for no labels.
    """
    if isinstance(given, str):
        given = [label.strip() for label in given.split(",") if label.strip()]
    # An iterator would be empty for the second lot of a stream of texts.
    if given is not None and (not isinstance(given, Iterable) or isinstance(given, Iterator)):
        raise TypeError(
            "candidate_labels is a list of labels, or a text with commas between them, not "
            f"{type(given).__name__}."
        )
    labels = [] if given is None else list(given)
    if not labels:
        raise ValueError("zero-shot-classification needs at least one label to choose from.")
    return labels
