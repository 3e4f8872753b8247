"""The CPU kernels: torch tensors in, addresses and sizes on to `fastbert._C`.

Checks here are about tensors (dtype, device, shape, layout); the native drivers check sizes,
strides, offsets and ids again before they touch memory. A tensor whose columns are not adjacent is
copied. The number of threads is torch's.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from fastbert import native
from fastbert.kernels import _check
from fastbert.ops._op import Traits
from fastbert.ops.activations import kernel_activation

CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_ABSENT = (0, 0, 0, 0)
_INT8 = 4
_threads = 0


def unavailable() -> str | None:
    """None when the kernels can run, else the reason."""
    return native.reason()


def supports(op: str, traits: Traits) -> str | None:
    """None when there is a kernel of this op for these traits, else the reason."""
    if not hasattr(native.extension(), _BINDINGS[op]):
        return f"this build has no {op}"
    return None


_BINDINGS = {
    "embed_layer_norm": "embed_layer_norm",
    "linear": "linear",
    "int8_linear": "int8_linear",
    "quantize_rows": "quantize_rows",
    "attention_varlen": "attention_varlen",
    "add_layer_norm": "layer_norm",
    "bias_act": "bias_act",
    "act_layer_norm": "layer_norm",
}


def add_layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    residual: Tensor | None = None,
    x_bias: Tensor | None = None,
    return_sum: bool = False,
) -> tuple[Tensor, Tensor]:
    """See `fastbert.ops.add_layer_norm`."""
    return _layer_norm("add_layer_norm", x, weight, bias, eps, residual, x_bias, return_sum, 0)


def act_layer_norm(
    x: Tensor, bias: Tensor | None, weight: Tensor, ln_bias: Tensor, eps: float, activation: str
) -> Tensor:
    """See `fastbert.ops.act_layer_norm`."""
    code = kernel_activation(activation)
    return _layer_norm("act_layer_norm", x, weight, ln_bias, eps, None, bias, False, code)[0]


def bias_act(x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """See `fastbert.ops.bias_act`."""
    extension = _ready()
    code = _check.floating_code("bias_act", x, CODES)
    rows, columns = _check.two_dimensional("bias_act", "x", x)
    x = _check.by_rows(x)
    if bias is not None:
        bias = _check.vector("bias_act", "bias", bias, columns, x.dtype)
    out = torch.empty((rows, columns), dtype=x.dtype)
    extension.bias_act(
        x.data_ptr(),
        out.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        rows,
        columns,
        _check.row_stride(x),
        columns,
        code,
        code,
        kernel_activation(activation),
    )
    return out


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    packed: Tensor | None = None,
) -> Tensor:
    """See `fastbert.ops.linear`. Without `packed` the weight is packed for this one call."""
    op = "linear"
    extension = _ready()
    code = _check.floating_code(op, x, CODES)
    _, inner = _check.two_dimensional(op, "x", x)
    outer = _check.weight_rows(op, "weight", weight, inner, x.dtype)
    if packed is None:
        packed = linear_prepack(weight)
    return _product(extension.linear, op, x, code, packed, (), bias, activation, residual, outer)


def int8_linear(
    x: Tensor,
    qweight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    packed: Tensor | None = None,
) -> Tensor:
    """See `fastbert.ops.int8_linear`. Without `packed` the weight is packed for this one call."""
    op = "int8_linear"
    extension = _ready()
    code = _check.floating_code(op, x, CODES)
    _, inner = _check.two_dimensional(op, "x", x)
    outer = _check.weight_rows(op, "qweight", qweight, inner, torch.int8)
    weight_scale = _check.vector(op, "weight_scale", weight_scale, outer, torch.float32)
    if packed is None:
        packed = int8_linear_prepack(qweight)
    scale = (weight_scale.data_ptr(),)
    return _product(
        extension.int8_linear, op, x, code, packed, scale, bias, activation, residual, outer
    )


def linear_prepack(weight: Tensor) -> Tensor:
    """A weight (N, K) in the order that the kernels of the instruction set in use read it.

    float16 is kept as float32, which is what it is multiplied in. Packing reads the weight once and
    is worth keeping: layers keep the result until the weight's version, its address or the Plan's
    instruction set changes. A kernel of another instruction set refuses the result.

    Returns:
        uint8, opaque.
    """
    code = _check.floating_code("linear_prepack", weight, CODES)
    return _packed("linear_prepack", weight, code, CODES[torch.float32] if code == 2 else code)


def int8_linear_prepack(qweight: Tensor) -> Tensor:
    """As `linear_prepack`, for an int8 weight (N, K)."""
    if isinstance(qweight, Tensor) and qweight.dim() == 2:
        _check.weight_rows("int8_linear_prepack", "qweight", qweight, qweight.shape[1], torch.int8)
    elif not isinstance(qweight, Tensor):
        raise TypeError(
            f"int8_linear_prepack: a tensor was expected, got {type(qweight).__name__}."
        )
    return _packed("int8_linear_prepack", qweight, _INT8, _INT8)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `fastbert.ops.quantize_rows`."""
    extension = _ready()
    code = _check.floating_code("quantize_rows", x, CODES)
    rows, columns = _check.two_dimensional("quantize_rows", "x", x)
    x = _check.by_rows(x)
    quantised = torch.empty((rows, columns), dtype=torch.uint8)
    scale = torch.empty(rows, dtype=torch.float32)
    zero_point = torch.empty(rows, dtype=torch.int32)
    extension.quantize_rows(
        x.data_ptr(),
        quantised.data_ptr(),
        scale.data_ptr(),
        zero_point.data_ptr(),
        rows,
        columns,
        _check.row_stride(x),
        columns,
        code,
    )
    return quantised, scale, zero_point


