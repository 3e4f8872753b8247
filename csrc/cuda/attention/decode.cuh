// Attention of single queries over long caches: one new token of each of several sequences.
//
// A key/value head costs 4 * len_k * dim operations for each query head of its group and 4 * len_k
// * dim bytes of 16-bit elements, so as many operations a byte as the group has heads: up to eight
// the ordinary units keep pace with memory, and no tile of matrix units is filled by so few rows.
//
// A block takes decode_chunk keys for up to HEADS heads of one group, so that keys and values are
// read once for all of them. Some lanes share a key's row, 16 bytes each: first all scores of the
// chunk, then its weights, then its weighted values. Where a sequence has more chunks, a second
// kernel joins them. Chunks are counted from the sequence's first key, and everything is summed in
// an order that depends on the sequence alone.
#pragma once

#include "cuda/attention/fold.cuh"

namespace fastbert::cuda {

template <DType D, int DIM>
struct Decode {
    static constexpr int threads = 256, warps = threads / 32;
    static constexpr int piece = 16 / size_of(D);
    static constexpr int lanes_for(int units) {
        int lanes = 1;
        while (lanes < units) lanes *= 2;
        return lanes;
    }
    static constexpr int lanes = lanes_for(DIM / piece);  // that share a key's row
    static constexpr int keys_at_once = threads / lanes;
    // Rows that a lane has on their way before it uses the first.
    static constexpr int ahead = 4;
    // Loads stay before a meeting of the warp; without it ptxas puts some behind the first
    // products, which wait for the first of them.
    static __device__ void all_on_their_way() { __syncwarp(); }
    static_assert(DIM % piece == 0 && lanes <= 32 && decode_chunk % (ahead * keys_at_once) == 0);
    static constexpr int part_floats = static_cast<int>(decode_part_floats(DIM));
    // Scores, a maximum and a mass for each head, weighted values for each warp.
    static constexpr int shared_bytes(int heads) {
        return 4 * heads * (decode_chunk + 2 + warps * DIM);
    }
};

// 16 bytes of a row, zeros where there are none.
template <DType D>
__device__ uint4 load_piece(const void* base, index_t offset, bool exists) {
    const auto* const from = static_cast<const typename Element<D>::type*>(base) + offset;
    return exists ? *reinterpret_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
}

template <DType D, int COUNT>
__device__ void widen_piece(const uint4& raw, float (&out)[COUNT]) {
    const auto* const element = reinterpret_cast<const typename Element<D>::type*>(&raw);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) out[i] = Element<D>::widen(element[i]);
}

// Over a warp, in a fixed order.
template <typename Combine>
__device__ float over_warp(float x, Combine combine) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x = combine(x, __shfl_xor_sync(full_mask, x, step));
    return x;
}

