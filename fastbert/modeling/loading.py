"""From a checkpoint to a model, one tensor at a time."""

from __future__ import annotations

import copy
import inspect
import math
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from fastbert.checkpoints.files import HUB_OPTIONS, Checkpoint
from fastbert.generation.mixin import GenerationMixin
from fastbert.layers.linear import FLOAT32_BUFFERS, Int8Linear
from fastbert.modeling.config import PreTrainedConfig
from fastbert.modeling.quantization import as_quantization, fill, replace_linears
from fastbert.runtime.devices import as_device
from fastbert.runtime.plan import Traits

if TYPE_CHECKING:
    from fastbert.modeling.base import PreTrainedModel

Model = TypeVar("Model", bound="PreTrainedModel")

# Buffers that older checkpoints hold and that are computed here.
_COMPUTED = ("position_ids", "token_type_ids", "inv_freq", "original_inv_freq")
_OLD_NAMES = {"gamma": "weight", "beta": "bias"}


def as_dtype(value: torch.dtype | str | None) -> torch.dtype | None:
    """Return a torch dtype from itself or its name; None for None and "auto".

    Raises:
        ValueError: for anything else, and for dtypes that are not floating.
    """
    if value is None or value == "auto":
        return None
    dtype = getattr(torch, str(value).removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype is a floating dtype of torch or its name, not {value!r}.")
    return dtype


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


@dataclass
class Match:
    """Which stored tensor goes where.

    Attributes:
        sources: name in the model -> name in the checkpoint.
        unexpected: names in the checkpoint that the model has no place for.
        missing: names in the model that the checkpoint lacks.
        mismatched: (name in the model, stored shape, shape expected).
    """

    sources: dict[str, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)


def match_names(model: PreTrainedModel, checkpoint: Checkpoint) -> Match:
    """Pair the tensors of a checkpoint with those of a model.

    Names may lack the prefix of the encoder, or have it where the model is the encoder itself; old
    names of LayerNorm parameters are understood.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.named_tensors()}
    int8 = {n: module for n, module in model.named_modules() if isinstance(module, Int8Linear)}
    for name, module in int8.items():
        expected.setdefault(f"{name}.weight", (module.out_features, module.in_features))
    match = Match()
    for stored in checkpoint.files:
        if stored.rpartition(".")[2] in _COMPUTED:
            continue
        place = next((name for name in _places(model, stored) if name in expected), None)
        if place is None:
            match.unexpected.append(stored)
        elif not _fits(checkpoint.shape(stored), expected[place]):
            match.mismatched.append((place, checkpoint.shape(stored), expected[place]))
        else:
            match.sources[place] = stored
    for name in int8:
        if f"{name}.weight" in match.sources:
            for leaf in ("qweight", "weight_scale", "factor", "repeated"):
                expected.pop(f"{name}.{leaf}", None)
        else:
            expected.pop(f"{name}.weight")
    wrong = {name for name, _, _ in match.mismatched}
    match.missing = [name for name in expected if name not in match.sources and name not in wrong]
    return match


def _places(model: PreTrainedModel, stored: str) -> Iterator[str]:
    """Yield the names that a stored tensor may have in the model, the likeliest first."""
    prefix = f"{model.base_model_prefix}."
    for other in model.checkpoint_prefixes:
        if stored.startswith(other):
            stored = prefix + stored.removeprefix(other)
    head, _, leaf = stored.rpartition(".")
    names = [stored]
    # Only where the model has no parameter of the name itself, as an activation may.
    if head and leaf in _OLD_NAMES:
        names.append(f"{head}.{_OLD_NAMES[leaf]}")
    for name in names:
        yield from (name, prefix + name, name.removeprefix(prefix))


def _fits(stored: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Return whether shapes agree; a single number may be stored with or without a dimension."""
    return stored == expected or math.prod(stored) == math.prod(expected) == 1


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
    hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
    files = {name: kwargs.pop(name) for name in ("use_safetensors", "variant") if name in kwargs}
    device = _device(kwargs.pop("device", None), kwargs.pop("device_map", None))
    if "torch_dtype" in kwargs:
        dtype = kwargs.pop("torch_dtype") if dtype is None else dtype
    for name in ("low_cpu_mem_usage", "trust_remote_code"):
        kwargs.pop(name, None)
    model_kwargs = _model_kwargs(cls, kwargs)
    settings = _configuration(cls, path, config, kwargs, hub)
    if state_dict is not None:
        checkpoint = Checkpoint.from_state_dict(state_dict)
    elif path is not None:
        checkpoint = Checkpoint.open(path, **hub, **files)
    else:
        raise ValueError("from_pretrained needs a path, or config= together with state_dict=.")
    stored_int8 = as_quantization(getattr(settings, "quantization_config", None))
    wanted = as_quantization(quantization) or stored_int8
    precision = as_dtype(dtype) or _stored_dtype(checkpoint)
    with torch.device("meta"):
        model = cls(settings, *model_args, **model_kwargs)
    if wanted is not None:
        replace_linears(model)
        settings.quantization_config = wanted.to_dict()
    match = match_names(model, checkpoint)
    _fill_tied(model, match)
    _judge(model, match, checkpoint, ignore_mismatched_sizes, tolerate_missing)
    _fill(model, match, checkpoint, precision, device)
    _initialise_rest(model, match, precision, device)
    _tie(model, match)
    settings.dtype = precision
    settings.name_or_path = model.name_or_path = "" if path is None else str(path)
    _read_generation_config(model, path, hub)
    model.eval()
    report = {
        "missing_keys": set(match.missing),
        "unexpected_keys": set(match.unexpected),
        "mismatched_keys": set(match.mismatched),
        "error_msgs": [],
    }
    return model, report


def _device(device: Any, device_map: Any) -> torch.device:
    if device_map is None:
        return torch.device("cpu") if device is None else as_device(device)
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


def _model_kwargs(cls: type[PreTrainedModel], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Take out of kwargs what the class's constructor has a parameter for."""
    names = list(inspect.signature(cls.__init__).parameters)[2:]
    return {name: kwargs.pop(name) for name in names if name in kwargs}


def _configuration(
    cls: type[PreTrainedModel], path: Any, config: Any, kwargs: dict[str, Any], hub: dict[str, Any]
) -> Any:
    if isinstance(config, PreTrainedConfig):
        unknown = set(kwargs) - {"attn_implementation"}
        if unknown:
            raise TypeError(
                f"{cls.__name__}.from_pretrained has no argument {', '.join(sorted(unknown))}; "
                "values of a configuration that is given as an object are set on it directly."
            )
        return copy.deepcopy(config)
    source = path if config is None else config
    if source is None:
        raise ValueError("from_pretrained needs a path, or config= together with state_dict=.")
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


def _fill_tied(model: PreTrainedModel, match: Match) -> None:
    """Let each of two tied names serve for the other, where only one is stored.

    The bias of a vocabulary projection is served so even in untied models: transformers 4 ties it
    there too and stores it once.
    """
    pairs = dict(model.tied_weights())
    pairs.update((t, s) for t, s in model._tied_weights_keys.items() if t.endswith(".bias"))
    for target, source in pairs.items():
        for absent, present in ((target, source), (source, target)):
            if absent in match.missing and present in match.sources:
                match.sources[absent] = match.sources[present]
                match.missing.remove(absent)


def _judge(
    model: PreTrainedModel,
    match: Match,
    checkpoint: Checkpoint,
    ignore_sizes: bool,
    tolerate_missing: bool,
) -> None:
    """Raise for what would make a model compute nonsense; warn about what is to be trained."""
    if match.mismatched and not ignore_sizes:
        raise RuntimeError(
            f"{checkpoint.source} does not fit {type(model).__name__}. {_listing(match)} Pass "
            "ignore_mismatched_sizes=True to give mis-shaped parameters random weights instead."
        )
    ignored = model._keys_to_ignore_on_load_missing or ()
    match.missing = [n for n in match.missing if not any(part in n for part in ignored)]
    core = [name for name in match.missing if model.is_core(name)]
    if core and not tolerate_missing:
        raise ValueError(
            f"{checkpoint.source} lacks weights of the encoder, so {type(model).__name__} could "
            f"only compute noise. {_listing(match)}"
        )
    beyond = [name for name in match.unexpected if _of_a_layer(model, name)]
    if beyond:
        warnings.warn(
            f"{checkpoint.source} holds {len(beyond)} tensors of layers that this "
            f"{type(model).__name__} does not have, such as {min(beyond)}: they are left out. Its "
            "configuration may belong to another checkpoint.",
            stacklevel=4,
        )
    if match.missing:
        warnings.warn(
            f"{checkpoint.source} has no weights for {', '.join(sorted(match.missing))}: they are "
            f"random in this {type(model).__name__} and need training.",
            stacklevel=4,
        )


def _of_a_layer(model: PreTrainedModel, stored: str) -> bool:
    """Whether a tensor of a checkpoint would stand in one of the encoder's lists of parts."""
    name = stored.removeprefix(f"{model.base_model_prefix}.")
    lists = (n for n, m in model.base_model.named_modules() if isinstance(m, nn.ModuleList))
    return any(name.startswith(f"{path}.") for path in lists)


def _listing(match: Match) -> str:
    parts = []
    if match.mismatched:
        shapes = (f"{name} is {stored}, not {shape}" for name, stored, shape in match.mismatched)
        parts.append(f"Mis-shaped: {'; '.join(shapes)}.")
    if match.missing:
        parts.append(f"Missing: {', '.join(match.missing)}.")
    if match.unexpected:
        parts.append(f"Unexpected: {', '.join(match.unexpected)}.")
    return " ".join(parts)


def _fill(
    model: PreTrainedModel,
    match: Match,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    filled: dict[str, Tensor] = {}
    floating: dict[int, str] = {}
    uses = Counter(match.sources.values())
    tied = model.tied_weights()
    for name, stored in match.sources.items():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if stored in filled:
            _put(module, leaf, filled[stored] if name in tied else filled[stored].clone())
            continue
        if isinstance(module, Int8Linear) and leaf == "weight":
            floating[id(module)] = stored
            continue
        tensor = checkpoint.read(stored)
        if leaf in module._parameters and not tensor.is_floating_point():
            raise ValueError(
                f"{checkpoint.source} holds {stored} as {tensor.dtype}, but weights are floating; "
                "a model that another library has quantised cannot be read, its original can."
            )
        keep = not tensor.is_floating_point() or leaf in FLOAT32_BUFFERS
        tensor = tensor.to(device=device, dtype=tensor.dtype if keep else dtype)
        old = getattr(module, leaf)
        if tensor.dim() != old.dim():
            tensor = tensor.reshape(old.shape)
        _put(module, leaf, tensor)
        if uses[stored] > 1:
            filled[stored] = tensor

    def weight_of(part: Int8Linear) -> Tensor | None:
        stored = floating.get(id(part))
        return None if stored is None else checkpoint.read(stored).to(device)

    if floating:  # after all else, since norms have a say in it
        fill(model, weight_of)


def _put(module: nn.Module, leaf: str, tensor: Tensor) -> None:
    """Replace a parameter or buffer without copying."""
    if leaf in module._parameters:
        old = module._parameters[leaf]
        trained = old is not None and old.requires_grad
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=trained)
    else:
        module._buffers[leaf] = tensor


def _initialise_rest(
    model: PreTrainedModel, match: Match, dtype: torch.dtype, device: torch.device
) -> None:
    """Give random weights to what the checkpoint lacks, and leave all others alone."""
    for module in model.modules():
        held = {**module._parameters, **module._buffers}
        leaves = {leaf: tensor for leaf, tensor in held.items() if tensor is not None}
        empty = {leaf: tensor for leaf, tensor in leaves.items() if tensor.is_meta}
        vars(module)["_initialized"] = True
        if not empty:
            continue
        keep = {leaf: leaves[leaf].detach().clone() for leaf in leaves if leaf not in empty}
        for leaf, old in empty.items():
            kind = dtype if old.is_floating_point() and leaf not in FLOAT32_BUFFERS else old.dtype
            _put(module, leaf, torch.zeros(old.shape, dtype=kind, device=device))
        model._init_weights(module)
        with torch.no_grad():
            for leaf, tensor in keep.items():
                getattr(module, leaf).copy_(tensor)


def _tie(model: PreTrainedModel, match: Match) -> None:
    """Tie, unless both names are stored with different values: then the file is right."""
    state = dict(model.named_tensors())
    for target, source in model.tied_weights().items():
        stored = match.sources.get(target), match.sources.get(source)
        both = None not in stored and stored[0] != stored[1]
        if both and not torch.equal(state[target], state[source]):
            warnings.warn(
                f"{target} and {source} are stored with different values, so they stay two "
                "parameters; set tie_word_embeddings=False in config.json to say so.",
                stacklevel=4,
            )
            model.config.tie_word_embeddings = False
            return
    model.tie_weights()


def _read_generation_config(model: PreTrainedModel, path: Any, hub: dict[str, Any]) -> None:
    if path is not None and isinstance(model, GenerationMixin):
        model.generation_config = type(model.generation_config).from_checkpoint(
            path, model.config, **hub
        )
