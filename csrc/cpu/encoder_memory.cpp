#include "cpu/encoder_memory.h"

#include <algorithm>

#include "cpu/team.h"

namespace fastbert {
namespace encoder_detail {
namespace {

// Rows a thread takes through everything between two attentions at once: as many as keep the rows
// of the widest operand in the second-level cache, and enough to use each weight read for a while.
constexpr index_t kBlockRows = 112;

// With fewer rows per thread than this, every projection is cut by columns instead: the threads
// then share the reading of the weights, which pays for longer the larger these are. Measured on
// BERT-base with two threads (columns against rows): int8 16 rows 0.97, 18 rows 1.03, 64 rows 1.04;
// bfloat16 32 rows 0.90, 64 rows 0.97, 96 rows 1.00; float32 48 rows 0.94, 64 rows 0.97.
index_t few_rows(const Weights& weights, int threads) {
    constexpr index_t kFew = 32, kFewInt8 = 18, kFewFloat = 72;
    constexpr index_t kPanelsPerThread = 8;  // or else one of them is left with the last panel
    if (weights.blocks.empty()) return kFew;
    const PackedProjection& narrowest = weights.blocks.front().out;
    if (narrowest.panels(active_kernels().gemm) < kPanelsPerThread * threads) return kFew;
    return quantised(narrowest.precision) ? kFewInt8 : kFewFloat;
}

// Bytes of scratch that the range calls of any projection need for `rows` rows.
index_t projection_scratch(const Weights& weights, index_t rows) {
    const GemmKernels& gemm = active_kernels().gemm;
    index_t most = 0;
    for (const PackedProjection* p : weights.projections()) {
        most = std::max(most, p->scratch_bytes(rows, gemm));
    }
    return most;
}

}  // namespace

Buffers::Buffers(const Weights& weights, const EncoderInput& input, bool pooled, int threads,
                 char* base) {
    const EncoderShape& shape = weights.shape;
    const Embedding* const embedding = input.x == nullptr ? weights.embedding.get() : nullptr;
    const index_t total = input.total, width = shape.num_heads * shape.head_dim;
    shared = threads > 1 && total < threads * few_rows(weights, threads);
    // As many blocks for one thread as for another.
    row_blocks =
        std::max<index_t>(1, (total + threads * kBlockRows - 1) / (threads * kBlockRows)) * threads;
    const index_t rows = shared ? total : (total + row_blocks - 1) / row_blocks;

    OffsetAllocator all;
    // Integer arithmetic: base may be null.
    const auto place = [&all, base](index_t size) {
        return reinterpret_cast<char*>(reinterpret_cast<std::uintptr_t>(base) +
                                       static_cast<std::uintptr_t>(all.take(size)));
    };
    const auto indices = [&](bool present) {
        return present ? reinterpret_cast<std::int64_t*>(place(total * 8)) : nullptr;
    };
    cu_seqlens = reinterpret_cast<std::int32_t*>(place((input.batch + 1) * 4));
    token_indices = indices(input.token_indices != nullptr);
    if (embedding != nullptr) {
        word = indices(true);
        position = indices(input.position.data != nullptr);
        type = indices(input.type.data != nullptr);
        language = indices(input.language.data != nullptr);
    }
    x_stride = gemm_friendly_stride(shape.hidden, DType::f32);
    x = reinterpret_cast<float*>(place(total * x_stride * 4));
    attention_size_ = size_of(shape.attention);
    qkv_stride = gemm_friendly_stride(3 * width, shape.attention);
    qkv_ = place(total * qkv_stride * attention_size_);
    context_stride = gemm_friendly_stride(width, shape.attention);
    context_ = place(total * context_stride * attention_size_);

    AttentionArgs& a = attention;
    if (base != nullptr) {
        a.q = qkv_;
        a.k = qkv_ + width * attention_size_;
        a.v = qkv_ + 2 * width * attention_size_;
    }
    a.out = context_;
    a.dtype = shape.attention;
    a.total_q = a.total_k = total;
    a.num_heads = shape.num_heads;
    a.head_dim = shape.head_dim;
    a.q_row_stride = a.k_row_stride = a.v_row_stride = qkv_stride;
    a.q_head_stride = a.k_head_stride = a.v_head_stride = a.out_head_stride = shape.head_dim;
    a.out_row_stride = context_stride;
    a.cu_seqlens_q = a.cu_seqlens_k = cu_seqlens;
    a.batch = input.batch;
    a.max_seqlen_q = a.max_seqlen_k = input.max_seqlen;
    a.scale = shape.scale;
    a.key_bias = input.key_bias;
    a.bias = input.bias;
    a.bias_batch_stride = input.bias_batch_stride;
    a.bias_head_stride = input.bias_head_stride;
    a.bias_query_stride = input.bias_query_stride;
    attention_workspace = place(attention_workspace_bytes(a, threads));
    if (pooled) {
        const DType dtype = weights.pooler->operand_dtype();
        pooled_stride = gemm_friendly_stride(shape.hidden, dtype);
        pooled_rows = place(input.batch * pooled_stride * size_of(dtype));
    }

    OffsetAllocator local;
    const index_t table_width = embedding == nullptr ? 0 : embedding->source.width;
    index_t widest = 0;
    for (const PackedProjection* p : weights.projections()) {
        widest = std::max(widest, operand_room(*p, rows));
    }
    operand_ = local.take(widest);
    inner_ = local.take(rows * row_bytes(shape.intermediate, DType::f32));
    const bool projected = embedding != nullptr && embedding->projected();
    sums_stride =
        projected ? std::max(x_stride, gemm_friendly_stride(table_width, DType::f32)) : x_stride;
    sums_ = local.take(shape.pre_norm || projected ? rows * sums_stride * 4 : 0);
    scale_ = local.take(rows * 4);
    zero_ = local.take(rows * 4);
    local_size_ = local.used();
    local_ = place(local_size_ * (shared ? 1 : threads));

    OffsetAllocator scratch;
    scratch.take(norm_size_ = (std::max(shape.hidden, table_width) * 4 + 63) / 64 * 64);
    scratch.take(projection_scratch(weights, pooled ? std::max(rows, input.batch) : rows));
    scratch_size_ = scratch.used();
    scratch_ = place(scratch_size_ * threads);
    bytes = all.used();
}

}  // namespace encoder_detail
}  // namespace fastbert