template <DType D, int DIM, int HEADS>
__global__ void __launch_bounds__(256)
    attention_decode_kernel(const AttentionVarlen args, const SingleQueries singles) {
    using S = Decode<D, DIM>;
    static_assert(HEADS <= S::warps, "a warp for each head's weights");
    const Extent extent = extent_of(args, static_cast<int>(blockIdx.x));
    const int chunk = static_cast<int>(blockIdx.z), first = chunk * decode_chunk;
    const int keys = max(min(extent.len_k - first, decode_chunk), 0);
    // A sequence without keys has zeros of its first chunk.
    if (extent.len_q != 1 || (chunk > 0 && keys == 0)) return;
    const int group = args.heads / args.kv_heads, tiles = (group + HEADS - 1) / HEADS;
    const int kv_head = static_cast<int>(blockIdx.y) / tiles;
    const int tile = static_cast<int>(blockIdx.y) % tiles * HEADS;
    const int first_head = kv_head * group + tile, heads = min(group - tile, HEADS);

    auto* const scores = reinterpret_cast<float*>(ptx::dynamic_shared());
    float* const maximum = scores + HEADS * decode_chunk;
    float* const mass = maximum + HEADS;
    float* const sums = mass + HEADS;
    const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
    const int lane = thread % S::lanes, slot = thread / S::lanes;
    const int column = lane * S::piece;
    const bool inside = column < DIM;
    const index_t token = extent.start_k + first;
    const index_t k_at = token * args.k_stride + kv_head * args.k_head + column;
    const index_t v_at = token * args.v_stride + kv_head * args.v_head + column;

    float q[HEADS][S::piece];
#pragma unroll
    for (int h = 0; h < HEADS; ++h) {
        load<D, true>(args.q,
                      extent.start_q * args.q_stride + (first_head + h) * args.q_head + column,
                      inside && h < heads ? S::piece : 0, q[h]);
    }
    uint4 raw[S::ahead];
#pragma unroll 1
    for (int start = slot; start - slot < keys; start += S::ahead * S::keys_at_once) {
#pragma unroll
        for (int a = 0; a < S::ahead; ++a) {
            const int key = start + a * S::keys_at_once;
            raw[a] = load_piece<D>(args.k, k_at + key * args.k_stride, inside && key < keys);
        }
        S::all_on_their_way();
#pragma unroll
        for (int a = 0; a < S::ahead; ++a) {
            float k[S::piece];
            widen_piece<D>(raw[a], k);
#pragma unroll
            for (int h = 0; h < HEADS; ++h) {
                float s = 0.0f;
#pragma unroll
                for (int i = 0; i < S::piece; ++i) s = fmaf(q[h][i], k[i], s);
#pragma unroll
                for (int step = S::lanes / 2; step > 0; step /= 2) {
                    s += __shfl_xor_sync(full_mask, s, step);
                }
                if (lane == 0) scores[h * decode_chunk + start + a * S::keys_at_once] = s;
            }
        }
    }
    __syncthreads();

    if (warp < heads) {
        float* const mine = scores + warp * decode_chunk;
        const int key = thread % 32;
        const Added added(args, extent, first_head + warp, 0, first + key);
        const float scale_log2 = args.scale * log2e;
        float s[decode_chunk / 32];
        float peak = -INFINITY;
#pragma unroll
        for (int i = 0; i < decode_chunk / 32; ++i) {
            const bool visible = key + 32 * i < keys;
            const float more = visible && added.any() ? added(32 * i) : 0.0f;
            s[i] = visible ? fmaf(mine[key + 32 * i], scale_log2, more) : -INFINITY;
            peak = fmaxf(peak, s[i]);
        }
        peak = over_warp(peak, [](float a, float b) { return fmaxf(a, b); });
        // A chunk of which no key is visible keeps -inf; -inf - -inf would be NaN.
        const float offset = peak == -INFINITY ? 0.0f : peak;
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < decode_chunk / 32; ++i) {
            const float p = exp2f(s[i] - offset);
            mine[key + 32 * i] = p;
            sum += p;
        }
        sum = over_warp(sum, [](float a, float b) { return a + b; });
        if (key == 0) {
            maximum[warp] = peak;
            mass[warp] = sum;
        }
    }
    __syncthreads();

    float o[HEADS][S::piece] = {};
#pragma unroll 1
    for (int start = slot; start - slot < keys; start += S::ahead * S::keys_at_once) {
#pragma unroll
        for (int a = 0; a < S::ahead; ++a) {
            const int key = start + a * S::keys_at_once;
            raw[a] = load_piece<D>(args.v, v_at + key * args.v_stride, inside && key < keys);
        }
        S::all_on_their_way();
#pragma unroll
        for (int a = 0; a < S::ahead; ++a) {
            float v[S::piece];
            widen_piece<D>(raw[a], v);
#pragma unroll
            for (int h = 0; h < HEADS; ++h) {
                // Keys past the end have a weight of 0, heads past the group's last have none.
                const float p =
                    h < heads ? scores[h * decode_chunk + start + a * S::keys_at_once] : 0.0f;
#pragma unroll
                for (int i = 0; i < S::piece; ++i) o[h][i] = fmaf(p, v[i], o[h][i]);
            }
        }
    }
