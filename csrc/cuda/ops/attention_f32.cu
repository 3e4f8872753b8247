// Attention in float32, exactly: no tf32, whatever torch's setting would allow. One block of 128
// threads takes 64 queries of one head and 32 keys at a time; a thread computes four queries by
// four keys, then the same queries by an eighth of the columns.
#include "cuda/attention/fold.cuh"

namespace fastbert::cuda {

namespace {

constexpr int queries_each = 4;

// `rows` rows of a head, of which `available` exist, zeros for the others.
template <int DIM>
__device__ void copy_rows(float* to, const float* from, index_t stride, int rows, int available) {
    constexpr int units = DIM / 4;
    for (int i = static_cast<int>(threadIdx.x); i < rows * units; i += 128) {
        const int row = i / units, unit = i % units;
        float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (row < available) {
            value = *reinterpret_cast<const float4*>(from + row * stride + unit * 4);
        }
        *reinterpret_cast<float4*>(to + row * (DIM + 4) + unit * 4) = value;
    }
}

// Over the eight lanes that share four queries, in a fixed order.
template <typename Combine>
__device__ float over_eight(float x, Combine combine) {
#pragma unroll
    for (int step = 1; step < 8; step *= 2) x = combine(x, __shfl_xor_sync(full_mask, x, step));
    return x;
}

template <int DIM>
__global__ void __launch_bounds__(128) attention_f32_kernel(const AttentionVarlen args) {
    constexpr int row = DIM + 4, weights_row = keys_f32 + 4, columns = DIM / 8;
    const index_t slot = blockIdx.x;
    // Places of the grid, which take no registers.
    const int kv_head = static_cast<int>(blockIdx.y);
    const int head = static_cast<int>(blockIdx.y * gridDim.z + blockIdx.z);
    const Extent extent = extent_of(args, sequence_of(args, slot));
    const int first_query =
        static_cast<int>(slot - (extent.start_q / attention_rows + extent.sequence)) *
        attention_rows;
    if (first_query >= extent.len_q) return;

    auto* const q = reinterpret_cast<float*>(ptx::dynamic_shared());
    float* const k = q + attention_rows * row;
    float* const v = k + keys_f32 * row;
    float* const weights = v + keys_f32 * row;
    const auto rows_of = [&](const void* data, index_t token, index_t stride, index_t offset) {
        return static_cast<const float*>(data) + token * stride + offset;
    };
    copy_rows<DIM>(q,
                   rows_of(args.q, extent.start_q + first_query, args.q_stride, head * args.q_head),
                   args.q_stride, attention_rows, extent.len_q - first_query);

    const int mine = static_cast<int>(threadIdx.x) / 8 * queries_each;
    const int eighth = static_cast<int>(threadIdx.x) % 8;
    const float scale_log2 = args.scale * log2e;
    float o[queries_each][columns] = {};
    float maximum[queries_each], mass[queries_each];
#pragma unroll
    for (int i = 0; i < queries_each; ++i) {
        maximum[i] = -INFINITY;
        mass[i] = 0.0f;
    }
    const int keys =
        extent.visible(min(first_query + attention_rows, extent.len_q) - 1, args.causal);
    for (int first = 0; first < keys; first += keys_f32) {
        const index_t token = extent.start_k + first;
        // Everyone is done with the block before.
        __syncthreads();
        copy_rows<DIM>(k, rows_of(args.k, token, args.k_stride, kv_head * args.k_head),
                       args.k_stride, keys_f32, extent.len_k - first);
        copy_rows<DIM>(v, rows_of(args.v, token, args.v_stride, kv_head * args.v_head),
                       args.v_stride, keys_f32, extent.len_k - first);
        __syncthreads();
        // Keys eighth, eighth + 8, ...; sums in two halves, and a block's outputs by themselves
        // below: rounding errors of float32 grow with the length of a chain.
        float s[queries_each][4] = {}, half[queries_each][4] = {};
        for (int d = 0; d < DIM; d += 4) {
            float4 a[queries_each], b[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                a[i] = *reinterpret_cast<const float4*>(q + (mine + i) * row + d);
                b[i] = *reinterpret_cast<const float4*>(k + (eighth + 8 * i) * row + d);
            }
#pragma unroll
            for (int i = 0; i < queries_each; ++i) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    s[i][j] = fmaf(a[i].x, b[j].x, s[i][j]);
                    s[i][j] = fmaf(a[i].y, b[j].y, s[i][j]);
                    half[i][j] = fmaf(a[i].z, b[j].z, half[i][j]);
                    half[i][j] = fmaf(a[i].w, b[j].w, half[i][j]);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < queries_each; ++i) {
#pragma unroll
            for (int j = 0; j < 4; ++j) s[i][j] += half[i][j];
        }
        float alpha[queries_each];
#pragma unroll
        for (int i = 0; i < queries_each; ++i) {
            const int query = first_query + mine + i;
            const int visible = extent.visible(query, args.causal);
            const Added added(args, extent, head, query, first);
            float more[4];
            float peak = -INFINITY;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int key = first + eighth + 8 * j;
                more[j] = key < visible && added.any() ? added(key - first) : 0.0f;
                if (key >= visible) s[i][j] = -INFINITY;
                peak = fmaxf(peak, fmaf(s[i][j], scale_log2, more[j]));
            }
            peak = over_eight(peak, [](float a, float b) { return fmaxf(a, b); });
            const float before = maximum[i];
            maximum[i] = fmaxf(before, peak);
            // A row that has seen no key keeps -inf; -inf - -inf would be NaN.
            const float offset = maximum[i] == -INFINITY ? 0.0f : maximum[i];
            alpha[i] = exp2f(before - offset);
            float sum = 0.0f;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float p = exp2f(fmaf(s[i][j], scale_log2, -offset) + more[j]);
                weights[(mine + i) * weights_row + eighth + 8 * j] = p;
                sum += p;
            }
            sum = over_eight(sum, [](float a, float b) { return a + b; });
            mass[i] = fmaf(mass[i], alpha[i], sum);
        }
        // The lanes that share queries are in one warp.
        __syncwarp();
        float block[queries_each][columns] = {};
        for (int key = 0; key < keys_f32; ++key) {
            float p[queries_each], x[columns];
#pragma unroll
            for (int i = 0; i < queries_each; ++i) p[i] = weights[(mine + i) * weights_row + key];
#pragma unroll
            for (int c = 0; c < columns; ++c) x[c] = v[key * row + eighth + 8 * c];
#pragma unroll
            for (int i = 0; i < queries_each; ++i) {
#pragma unroll
                for (int c = 0; c < columns; ++c) block[i][c] = fmaf(p[i], x[c], block[i][c]);
            }
        }
#pragma unroll
        for (int i = 0; i < queries_each; ++i) {
#pragma unroll
            for (int c = 0; c < columns; ++c) o[i][c] = fmaf(o[i][c], alpha[i], block[i][c]);
        }
        __syncwarp();
    }
#pragma unroll
    for (int i = 0; i < queries_each; ++i) {
        const int query = first_query + mine + i;
        if (query >= extent.len_q) continue;
        auto* const out = static_cast<float*>(args.out) +
                          (static_cast<index_t>(extent.start_q + query) * args.heads + head) * DIM;
        const float norm = mass[i] == 0.0f ? 1.0f : 1.0f / mass[i];
#pragma unroll
        for (int c = 0; c < columns; ++c) out[eighth + 8 * c] = o[i][c] * norm;
    }
}

}  // namespace

void start_attention_f32(const AttentionVarlen& args, void* stream) {
    const dim3 grid(static_cast<unsigned>(attention_slots(args.total_q, args.batch)),
                    static_cast<unsigned>(args.kv_heads),
                    static_cast<unsigned>(args.heads / args.kv_heads));
    with_dim(args.dim, [&](auto dim) {
        start_shared(attention_f32_kernel<dim.value>, grid, 128, attention_shared_f32(dim.value),
                     stream, args);
    });
}

}  // namespace fastbert::cuda
