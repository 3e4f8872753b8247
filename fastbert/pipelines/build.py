"""The function pipeline(task, model=...), which puts a task's class around a model."""

from __future__ import annotations

import os
from typing import Any, Literal, overload

import torch

from fastbert.modeling.base import PreTrainedModel
from fastbert.modeling.config import PreTrainedConfig
from fastbert.models import auto
from fastbert.pipelines.base import Pipeline
from fastbert.pipelines.classification import TextClassification, ZeroShotClassification
from fastbert.pipelines.features import FeatureExtraction
from fastbert.pipelines.fill_mask import FillMask
from fastbert.pipelines.question_answering import QuestionAnswering
from fastbert.pipelines.text_generation import TextGeneration
from fastbert.pipelines.token_classification import TokenClassification
from fastbert.pipelines.zero_shot_images import ZeroShotImageClassification
from fastbert.processors.align import AlignProcessor
from fastbert.processors.efficientnet import EfficientNetImageProcessor
from fastbert.runtime.devices import as_device
from fastbert.tokenizers.base import Tokenizer

TASKS: dict[str, type[Pipeline]] = {
    pipeline_class.task: pipeline_class
    for pipeline_class in (
        FeatureExtraction,
        FillMask,
        QuestionAnswering,
        TextClassification,
        TextGeneration,
        TokenClassification,
        ZeroShotClassification,
        ZeroShotImageClassification,
    )
}
_ALIASES = {"ner": "token-classification", "sentiment-analysis": "text-classification"}


ModelSource = str | os.PathLike[str] | PreTrainedModel | None
TokenizerSource = str | os.PathLike[str] | Tokenizer | None
ImageSource = str | os.PathLike[str] | EfficientNetImageProcessor | None


@overload
def pipeline(
    task: Literal["feature-extraction"],
    model: ModelSource = None,
    tokenizer: TokenizerSource = None,
    **options: Any,
) -> FeatureExtraction: ...


@overload
def pipeline(
    task: Literal["fill-mask"],
    model: ModelSource = None,
    tokenizer: TokenizerSource = None,
    **options: Any,
) -> FillMask: ...


@overload
def pipeline(
    task: Literal["question-answering"],
    model: ModelSource = None,
    tokenizer: TokenizerSource = None,
    **options: Any,
) -> QuestionAnswering: ...


@overload
def pipeline(
    task: Literal["text-classification", "sentiment-analysis"],
    model: ModelSource = None,
    tokenizer: TokenizerSource = None,
    **options: Any,
) -> TextClassification: ...


@overload
def pipeline(
    task: Literal["text-generation"],
    model: ModelSource = None,
    tokenizer: TokenizerSource = None,
    **options: Any,
) -> TextGeneration: ...


@overload
def pipeline(
    task: Literal["token-classification", "ner"],
    model: ModelSource = None,
    tokenizer: TokenizerSource = None,
    **options: Any,
) -> TokenClassification: ...


@overload
def pipeline(
    task: Literal["zero-shot-classification"],
    model: ModelSource = None,
    tokenizer: TokenizerSource = None,
    **options: Any,
) -> ZeroShotClassification: ...


@overload
def pipeline(
    task: Literal["zero-shot-image-classification"],
    model: ModelSource = None,
    tokenizer: TokenizerSource = None,
    **options: Any,
) -> ZeroShotImageClassification: ...


@overload
def pipeline(
    task: str, model: ModelSource = None, tokenizer: TokenizerSource = None, **options: Any
) -> Pipeline: ...


