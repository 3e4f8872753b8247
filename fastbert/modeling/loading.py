"""From a checkpoint to a model, one tensor at a time."""

from __future__ import annotations

import copy
import inspect
import os
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from fastbert.checkpoints import transaction
from fastbert.checkpoints.files import HUB_OPTIONS, Checkpoint, local_folder
from fastbert.generation.config import GenerationConfig
from fastbert.generation.mixin import GenerationMixin
from fastbert.layers.linear import FLOAT32_BUFFERS, INT8_DTYPES, Int8Linear, as_int8_part
from fastbert.layers.unfilled import unfilled
from fastbert.modeling import keywords
from fastbert.modeling.config import PreTrainedConfig
from fastbert.modeling.quantization import as_quantization, fill, replace_linears
from fastbert.runtime.devices import as_device
from fastbert.runtime.plan import Traits

if TYPE_CHECKING:
    from fastbert.modeling.base import PreTrainedModel

Model = TypeVar("Model", bound="PreTrainedModel")

# Buffers that older checkpoints hold and that are computed here.
_COMPUTED = ("position_ids", "token_type_ids")
_PRECISIONS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_OLD_NAMES = {"gamma": "weight", "beta": "bias"}


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
    unsaved = _unsaved_buffers(model)
    expected = {
        name: tuple(tensor.shape) for name, tensor in model.named_tensors() if name not in unsaved
    }
    int8 = {n: module for n, module in model.named_modules() if isinstance(module, Int8Linear)}
    for name, module in int8.items():
        expected.setdefault(f"{name}.weight", (module.out_features, module.in_features))
    prefix = f"{model.base_model_prefix}."
    match = Match()
    for stored in checkpoint.files:
        head, _, leaf = stored.rpartition(".")
        name = f"{head}.{_OLD_NAMES[leaf]}" if head and leaf in _OLD_NAMES else stored
        if leaf in _COMPUTED:
            continue
        candidates = (name, prefix + name, name.removeprefix(prefix))
        place = next((candidate for candidate in candidates if candidate in expected), None)
        if place is None:
            match.unexpected.append(stored)
        elif checkpoint.shape(stored) != expected[place]:
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
        elif path is not None:
            checkpoint = Checkpoint.open(path, **hub, **files)
        else:
            raise ValueError("from_pretrained needs a path, or config= together with state_dict=.")
        generates = path is not None and issubclass(cls, GenerationMixin)
        generation = (
            GenerationConfig.from_checkpoint(path, settings, **hub)
            if path is not None and generates
            else None
        )
        return settings, checkpoint, generation

    folder = local_folder(path, hub.get("subfolder", ""))
    if folder is not None:
        transaction.recover(folder)
    settings, checkpoint, generation = read() if folder is None else transaction.steady(folder, read)
    wanted = quantization or as_quantization(getattr(settings, "quantization_config", None))
    precision = asked or as_dtype(settings.dtype) or _stored_dtype(checkpoint)
    _check_layers(settings, checkpoint)
    with unfilled():
        model = cls(settings, *model_args, **model_kwargs)
    if wanted is not None:
        replace_linears(model)
        settings.quantization_config = wanted.to_dict()
    match = match_names(model, checkpoint)
    shared = _shared_names(model)
    _fill_tied(model, match, shared)
    _judge(model, match, checkpoint, ignore_mismatched_sizes, tolerate_missing)
    _fill(model, match, checkpoint, precision, device)
    checkpoint.check_unchanged()
    _complete(model, match, precision, device)
    _share(model, shared)
    _tie(model, match)
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


def _unsaved_buffers(model: nn.Module) -> set[str]:
    """Return the names of buffers that are computed and never stood in a file."""
    return {
        f"{path}.{leaf}" if path else leaf
        for path, module in model.named_modules(remove_duplicate=False)
        for leaf in module._non_persistent_buffers_set
    }


def _shared_names(model: PreTrainedModel) -> list[list[str]]:
    """List the parameters that a constructor made the same object, by their names."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [same for same in names.values() if len(same) > 1]


def _fill_tied(model: PreTrainedModel, match: Match, shared: list[list[str]]) -> None:
    """Let tied names serve for one another, where not all are stored.

    The bias of a vocabulary projection is served so even in untied models: transformers 4 ties it
    there too and stores it once.
    """
    pairs = list(model.tied_weights().items())
    pairs += [(t, s) for t, s in model._tied_weights_keys.items() if t.endswith(".bias")]
    pairs += [(other, first) for first, *others in shared for other in others]
    for target, source in pairs:
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
    if match.mismatched:
        warnings.warn(
            f"{checkpoint.source} does not fit {type(model).__name__}. {_shapes(match)} These "
            "parameters are random now and need training.",
            stacklevel=4,
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
            f"{checkpoint.source} has no weights for {', '.join(sorted(match.missing))}: in this "
            f"{type(model).__name__} they are random, or as their constructors made them, and need "
            "training.",
            stacklevel=4,
        )


def _of_a_layer(model: PreTrainedModel, stored: str) -> bool:
    """Whether a tensor of a checkpoint would stand in one of the encoder's lists of parts."""
    name = stored.removeprefix(f"{model.base_model_prefix}.")
    lists = (n for n, m in model.base_model.named_modules() if isinstance(m, nn.ModuleList))
    return any(name.startswith(f"{path}.") for path in lists)


