"""How a model computes here, in words."""

from __future__ import annotations

from typing import Any


def explain(model: Any) -> str:
    """Describe how a model computes: its class, its precision and its Plan.

    The Plan names the backend and instruction set of every op, and the reason for every backend
    that was passed over.

    Args:
        model: a fastbert model, a SentenceEncoder or a pipeline.

    Raises:
        TypeError: for anything else.
    """
    inner = getattr(model, "model", model)
    if not hasattr(inner, "plan"):
        raise TypeError(
            f"explain() takes a fastbert model, SentenceEncoder or pipeline, not a "
            f"{type(model).__name__}."
        )
    plan = inner.plan()
    precision = str(inner.dtype).removeprefix("torch.")
    if any(name.endswith("qweight") for name, _ in inner.named_buffers()):
        precision += ", layers in int8"
    count = inner.num_parameters() / 1e6
    head = f"{type(inner).__name__}: {count:.1f} million parameters, {precision}, on {inner.device}"
    return f"{head}\n{plan}"
