"""One of our encoders over the parameters of one of transformers'.

The shell is built without memory. Its layers hold the very dictionaries of parameters that
transformers' layers of the same names hold, so that there is one copy of the weights, and every
change that somebody makes there is a change here. Whatever stands there that is not as the
constructor left it is compared with a pristine twin before it is relied on.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self, TypeGuard

import torch
from torch import Tensor, nn

import fastbert
from fastbert.engine.reading import Reading
from fastbert.integrations.building import structure
from fastbert.integrations.families import base_of, family_of, origin_of
from fastbert.layers.hooks import hooked
from fastbert.layers.linear import Linear
from fastbert.layers.norm import LayerNorm
from fastbert.layers.recomputing import Recompute
from fastbert.modeling.named_encoder import NamedEncoder

# Layers of ours, and the classes of torch whose parameters they can hold.
_LEAVES: dict[type[nn.Module], type[nn.Module]] = {
    Linear: nn.Linear,
    LayerNorm: nn.LayerNorm,
    nn.Embedding: nn.Embedding,
}
# Their parameters, None among them.
_HELD: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("weight", "bias"),
    nn.LayerNorm: ("weight", "bias"),
    nn.Embedding: ("weight",),
}
# Attributes of modules that change nothing of what a pass computes, or are followed by themselves.
_UNCOMPARED = {"training", "gradient_checkpointing", "name_or_path", "warnings_issued"}
_UNCOMPARED |= {"kernel_config", "loss_type", "seq_len_dim"}
_SIMPLE = (bool, int, float, str, tuple, type(None))
# What transformers' own hooks are called that collect hidden states; they are idle in our passes.
_IDLE_HOOKS = "output_capturing_hook"
# Entries of a configuration that its modules do not read.
_READ_BY_NOBODY = {"architectures", "id2label", "label2id", "problem_type", "transformers_version"}
_READ_BY_NOBODY |= {"dtype", "torch_dtype", "_name_or_path", "return_dict", "output_attentions"}
_READ_BY_NOBODY |= {"output_hidden_states", "use_cache", "num_labels", "classifier_dropout"}


class NotServed(Exception):
    """Says, as a clause, why a pass must go to the original forward."""


class Outgrown(Exception):
    """The configuration is no longer the one that a shell was built from."""


@dataclass(frozen=True)
class _Leaf:
    """A layer of ours that holds the parameters of theirs, or a dropout in whose place theirs is.

    Attributes:
        path: from the encoder, there and here.
        owner, name: where it stands here.
        ours: the layer.
    """

    path: str
    owner: nn.Module
    name: str
    ours: nn.Module

    def holds(self) -> bool:
        """Return whether it stands where it was built."""
        return self.owner._modules.get(self.name) is self.ours


class Shell(NamedEncoder):
    """What a class of ours becomes over transformers' parameters: see `shell_over`."""

    _original: Any
    _twin: dict[str, nn.Module]
    _leaves: list[_Leaf]
    _followed: frozenset[str]
    _built_from: dict[str, Any]
    _sources: dict[str, Any]

    @classmethod
    def over(cls, original: Any) -> Self:
        """Build one over an encoder; see `shell_over`."""
        extra: dict[str, Any] = {}
        base = origin_of(type(original))
        if "add_pooling_layer" in inspect.signature(base.__init__).parameters:
            extra["add_pooling_layer"] = original.pooler is not None
        config = copy.deepcopy(original.config)
        values = config.to_dict()
        values.pop("quantization_config", None)
        values["model_type"] = base.config_class.model_type
        shell = structure(lambda: cls(cls.config_class.from_dict(values), **extra))
        twin = structure(lambda: base(config, **extra))
        leaves = [
            _Leaf(path, *_place(shell, path), module)
            for path, module in shell.named_modules(remove_duplicate=False)
            if type(module) in _LEAVES or type(module) is nn.Dropout
        ]
        shell._recompute = Recompute({"use_reentrant": False})
        # Past nn.Module, which would take modules for parts of this one.
        vars(shell).update(
            _original=original,
            _twin=dict(twin.named_modules(remove_duplicate=False)),
            _leaves=leaves,
            _followed=frozenset(leaf.path for leaf in leaves),
            _built_from=_read_by_modules(config),
            _sources={},
        )
        return shell

    def beside(self) -> list[nn.Module]:
        """Return the modules that are looked at before every pass though they compute nothing."""
        return list(self._original.modules())

    def watched(self) -> list[dict[Any, Any]]:
        """Return the dictionaries whose values decide what is computed, by identity."""
        config: Any = self._original.config
        return [vars(config), *(vars(module) for module in self._original.modules())]

    def read(self) -> Reading:
        """Read the parts again, out of whatever stands in the original now.

        Raises:
            NotServed: where the original is no longer what its constructor made.
        """
        self.follow()
        return super().read()

    def follow(self) -> None:
        """Take over the parameters and settings of the original.

        Raises:
            NotServed: as read().
        """
        original = self._original
        if _read_by_modules(original.config) != self._built_from:
            raise Outgrown
        theirs = dict(original.named_modules(remove_duplicate=False))
        for path, twin in self._twin.items():
            why = _difference(theirs.get(path), twin, path, path in self._followed)
            if why is not None:
                raise NotServed(why)
        for path, parameters in self._sources.items():
            source = theirs.get(path)
            if type(source) is not nn.Linear or hooked(source):
                raise Outgrown
            if source._parameters is not parameters:
                raise Outgrown
            made: Any = self.get_submodule(path)
            made.bias = parameters["bias"]
        for leaf in self._leaves:
            _take(leaf, theirs.get(leaf.path))
        self._refuse_mixture()
        for path, module in self.named_modules():
            other = theirs.get(path)
            if other is not None and module is not other:
                module.training = other.training
        self.gradient_checkpointing = any(
            getattr(module, "gradient_checkpointing", False) for module in theirs.values()
        )

    def _refuse_mixture(self) -> None:
        """Leave tables and projections of several precisions, which torch converts, to theirs."""
        held = [leaf.ours for leaf in self._leaves if leaf.holds()]
        weights = [part.weight for part in held if isinstance(part, (Linear, nn.Embedding))]
        kinds = {w.dtype for w in weights if isinstance(w, Tensor) and w.is_floating_point()}
        if len(kinds) > 1:
            raise NotServed(f"its weights are {' and '.join(sorted(map(str, kinds)))}")

    def keep_replaced(self) -> None:
        """Keep what stands in the place of layers of ours, such as int8 ones made from them.

        Where the parameters that they were made from stand elsewhere, the shell is outgrown.
        """
        made = [leaf for leaf in self._leaves if not leaf.holds() and type(leaf.ours) is Linear]
        self._sources = {leaf.path: leaf.ours._parameters for leaf in made}
        self._leaves = [leaf for leaf in self._leaves if leaf not in made]


