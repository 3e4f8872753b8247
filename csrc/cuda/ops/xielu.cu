#include "common/check.h"
#include "cuda/decoding/decoding.h"
#include "cuda/row.cuh"

namespace fastbert::cuda {

namespace {

// Where there are many rows a thread takes several, so that folding the numbers, some 60
// instructions, is a small part of its work. Few rows keep more of the GPU busy one by one.
constexpr index_t rows_each = 4;
constexpr index_t many_rows = 512;

template <DType D>
__device__ float number(const void* one) {
    return Element<D>::widen(*static_cast<const typename Element<D>::type*>(one));
}

// log(1 + e^x) without overflow.
__device__ float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }

// e^x - 1 for x <= 0 by instructions without a branch, where neither the difference nor a fast exp
// may round: 2^n e^r - 1 = 2^n (e^r - 1) + (2^n - 1) with x = n log 2 + r. For |r| <= 0.35 the
// first term that the Taylor series of e^r - 1 leaves out is below 6e-10 of r. Below -30 it is -1.
__device__ float expm1_below_zero(float x) {
    x = fmaxf(x, -30.0f);
    const float n = rintf(x * 1.4426950408889634f);
    const float r = fmaf(n, -1.42860677e-06f, fmaf(n, -0.693145751953125f, x));
    float p = fmaf(r, 2.48015873e-05f, 1.98412698e-04f);
    p = fmaf(r, p, 1.38888889e-03f);
    p = fmaf(r, p, 8.33333333e-03f);
    p = fmaf(r, p, 4.16666667e-02f);
    p = fmaf(r, p, 1.66666667e-01f);
    p = fmaf(r, p, 0.5f);
    p = fmaf(r * r, p, r);
    const float power = __int_as_float((static_cast<int>(n) + 127) << 23);
    return fmaf(power, p, power - 1.0f);
}

template <DType D, bool WIDE>
__global__ void xielu_kernel(Xielu args) {
    constexpr int piece = RowPart<D>::piece;
    const index_t column = (static_cast<index_t>(blockIdx.x) * blockDim.x + threadIdx.x) * piece;
    if (column >= args.width) return;
    const index_t available = args.width - column;
    const float beta = number<D>(args.beta), eps = fminf(number<D>(args.eps), 0.0f);
    const float square = softplus(number<D>(args.alpha_p));
    const float exponential = softplus(number<D>(args.alpha_n));
    for (index_t row = blockIdx.y; row < args.rows; row += gridDim.y) {
        float value[piece];
        load<D, WIDE>(args.x, row * args.x_stride + column, available, value);
#pragma unroll
        for (int i = 0; i < piece; ++i) {
            const float x = value[i];
            const float above = fmaf(square * x, x, beta * x);
            // (beta + e) (less - x) + beta x = e (less - x) + beta less, where nothing cancels. 0 x
            // makes a NaN of -inf, as the definition does; fminf drops a NaN, and x brings it back.
            // 16-bit results need the exact difference too: near 0 it nearly equals x.
            const float less = expm1_below_zero(fminf(x, eps));
            const float below = fmaf(less - x, exponential, fmaf(beta, less, 0.0f * x));
            value[i] = x > 0.0f ? above : below;
        }
        store<D, WIDE>(args.out, row * args.out_stride + column, available, value);
    }
}

}  // namespace

void xielu(const Xielu& args, const Target& target) {
    const char* op = "xielu";
    check_float_dtype(op, "x", args.dtype);
    const index_t each = args.rows >= many_rows ? rows_each : 1;
    const ElementConfig config =
        element_config(op, (args.rows + each - 1) / each, args.width, args.dtype);
    check_matrix(op, "x", args.x, args.rows, args.width, args.x_stride);
    check_matrix(op, "out", args.out, args.rows, args.width, args.out_stride);
    check_matrix(op, "alpha_p", args.alpha_p, 1, 1, 1);
    check_matrix(op, "alpha_n", args.alpha_n, 1, 1, 1);
    check_matrix(op, "beta", args.beta, 1, 1, 1);
    check_matrix(op, "eps", args.eps, 1, 1, 1);
    if (args.rows == 0 || args.width == 0) return;
    const bool wide = rows_aligned(args.x, args.x_stride, args.width, args.dtype) &&
                      rows_aligned(args.out, args.out_stride, args.width, args.dtype);
    const Launch launch(op, target.device);
    const dim3 grid(config.blocks_x, config.blocks_y);
    dispatch(args.dtype, wide, [&](auto dtype, auto is_wide) {
        start(xielu_kernel<dtype.value, is_wide.value>, grid, config.threads, target.stream, args);
    });
    launch.check();
}

}  // namespace fastbert::cuda
