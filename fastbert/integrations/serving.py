"""Passes of an accelerated encoder: those that kernels compute, and those of its own forward.

The class of the encoder's instance is a subclass of its own class, made once for each, that differs
in `forward`. Everything else that the instance is and holds stays as it was, so that saving,
heads, adapters and trainers see transformers' own model.
"""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastbert.errors import Changing, Unavailable
from fastbert.integrations.families import Family, base_of, family_of
from fastbert.integrations.int8 import Int8Copy
from fastbert.integrations.readers import ignores_padding
from fastbert.integrations.shell import NotServed, Outgrown, Shell, shell_over
from fastbert.kernels.openmp import on_one_thread
from fastbert.layers.hooks import GLOBAL_HOOKS
from fastbert.locks import Lock
from fastbert.modeling.encoder import keeping_padding
from fastbert.modeling.quantization import QuantizationConfig
from fastbert.ops.operands import obstacle
from fastbert.runtime.tracing import untraced

# Where an accelerated instance keeps its Server.
PLACE = "_fastbert"
_SERVED = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
# Passes begun anew, each on what was built of the original as it was then.
_ATTEMPTS = 4
# What changes nothing of what an encoder computes.
_IDLE = ("num_items_in_batch", "cache_position")
_ATTENTION = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention",
              "fastbert")  # fmt: skip


@dataclass(frozen=True)
class Choices:
    """How an accelerated encoder computes: the arguments of `fastbert.accelerate`."""

    backend: str = "auto"
    strict: bool = False
    batch_invariant: bool = False
    quantization: QuantizationConfig | None = None
    training: Literal["fastbert", "original"] = "fastbert"


class Server:
    """What an accelerated encoder holds beside what it held before.

    Attributes:
        choices: how it computes.
        reasons: why passes went to the original forward -> how many did.

    Class attributes:
        refusals: what computing() raises where there is nothing to compute with.
    """

    refusals = (NotServed, Outgrown)

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.reasons: dict[str, int] = {}
        self._lock = Lock()
        self._shell: Shell | None = None
        self._int8: Int8Copy | None = None

    def shell(self, module: Any) -> Shell:
        """Return the shell over an encoder, built where there is none.

        Raises:
            NotServed: where there can be none.
            Unavailable: where the backend that was asked for cannot run here.
        """
        shell = self._shell
        if shell is not None:
            return shell
        with self._lock:
            shell = self._shell
            if shell is None:
                shell = shell_over(module)
                self._settle(shell)
                self._shell = shell
        return shell

    def _settle(self, shell: Shell) -> None:
        """Give a new shell the backend that was asked for."""
        choices = self.choices
        asked = (choices.backend, choices.strict, choices.batch_invariant)
        if (shell.backend, shell.strict, shell.batch_invariant) != asked:
            shell.set_backend(*asked)

    def prepare(self, module: Any) -> None:
        """Build what the first pass would, and note where there can be nothing.

        Raises:
            Unavailable: as shell(), and where strict=True and there can be none.
        """
        try:
            self.shell(module)
        except NotServed as reason:
            self.note(module, str(reason))

    def computing(self, module: Any, gradients: bool) -> Any:
        """Return what computes a pass: the shell, or its int8 copy where no gradients are wanted.

        Raises:
            NotServed, Unavailable: as shell().
        """
        shell = self.shell(module)
        if self.choices.quantization is None or gradients:
            return shell
        with self._lock:
            if self._int8 is None:
                self._int8 = Int8Copy(module, shell.encoder_cache.gradients)
            found = self._int8.current()
            self._settle(found)
            return found

    def repack(self) -> None:
        """Forget everything that was packed; the next pass packs it again."""
        with self._lock:
            self._int8 = None
            if self._shell is not None:
                self._shell.refresh()

    def refresh(self) -> None:
        """Forget everything that was built."""
        with self._lock:
            self._shell = self._int8 = None

    def run(self, module: Any, given: dict[str, Any] | None) -> Any:
        """Compute a pass.

        Args:
            module: the encoder.
            given: the arguments of its forward by name; None where they do not fit.

        Returns:
            What the original forward would; NotImplemented where it must be asked itself.

        Raises:
            Unavailable: where it must, with strict=True.
        """
        try:
            if given is None:
                raise NotServed("the arguments do not fit its forward")
            for _ in range(_ATTEMPTS):
                try:
                    return _served(self, module, given)
                except Outgrown:
                    self.refresh()
            raise Changing
        except Changing:
            # The original computes with whatever it finds at each step.
            self.note(module, "another thread writes to it or replaces its parts meanwhile")
            return NotImplemented
        except NotServed as reason:
            self.note(module, str(reason))
            return NotImplemented

    def note(self, module: Any, reason: str) -> None:
        """Say once, and count, that the original forward is asked. Raises Unavailable if strict."""
        if self.choices.strict:
            raise Unavailable(
                f"strict=True allows no fallback, but this pass of {type(module).__name__} would "
                f"go to transformers' own forward: {reason}."
            )
        first = reason not in self.reasons
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        if first and reason != _BY_CHOICE:
            warnings.warn(
                f"A pass of the accelerated {type(module).__name__} goes to transformers' own "
                f"forward: {reason}. fastbert.explain(model) counts such passes.",
                stacklevel=4,
            )


