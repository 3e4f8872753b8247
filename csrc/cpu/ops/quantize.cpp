#include "cpu/ops/quantize.h"

#include "cpu/ops/driver.h"

namespace fastbert {

void quantize_rows(const QuantizeArgs& args) {
    const char* op = "quantize_rows";
    check_float_dtype(op, "x", args.dtype);
    check_size(op, "rows", args.rows);
    check_size(op, "k", args.k);
    check_matrix(op, "x", args.x, args.rows, args.k, args.x_stride);
    check_matrix(op, "q", args.q, args.rows, args.k, args.q_stride);
    if (args.rows == 0) return;
    if (args.scale == nullptr) fail(op, "scale is a null pointer.");
    if (args.zero_point == nullptr) fail(op, "zero_point is a null pointer.");
    const auto kernel = active_kernels().quantize.rows[static_cast<int>(args.dtype)];
    for_row_blocks(args.rows, args.k * (size_of(args.dtype) + 1),
                   [&](index_t first, index_t count) { kernel(args, first, count); });
}

}  // namespace fastbert
