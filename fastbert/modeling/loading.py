"""From a checkpoint to a model, one tensor at a time."""

from __future__ import annotations

import copy
import inspect
import os
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from fastbert.checkpoints import transaction
from fastbert.checkpoints.files import HUB_OPTIONS, Checkpoint, local_folder
from fastbert.generation.config import GenerationConfig, left_in
from fastbert.generation.mixin import GenerationMixin
from fastbert.layers.linear import FLOAT32_BUFFERS, Int8Linear
from fastbert.layers.unfilled import unfilled
from fastbert.modeling import filling, keywords, matching
from fastbert.modeling.config import PreTrainedConfig, of_transformers
from fastbert.modeling.quantization import as_quantization, replace_linears
from fastbert.runtime.devices import as_device
from fastbert.runtime.plan import Traits

if TYPE_CHECKING:
    from fastbert.modeling.base import PreTrainedModel

Model = TypeVar("Model", bound="PreTrainedModel")

_PRECISIONS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def as_dtype(value: torch.dtype | str | None) -> torch.dtype | None:
    """Return a torch dtype from itself or its name; None for None and "auto".

    Raises:
        ValueError: for anything else, and for dtypes that models are not computed in.
    """
    if value is None or value == "auto":
        return None
    dtype = getattr(torch, str(value).removeprefix("torch."), None)
    if dtype not in _PRECISIONS:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in _PRECISIONS)
        raise ValueError(f"dtype is one of {names} or its name, or 'auto', not {value!r}.")
    return cast(torch.dtype, dtype)


def traits_of(model: PreTrainedModel) -> Traits:
    """Read from an encoder's first layer what the choice of kernels depends on."""
    block = model.first_block()
    width = cast(nn.Embedding, model.get_input_embeddings()).embedding_dim
    if block is None:
        return Traits(embedding_size=width)
    return Traits(
        num_heads=block.num_heads,
        head_dim=block.head_dim,
        hidden_size=block.q.in_features,
        intermediate_size=block.up.out_features,
        embedding_size=width,
        activation=block.activation,
        quantized=isinstance(block.q, Int8Linear),
    )


def load(
    cls: type[Model],
    path: str | os.PathLike[str] | None,
    model_args: tuple[Any, ...],
    *,
    config: PreTrainedConfig | str | os.PathLike[str] | None,
    state_dict: Mapping[str, Tensor] | None,
    dtype: torch.dtype | str | None,
    quantization: Any,
    ignore_mismatched_sizes: bool,
    tolerate_missing: bool,
    **kwargs: Any,
) -> tuple[Model, dict[str, Any]]:
    """Do the work of PreTrainedModel.from_pretrained, which documents the arguments.

    Returns:
        The model, and the report that output_loading_info asks for.
    """
    keywords.settle(cls.__name__, kwargs)
    hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
    files = {name: kwargs.pop(name) for name in ("use_safetensors", "variant") if name in kwargs}
    device = _device(kwargs.pop("device", None), kwargs.pop("device_map", None))
    if "torch_dtype" in kwargs:
        dtype = kwargs.pop("torch_dtype") if dtype is None else dtype
    asked = as_dtype(dtype)
    quantization = as_quantization(quantization)
    model_kwargs = _model_kwargs(cls, kwargs)

    def read() -> tuple[Any, Checkpoint, GenerationConfig | None]:
        settings = _configuration(cls, path, config, kwargs, hub)
        if state_dict is not None:
            checkpoint = Checkpoint.from_state_dict(state_dict)
        else:
            checkpoint = Checkpoint.open(_given(path), **hub, **files)
        generation = None
        if path is not None and issubclass(cast(type[object], cls), GenerationMixin):
            generation = GenerationConfig.from_checkpoint(path, settings, **hub)
            for name in left_in(settings):
                delattr(settings, name)
        return settings, checkpoint, generation

    folder = local_folder(path, hub.get("subfolder", ""))
    if folder is not None:
        transaction.recover(folder)
    opened = read() if folder is None else transaction.steady(folder, read)
    settings, checkpoint, generation = opened
    wanted = quantization or as_quantization(getattr(settings, "quantization_config", None))
    precision = asked or as_dtype(settings.dtype) or _stored_dtype(checkpoint)
    _check_layers(settings, checkpoint)
    with unfilled():
        model = cls(settings, *model_args, **model_kwargs)
    if wanted is not None:
        replace_linears(model)
        settings.quantization_config = wanted.to_dict()
    match = matching.match_names(model, checkpoint)
    shared = matching.shared_names(model)
    matching.fill_tied(model, match, shared)
    matching.judge(model, match, checkpoint, ignore_mismatched_sizes, tolerate_missing)
    filling.fill(model, match, checkpoint, precision, device)
    checkpoint.check_unchanged()
    filling.complete(model, match, precision, device)
    filling.share(model, shared)
    filling.tie(model, match)
    settings.dtype = precision
    settings.name_or_path = model.name_or_path = "" if path is None else str(path)
    if generation is not None:
        cast(Any, model).generation_config = generation
    model.eval()
    report = {
        "missing_keys": set(match.missing),
        "unexpected_keys": set(match.unexpected),
        "mismatched_keys": set(match.mismatched),
        "error_msgs": [],
    }
    return model, report


