// Attention with a warp's own matrix products (mma.sync) and copies (cp.async): sm_80 and later.
//
// A block of four warps takes 64 queries of one head, 16 a warp, and folds blocks of 64 keys while
// the next one's keys and values are on their way. Rows past a sequence's end arrive as zeros.
#pragma once

#include "cuda/attention/fold.cuh"

namespace fastbert::cuda {

template <int DIM>
struct Sm80 {
    static constexpr int row_bytes = padded_row_bytes(DIM);
    static constexpr int block_bytes = keys_sm80 * row_bytes;
};

// Rows of one head from global to shared memory, `rows` of them of which `available` exist.
template <int DIM>
__device__ void copy_rows(std::uint32_t to, const void* from, index_t stride, int rows,
                          int available) {
    constexpr int units = DIM / 8, row_bytes = Sm80<DIM>::row_bytes;
    for (int i = static_cast<int>(threadIdx.x); i < rows * units; i += 128) {
        const int row = i / units, unit = i % units;
        const bool exists = row < available;
        const auto* source =
            static_cast<const std::uint16_t*>(from) + (exists ? row * stride : 0) + unit * 8;
        ptx::copy_async(to + row * row_bytes + unit * 16, source, exists);
    }
}

template <DType D, int DIM>
__global__ void __launch_bounds__(128) attention_sm80_kernel(const AttentionVarlen args) {
    // On Hopper the other form runs; code of this one for it would only be carried along.
#if !defined(__CUDA_ARCH_FEAT_SM90_ALL)
    constexpr int row_bytes = Sm80<DIM>::row_bytes, block_bytes = Sm80<DIM>::block_bytes;
    const index_t slot = blockIdx.x;
    // Places of the grid, which take no registers.
    const int kv_head = static_cast<int>(blockIdx.y);
    const int head = static_cast<int>(blockIdx.y * gridDim.z + blockIdx.z);
    const Extent extent = extent_of(args, sequence_of(args, slot));
    const int first_query =
        static_cast<int>(slot - (extent.start_q / attention_rows + extent.sequence)) *
        attention_rows;
    if (first_query >= extent.len_q) return;

    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
    const std::uint32_t queries = ptx::shared_address(ptx::dynamic_shared());
    const std::uint32_t stages = queries + attention_rows * row_bytes;
    const auto keys_at = [&](int n) { return stages + n % 2 * 2 * block_bytes; };
    const auto values_at = [&](int n) { return keys_at(n) + block_bytes; };
    const auto rows_of = [&](const void* data, index_t token, index_t stride, index_t offset) {
        return static_cast<const std::uint16_t*>(data) + token * stride + offset;
    };
    const int keys =
        extent.visible(min(first_query + attention_rows, extent.len_q) - 1, args.causal);
    const int blocks = (keys + keys_sm80 - 1) / keys_sm80;
    const auto fetch = [&](int n) {
        const index_t token = extent.start_k + n * keys_sm80;
        const int available = extent.len_k - n * keys_sm80;
        copy_rows<DIM>(keys_at(n), rows_of(args.k, token, args.k_stride, kv_head * args.k_head),
                       args.k_stride, keys_sm80, available);
        copy_rows<DIM>(values_at(n), rows_of(args.v, token, args.v_stride, kv_head * args.v_head),
                       args.v_stride, keys_sm80, available);
    };
    copy_rows<DIM>(queries,
                   rows_of(args.q, extent.start_q + first_query, args.q_stride, head * args.q_head),
                   args.q_stride, attention_rows, extent.len_q - first_query);
    if (blocks > 0) fetch(0);
    ptx::copy_async_commit();

    const int query = first_query + warp * 16 + lane / 4;
    const bool biased = args.key_bias != nullptr || args.bias != nullptr;
    const int plain = biased ? 0 : extent.visible(first_query, args.causal) / keys_sm80;
    const float scale_log2 = args.scale * log2e;
    float o[DIM / 2];
#pragma unroll
    for (int i = 0; i < DIM / 2; ++i) o[i] = 0.0f;
    Softmax softmax;
    std::uint32_t q[DIM / 16][4];
    // Where this lane's row of four matrices lies: 16 x 16 elements, row by row and half by half.
    const auto of_lane = [&](int row_half, int column_half) {
        return static_cast<std::uint32_t>((lane % 8 + row_half * 8) * row_bytes + column_half * 16);
    };
    const std::uint32_t rows_first = of_lane(lane / 8 % 2, lane / 16);
    const std::uint32_t columns_first = of_lane(lane / 16, lane / 8 % 2);

    for (int n = 0; n < blocks; ++n) {
        if (n + 1 < blocks) fetch(n + 1);
        ptx::copy_async_commit();
        ptx::copy_async_wait<1>();
        __syncthreads();
        if (n == 0) {
#pragma unroll
            for (int step = 0; step < DIM / 16; ++step) {
                ptx::load_matrices(q[step],
                                   queries + warp * 16 * row_bytes + step * 32 + rows_first);
            }
        }
        const int left = min(keys - n * keys_sm80, keys_sm80);
        float s[keys_sm80 / 2];
#pragma unroll
        for (int j = 0; j < keys_sm80 / 16; ++j) {  // 16 keys: two products side by side
            float c[2][4] = {};
            if (16 * j < left) {
#pragma unroll
                for (int step = 0; step < DIM / 16; ++step) {
                    std::uint32_t k[4];
                    ptx::load_matrices(k,
                                       keys_at(n) + j * 16 * row_bytes + step * 32 + columns_first);
                    ptx::multiply_16x8x16<D>(c[0], q[step], k[0], k[1]);
                    ptx::multiply_16x8x16<D>(c[1], q[step], k[2], k[3]);
                }
            }
#pragma unroll
            for (int i = 0; i < 8; ++i) s[8 * j + i] = c[i / 4][i % 4];
        }
        float alpha[2];
        if (n < plain) {
            fold<keys_sm80>(s, softmax, alpha, scale_log2);
        } else {
            const int first = n * keys_sm80 + lane % 4 * 2;  // this thread's first key
            const int visible[2] = {extent.visible(query, args.causal) - first,
                                    extent.visible(query + 8, args.causal) - first};
            const Added added[2] = {Added(args, extent, head, query, first),
                                    Added(args, extent, head, query + 8, first)};
            fold_partly<keys_sm80>(s, softmax, alpha, scale_log2, visible, added);
        }
        shrink<DIM>(o, alpha);
        std::uint32_t p[keys_sm80 / 16][4];
        narrow_weights<D, keys_sm80>(s, p);
#pragma unroll
        for (int step = 0; step < keys_sm80 / 16; ++step) {
            if (16 * step >= left) continue;
#pragma unroll
            for (int j = 0; j < DIM / 16; ++j) {
                std::uint32_t v[4];
                ptx::load_matrices_transposed(
                    v, values_at(n) + step * 16 * row_bytes + j * 32 + rows_first);
                float (&low)[4] = reinterpret_cast<float (&)[4]>(o[8 * j]);
                float (&high)[4] = reinterpret_cast<float (&)[4]>(o[8 * j + 4]);
                ptx::multiply_16x8x16<D>(low, p[step], v[0], v[1]);
                ptx::multiply_16x8x16<D>(high, p[step], v[2], v[3]);
            }
        }
        // Before the stage is filled again.
        __syncthreads();
    }
    ptx::copy_async_wait<0>();

    const index_t row = extent.start_q + query;
    const bool keep[2] = {query < extent.len_q, query + 8 < extent.len_q};
    store_rows<D, DIM>(o, softmax,
                       static_cast<std::uint16_t*>(args.out) + (row * args.heads + head) * DIM,
                       static_cast<index_t>(args.heads) * DIM, keep);
#endif
}

template <DType D>
void start_attention_sm80(const AttentionVarlen& args, void* stream) {
    const dim3 grid(static_cast<unsigned>(attention_slots(args.total_q, args.batch)),
                    static_cast<unsigned>(args.kv_heads),
                    static_cast<unsigned>(args.heads / args.kv_heads));
    with_dim(args.dim, [&](auto dim) {
        start_shared(attention_sm80_kernel<D, dim.value>, grid, 128,
                     attention_shared_sm80(dim.value), stream, args);
    });
}

}  // namespace fastbert::cuda
