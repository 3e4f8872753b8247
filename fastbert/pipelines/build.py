"""pipeline(task, model=...): the right class around a model and its tokenizer."""

from __future__ import annotations

import importlib
import os
from typing import Any

import torch

from fastbert.pipelines.base import Pipeline
from fastbert.pipelines.classification import TextClassification, ZeroShotClassification
from fastbert.pipelines.features import FeatureExtraction
from fastbert.pipelines.fill_mask import FillMask
from fastbert.pipelines.question_answering import QuestionAnswering
from fastbert.pipelines.token_classification import TokenClassification
from fastbert.runtime.devices import as_device

TASKS: dict[str, type[Pipeline]] = {
    kind.task: kind
    for kind in (
        FeatureExtraction,
        FillMask,
        QuestionAnswering,
        TextClassification,
        TokenClassification,
        ZeroShotClassification,
    )
}
_ALIASES = {"ner": "token-classification", "sentiment-analysis": "text-classification"}


def pipeline(
    task: str,
    model: str | os.PathLike[str] | Any = None,
    tokenizer: str | os.PathLike[str] | Any = None,
    *,
    config: Any = None,
    revision: str | None = None,
    token: str | bool | None = None,
    use_fast: bool = True,
    device: int | str | torch.device | None = None,
    device_map: Any = None,
    dtype: torch.dtype | str | None = None,
    torch_dtype: torch.dtype | str | None = None,
    framework: str = "pt",
    trust_remote_code: bool | None = None,
    backend: str = "auto",
    quantization: Any = None,
    model_kwargs: dict[str, Any] | None = None,
    **options: Any,
) -> Pipeline:
    """A callable that does a task with a model.

    Args:
        task: one of TASKS, or "ner", "sentiment-analysis".
        model: a checkpoint, or a fastbert model with the head that the task needs.
        tokenizer: a checkpoint or a tokenizer; the model's own checkpoint by default.
        config, revision, token: for reading `model` and `tokenizer`, where they are checkpoints.
        use_fast: prefer the Rust tokenizer.
        device: where to compute; an index means that CUDA device, -1 the CPU. device_map: the same.
        dtype, backend, quantization, model_kwargs: for the model's from_pretrained, where `model`
            is a checkpoint. torch_dtype is the older name of dtype.
        framework, trust_remote_code: accepted; "pt" is the only framework, and no code of a
            checkpoint is ever run.
        **options: defaults for the pipeline's own options.

    Raises:
        ValueError: for an unknown task, a model without checkpoint and no tokenizer, or a model
            with another head.
        TypeError: for an option that the pipeline does not have.
    """
    name = _ALIASES.get(task, task)
    if name not in TASKS:
        raise ValueError(f"There is no task {task!r}; choose one of {', '.join(sorted(TASKS))}.")
    if model is None:
        raise ValueError(
            f"pipeline({task!r}) needs model=, a checkpoint's folder or a fastbert model; there is "
            "no default one."
        )
    if framework != "pt":
        raise ValueError(f"framework is 'pt', not {framework!r}.")
    hub = {"revision": revision, "token": token}
    hub = {key: value for key, value in hub.items() if value is not None}
    kind = TASKS[name]
    source: Any = model
    if isinstance(model, (str, os.PathLike)):
        model = _auto(kind.auto_class).from_pretrained(
            model,
            config=config,
            dtype=torch_dtype if dtype is None else dtype,
            backend=backend,
            quantization=quantization,
            device_map=device_map,
            **hub,
            **(model_kwargs or {}),
        )
    elif not hasattr(model, "base_model"):
        raise ValueError(
            f"model= must be a checkpoint's folder or a fastbert model, not {type(model).__name__}."
        )
    if device is not None:
        model.to(as_device(device))
    if tokenizer is None:
        tokenizer = getattr(source, "name_or_path", source)
        if not tokenizer:
            raise ValueError("Pass tokenizer= too: this model was not loaded from a checkpoint.")
    if isinstance(tokenizer, (str, os.PathLike)):
        tokenizer = _auto("AutoTokenizer").from_pretrained(tokenizer, use_fast=use_fast, **hub)
    return kind(model.eval(), tokenizer, **options)


def _auto(name: str) -> Any:
    return getattr(importlib.import_module("fastbert.models.auto"), name)