def _given(source: Any) -> Any:
    if source is None:
        raise ValueError("from_pretrained needs a path, or config= together with state_dict=.")
    return source


def _device(device: Any, device_map: Any) -> torch.device:
    if device_map is None:
        return _default_device() if device is None else as_device(device)
    if isinstance(device_map, Mapping):
        places = set(device_map.values())
        if len(places) != 1:
            raise ValueError(
                "A model lives on one device here; device_map must name the same one throughout."
            )
        device_map = places.pop()
    if device_map in ("auto", "balanced", "sequential"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return as_device(device_map)


def _default_device() -> torch.device:
    """Return torch's default device; weights that are read need one that has memory."""
    device = torch.get_default_device()
    return torch.device("cpu") if device.type == "meta" else device


def _model_kwargs(cls: type[PreTrainedModel], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Take out of kwargs what the class's constructor has a parameter for."""
    names = list(inspect.signature(cls.__init__).parameters)[2:]
    return {name: kwargs.pop(name) for name in names if name in kwargs}


def _configuration(
    cls: type[PreTrainedModel], path: Any, config: Any, kwargs: dict[str, Any], hub: dict[str, Any]
) -> Any:
    if of_transformers(config):
        config = cls.config_class.from_dict(config)
    if isinstance(config, PreTrainedConfig):
        unknown = set(kwargs) - {"attn_implementation"}
        if unknown:
            raise TypeError(
                f"{cls.__name__}.from_pretrained has no argument {', '.join(sorted(unknown))}; "
                "values of a configuration that is given as an object are set on it directly."
            )
        return copy.deepcopy(config)
    source = _given(path if config is None else config)
    loaded, unused = cls.config_class.from_pretrained(
        source, return_unused_kwargs=True, **kwargs, **hub
    )
    if unused:
        raise TypeError(
            f"{cls.__name__}.from_pretrained has no argument {', '.join(sorted(unused))}, and "
            f"{type(loaded).__name__} has no value of that name."
        )
    return loaded


def _stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Return the precision of most floating elements, leaving the scales of int8 weights out."""
    counts: Counter[torch.dtype] = Counter()
    for name in checkpoint.files:
        dtype = checkpoint.dtype(name)
        if dtype.is_floating_point and name.rpartition(".")[2] not in FLOAT32_BUFFERS:
            counts[dtype] += torch.Size(checkpoint.shape(name)).numel()
    return counts.most_common(1)[0][0] if counts else torch.float32


def _check_layers(settings: Any, checkpoint: Checkpoint) -> None:
    """Refuse to build many more layers than there are tensors.

    Raises:
        ValueError: for a configuration that belongs to no checkpoint.
    """
    layers = getattr(settings, "num_hidden_layers", 0)
    if isinstance(layers, int) and layers > max(len(checkpoint.files), 1):
        raise ValueError(
            f"The configuration asks for {layers} layers, but {checkpoint.source} holds only "
            f"{len(checkpoint.files)} tensors; it belongs to another checkpoint or is damaged."
        )