#pragma unroll
    for (int h = 0; h < HEADS; ++h) {
#pragma unroll
        for (int i = 0; i < S::piece; ++i) {
#pragma unroll
            for (int step = S::lanes; step < 32; step *= 2) {
                o[h][i] += __shfl_xor_sync(full_mask, o[h][i], step);
            }
            if (thread % 32 < S::lanes && inside) {
                sums[(warp * HEADS + h) * DIM + column + i] = o[h][i];
            }
        }
    }
    __syncthreads();

    const bool whole = extent.len_k <= decode_chunk;
    for (int i = thread; i < heads * DIM; i += S::threads) {
        const int h = i / DIM;
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < S::warps; ++w) sum += sums[w * HEADS * DIM + i];
        const index_t head = first_head + h;
        if (whole) {
            // No visible key: mass and sum are 0, and so is the row. NaN passes this test and
            // stays.
            const float norm = mass[h] == 0.0f ? 1.0f : 1.0f / mass[h];
            using E = Element<D>;
            static_cast<typename E::type*>(
                args.out)[(extent.start_q * static_cast<index_t>(args.heads) + head) * DIM +
                          i % DIM] = E::narrow(sum * norm);
        } else {
            float* const part =
                singles.parts +
                ((extent.sequence * static_cast<index_t>(args.heads) + head) * singles.chunks +
                 chunk) *
                    S::part_floats;
            part[i % DIM] = sum;
            if (i % DIM == 0) {
                part[DIM] = maximum[h];
                part[DIM + 1] = mass[h];
            }
        }
    }
}

// The chunks of one head of a sequence's only query, in order.
template <DType D, int DIM>
__global__ void attention_join_kernel(const AttentionVarlen args, const SingleQueries singles) {
    using S = Decode<D, DIM>;
    const Extent extent = extent_of(args, static_cast<int>(blockIdx.x));
    const int column = static_cast<int>(threadIdx.x);
    if (extent.len_q != 1 || extent.len_k <= decode_chunk || column >= DIM) return;
    const index_t row =
        extent.sequence * static_cast<index_t>(args.heads) + static_cast<int>(blockIdx.y);
    const float* const parts = singles.parts + row * singles.chunks * S::part_floats;
    const int chunks = min((extent.len_k - 1) / decode_chunk + 1, singles.chunks);
    float peak = -INFINITY;
    for (int c = 0; c < chunks; ++c) peak = fmaxf(peak, parts[c * S::part_floats + DIM]);
    const float offset = peak == -INFINITY ? 0.0f : peak;
    float sum = 0.0f, mass = 0.0f;
    for (int c = 0; c < chunks; ++c) {
        const float* const part = parts + c * S::part_floats;
        const float weight = exp2f(part[DIM] - offset);
        sum = fmaf(part[column], weight, sum);
        mass = fmaf(part[DIM + 1], weight, mass);
    }
    const float norm = mass == 0.0f ? 1.0f : 1.0f / mass;
    using E = Element<D>;
    static_cast<typename E::type*>(
        args.out)[(extent.start_q * static_cast<index_t>(args.heads) + blockIdx.y) * DIM + column] =
        E::narrow(sum * norm);
}

template <DType D>
void start_attention_decode(const AttentionVarlen& args, const SingleQueries& singles,
                            void* stream) {
    const int group = args.heads / args.kv_heads;
    with_dim(args.dim, [&](auto dim) {
        using S = Decode<D, dim.value>;
        const auto run = [&](auto heads) {
            const int tiles = (group + heads.value - 1) / heads.value;
            const dim3 grid(static_cast<unsigned>(args.batch),
                            static_cast<unsigned>(args.kv_heads * tiles),
                            static_cast<unsigned>(singles.chunks));
            start_shared(attention_decode_kernel<D, dim.value, heads.value>, grid, S::threads,
                         S::shared_bytes(heads.value), stream, args, singles);
        };
        if (group == 1) {
            run(std::integral_constant<int, 1>{});
        } else if (group <= 4) {
            run(std::integral_constant<int, 4>{});
        } else {
            run(std::integral_constant<int, 8>{});
        }
        if (singles.chunks == 1) return;
        const dim3 grid(static_cast<unsigned>(args.batch), static_cast<unsigned>(args.heads));
        start(attention_join_kernel<D, dim.value>, grid, (dim.value + 31) / 32 * 32, stream, args,
              singles);
    });
}

}  // namespace fastbert::cuda