_BY_CHOICE = "training='original' leaves passes with gradients to it"


def _served(server: Server, module: Any, given: dict[str, Any]) -> Any:
    family = family_of(type(module))
    if family is None:
        raise NotServed(f"its class was made a {type(module).__name__}")
    read = given.keys() - set(family.unread)
    given = {name: value for name, value in given.items() if value is not None and name in read}
    config = module.config
    states = given.pop("output_hidden_states", getattr(config, "output_hidden_states", False))
    weights = given.pop("output_attentions", getattr(config, "output_attentions", False))
    as_dict = given.pop("return_dict", None)
    if as_dict is None:
        as_dict = getattr(config, "return_dict", True)
    why = _why_not(module, family, given, states, weights)
    if why is not None:
        raise NotServed(why)
    shape = _shape(given)
    given = {name: given[name] for name in (*_SERVED, *family.further) if name in given}
    gradients = _wants_gradients(module, given)
    if server.choices.training == "original" and (gradients or module.training):
        raise NotServed(_BY_CHOICE)
    keep = False
    if "attention_mask" in given:
        keep = _settle_mask(module, family, given, shape, bool(states))
    shell = server.computing(module, gradients)
    if shell.training != module.training:
        shell.training = module.training
    with keeping_padding(keep):
        output = shell.forward(
            **given, output_hidden_states=bool(states), return_dict=bool(as_dict)
        )
    return output if not as_dict else _as_theirs(output)


def _why_not(
    module: Any, family: Family, given: dict[str, Any], states: Any, weights: Any
) -> str | None:
    """Say, as a clause, which argument or setting only the original forward knows."""
    config = module.config
    if any(GLOBAL_HOOKS):
        return "hooks of the process look at all modules"
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "a transform of torch.func follows each operation"
    if torch._C._len_torch_dispatch_stack():
        return "a mode of torch follows each operation"
    if getattr(config, "is_decoder", False):
        return "it is a decoder"
    if weights:
        return "output_attentions asks for weights, which kernels do not keep"
    if not isinstance(states, bool):
        return "output_hidden_states names single layers"
    attention = getattr(config, "_attn_implementation", None)
    if attention not in _ATTENTION or not _is_theirs(attention):
        return f"its attention is {attention!r}, which is not transformers' own"
    known = (*_SERVED, *_IDLE, *family.further)
    for name, value in given.items():
        if name == "use_cache" or name in known:
            continue
        return f"{name} was given" + (f" ({value!r})" if isinstance(value, (bool, int)) else "")
    return _odd_input(module, family, given)


def _odd_input(module: Any, family: Family, given: dict[str, Any]) -> str | None:
    """Say which argument is of a kind for which the original has its own answer or error."""
    if ("input_ids" in given) == ("inputs_embeds" in given):
        return "it takes either input_ids or inputs_embeds"
    shape, weight = _shape(given), next(module.parameters())
    if weight.is_meta:
        return "its parameters have no values (device meta)"
    for name in (*_SERVED, *family.further):
        value = given.get(name)
        if value is None:
            continue
        if not isinstance(value, Tensor) or value.device != weight.device:
            return f"{name} is no tensor on {weight.device}"
        kind = obstacle(value, memory=False)
        if kind is not None:
            return f"{name} is {kind}"
        dimensions = {"inputs_embeds": 3, "lengths": 1}.get(name, 2)
        if value.dim() != dimensions or not value.numel():
            return f"{name} has the shape {tuple(value.shape)}"
        if name == "inputs_embeds":
            if value.dtype != weight.dtype:
                return f"inputs_embeds are {value.dtype}, not {weight.dtype}"
        elif name != "attention_mask" and value.dtype not in (torch.int64, torch.int32):
            return f"{name} are {value.dtype}"
        elif dimensions == 2 and (
            tuple(value.shape[1:]) != shape[1:] or len(value) not in (1, shape[0])
        ):
            return f"{name} has the shape {tuple(value.shape)}, where {shape} was expected"
    return None


@functools.lru_cache(maxsize=1)
def _attention_functions() -> Any:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return ALL_ATTENTION_FUNCTIONS


def _is_theirs(attention: str | None) -> bool:
    """Return whether nobody registered a function of their own under the name."""
    if attention in (None, "eager"):
        return True
    function = _attention_functions().get(attention)
    module = getattr(function, "__module__", "transformers") or "transformers"
    return module.startswith("transformers") or function is _registered_here()


