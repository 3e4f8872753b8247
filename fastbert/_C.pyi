"""The compiled extension as type checkers see it; csrc/python holds the bindings.

Addresses are integers, 0 for what is absent. Strides count elements. Integer codes are those of
csrc/common/types.h. Structs take their fields by name, and keep the default of their C++ struct
for a field that is not named. tests/test_bindings.py compares this file with the extension.
"""

from collections.abc import Sequence
from typing import Any, final

@final
class ActArgs:
    """The arguments of bias_act; csrc/cpu/ops/act.h."""

    def __init__(
        self,
        *,
        x: int,
        out: int,
        bias: int = ...,
        bias_dtype: int = ...,
        rows: int,
        columns: int,
        x_stride: int,
        out_stride: int,
        dtype: int,
        activation: int = ...,
        activation_a: float = ...,
        activation_b: float = ...,
        activation_c: float = ...,
        activation_d: float = ...,
    ) -> None: ...

@final
class AttentionArgs:
    """The arguments of attention_varlen; csrc/cpu/ops/attention.h."""

    def __init__(
        self,
        *,
        q: int,
        k: int,
        v: int,
        out: int,
        dtype: int,
        total_q: int,
        total_k: int,
        num_heads: int,
        head_dim: int,
        group: int = ...,
        q_row_stride: int,
        q_head_stride: int,
        k_row_stride: int,
        k_head_stride: int,
        v_row_stride: int,
        v_head_stride: int,
        out_row_stride: int,
        out_head_stride: int,
        cu_seqlens_q: int,
        cu_seqlens_k: int,
        batch: int,
        max_seqlen_q: int,
        max_seqlen_k: int,
        scale: float,
        causal: bool = ...,
        key_bias: int = ...,
        bias: int = ...,
        bias_batch_stride: int = ...,
        bias_head_stride: int = ...,
        bias_query_stride: int = ...,
    ) -> None: ...

@final
class Lookup:
    """Rows of a table chosen by ids; csrc/cpu/ops/embed.h."""

    def __init__(self, *, ids: int, table: int, entries: int, stride: int) -> None: ...

@final
class EmbedArgs:
    """The arguments of embed_layer_norm; csrc/cpu/ops/embed.h."""

    def __init__(
        self,
        *,
        word: Lookup | None = ...,
        embeds: int = ...,
        embeds_stride: int = ...,
        position: Lookup | None = ...,
        type: Lookup | None = ...,
        language: Lookup | None = ...,
        out: int,
        out_stride: int,
        weight: int,
        weight_dtype: int,
        bias: int,
        bias_dtype: int,
        rows: int,
        hidden: int,
        dtype: int,
        eps: float,
    ) -> None: ...

@final
class LayerNormArgs:
    """The arguments of layer_norm; csrc/cpu/ops/layer_norm.h."""

    def __init__(
        self,
        *,
        x: int,
        residual: int = ...,
        out: int,
        sum: int = ...,
        x_bias: int = ...,
        x_bias_dtype: int = ...,
        weight: int,
        weight_dtype: int,
        bias: int,
        bias_dtype: int,
        rows: int,
        hidden: int,
        x_stride: int,
        residual_stride: int = ...,
        out_stride: int,
        sum_stride: int = ...,
        dtype: int,
        activation: int = ...,
        activation_a: float = ...,
        activation_b: float = ...,
        activation_c: float = ...,
        activation_d: float = ...,
        eps: float,
    ) -> None: ...

@final
class InputColumns:
    """What is done to the columns of rows before they are quantised; csrc/cpu/ops/quantize.h."""

    def __init__(self, *, factor: int = ..., repeated: int = ..., repeats: int = ...) -> None: ...

@final
class GemmArgs:
    """The arguments of linear and int8_linear; csrc/cpu/ops/gemm.h."""

    def __init__(
        self,
        *,
        rows: int,
        n: int,
        k: int,
        x: int,
        x_dtype: int,
        x_stride: int,
        packed: int,
        bias: int = ...,
        bias_dtype: int = ...,
        activation: int = ...,
        activation_a: float = ...,
        activation_b: float = ...,
        activation_c: float = ...,
        activation_d: float = ...,
        residual: int = ...,
        residual_dtype: int = ...,
        residual_stride: int = ...,
        out: int,
        out_dtype: int,
        out_stride: int,
        x_scale: int = ...,
        x_zero_point: int = ...,
        w_scale: int = ...,
    ) -> None: ...