def _take(leaf: _Leaf, theirs: nn.Module | None) -> None:
    """Put a layer of ours over the parameters of theirs; theirs itself where it is no plain one."""
    owner, name, ours = leaf.owner, leaf.name, leaf.ours
    if not _holdable(theirs, _LEAVES.get(type(ours))):
        if owner._modules.get(name) is not theirs:
            setattr(owner, name, theirs)  # Parent counts this as a write
        return
    first = any(tensor.is_meta for tensor in ours.parameters())
    if not first and not (leaf.holds() and ours._parameters is theirs._parameters):
        # An adapter may have written to its parameters in ways that torch does not count.
        for tensor in theirs.parameters():
            if not tensor.is_inference():
                torch.autograd.graph.increment_version(tensor)
    vars(ours).update(_parameters=theirs._parameters, _buffers=theirs._buffers)
    owner._modules[name] = ours


def _holdable(theirs: nn.Module | None, kind: type[nn.Module] | None) -> TypeGuard[nn.Module]:
    """Return whether a layer is a plain one of a class, whose parameters one of ours can hold.

    One whose weight was taken away, and is a plain tensor or computed for each pass, is not.
    """
    if theirs is None or type(theirs) is not kind or hooked(theirs):
        return False
    return all(name in theirs._parameters for name in _HELD[type(theirs)])


def shell_over(original: Any) -> Shell:
    """Build a shell over an encoder of transformers, with nothing allocated.

    Raises:
        NotServed: where it is not what its constructor makes, or has what ours lacks.
    """
    name = origin_of(type(original)).__name__
    ours: Any = getattr(fastbert, name, None)
    if ours is None:
        raise NotServed(f"this version of fastbert has no {name}")
    kind: Any = type(name, (Shell, ours), {"__module__": ours.__module__})
    try:
        shell: Shell = kind.over(original)
    except (ValueError, TypeError, NotImplementedError, AttributeError, ImportError) as error:
        raise NotServed(f"no {name} can be built of its configuration: {error}") from error
    shell.follow()
    missing = [name for name, tensor in shell.named_parameters() if tensor.is_meta]
    if missing:
        raise NotServed(f"it has no parameter {missing[0]}")
    return shell


def _read_by_modules(config: Any) -> dict[str, Any]:
    return {k: v for k, v in config.to_dict().items() if k not in _READ_BY_NOBODY}


def _place(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    owner, _, name = path.rpartition(".")
    return root.get_submodule(owner), name


def _difference(theirs: nn.Module | None, twin: nn.Module, path: str, leaf: bool) -> str | None:
    """Say how a module differs from the one that its constructor makes; None if it does not."""
    if theirs is None:
        return f"{path} is gone"
    if leaf and type(theirs) is not type(twin):
        if type(theirs).__module__.startswith("torch.ao."):
            return f"{path} was quantised by torch, which scales by all rows of a batch"
        return None  # called as a module
    kind, name = base_of(type(theirs)), path or type(theirs).__name__
    if kind is not type(twin) and (path or family_of(kind) is None):
        return f"{name} is a {kind.__name__}, not a {type(twin).__name__}"
    if not leaf and path:
        if "forward" in vars(theirs) or not _untouched(kind):
            return f"{name} has another forward"
        if any(_looks(hooks) for hooks in _hooks(theirs)):
            return f"{name} has hooks"
    # The forward of the encoder itself knows no further modules.
    further = _children(theirs) - _children(twin)
    if not leaf and (_children(twin) - _children(theirs) or (path and further)):
        return f"{name} holds other modules than it was built with"
    for key, value in _settings(twin):
        now = vars(theirs).get(key, value)
        if now is not value and now != value:
            return f"{name} has {key} {now!r}, where its configuration says {value!r}"
    return None


def _children(module: nn.Module) -> set[str]:
    return {name for name, child in module._modules.items() if child is not None}


def _settings(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for key, value in vars(module).items():
        # The probability of a dropout is followed: ours calls the very module.
        followed = isinstance(module, nn.Dropout) and key == "p"
        if isinstance(value, _SIMPLE) and not (
            followed or key in _UNCOMPARED or key.startswith("_")
        ):
            yield key, value


def _hooks(module: nn.Module) -> Iterable[dict[int, Any]]:
    return (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )


def _looks(hooks: dict[int, Any]) -> bool:
    return any(getattr(hook, "__name__", "") != _IDLE_HOOKS for hook in hooks.values())


def _untouched(kind: type[nn.Module]) -> bool:
    """Return whether a class still has a forward from where the class itself comes."""
    forward = inspect.unwrap(kind.forward)
    return getattr(forward, "__module__", "").split(".")[0] in ("transformers", "torch")
