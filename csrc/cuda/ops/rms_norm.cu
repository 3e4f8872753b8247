#include "common/check.h"
#include "cuda/decoding/decoding.h"
#include "cuda/row.cuh"

namespace fastbert::cuda {

namespace {

template <DType D, bool WIDE>
__global__ void rms_norm_kernel(RmsNorm args, int warps_per_row, int rows_per_block) {
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
    // Elements past the row are zeros and add nothing.
    float squares = 0.0f;
#pragma unroll
    for (int p = 0; p < Part::pieces; ++p) {
#pragma unroll
        for (int i = 0; i < Part::piece; ++i) {
            squares = fmaf(part.value[p][i], part.value[p][i], squares);
        }
    }
    const float mean = at.sum(squares) / static_cast<float>(args.width);
    const float scale = 1.0f / sqrtf(mean + args.eps);
    if (!keep) return;
#pragma unroll
    for (int p = 0; p < Part::pieces; ++p) {
        float w[Part::piece];
        load<D, WIDE>(args.weight, at.first(p), at.available(p), w);
#pragma unroll
        for (int i = 0; i < Part::piece; ++i) part.value[p][i] = part.value[p][i] * scale * w[i];
        store<D, WIDE>(args.out, row * args.out_stride + at.first(p), at.available(p),
                       part.value[p]);
    }
}

}  // namespace

void rms_norm(const RmsNorm& args, const Target& target) {
    const char* op = "rms_norm";
    check_float_dtype(op, "x", args.dtype);
    check_eps(op, args.eps);
    const RowConfig config = row_config(op, args.rows, args.width);
    check_matrix(op, "x", args.x, args.rows, args.width, args.x_stride);
    check_matrix(op, "out", args.out, args.rows, args.width, args.out_stride);
    check_matrix(op, "weight", args.weight, 1, args.width, args.width);
    if (args.residual != nullptr) {
        check_matrix(op, "residual", args.residual, args.rows, args.width, args.residual_stride);
    }
    if (args.rows == 0) return;
    const auto aligned = [&](const void* data, index_t stride) {
        return data == nullptr || rows_aligned(data, stride, args.width, args.dtype);
    };
    const bool wide = aligned(args.x, args.x_stride) && aligned(args.out, args.out_stride) &&
                      aligned(args.sum, args.out_stride) &&
                      aligned(args.residual, args.residual_stride) &&
                      aligned(args.weight, args.width);
    const Launch launch(op, target.device);
    dispatch(args.dtype, wide, [&](auto dtype, auto is_wide) {
        start(rms_norm_kernel<dtype.value, is_wide.value>, dim3(config.blocks), config.threads(),
              target.stream, args, config.warps_per_row, config.rows_per_block);
    });
    launch.check();
}

}  // namespace fastbert::cuda