def pipeline(
    task: str,
    model: ModelSource = None,
    tokenizer: TokenizerSource = None,
    *,
    image_processor: ImageSource = None,
    processor: AlignProcessor | str | os.PathLike[str] | None = None,
    config: PreTrainedConfig | str | os.PathLike[str] | None = None,
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
    """Build the pipeline of a task around a model and its tokenizer.

    Args:
        task: one of TASKS, or "ner", "sentiment-analysis".
        model: a checkpoint, or a fastbert model with the head that the task needs.
        tokenizer: a checkpoint or a tokenizer; the model's own checkpoint by default.
        image_processor: a checkpoint or an image processor, for tasks with images; the model's own
            checkpoint by default.
        processor: tokenizer and image processor in one, or a checkpoint of them, for tasks with
            images; what is given beside it comes first.
        config: the model's configuration, where `model` is a checkpoint.
        revision: branch, tag or commit of the checkpoints, where they are on the hub.
        token: access token of the hub.
        use_fast: prefer the Rust tokenizer.
        device: where to compute; an index means that CUDA device, -1 the CPU.
        device_map: where to load the model, where `model` is a checkpoint.
        dtype: precision of the weights, where `model` is a checkpoint.
        torch_dtype: the older name of dtype.
        framework: "pt", the only one.
        trust_remote_code: accepted without effect: no code of a checkpoint is ever run.
        backend: see the model's from_pretrained; where `model` is a checkpoint.
        quantization: likewise.
        model_kwargs: further arguments of the model's from_pretrained.
        **options: defaults for the pipeline's own options.

    Returns:
        The pipeline; its class is the one of the task.

    Raises:
        ValueError: for an unknown task, a model without checkpoint and no tokenizer, or a model
            with another head.
        TypeError: for an option that the pipeline does not have, or one in model_kwargs that is
            given as an argument too.
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
    pipeline_class = TASKS[name]
    loaded: Any = model
    if isinstance(model, (str, os.PathLike)):
        loading = {
            "config": config,
            "dtype": torch_dtype if dtype is None else dtype,
            "backend": backend,
            "quantization": quantization,
            "device_map": device_map,
            **hub,
        }
        loaded = getattr(auto, pipeline_class.auto_class).from_pretrained(
            model, **_with_more(loading, model_kwargs or {})
        )
    elif not hasattr(model, "base_model"):
        raise ValueError(
            f"model= must be a checkpoint's folder or a fastbert model, not {type(model).__name__}."
        )
    if device is not None:
        loaded.to(as_device(device))
    if issubclass(pipeline_class, ZeroShotImageClassification):
        if isinstance(processor, (str, os.PathLike)):
            processor = AlignProcessor.from_pretrained(processor, **hub)
        if processor is not None:
            tokenizer = processor.tokenizer if tokenizer is None else tokenizer
            image_processor = image_processor or processor.image_processor
        found = _source(model, "image_processor") if image_processor is None else image_processor
        if isinstance(found, (str, os.PathLike)):
            found = EfficientNetImageProcessor.from_pretrained(found, **hub)
        options["image_processor"] = found
    elif image_processor is not None or processor is not None:
        raise TypeError(f"{name} takes no images, and so no image_processor and no processor.")
    if tokenizer is None:
        tokenizer = _source(model, "tokenizer")
    if isinstance(tokenizer, (str, os.PathLike)):
        tokenizer = auto.AutoTokenizer.from_pretrained(tokenizer, use_fast=use_fast, **hub)
    return pipeline_class(loaded.eval(), tokenizer, **options)


def _with_more(loading: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of from_pretrained, with what model_kwargs say besides.

    Raises:
        TypeError: for one that is given twice, and not alike.
    """
    further = {"dtype" if name == "torch_dtype" else name: v for name, v in more.items()}
    for name, value in further.items():
        given = loading.get(name)
        if given is not None and (name, given) != ("backend", "auto") and given != value:
            raise TypeError(
                f"pipeline got {name}={given!r}, and {name}={value!r} in model_kwargs; give one of "
                "the two."
            )
    return {**loading, **further}


def _source(model: Any, part: str) -> str | os.PathLike[str]:
    """Return where a model came from.

    Raises:
        ValueError: where it was not loaded from a checkpoint.
    """
    source: str | os.PathLike[str] = getattr(model, "name_or_path", model)
    if not source:
        raise ValueError(f"Pass {part}= too: this model was not loaded from a checkpoint.")
    return source
