"""Which tensor of a checkpoint goes where in a model, and what is said of those that do not fit."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from fastbert.checkpoints.files import Checkpoint
from fastbert.layers.linear import Int8Linear

if TYPE_CHECKING:
    from fastbert.modeling.base import PreTrainedModel

# Buffers that older checkpoints hold and that are computed here.
COMPUTED = ("position_ids", "token_type_ids", "inv_freq", "original_inv_freq")
_OLD_NAMES = {"gamma": "weight", "beta": "bias"}


class UntrainedWeights(UserWarning):
    """Says that a checkpoint lacks weights, which are random until somebody trains them."""


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
    prefix = encoder_prefix(model) or f"{model.base_model_prefix}."
    match = Match()
    for stored in checkpoint.files:
        names = _places(stored, prefix, model.checkpoint_prefixes)
        place = next((name for name in names if name in expected), None)
        if place is None:
            if stored.rpartition(".")[2] not in COMPUTED:
                match.unexpected.append(stored)
        elif not _fits(checkpoint.shape(stored), expected[place]):
            match.mismatched.append((place, checkpoint.shape(stored), expected[place]))
        else:
            match.sources[place] = stored
    _serve_by_tied(model, match, int8)
    for name in int8:
        if f"{name}.weight" in match.sources:
            for leaf in ("qweight", "weight_scale", "factor", "repeated"):
                expected.pop(f"{name}.{leaf}", None)
        else:
            expected.pop(f"{name}.weight")
    wrong = {name for name, _, _ in match.mismatched}
    match.missing = [name for name in expected if name not in match.sources and name not in wrong]
    return match


def _serve_by_tied(model: PreTrainedModel, match: Match, int8: Iterable[str]) -> None:
    """Let a projection that becomes int8 take the weight that it was tied to, and stored with."""
    if not getattr(model.config, "tie_word_embeddings", False):
        return
    for name in int8:
        weight = f"{name}.weight"
        stored = match.sources.get(model._tied_weights_keys.get(weight, ""))
        if stored is not None and not {weight, f"{name}.qweight"} & match.sources.keys():
            match.sources[weight] = stored


def _places(stored: str, prefix: str, others: tuple[str, ...]) -> Iterator[str]:
    """Yield the names that a stored tensor may have in a model, the likeliest first.

    Args:
        stored: its name in the file.
        prefix: what the names of the encoder's tensors begin with.
        others: further prefixes that files have in its place.
    """
    for other in others:
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


def _unsaved_buffers(model: nn.Module) -> set[str]:
    """Return the names of buffers that are computed and never stood in a file."""
    return {
        f"{path}.{leaf}" if path else leaf
        for path, module in model.named_modules(remove_duplicate=False)
        for leaf in module._non_persistent_buffers_set
    }


def shared_names(model: PreTrainedModel) -> list[list[str]]:
    """List the parameters that a constructor made the same object, by their names."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [same for same in names.values() if len(same) > 1]


def fill_tied(model: PreTrainedModel, match: Match, shared: list[list[str]]) -> None:
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


def judge(
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
    core = [n for n in match.missing if model.is_core(n) and _is_ours(model, n)]
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
            UntrainedWeights,
            stacklevel=4,
        )


def encoder_prefix(model: PreTrainedModel) -> str:
    """Return what the names of an encoder's tensors begin with in a model, "" in the encoder."""
    encoder = model.base_model
    name = next((name for name, module in model.named_modules() if module is encoder), "")
    return f"{name}." if name else ""


def _is_ours(model: PreTrainedModel, name: str) -> bool:
    """Whether a layer of this package holds a tensor, rather than a part somebody added."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    tensor: Tensor = getattr(module, leaf)
    return tensor.is_meta or type(module).__module__.startswith("fastbert.")


def _of_a_layer(model: PreTrainedModel, stored: str) -> bool:
    """Whether a tensor of a checkpoint would stand in one of the encoder's lists of parts."""
    name = stored.removeprefix(encoder_prefix(model) or f"{model.base_model_prefix}.")
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
