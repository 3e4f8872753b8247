#include <type_traits>

#include "common/check.h"
#include "cuda/activation.cuh"
#include "cuda/ops.h"
#include "cuda/row.cuh"

namespace fastbert::cuda {

namespace {

template <DType D, bool WIDE>
__global__ void row_norm_kernel(RowNorm args, int warps_per_row, int rows_per_block) {
    const RowLane<D> at(args.width, warps_per_row, rows_per_block);
    // Lanes past the last row stay for the shuffles, on row 0, and store nothing.
    const bool keep = at.row < args.rows;
    const index_t row = keep ? at.row : 0;
    RowPart<D> part;
    using Part = RowPart<D>;
#pragma unroll
    for (int p = 0; p < Part::pieces; ++p) {
        load<D, WIDE>(args.x, row * args.x_stride + at.first(p), at.available(p), part.value[p]);
    }
    if (args.x_bias != nullptr) {
#pragma unroll
        for (int p = 0; p < Part::pieces; ++p) {
            float b[Part::piece];
            load<D, WIDE>(args.x_bias, at.first(p), at.available(p), b);
#pragma unroll
            for (int i = 0; i < Part::piece; ++i) part.value[p][i] += b[i];
        }
    }
    if (args.activation != Activation::none) {
        // Pieces past the row hold zeros, as do elements past it in the last piece: both stay so.
#pragma unroll
        for (int p = 0; p < Part::pieces; ++p) {
            if (at.available(p) > 0) {
                activate<D>(part.value[p], args.activation, args.activation_params);
            }
        }
    }
    if (args.residual != nullptr) {
#pragma unroll
        for (int p = 0; p < Part::pieces; ++p) {
            float r[Part::piece];
            load<D, WIDE>(args.residual, row * args.residual_stride + at.first(p), at.available(p),
                          r);
#pragma unroll
            for (int i = 0; i < Part::piece; ++i) part.value[p][i] += r[i];
        }
    }
    if (args.sum != nullptr && keep) {
#pragma unroll
        for (int p = 0; p < Part::pieces; ++p) {
            store<D, WIDE>(args.sum, row * args.out_stride + at.first(p), at.available(p),
                           part.value[p]);
        }
    }
    normalise_and_store<D, WIDE>(at, part, args.weight, args.bias, args.eps, args.out,
                                 row * args.out_stride, keep);
}

}  // namespace

void row_norm(const char* op, const RowNorm& args, const Target& target) {
    check_float_dtype(op, "x", args.dtype);
    check_activation(op, args.activation, Activation::scaled_silu);
    check_eps(op, args.eps);
    const RowConfig config = row_config(op, args.rows, args.width);
    check_matrix(op, "x", args.x, args.rows, args.width, args.x_stride);
    check_matrix(op, "out", args.out, args.rows, args.width, args.out_stride);
    check_matrix(op, "weight", args.weight, 1, args.width, args.width);
    check_matrix(op, "bias", args.bias, 1, args.width, args.width);
    const auto aligned = [&](const void* data, index_t stride) {
        return data == nullptr || rows_aligned(data, stride, args.width, args.dtype);
    };
    if (args.residual != nullptr) {
        check_matrix(op, "residual", args.residual, args.rows, args.width, args.residual_stride);
    }
    if (args.rows == 0) return;
    const bool wide = aligned(args.x, args.x_stride) && aligned(args.out, args.out_stride) &&
                      aligned(args.sum, args.out_stride) && aligned(args.x_bias, args.width) &&
                      aligned(args.residual, args.residual_stride) &&
                      aligned(args.weight, args.width) && aligned(args.bias, args.width);
    const Launch launch(op, target.device);
    dispatch(args.dtype, wide, [&](auto dtype, auto is_wide) {
        start(row_norm_kernel<dtype.value, is_wide.value>, dim3(config.blocks), config.threads(),
              target.stream, args, config.warps_per_row, config.rows_per_block);
    });
    launch.check();
}

}  // namespace fastbert::cuda
