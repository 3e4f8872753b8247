"""The ops: each file is one op and says everything about it. `REGISTRY` has them by name."""

from __future__ import annotations

from fastbert.ops import (
    act_layer_norm,
    add_layer_norm,
    attention_varlen,
    bias_act,
    embed_layer_norm,
    int8_linear,
    linear,
    quantize_rows,
    segment_sums,
)
from fastbert.ops._op import Case, Mutation, Op, Tolerance, Traits

__all__ = ["REGISTRY", "Case", "Mutation", "Op", "Tolerance", "Traits"]

# In the order in which a forward pass meets them.
REGISTRY: dict[str, Op] = {
    module.OP.name: module.OP
    for module in (
        embed_layer_norm,
        linear,
        int8_linear,
        quantize_rows,
        attention_varlen,
        add_layer_norm,
        bias_act,
        act_layer_norm,
        segment_sums,
    )
}