@final
class RmsNormArgs:
    """The arguments of rms_norm; csrc/cpu/ops/rms_norm.h."""

    def __init__(
        self,
        *,
        x: int,
        residual: int = ...,
        out: int,
        sum: int = ...,
        weight: int,
        weight_dtype: int,
        rows: int,
        hidden: int,
        x_stride: int,
        residual_stride: int = ...,
        out_stride: int,
        sum_stride: int = ...,
        dtype: int,
        eps: float,
    ) -> None: ...

@final
class QkNormRopeArgs:
    """The arguments of qk_norm_rope; csrc/cpu/ops/qk_norm_rope.h."""

    def __init__(
        self,
        *,
        q: int,
        q_row_stride: int,
        q_head_stride: int,
        k: int,
        k_row_stride: int,
        k_head_stride: int,
        q_out: int,
        q_out_row_stride: int,
        q_out_head_stride: int,
        k_out: int,
        k_out_row_stride: int,
        k_out_head_stride: int,
        q_weight: int,
        q_weight_dtype: int,
        k_weight: int,
        k_weight_dtype: int,
        cos: int,
        sin: int,
        rope_stride: int,
        tokens: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: int,
        q_eps: float,
        k_eps: float,
    ) -> None: ...

@final
class QuantizeArgs:
    """The arguments of quantize_rows; csrc/cpu/ops/quantize.h."""

    def __init__(
        self,
        *,
        x: int,
        dtype: int,
        rows: int,
        k: int,
        x_stride: int,
        q: int,
        q_stride: int,
        scale: int,
        zero_point: int,
    ) -> None: ...

@final
class ClipArgs:
    """The arguments of clip_errors; csrc/cpu/ops/quantize.h."""

    def __init__(
        self,
        *,
        x: int,
        rows: int,
        k: int,
        x_stride: int,
        largest: int,
        scale: int,
        candidates: int,
        error: int,
    ) -> None: ...

@final
class SegmentArgs:
    """The arguments of segment_sums; csrc/cpu/ops/segments.h."""

    def __init__(
        self,
        *,
        x: int,
        bounds: int,
        divisors: int = ...,
        out: int,
        rows: int,
        columns: int,
        segments: int,
        x_stride: int,
        dtype: int,
    ) -> None: ...

@final
class DepthwiseArgs:
    """The arguments of depthwise_conv; csrc/cpu/ops/depthwise_conv.h."""

    def __init__(
        self,
        *,
        x: int,
        out: int,
        means: int,
        weight: int,
        weight_dtype: int,
        bias: int = ...,
        bias_dtype: int = ...,
        batch: int,
        height: int,
        width: int,
        channels: int,
        kernel: int,
        stride: int,
        before: int,
        after: int,
        dtype: int,
        activation: int = ...,
        activation_a: float = ...,
        activation_b: float = ...,
    ) -> None: ...

@final
class GateArgs:
    """The arguments of channel_gate; csrc/cpu/ops/channel_gate.h."""

    def __init__(
        self,
        *,
        x: int,
        gates: int,
        out: int,
        batch: int,
        places: int,
        channels: int,
        dtype: int,
    ) -> None: ...

@final
class DropoutArgs:
    """The arguments of dropout_add; csrc/cpu/ops/dropout.h."""

    def __init__(
        self,
        *,
        x: int,
        residual: int = ...,
        out: int,
        count: int,
        seed: int,
        threshold: float,
        drop_scale: float,
        dtype: int,
        out_dtype: int,
    ) -> None: ...

@final
class SoftmaxArgs:
    """The arguments of softmax_dropout and its backward pass; csrc/cpu/ops/dropout.h."""

    def __init__(
        self,
        *,
        scores: int,
        gradients: int = ...,
        statistics: int,
        key_bias: int = ...,
        sequences: int,
        heads: int,
        queries: int,
        keys: int,
        seed: int,
        threshold: float,
        drop_scale: float,
        scale: float,
        causal: bool,
        dtype: int,
    ) -> None: ...

@final
class ProjectionSource:
    """A linear map as it is stored; csrc/cpu/encoder.h, like those that follow."""

    def __init__(
        self,
        *,
        weight: int,
        dtype: int,
        n: int,
        k: int,
        stride: int,
        weight_scale: int = ...,
        bias: int = ...,
        bias_dtype: int = ...,
        second_bias: int = ...,
        third_bias: int = ...,
        precision: int,
        columns: InputColumns | None = ...,
    ) -> None: ...

@final
class NormSource:
    """A LayerNorm as it is stored."""

    def __init__(
        self, *, weight: int, weight_dtype: int, bias: int, bias_dtype: int, eps: float
    ) -> None: ...