def _shapes(match: Match) -> str:
    shapes = (f"{name} is {stored}, not {shape}" for name, stored, shape in match.mismatched)
    return f"Mis-shaped: {'; '.join(shapes)}."


def _listing(match: Match) -> str:
    parts = []
    if match.mismatched:
        parts.append(_shapes(match))
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
        tensor = _converted(checkpoint, stored, module, leaf, dtype).to(device)
        _put(module, leaf, tensor)
        if uses[stored] > 1:
            filled[stored] = tensor

    def weight_of(part: Int8Linear) -> Tensor | None:
        stored = floating.get(id(part))
        if stored is None:
            return None
        return _floating(checkpoint, stored).to(device)

    if floating:  # after all else, since norms have a say in it
        fill(model, weight_of)


def _converted(
    checkpoint: Checkpoint, stored: str, module: nn.Module, leaf: str, dtype: torch.dtype
) -> Tensor:
    """Read a tensor in the dtype that its place computes with.

    Raises:
        ValueError: for a dtype from which there is no way there.
    """
    if isinstance(module, Int8Linear) and leaf in INT8_DTYPES:
        try:
            return as_int8_part(leaf, checkpoint.read(stored), module.in_features)
        except ValueError as error:
            raise ValueError(f"{checkpoint.source} holds {stored}: {error}") from error
    if leaf in module._parameters and module._parameters[leaf].is_floating_point():  # type: ignore[union-attr]
        return _floating(checkpoint, stored).to(dtype)
    tensor = checkpoint.read(stored)
    buffer = getattr(module, leaf)
    if tensor.is_floating_point() and buffer.is_floating_point():
        return tensor.to(dtype)
    if tensor.dtype != buffer.dtype and (tensor.is_floating_point() or tensor.dtype == torch.bool):
        raise ValueError(
            f"{checkpoint.source} holds {stored} as {tensor.dtype}, but {type(module).__name__} "
            f"has {buffer.dtype} in that place; save it as that."
        )
    return tensor.to(buffer.dtype)


def _floating(checkpoint: Checkpoint, stored: str) -> Tensor:
    """Read a weight.

    Raises:
        ValueError: for integers.
    """
    if not checkpoint.dtype(stored).is_floating_point:
        raise ValueError(
            f"{checkpoint.source} holds {stored} as {checkpoint.dtype(stored)}, but weights are "
            "floating; a model that another library has quantised cannot be read, its original can."
        )
    return checkpoint.read(stored)


def _put(module: nn.Module, leaf: str, tensor: Tensor) -> None:
    """Fill a parameter or buffer without copying.

    A parameter that is there already stays the same object: modules such as nn.LSTM keep lists of
    their own.
    """
    old = module._parameters.get(leaf)
    if old is None:
        module._buffers[leaf] = tensor
    elif old.is_meta:
        setattr(module, leaf, nn.Parameter(tensor, requires_grad=old.requires_grad))
    else:
        old.data = tensor


@torch.no_grad()
def _complete(
    model: PreTrainedModel, match: Match, dtype: torch.dtype, device: torch.device
) -> None:
    """Give weights to what the checkpoint lacks, and leave all others alone.

    What the model's `_init_weights` knows gets its random weights, all else keeps what its
    constructor gave it.
    """
    for path, module in model.named_modules():
        vars(module)["_initialized"] = True
        held = {**module._parameters, **module._buffers}
        leaves = {leaf: tensor for leaf, tensor in held.items() if tensor is not None}
        absent = [k for k in leaves if (f"{path}.{k}" if path else k) not in match.sources]
        for leaf in absent:
            _place(module, leaf, dtype, device)
        unsaved = module._non_persistent_buffers_set
        if not set(absent) - unsaved:
            continue
        keep = {k: leaves[k].detach().clone() for k in leaves if k not in absent or k in unsaved}
        if any(leaves[leaf].is_meta for leaf in absent) and hasattr(module, "reset_parameters"):
            module.reset_parameters()
        model._init_weights(module)
        for leaf, tensor in keep.items():
            getattr(module, leaf).copy_(tensor)


def _place(module: nn.Module, leaf: str, dtype: torch.dtype, device: torch.device) -> None:
    """Bring what the checkpoint lacks to where and in what the others are."""
    old: Tensor = getattr(module, leaf)
    fixed = leaf in FLOAT32_BUFFERS or leaf in module._non_persistent_buffers_set
    kind = dtype if old.is_floating_point() and not fixed else old.dtype
    if old.is_meta:
        _put(module, leaf, torch.zeros(old.shape, dtype=kind, device=device))
    elif old.dtype != kind or old.device != device:
        _put(module, leaf, old.detach().to(device=device, dtype=kind))


def _share(model: PreTrainedModel, shared: list[list[str]]) -> None:
    """Make the same object again what a constructor had made the same object."""
    for first, *others in shared:
        for name in others:
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, model.get_parameter(first))


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
