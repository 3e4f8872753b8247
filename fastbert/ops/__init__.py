"""The ops: each file is one op and says everything about it.

`REGISTRY` has the ops of a pass through an encoder by name, `DECODING` those that only models that
write text need, `IMAGES` those that only towers of images need, `ALL` all of them.
"""

from __future__ import annotations

from fastbert.ops import (
    act_layer_norm,
    add_layer_norm,
    attention_grouped,
    attention_varlen,
    bias_act,
    channel_gate,
    depthwise_conv,
    embed_layer_norm,
    int8_linear,
    linear,
    linear_w8a16,
    qk_norm_rope,
    quantize_rows,
    rms_norm,
    segment_sums,
    xielu,
)
from fastbert.ops._op import Case, Mutation, Op, Tolerance, Traits

__all__ = ["ALL", "DECODING", "IMAGES", "REGISTRY", "Case", "Mutation", "Op", "Tolerance", "Traits"]

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
DECODING: dict[str, Op] = {
    module.OP.name: module.OP
    for module in (rms_norm, qk_norm_rope, attention_grouped, xielu, linear_w8a16)
}
IMAGES: dict[str, Op] = {module.OP.name: module.OP for module in (depthwise_conv, channel_gate)}
ALL: dict[str, Op] = {**REGISTRY, **DECODING, **IMAGES}