@final
class BlockSource:
    """A transformer block as it is stored."""

    def __init__(
        self,
        *,
        qkv: ProjectionSource,
        out: ProjectionSource,
        attention_norm: NormSource,
        up: ProjectionSource,
        down: ProjectionSource,
        output_norm: NormSource,
    ) -> None: ...

@final
class ProjectionSize:
    """What the memory of a packed projection follows from; csrc/cpu/projection.h."""

    def __init__(self, *, n: int, k: int, precision: int) -> None: ...

@final
class TableSource:
    """A table whose rows are looked up; it is read in place."""

    def __init__(self, *, data: int, entries: int, stride: int) -> None: ...

@final
class EmbeddingSource:
    """Embeddings as they are stored."""

    def __init__(
        self,
        *,
        dtype: int,
        width: int,
        word: TableSource,
        position: TableSource | None = ...,
        type: TableSource | None = ...,
        language: TableSource | None = ...,
        norm: NormSource,
        projection: ProjectionSource | None = ...,
    ) -> None: ...

@final
class EncoderShape:
    """What all blocks of an encoder have in common."""

    def __init__(
        self,
        *,
        hidden: int,
        num_heads: int,
        head_dim: int,
        intermediate: int,
        activation: int,
        activation_a: float = ...,
        activation_b: float = ...,
        activation_c: float = ...,
        activation_d: float = ...,
        pre_norm: bool,
        scale: float,
        attention: int,
    ) -> None: ...

@final
class IndexGrid:
    """Indices into a table, one for every place of the padded grid."""

    def __init__(self, *, data: int, row_stride: int, column_stride: int) -> None: ...

@final
class EncoderInput:
    """What a forward pass reads."""

    def __init__(
        self,
        *,
        x: int = ...,
        dtype: int = ...,
        x_stride: int = ...,
        word: IndexGrid | None = ...,
        position: IndexGrid | None = ...,
        type: IndexGrid | None = ...,
        language: IndexGrid | None = ...,
        embeds: int = ...,
        embeds_stride: int = ...,
        total: int,
        cu_seqlens: int,
        batch: int,
        max_seqlen: int,
        seqlen: int,
        token_indices: int = ...,
        key_bias: int = ...,
        bias: int = ...,
        bias_batch_stride: int = ...,
        bias_head_stride: int = ...,
        bias_query_stride: int = ...,
    ) -> None: ...

@final
class EncoderOutput:
    """Where a forward pass writes."""

    def __init__(
        self,
        *,
        out: int,
        dtype: int,
        stride: int,
        rows: int,
        grid: bool = ...,
        pooled: int = ...,
        pooled_stride: int = ...,
    ) -> None: ...

class Encoder:
    """Blocks with packed weights."""

    def run(
        self,
        input: EncoderInput,
        output: EncoderOutput,
        threads: int,
        watch: Watch | None,
        profile: bool,
    ) -> tuple[list[int], int] | bool | None: ...
    @property
    def packed_bytes(self) -> int: ...
    @property
    def arena_bytes(self) -> int: ...
    steps: list[str]

class EncoderPacker:
    """Makes an Encoder part by part; csrc/cpu/encoder.h."""

    def __init__(self, shape: EncoderShape, sizes: Sequence[ProjectionSize]) -> None: ...
    def set_embedding(self, source: EmbeddingSource) -> None: ...
    def add_block(self, source: BlockSource) -> None: ...
    def set_pooler(self, source: ProjectionSource) -> None: ...
    def finish(self) -> Encoder: ...

@final
class RmsNormSource:
    """A root-mean-square norm; csrc/cpu/decoder.h."""

    def __init__(self, *, weight: int, weight_dtype: int, eps: float) -> None: ...

@final
class DecoderBlockSource:
    """The weights of one layer of a decoder; csrc/cpu/decoder.h."""

    def __init__(
        self,
        *,
        attention_norm: RmsNormSource,
        qkv: ProjectionSource,
        query_norm: RmsNormSource,
        key_norm: RmsNormSource,
        out: ProjectionSource,
        feedforward_norm: RmsNormSource,
        up: ProjectionSource,
        down: ProjectionSource,
        activation_a: float = ...,
        activation_b: float = ...,
        activation_c: float = ...,
        activation_d: float = ...,
    ) -> None: ...

@final
class DecoderShape:
    """The sizes of a decoder; csrc/cpu/decoder.h."""

    def __init__(
        self,
        *,
        hidden: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        intermediate: int,
        activation: int,
        scale: float,
        attention: int,
    ) -> None: ...

