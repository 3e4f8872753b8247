"""How a model computes here, in words."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from fastbert.embedding.modules import Dense
from fastbert.layers.linear import Int8Linear
from fastbert.ops.operands import obstacle
from fastbert.runtime import versions
from fastbert.runtime.plan import Plan


def explain(model: Any) -> str:
    """Describe how a model computes: its class, its precision and its Plan.

    The Plan names the backend and instruction set of every op, and the reason for every backend
    that was passed over. Further lines name weights that kernels cannot read, and say where every
    pass compares all bytes of the weights.

    Args:
        model: a fastbert model, a SentenceEncoder or a pipeline; or what `accelerate` took, each of
            whose encoders is described, with the reasons for which passes went to the original
            forward.

    Raises:
        TypeError: for anything else.
    """
    accelerated = _accelerated(model)
    if accelerated:
        return "\n\n".join(accelerated)
    inner = model if hasattr(model, "plan") else getattr(model, "model", model)
    if not hasattr(inner, "plan"):
        raise TypeError(
            f"explain() takes a fastbert model, SentenceEncoder or pipeline, or a model after "
            f"fastbert.accelerate(model), not a {type(model).__name__}."
        )
    return "\n".join(_description(inner, _dense_parts(model)))


def _description(inner: Any, parts: list[str]) -> list[str]:
    plan = inner.plan()
    precision = str(inner.dtype).removeprefix("torch.")
    if any(isinstance(module, Int8Linear) for module in inner.modules()):
        precision += ", layers in int8"
    count = inner.num_parameters() / 1e6
    head = f"{type(inner).__name__}: {count:.1f} million parameters, {precision}, on {inner.device}"
    beside = [*inner.torch_parts(), *parts]
    lines = [head, *plan.lines(beside), *_whole_passes(inner), *_training(inner, plan)]
    return [*lines, *_not_plain(inner), *_comparisons(inner)]


def _accelerated(model: Any) -> list[str]:
    """Describe the accelerated encoders of transformers in an object, if it holds any."""
    # Who has accelerated one has loaded this already; others need not.
    if "fastbert.integrations.accelerate" not in sys.modules:
        return []
    from fastbert.integrations.accelerate import accelerated_in

    return ["\n".join(_of_encoder(*found)) for found in accelerated_in(model)]


def _of_encoder(path: str, module: Any, server: Any) -> list[str]:
    choices = server.choices
    lines = [f"{path or 'the model'}: {type(module).__name__} of transformers, accelerated"]
    try:
        lines += _description(server.computing(module, choices.quantization is None), [])
    except server.refusals as reason:
        lines.append(f"{'every pass':<16}  by transformers' own forward: {reason}")
    if choices.quantization is not None:
        lines.append(f"{'with gradients':<16}  in the parameters' own precision")
    if choices.training == "original":
        lines.append(f"{'with gradients':<16}  by transformers' own forward, as chosen")
    for why, count in server.reasons.items():
        lines.append(f"{'not on kernels':<16}  {count} passes so far: {why}")
    return lines


def _whole_passes(model: Any) -> list[str]:
    """Say how passes run where the Plan, a list of ops, does not tell."""
    base = getattr(model, "base_model", model)
    told = base.how_passes_run() if hasattr(base, "how_passes_run") else None
    return [] if told is None else [f"{'a pass':<16}  {told}"]


def _training(model: Any, plan: Plan) -> list[str]:
    """Say how the reference computes attention in a pass with gradients, where not on a grid."""
    if not (model.training and plan.rows.note):
        return []
    return [f"{'in training':<16}  the reference; attention {plan.rows.note}"]


def _not_plain(model: Any) -> list[str]:
    """Say which weights kernels cannot read, so that their ops go to the reference."""
    names: dict[str, list[str]] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if (what := obstacle(tensor, memory=False)) is not None:
            names.setdefault(what, []).append(name)
    return [
        f"{'on the reference':<16}  whatever reads {', '.join(found)}: each is {what}"
        for what, found in names.items()
    ]


def _dense_parts(model: Any) -> list[str]:
    """Name what no kernel computes behind a SentenceEncoder's transformer."""
    modules = getattr(model, "modules", ())
    if not isinstance(modules, nn.ModuleList):  # a model's own method
        return []
    return [why for module in modules if isinstance(module, Dense) for why in module.torch_parts()]


def _comparisons(model: Any) -> list[str]:
    """Say why every pass compares the packed weights byte by byte, where it does."""
    if versions.CHECK_ALWAYS:
        why = "FASTBERT_CHECK_WEIGHTS is set"
    elif any(parameter.grad is not None for parameter in model.parameters()):
        why = "gradients are set, and a fused optimizer may write; model.zero_grad() ends it"
    elif any(parameter.is_inference() for parameter in model.parameters()):
        why = "torch counts no writes to a model made in inference mode; make it outside of that"
    else:
        return []
    return [f"{'every pass':<16}  compares all packed weights byte by byte: {why}"]