def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    scale: float,
    causal: bool = False,
    key_bias: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """See `fastbert.ops.attention_varlen`."""
    op = "attention_varlen"
    extension = _ready()
    code = _check.floating_code(op, q, CODES)
    if q.dim() != 3:
        raise ValueError(
            f"{op}: q has shape {tuple(q.shape)}, expected (total_q, num_heads, head_dim)."
        )
    total_q, heads, dim = q.shape
    total_k = k.shape[0] if isinstance(k, Tensor) and k.dim() else 0
    q = _check.heads(op, "q", q, q.shape, q.dtype)
    k = _check.heads(op, "k", k, (total_k, heads, dim), q.dtype)
    v = _check.heads(op, "v", v, (total_k, heads, dim), q.dtype)
    batch = max(cu_seqlens_q.numel() - 1, 0) if isinstance(cu_seqlens_q, Tensor) else 0
    cu_seqlens_q = _check.vector(op, "cu_seqlens_q", cu_seqlens_q, batch + 1, torch.int32)
    cu_seqlens_k = _check.vector(op, "cu_seqlens_k", cu_seqlens_k, batch + 1, torch.int32)
    if key_bias is not None:
        key_bias = _check.vector(op, "key_bias", key_bias, total_k, torch.float32)
    bias_strides = (0, 0, 0)
    if bias is not None:
        bias, bias_strides = _check.score_bias(op, bias, batch, heads, max_seqlen_q, max_seqlen_k)
    out = torch.empty((total_q, heads, dim), dtype=q.dtype)
    extension.attention_varlen(
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        out.data_ptr(),
        code,
        total_q,
        total_k,
        heads,
        dim,
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        heads * dim,
        dim,
        cu_seqlens_q.data_ptr(),
        cu_seqlens_k.data_ptr(),
        batch,
        max_seqlen_q,
        max_seqlen_k,
        scale,
        causal,
        0 if key_bias is None else key_bias.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        *bias_strides,
    )
    return out


def embed_layer_norm(
    input_ids: Tensor | None,
    word: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    position_ids: Tensor | None = None,
    position_table: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    type_table: Tensor | None = None,
    extra_ids: Tensor | None = None,
    extra_table: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    padding_idx: int = -1,
    position_padding_idx: int = -1,
) -> Tensor:
    """See `fastbert.ops.embed_layer_norm`."""
    op = "embed_layer_norm"
    extension = _ready()
    if inputs_embeds is not None:
        code = _check.floating_code(op, inputs_embeds, CODES)
        rows, hidden = _check.two_dimensional(op, "inputs_embeds", inputs_embeds)
        dtype = inputs_embeds.dtype
        embeds = _check.by_rows(inputs_embeds)
        word_lookup, words = _ABSENT, None
    elif input_ids is None or word is None:
        raise ValueError(
            f"{op}: either inputs_embeds, or input_ids together with their table, must be given."
        )
    else:
        code = _check.floating_code(op, word, CODES)
        hidden = _check.two_dimensional(op, "word", word)[1]
        if not isinstance(input_ids, Tensor) or input_ids.dim() != 1:
            raise ValueError(f"{op}: input_ids must be a tensor of one dimension, packed.")
        rows, dtype, embeds = input_ids.shape[0], word.dtype, None
        word_lookup, words = _lookup("input_ids", input_ids, "word", word, rows, hidden, dtype)
    position, positions = _lookup(
        "position_ids", position_ids, "position_table", position_table, rows, hidden, dtype
    )
    type_, types = _lookup(
        "token_type_ids", token_type_ids, "type_table", type_table, rows, hidden, dtype
    )
    extra, extras = _lookup("extra_ids", extra_ids, "extra_table", extra_table, rows, hidden, dtype)
    weight = _check.vector(op, "weight", weight, hidden, dtype)
    bias = _check.vector(op, "bias", bias, hidden, dtype)
    out = torch.empty((rows, hidden), dtype=dtype)
    extension.embed_layer_norm(
        word_lookup,
        position,
        type_,
        extra,
        0 if embeds is None else embeds.data_ptr(),
        0 if embeds is None else _check.row_stride(embeds),
        out.data_ptr(),
        hidden,
        weight.data_ptr(),
        bias.data_ptr(),
        rows,
        hidden,
        code,
        code,
        code,
        eps,
    )
    # Copies that the lookups point into live until here.
    del words, positions, types, extras
    return out