@final
class CachePlaces:
    """Where the keys and values of all layers are; csrc/cpu/decoder.h."""

    def __init__(
        self,
        *,
        layers: int,
        rows: int,
        row_stride: int,
        head_stride: int,
        places: int,
        held: int,
    ) -> None: ...

@final
class DecoderInput:
    """The tokens of a pass through a decoder; csrc/cpu/decoder.h."""

    def __init__(
        self,
        *,
        ids: int = ...,
        x: int = ...,
        dtype: int = ...,
        x_stride: int = ...,
        total: int,
        cu_seqlens: int,
        batch: int,
        cos: int,
        sin: int,
        causal: bool,
        cache: CachePlaces | None = ...,
    ) -> None: ...

@final
class DecoderOutput:
    """Where a decoder writes; csrc/cpu/decoder.h."""

    def __init__(
        self,
        *,
        tokens: int = ...,
        rows: int,
        dtype: int,
        hidden: int = ...,
        hidden_stride: int = ...,
        scores: int = ...,
        scores_stride: int = ...,
    ) -> None: ...

class Decoder:
    """Layers of a decoder with packed weights."""

    def run(
        self, input: DecoderInput, output: DecoderOutput, threads: int, watch: Watch | None
    ) -> bool: ...
    @property
    def packed_bytes(self) -> int: ...
    @property
    def arena_bytes(self) -> int: ...

class DecoderPacker:
    """Makes a Decoder part by part; csrc/cpu/decoder.h."""

    def __init__(
        self,
        shape: DecoderShape,
        words: TableSource,
        words_dtype: int,
        norm: RmsNormSource,
        sizes: Sequence[ProjectionSize],
    ) -> None: ...
    def add_block(self, source: DecoderBlockSource) -> None: ...
    def set_head(self, source: ProjectionSource) -> None: ...
    def finish(self) -> Decoder: ...

class Watch:
    """Notices changes of dictionaries and tensors; csrc/python/watch.h."""

    gradients_known: bool

    def __init__(
        self,
        dicts: list[Any],
        entries: list[Any],
        methods: list[Any],
        objects: list[Any],
        tensors: list[Any],
        exchange: object,
        version_of: object,
        grad_of: object,
    ) -> None: ...
    def unchanged(self, contents: bool) -> bool: ...

def bias_act(args: ActArgs) -> None: ...
def rms_norm(args: RmsNormArgs) -> None: ...
def qk_norm_rope(args: QkNormRopeArgs) -> None: ...
def attention_varlen(args: AttentionArgs) -> None: ...
def embed_layer_norm(args: EmbedArgs) -> None: ...
def layer_norm(args: LayerNormArgs) -> None: ...
def linear(args: GemmArgs, packed_size: int) -> None: ...
def int8_linear(args: GemmArgs, packed_size: int, columns: InputColumns | None) -> None: ...
def linear_w8a16(args: GemmArgs, packed_size: int, columns: InputColumns | None) -> None: ...
def packed_bytes(dtype: int, n: int, k: int) -> int: ...
def pack_weight(
    weight: int, dtype: int, n: int, k: int, stride: int, out: int, out_bytes: int
) -> None: ...
def quantize_rows(args: QuantizeArgs) -> None: ...
def clip_errors(args: ClipArgs) -> None: ...
def segment_sums(args: SegmentArgs) -> None: ...
def channel_gate(args: GateArgs) -> None: ...
def depthwise_conv(args: DepthwiseArgs) -> None: ...
def dropout_add(args: DropoutArgs) -> None: ...
def softmax_dropout(args: SoftmaxArgs) -> None: ...
def softmax_dropout_backward(args: SoftmaxArgs) -> None: ...
def dot_peak(dtype: int, threads: int, repeats: int = ...) -> float: ...
def memory_peak(threads: int, repeats: int = ...) -> float: ...
def fingerprint(data: int, size: int) -> bytes: ...
def build_info() -> dict[str, Any]: ...
def usable_isas() -> list[str]: ...
def missing_for(isa: str) -> list[str]: ...
def detected_isa() -> str: ...
def active_isa() -> str: ...
def set_isa(isa: str) -> None: ...
def ask_for_huge_pages(address: int, bytes: int) -> None: ...
def num_threads() -> int: ...
def set_num_threads(threads: int) -> None: ...
def use_one_loop_thread() -> tuple[int, int]: ...
def set_loop_threads(openmp: int, mkl: int) -> None: ...
