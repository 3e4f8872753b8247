"""What a family's modules are called and made of, and where a model is no longer what was built.

An encoder reads its parameters out of its modules and leaves the computing to kernels. That is
right only as long as the modules are those that it built. So it records at first what stands where,
and compares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from fastbert.layers.hooks import GLOBAL_HOOKS, hooked
from fastbert.layers.linear import Int8Linear, Linear
from fastbert.layers.norm import LayerNorm
from fastbert.modeling.parameter_names import LAYER

Region = Literal["embeddings", "encoder", "layer", "pooler"]
_PROJECTIONS = (Linear, Int8Linear)
# Forwards that compute every row by itself, so that it does not matter how rows are laid out.
_BY_ROWS = (Linear.forward, Int8Linear.forward, nn.Linear.forward)
# Adapters around a projection that compute every row by itself.
_ADAPTERS = ("peft.tuners.lora.",)


@dataclass(frozen=True)
class ModuleTable:
    """The modules of a family's encoder.

    Attributes:
        classes: path, as in ParameterNames -> the class of the branch there. It is called with the
            configuration, the EncoderShape, and the number of the layer or None. Branches that are
            not named hold their children and cannot be called.
        regions: path -> which part of a pass it belongs to, with all that lies below it: what must
            be called as a module when something there is not as it was built. Longer paths win.
    """

    classes: Mapping[str, Any] = field(default_factory=dict)
    regions: Mapping[str, Region] = field(default_factory=dict)


@dataclass(frozen=True)
class Built:
    """What was built at one place.

    Attributes:
        kind: the class.
        settings: attributes that kernels do not ask for, since they are as the configuration says.
        children: names of the modules in it.
    """

    kind: type[nn.Module]
    settings: Mapping[str, Any]
    children: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """A place that is not as it was built.

    Attributes:
        pattern: the path with `N` for the number of a layer.
        layer: that number.
        why: a clause that names the path.
    """

    pattern: str
    layer: int | None
    why: str


def settings_of(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the attributes that decide what a module computes."""
    if isinstance(module, nn.Dropout):
        return ("p", "training")
    names: tuple[str, ...] = getattr(type(module), "settings", ())
    return names


def record(root: nn.Module) -> dict[str, Built]:
    """Record what stands below a module, by path with `N` for the number of a layer."""
    tree: dict[str, Built] = {}
    _record(root, "", tree)
    return tree


def _record(module: nn.Module, pattern: str, tree: dict[str, Built]) -> None:
    found = {name: getattr(module, name) for name in settings_of(module)}
    settings = {name: value for name, value in found.items() if not isinstance(value, nn.Module)}
    children = {name: child for name, child in module._modules.items() if child is not None}
    tree[pattern] = Built(type(module), settings, tuple(children))
    for name, child in children.items():
        _record(child, _below(module, pattern, name), tree)


def _below(owner: nn.Module, pattern: str, name: str) -> str:
    name = LAYER if isinstance(owner, nn.ModuleList) else name
    return f"{pattern}.{name}" if pattern else name


def why_changed(module: nn.Module, tree: Mapping[str, Built], name: str) -> str | None:
    """Return how a module, or one in it, differs from what was recorded of it; None if not.

    Args:
        module: what stands there now.
        tree: what record() returned of what was built.
        name: its path, for the clause.
    """
    if any(GLOBAL_HOOKS):
        return "hooks of the process look at all modules"
    found = next(_compare(module, name, "", None, tree, module.training), None)
    return None if found is None else found.why


def differences(root: nn.Module, tree: Mapping[str, Built]) -> Iterator[Difference]:
    """Yield every place below a module that is not as it was built.

    Projections that were replaced by what computes every row by itself, such as a plain nn.Linear
    or a LoRA adapter, are not among them: `foreign_projections` yields those.
    """
    if any(GLOBAL_HOOKS):
        yield Difference("", None, "hooks of the process look at all modules")
        return
    for name in tree[""].children:
        child = root._modules.get(name)
        if child is not None:
            yield from _compare(child, name, name, None, tree, root.training)


