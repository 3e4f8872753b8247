#include "cpu/decoder_memory.h"

#include <algorithm>

#include "cpu/arenas.h"
#include "cpu/decoder_attention.h"

namespace fastbert {
namespace decoder_detail {

Buffers::Buffers(const Weights& weights, const DecoderInput& input, const DecoderOutput& output,
                 const Indices& indices, int threads, char* base) {
    const DecoderShape& shape = weights.shape;
    const index_t total = input.total, kv_width = shape.num_kv_heads * shape.head_dim;
    const index_t width = shape.num_heads * shape.head_dim;
    block_rows = decoder_detail::block_rows(active_kernels().gemm);
    const index_t rows = std::min(block_rows, std::max(total, output.rows));

    OffsetAllocator all;
    // Integer arithmetic: base may be null.
    const auto place = [&all, base](index_t size) {
        return reinterpret_cast<char*>(reinterpret_cast<std::uintptr_t>(base) +
                                       static_cast<std::uintptr_t>(all.take(size)));
    };
    element = size_of(shape.attention);
    x_stride = gemm_friendly_stride(shape.hidden, DType::f32);
    x = reinterpret_cast<float*>(place(total * x_stride * 4));
    qkv_stride = gemm_friendly_stride(width + 2 * kv_width, shape.attention);
    qkv = place(total * qkv_stride * element);
    context_stride = gemm_friendly_stride(width, shape.attention);
    context = place(total * context_stride * element);

    cache = input.cache;
    if (input.cache.layers == nullptr) {
        cache.rows = total;
        cache.row_stride = gemm_friendly_stride(kv_width, shape.attention);
        cache.head_stride = shape.head_dim;
        own.keys = place(total * cache.row_stride * element);
        own.values = place(total * cache.row_stride * element);
    }

    index_t room = 0, scratch = 0;
    for (const PackedProjection* p : weights.projections()) {
        room = std::max(room, operand_room(*p, rows));
        scratch = std::max(scratch, p->scratch_bytes(rows, active_kernels().gemm));
    }
    normed = reinterpret_cast<float*>(place(rows * x_stride * 4));
    inner = place(rows * row_bytes(shape.intermediate, DType::f32));
    operand.rows = place(room);
    operand.scale = reinterpret_cast<float*>(place(rows * 4));
    operand.zero_point = reinterpret_cast<std::int32_t*>(place(rows * 4));
    scratch_step = (scratch + 63) / 64 * 64;
    gemm_scratch = place(scratch_step * threads);
    attention_workspace = place(attend_workspace_bytes(shape, indices, threads));
    norm_step_ = (std::max(shape.hidden, shape.head_dim) * 4 + 63) / 64 * 64;
    norm_scratch_ = place(norm_step_ * threads);
    bytes = all.used();
}

}  // namespace decoder_detail
}  // namespace fastbert
