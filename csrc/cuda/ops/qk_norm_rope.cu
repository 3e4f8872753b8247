#include <string>

#include "common/check.h"
#include "cuda/decoding/decoding.h"
#include "cuda/row.cuh"

namespace fastbert::cuda {

namespace {

// `COUNT` floats from `from` + offset on, zeros past `available`.
template <bool WIDE, int COUNT>
__device__ void load_floats(const float* from, index_t offset, index_t available,
                            float (&out)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i += 4) {
        float (&four)[4] = reinterpret_cast<float (&)[4]>(out[i]);
        load<DType::f32, WIDE>(from, offset + i, available - i, four);
    }
}

// A group of lanes takes a head of one token: of q, behind them of k, and behind those of v.
template <DType D, bool WIDE>
__global__ void qk_norm_rope_kernel(QkNormRope args, int lanes) {
    constexpr int piece = RowPart<D>::piece;
    const index_t token = blockIdx.x;
    const int thread = static_cast<int>(threadIdx.x), lane = thread % lanes;
    const index_t place =
        static_cast<index_t>(blockIdx.y) * (static_cast<int>(blockDim.x) / lanes) + thread / lanes;
    const bool of_queries = place < args.heads;
    const bool of_keys = !of_queries && place < args.heads + args.kv_heads;
    const bool of_values =
        !of_queries && !of_keys && args.v.data != nullptr && place < args.heads + 2 * args.kv_heads;
    // Lanes past the last head stay for the shuffles and load nothing.
    const bool exists = of_queries || of_keys || of_values;
    const Heads from = of_queries ? args.q : of_keys ? args.k : args.v;
    const Heads to = of_queries ? args.q_out : of_keys ? args.k_out : args.v_out;
    const index_t head = place - (of_queries ? 0 : args.heads) - (of_values ? args.kv_heads : 0);

    const index_t half = args.dim / 2, first = static_cast<index_t>(lane) * piece;
    const index_t available = exists ? half - first : 0;
    const index_t at = token * from.stride + head * from.head + first;
    float a[piece], b[piece];
    load<D, WIDE>(from.data, at, available, a);
    load<D, WIDE>(from.data, at + half, available, b);
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < piece; ++i) squares = fmaf(a[i], a[i], fmaf(b[i], b[i], squares));
    for (int step = lanes / 2; step > 0; step /= 2) {
        squares += __shfl_xor_sync(full_mask, squares, step);
    }
    const float scale = 1.0f / sqrtf(squares / static_cast<float>(args.dim) + args.eps);

    if (!of_values) {
        const void* const weight = of_queries ? args.q_weight : args.k_weight;
        float gain[piece], other_gain[piece], cos[piece], sin[piece];
        load<D, WIDE>(weight, first, available, gain);
        load<D, WIDE>(weight, half + first, available, other_gain);
        load_floats<WIDE>(args.cos, token * args.cos_stride + first, available, cos);
        load_floats<WIDE>(args.sin, token * args.sin_stride + first, available, sin);
#pragma unroll
        for (int i = 0; i < piece; ++i) {
            const float x = a[i] * scale * gain[i], y = b[i] * scale * other_gain[i];
            a[i] = x * cos[i] - y * sin[i];
            b[i] = y * cos[i] + x * sin[i];
        }
    }
    index_t row = token;
    if (!of_queries && args.cache_rows != nullptr) {
        row = args.cache_rows[token];
        if (row < 0 || row >= args.cache_size) return;
    }
    const index_t out = row * to.stride + head * to.head + first;
    store<D, WIDE>(to.data, out, available, a);
    store<D, WIDE>(to.data, out + half, available, b);
}

}  // namespace

void qk_norm_rope(const QkNormRope& args, const Target& target) {
    const char* op = "qk_norm_rope";
    check_float_dtype(op, "q", args.dtype);
    check_eps(op, args.eps);
    check_size(op, "num_heads", args.heads);
    check_size(op, "num_kv_heads", args.kv_heads);
    const index_t heads = args.heads + (args.v.data == nullptr ? 1 : 2) * args.kv_heads;
    if (args.tokens == 0 || heads == 0 || args.dim == 0) return;
    const HeadConfig config = head_config(op, args.tokens, heads, args.dim, args.dtype);
    const index_t bytes = size_of(args.dtype), half = args.dim / 2;
    bool wide = half * bytes % 16 == 0;
    const auto aligned = [&](const void* data, index_t stride, index_t element) {
        return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && stride * element % 16 == 0;
    };
    const auto check_heads = [&](const char* what, const Heads& of, index_t count) {
        if (count == 0) return;
        if (of.data == nullptr) fail(op, std::string(what) + " is missing.");
        wide = wide && aligned(of.data, of.stride, bytes) && of.head * bytes % 16 == 0;
    };
    check_heads("q", args.q, args.heads);
    check_heads("the result of q", args.q_out, args.heads);
    check_heads("k", args.k, args.kv_heads);
    check_heads("the result of k", args.k_out, args.kv_heads);
    if (args.v.data != nullptr) {
        check_heads("v", args.v, args.kv_heads);
        check_heads("the result of v", args.v_out, args.kv_heads);
    }
    check_matrix(op, "q_weight", args.q_weight, 1, args.dim, args.dim);
    check_matrix(op, "k_weight", args.k_weight, 1, args.dim, args.dim);
    check_matrix(op, "cos", args.cos, args.tokens, half, args.cos_stride);
    check_matrix(op, "sin", args.sin, args.tokens, half, args.sin_stride);
    wide = wide && aligned(args.q_weight, 0, bytes) && aligned(args.k_weight, 0, bytes) &&
           aligned(args.cos, args.cos_stride, 4) && aligned(args.sin, args.sin_stride, 4);
    const Launch launch(op, target.device);
    const dim3 grid(config.blocks_x, config.blocks_y);
    dispatch(args.dtype, wide, [&](auto dtype, auto is_wide) {
        start(qk_norm_rope_kernel<dtype.value, is_wide.value>, grid, config.threads(),
              target.stream, args, config.lanes);
    });
    launch.check();
}

}  // namespace fastbert::cuda
