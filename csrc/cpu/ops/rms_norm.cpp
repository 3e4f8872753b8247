#include "cpu/ops/rms_norm.h"

#include "cpu/ops/driver.h"

namespace fastbert {

void rms_norm(const RmsNormArgs& args) {
    const char* op = "rms_norm";
    check_float_dtype(op, "x", args.dtype);
    check_eps(op, args.eps);
    check_size(op, "rows", args.rows);
    check_size(op, "hidden", args.hidden);
    check_matrix(op, "x", args.x, args.rows, args.hidden, args.x_stride);
    check_matrix(op, "out", args.out, args.rows, args.hidden, args.out_stride);
    if (args.residual != nullptr) {
        check_matrix(op, "residual", args.residual, args.rows, args.hidden, args.residual_stride);
    }
    if (args.sum != nullptr) {
        check_matrix(op, "sum", args.sum, args.rows, args.hidden, args.sum_stride);
    }
    const KernelTable& table = active_kernels();
    const Float32Param weight(op, "weight", args.weight, args.hidden, true, table);
    if (args.rows == 0 || args.hidden == 0) return;
    const auto kernel = table.rms_norm.rows[static_cast<int>(args.dtype)];
    const index_t streams = 2 + (args.residual != nullptr) + (args.sum != nullptr);
    for_row_blocks(args.rows, streams * args.hidden * size_of(args.dtype),
                   [&](index_t first, index_t count) {
                       kernel(args, weight.get(), first, count, thread_scratch(args.hidden));
                   });
}

}  // namespace fastbert