def _registered_here() -> Any:
    """Return our own attention function, None where nobody registered it."""
    module = sys.modules.get("fastbert.integrations.attention")
    return getattr(module, "attention_forward", None)


def _shape(given: dict[str, Any]) -> tuple[int, int]:
    source = given.get("input_ids", given.get("inputs_embeds"))
    shape = tuple(getattr(source, "shape", (0, 0)))
    return (shape[0], shape[1]) if len(shape) > 1 else (0, 0)


def _wants_gradients(module: Any, given: dict[str, Any]) -> bool:
    if not torch.is_grad_enabled():
        return False
    embeds = given.get("inputs_embeds")
    if embeds is not None and embeds.requires_grad:
        return True
    return any(parameter.requires_grad for parameter in module.parameters())


def _settle_mask(
    module: Any, family: Family, given: dict[str, Any], shape: tuple[int, int], states: bool
) -> bool:
    """Leave out a mask that hides nothing; return whether masked tokens are to be computed.

    Raises:
        NotServed: for a text of which no token is left.
    """
    mask = given["attention_mask"]
    with on_one_thread(mask):
        real = mask != 0
        everything, something = bool(real.all()), bool(real.any(dim=1).all())
        scales = family.pads_with_zeros and bool((real & (mask != 1)).any())
    if scales:
        raise NotServed("attention_mask has other numbers than 0 and 1, which scale hidden states")
    if everything:
        # FlauBERT without a mask looks for padding among the ids.
        if not family.pads_with_zeros:
            del given["attention_mask"]
        return False
    if not something:
        raise NotServed("a text has no token that the attention mask leaves")
    if family.pads_with_zeros:
        return False
    looked_at = states or bool(module._forward_hooks)
    return looked_at or not bool(real[:, 0].all()) or not ignores_padding(3)


def _as_theirs(output: Any) -> Any:
    """Return an output of ours as the class of transformers that has its name and fields."""
    from transformers import modeling_outputs

    kind = getattr(modeling_outputs, type(output).__name__)
    return kind(**{name: output[name] for name in output})


_classes: dict[type[nn.Module], Any] = {}
_making = Lock()


def accelerated_class(base: type[nn.Module]) -> Any:
    """Return the class that instances of a class of transformers get; the same for each call."""
    with _making:
        if base not in _classes:
            _classes[base] = _make(base)
        return _classes[base]


def _make(base: Any) -> Any:
    original: Callable[..., Any] = base.forward
    names = tuple(inspect.signature(inspect.unwrap(original)).parameters)[1:]

    @functools.wraps(original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        server = vars(self).get(PLACE)
        if server is None or torch.compiler._is_exporting_flag or torch._C._get_tracing_state():
            return original(self, *args, **kwargs)
        first = dict(zip(names, args, strict=False))
        fits = len(args) <= len(names) and not first.keys() & kwargs.keys()
        given = {**first, **kwargs} if fits else None
        run = _run_untraced if torch.compiler.is_compiling() else Server.run
        answer = run(server, self, given)
        return original(self, *args, **kwargs) if answer is NotImplemented else answer

    def reduce(self: Any, protocol: int) -> Any:
        state = {name: value for name, value in vars(self).items() if name != PLACE}
        return _rebuild, (base, vars(self)[PLACE].choices), state

    def replica(self: Any) -> Any:
        # Its parameters are others for each pass, where a shell would not look for them.
        found = super(kind, self)._replicate_for_data_parallel()
        vars(found).pop(PLACE, None)
        found.__class__ = base
        return found

    namespace = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "fastbert_base": base,
        "forward": forward,
        "__reduce_ex__": reduce,
        "_replicate_for_data_parallel": replica,
    }
    kind: Any = type(base)(base.__name__, (base,), namespace)
    return kind


_run_untraced = untraced(Server.run)


def swap(module: Any, server: Server) -> None:
    """Make an encoder an accelerated one, or change how one that is computes."""
    # First what the new class's forward asks for: another thread may be calling the module.
    vars(module)[PLACE] = server
    module.__class__ = accelerated_class(base_of(type(module)))


def server_of(module: Any) -> Server | None:
    """Return what an accelerated encoder computes with; None where it is not accelerated."""
    return vars(module).get(PLACE) if "fastbert_base" in type(module).__dict__ else None


def swap_back(module: Any) -> None:
    """Make an accelerated encoder the one that it was."""
    module.__class__ = base_of(type(module))
    vars(module).pop(PLACE, None)


def _rebuild(base: Any, choices: Choices) -> Any:
    module = base.__new__(base)
    vars(module)[PLACE] = Server(choices)
    module.__class__ = accelerated_class(base)
    return module
