#include <type_traits>

#include "common/check.h"
#include "cuda/activation.cuh"
#include "cuda/ops.h"
#include "cuda/row.cuh"

namespace fastbert::cuda {

namespace {

template <DType D, bool WIDE>
__global__ void bias_act_kernel(BiasAct args) {
    constexpr int piece = RowPart<D>::piece;
    const index_t column = (static_cast<index_t>(blockIdx.x) * blockDim.x + threadIdx.x) * piece;
    if (column >= args.width) return;
    const index_t available = args.width - column;
    float bias[piece] = {};
    if (args.bias != nullptr) load<D, WIDE>(args.bias, column, available, bias);
    for (index_t row = blockIdx.y; row < args.rows; row += gridDim.y) {
        float value[piece];
        load<D, WIDE>(args.x, row * args.x_stride + column, available, value);
#pragma unroll
        for (int i = 0; i < piece; ++i) value[i] += bias[i];
        activate<D>(value, args.activation, args.activation_params);
        store<D, WIDE>(args.out, row * args.out_stride + column, available, value);
    }
}

}  // namespace

void bias_act(const BiasAct& args, const Target& target) {
    const char* op = "bias_act";
    check_float_dtype(op, "x", args.dtype);
    check_activation(op, args.activation, Activation::scaled_silu);
    const ElementConfig config = element_config(op, args.rows, args.width, args.dtype);
    check_matrix(op, "x", args.x, args.rows, args.width, args.x_stride);
    check_matrix(op, "out", args.out, args.rows, args.width, args.out_stride);
    if (args.rows == 0 || args.width == 0) return;
    const bool wide =
        rows_aligned(args.x, args.x_stride, args.width, args.dtype) &&
        rows_aligned(args.out, args.out_stride, args.width, args.dtype) &&
        (args.bias == nullptr || rows_aligned(args.bias, args.width, args.width, args.dtype));
    const Launch launch(op, target.device);
    const dim3 grid(config.blocks_x, config.blocks_y);
    dispatch(args.dtype, wide, [&](auto dtype, auto is_wide) {
        start(bias_act_kernel<dtype.value, is_wide.value>, grid, config.threads, target.stream,
              args);
    });
    launch.check();
}

}  // namespace fastbert::cuda