def _packed(op: str, weight: Tensor, code: int, packed_code: int) -> Tensor:
    extension = _ready()
    outer, inner = _check.two_dimensional(op, "weight", weight)
    weight = _check.by_rows(weight)
    packed = torch.empty(extension.packed_bytes(packed_code, outer, inner), dtype=torch.uint8)
    extension.pack_weight(
        (weight.data_ptr(), code, _check.row_stride(weight)),
        outer,
        inner,
        (packed.data_ptr(), packed.numel()),
    )
    return packed


def _product(
    run: Callable[..., None],
    op: str,
    x: Tensor,
    code: int,
    packed: Tensor,
    scale: tuple[int, ...],
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    outer: int,
) -> Tensor:
    rows, inner = x.shape
    x = _check.by_rows(x)
    packed = _check.bytes_(op, "packed", packed)
    if bias is not None:
        bias = _check.vector(op, "bias", bias, outer, x.dtype)
    if residual is not None:
        residual = _check.matrix(op, "residual", residual, rows, outer, x.dtype)
    out = torch.empty((rows, outer), dtype=x.dtype)
    run(
        (x.data_ptr(), code, _check.row_stride(x)),
        (packed.data_ptr(), packed.numel()),
        *scale,
        (0, code) if bias is None else (bias.data_ptr(), code),
        kernel_activation(activation),
        (0, code, 0)
        if residual is None
        else (residual.data_ptr(), code, _check.row_stride(residual)),
        (out.data_ptr(), code, outer),
        rows,
        outer,
        inner,
    )
    return out


def _layer_norm(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    residual: Tensor | None,
    x_bias: Tensor | None,
    return_sum: bool,
    activation: int,
) -> tuple[Tensor, Tensor]:
    extension = _ready()
    code = _check.floating_code(op, x, CODES)
    rows, hidden = _check.two_dimensional(op, "x", x)
    x = _check.by_rows(x)
    dtype = x.dtype
    weight = _check.vector(op, "weight", weight, hidden, dtype)
    bias = _check.vector(op, "ln_bias" if op == "act_layer_norm" else "bias", bias, hidden, dtype)
    if residual is not None:
        residual = _check.matrix(op, "residual", residual, rows, hidden, dtype)
    if x_bias is not None:
        x_bias = _check.vector(op, "x_bias", x_bias, hidden, dtype)
    out = torch.empty((rows, hidden), dtype=dtype)
    total = torch.empty((rows, hidden) if return_sum else 0, dtype=dtype)
    extension.layer_norm(
        x.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        out.data_ptr(),
        total.data_ptr() if return_sum else 0,
        0 if x_bias is None else x_bias.data_ptr(),
        weight.data_ptr(),
        bias.data_ptr(),
        rows,
        hidden,
        _check.row_stride(x),
        hidden if residual is None else _check.row_stride(residual),
        hidden,
        hidden,
        code,
        code,
        code,
        code,
        eps,
        activation,
    )
    return out, total


def _lookup(
    ids_name: str,
    ids: Tensor | None,
    table_name: str,
    table: Tensor | None,
    rows: int,
    hidden: int,
    dtype: torch.dtype,
) -> tuple[tuple[int, int, int, int], tuple[Tensor, Tensor] | None]:
    """A lookup as the extension takes it, and the tensors it points into."""
    if ids is None and table is None:
        return _ABSENT, None
    op = "embed_layer_norm"
    if ids is None or table is None:
        given, absent = (table_name, ids_name) if ids is None else (ids_name, table_name)
        raise ValueError(f"{op}: {given} was given without {absent}; give both or neither.")
    ids = _check.vector(op, ids_name, ids, rows, torch.int64)
    entries = table.shape[0] if isinstance(table, Tensor) and table.dim() == 2 else 0
    table = _check.matrix(op, table_name, table, entries, hidden, dtype)
    return (ids.data_ptr(), table.data_ptr(), entries, _check.row_stride(table)), (ids, table)


def _ready() -> ModuleType:
    """The extension, using as many threads as torch does."""
    global _threads
    extension = native.extension()
    threads = torch.get_num_threads()
    if threads != _threads:
        extension.set_num_threads(threads)
        _threads = threads
    return extension
