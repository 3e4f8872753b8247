"""`attn_implementation="fastbert"`: attention of transformers' models on our kernels.

It computes what `attn_implementation="sdpa"` does, for models of any family. Attention alone: the
products and norms around it stay torch's, and hidden states stay padded. Keys that are padding are
left out where the mask says so. What kernels do not serve goes to transformers' own function for
sdpa, said once in a warning.
"""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from fastbert.errors import Unavailable
from fastbert.integrations.mask_layouts import KeyLayout, read_mask, unmasked
from fastbert.ops.operands import obstacle
from fastbert.runtime.plan import Plan, Traits, build_plan

NAME = "fastbert"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# What models hand to attention functions that says no more than the mask says, or asks for nothing.
_IDLE = {
    "cache_position", "cu_seq_lens_k", "cu_seq_lens_q", "deterministic", "labels", "layer_idx",
    "logits_to_keep", "max_length_k", "max_length_q", "num_items_in_batch", "output_attentions",
    "output_hidden_states", "output_router_logits", "past_key_value", "past_key_values",
    "position_embeddings", "position_ids", "return_dict", "sliding_window", "use_cache",
}  # fmt: skip
# What changes the result, and transformers' function for sdpa would not see.
_BEYOND = ("s_aux", "sinks", "softcap", "indices", "block_indices")
_told: set[str] = set()


class _NotServed(Exception):
    """Says, as a clause, why an attention goes to transformers' function for sdpa."""


def register_attention() -> None:
    """Let models of transformers be loaded with `attn_implementation="fastbert"`.

    Also `model.set_attn_implementation("fastbert")`. A second call changes nothing.
    """
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, attention_mask)


def attention_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Make the mask that transformers makes for sdpa.

    A causal mask is left away only where queries and keys are the same: otherwise it would have to
    be guessed from their numbers which keys are later ones.
    """
    given = inspect.signature(sdpa_mask).bind_partial(*args, **kwargs).arguments
    queries = given.get("q_length")
    if queries is None:  # transformers 4
        queries = given["cache_position"].shape[0]
    if queries not in (1, given["kv_length"]):
        kwargs["allow_is_causal_skip"] = False
    mask: Tensor | None = sdpa_mask(*args, **kwargs)
    return mask


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute what `sdpa_attention_forward` of transformers does.

    Args:
        module: the attention module that calls.
        query: (batch, heads, queries, head_dim).
        key: (batch, kv_heads, keys, head_dim), heads a multiple of kv_heads.
        value: the same.
        attention_mask: (batch or 1, 1, queries or 1, keys), True where a key is seen, or numbers
            that are added to the scores; None where none is hidden, but later ones if causal.
        dropout: probability that a weight is dropped.
        scaling: multiplies the scores; None for head_dim ** -0.5.
        is_causal: whether later keys are hidden where there is no mask; None asks the module.
        position_bias: (1 or batch, 1 or heads, queries, keys), added to the scores.
        **kwargs: whatever else the model hands on.

    Returns:
        (batch, queries, heads, head_dim), and None for the weights.

    Raises:
        ValueError: for what transformers' sdpa cannot compute either, such as soft caps of scores
            and attention sinks.
    """
    _refuse(module, kwargs)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    later = query.shape[2] > 1 and attention_mask is None and bool(causal)
    if later and query.shape[2] != key.shape[2]:
        raise ValueError(
            f"{type(module).__name__} wants causal attention from {query.shape[2]} queries to "
            f"{key.shape[2]} keys without a mask, which does not say where the queries stand; "
            "load the model with attn_implementation='sdpa'."
        )
    if not _traced():
        try:
            _accept(module, query, key, value, dropout, kwargs)
            return _attend(query, key, value, attention_mask, scaling, later, position_bias), None
        except _NotServed as reason:
            _tell(module, str(reason))
    if position_bias is not None:
        kwargs["position_bias"] = position_bias
    out, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask,
        dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs,
    )  # fmt: skip
    return out, None


def _refuse(module: nn.Module, kwargs: dict[str, Any]) -> None:
    """Refuse what sdpa would leave out without a word. Raises ValueError."""
    beyond = [name for name in _BEYOND if kwargs.get(name) is not None]
    if beyond or not (_traced() or _has_sdpa(type(module).__module__)):
        why = f"has {' and '.join(beyond)}" if beyond else "is of a model that has no sdpa"
        raise ValueError(
            f"The attention of {type(module).__name__} {why}, and attn_implementation='fastbert' "
            "computes what 'sdpa' does; load the model with attn_implementation='eager'."
        )


@functools.lru_cache(maxsize=256)
def _has_sdpa(file: str) -> bool:
    """Return whether transformers lets a model of a file, named as a Python module, run sdpa."""
    names = vars(sys.modules.get(file, object))
    models = [
        found
        for found in names.values()
        if isinstance(found, type)
        and issubclass(found, PreTrainedModel)
        and found.__module__ == file
    ]
    return not models or any(getattr(found, "_supports_sdpa", True) for found in models)