def _compare(
    module: nn.Module,
    path: str,
    pattern: str,
    layer: int | None,
    tree: Mapping[str, Built],
    training: bool,
) -> Iterator[Difference]:
    built = tree.get(pattern)
    if built is None:
        return  # a layer of a model that was built without any
    why = _difference(module, built, training)
    if why is not None:
        yield Difference(pattern, layer, f"{path} {why}")
    elif isinstance(module, nn.ModuleList):
        for index, child in enumerate(module):
            below = _below(module, pattern, "")
            yield from _compare(child, f"{path}.{index}", below, index, tree, training)
    elif built.children:
        for name in built.children:
            part = module._modules.get(name)
            if part is not None:
                below = _below(module, pattern, name)
                yield from _compare(part, f"{path}.{name}", below, layer, tree, training)
            elif tree[_below(module, pattern, name)].kind is not nn.Embedding:
                yield Difference(pattern, layer, f"{path}.{name} is gone")


def _difference(module: nn.Module, built: Built, training: bool) -> str | None:
    kind = type(module)
    if built.kind in _PROJECTIONS:
        if by_rows(module):
            return None
    elif built.kind is LayerNorm:
        if kind.forward is not LayerNorm.forward:
            return f"is a {kind.__name__}"
        if getattr(module, "weight", None) is None or getattr(module, "bias", None) is None:
            return "has no weight or bias"
    elif kind is not built.kind:
        return f"is a {kind.__name__}, not the {built.kind.__name__} that was built"
    # Nobody calls a list, so that hooks on it never run.
    if built.kind is not nn.ModuleList and hooked(module):
        return "has hooks, or another forward"
    if built.kind in _PROJECTIONS:
        return f"is a {kind.__name__}"
    for name, value in built.settings.items():
        now = getattr(module, name)
        expected = training if name == "training" else value
        if now is not expected and now != expected:
            return f"has {name} {now!r}, where {expected!r} was expected"
    return None


def by_rows(part: nn.Module) -> bool:
    """Return whether a module computes every row by itself, and nobody looks at the rows."""
    if hooked(part):
        return False
    kind = type(part)
    if kind.__module__.startswith(_ADAPTERS):
        return not any(hooked(inner) for inner in part.modules())
    return kind.forward in _BY_ROWS


def is_projection(part: nn.Module) -> bool:
    """Return whether a module's own forward computes every row by itself, whatever hooks it has."""
    kind = type(part)
    return kind.__module__.startswith(_ADAPTERS) or kind.forward in _BY_ROWS


# What computes every row by itself where it stands behind the hidden states.
_SIMPLE = (nn.Identity, nn.Dropout, nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU, nn.LayerNorm)


def head_by_rows(part: nn.Module) -> bool:
    """Return whether a projection of a head computes every row by itself, whatever it is."""
    kind = type(part)
    if kind is nn.Sequential:
        return not hooked(part) and all(head_by_rows(inner) for inner in part.children())
    return by_rows(part) or (kind in _SIMPLE and not hooked(part))


def foreign_projections(root: nn.Module, tree: Mapping[str, Built]) -> Iterator[str]:
    """Yield, as clauses, the projections that were replaced by what computes rows by itself."""
    for path, module in root.named_modules():
        pattern = _pattern(path)
        built = tree.get(pattern)
        if built is None or built.kind not in _PROJECTIONS or type(module) in _PROJECTIONS:
            continue
        if by_rows(module):
            yield f"{path} is a {type(module).__name__}"


def _pattern(path: str) -> str:
    """Write `N` for the numbers in a path."""
    return ".".join(LAYER if name.isdigit() else name for name in path.split("."))


def region_of(pattern: str, table: ModuleTable) -> Region | None:
    """Return the region that a path belongs to; None where it cannot be called as a module."""
    names = pattern.split(".")
    for end in range(len(names), 0, -1):
        region = table.regions.get(".".join(names[:end]))
        if region is not None:
            return region
    return None