def _traced() -> bool:
    """Return whether the pass is recorded, when nobody may look at the values of a mask."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def _accept(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, dropout: float, kwargs: dict[str, Any]
) -> None:
    """Look at everything but the mask. Raises _NotServed."""
    if dropout > 0.0:
        raise _NotServed("it drops weights")
    given = [name for name, value in kwargs.items() if name not in _IDLE and value is not None]
    if kwargs.get("output_attentions"):
        given.append("output_attentions")
    if given:
        raise _NotServed(f"it was given {', '.join(given)}")
    if any(x.dim() != 4 or not x.numel() for x in (q, k, v)):
        raise _NotServed("queries, keys or values have no elements")
    batch, heads, _, dim = q.shape
    groups = getattr(module, "num_key_value_groups", 1)
    if k.shape != v.shape or (k.shape[0], k.shape[3]) != (batch, dim):
        raise _NotServed(f"keys have the shape {tuple(k.shape)} and values {tuple(v.shape)}")
    if k.shape[1] * groups != heads:
        raise _NotServed(f"{heads} heads of queries share {k.shape[1]} of keys")
    if {x.device for x in (q, k, v)} != {q.device}:
        raise _NotServed("queries, keys and values are on several devices")
    functorch = torch._C._are_functorch_transforms_active()
    if functorch or forward_ad._current_level >= 0 or obstacle((q, k, v), memory=False):
        raise _NotServed("torch transforms the pass, or its tensors are of a class of their own")


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    causal: bool,
    position_bias: Tensor | None,
) -> Tensor:
    """Compute the result of attention_forward. Raises _NotServed."""
    kind = q.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        lower = torch.get_autocast_dtype(kind)
        q, k, v = (x.to(lower) if x.dtype in _DTYPES else x for x in (q, k, v))
        with torch.autocast(kind, enabled=False):
            return _attend(q, k, v, mask, scaling, causal, position_bias)
    if q.dtype not in _DTYPES or {q.dtype, k.dtype, v.dtype} != {q.dtype}:
        raise _NotServed(f"it computes in {', '.join(sorted({str(x.dtype) for x in (q, k, v)}))}")
    batch, heads, queries, dim = q.shape
    shape = (batch, queries, k.shape[2])
    layout: KeyLayout | str | None = unmasked(shape, causal, q.device)
    if mask is not None:
        if mask.device != q.device or obstacle(mask) or mask.requires_grad:
            raise _NotServed("its mask is on another device, or of a kind of its own")
        layout = read_mask(mask, shape)
    gradients = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (q, k, v, position_bias)
    )
    if position_bias is not None and isinstance(layout, KeyLayout):
        layout = _beside(position_bias, layout, shape, heads, gradients)
    if not isinstance(layout, KeyLayout):
        raise _NotServed(layout or "its bias of positions comes with several texts in a row")
    if gradients:
        _worth(layout, q)
    name = "attention_varlen" if k.shape[1] == heads else "attention_grouped"
    plan = _plan(Traits(heads, dim, num_kv_heads=k.shape[1], ops=(name,)), q)
    attend = plan.rows.attention if gradients else getattr(plan, name)
    packed = [x.transpose(1, 2).reshape(-1, x.shape[1], dim) for x in (q, k, v)]
    out: Tensor = attend(
        *packed, layout.cu_seqlens_q, layout.cu_seqlens_k, queries, shape[2],
        dim**-0.5 if scaling is None else float(scaling), layout.causal, layout.key_bias,
        position_bias,
    )  # fmt: skip
    return out.to(q.dtype).reshape(batch, queries, heads, dim)


def _worth(layout: KeyLayout, q: Tensor) -> None:
    """Leave gradients to torch where it is faster (up to 1.6x in float32). Raises _NotServed."""
    if q.device.type != "cpu":
        raise _NotServed("gradients are wanted, which kernels of a GPU do not give")
    packs = len(layout.cu_seqlens_q) != q.shape[0] + 1
    if not packs and q.dtype is torch.float32:
        raise _NotServed("gradients in float32 without padding to leave out are faster there")


def _beside(
    bias: Tensor, layout: KeyLayout, shape: tuple[int, int, int], heads: int, gradients: bool
) -> KeyLayout | None:
    """Return a layout whose sequences a bias fits; None where there is none. Raises _NotServed."""
    batch, queries, keys = shape
    sizes = ((1, batch), (1, heads), (queries,), (keys,))
    fits = bias.dim() == 4 and all(n in ok for n, ok in zip(bias.shape, sizes, strict=True))
    if not fits or not bias.is_floating_point() or obstacle(bias, memory=False):
        raise _NotServed(f"its bias of positions has the shape {tuple(bias.shape)}")
    if gradients:
        raise _NotServed("gradients are wanted beside a bias of positions")
    if layout.blind:
        raise _NotServed("its mask leaves a query no key, beside a bias of positions")
    return layout.on_grid(shape)


def _plan(traits: Traits, q: Tensor) -> Plan:
    try:
        return build_plan(traits, q.device, q.dtype, strict=True)
    except Unavailable as reason:
        raise _NotServed(f"there is no kernel for it ({reason})") from reason


def _tell(module: nn.Module, reason: str) -> None:
    if reason not in _told:
        _told.add(reason)
        warnings.warn(
            f"attn_implementation='fastbert' leaves attention of {type(module).__name__} to "
            f"transformers' sdpa: {reason}.",
            stacklevel=4,
        )
