#include "cpu/ops/act.h"

#include "cpu/ops/driver.h"

namespace fastbert {

void bias_act(const ActArgs& args) {
    const char* op = "bias_act";
    check_float_dtype(op, "x", args.dtype);
    check_activation(op, args.activation);
    check_size(op, "rows", args.rows);
    check_size(op, "columns", args.columns);
    check_matrix(op, "x", args.x, args.rows, args.columns, args.x_stride);
    check_matrix(op, "out", args.out, args.rows, args.columns, args.out_stride);
    const KernelTable& table = active_kernels();
    const Float32Param bias(op, "bias", args.bias, args.columns, false, table);
    if (args.columns == 0) return;  // however many rows there are of nothing
    const auto kernel = table.act.rows[static_cast<int>(args.dtype)];
    for_row_blocks(args.rows, 2 * args.columns * size_of(args.dtype),
                   [&](index_t first, index_t count) { kernel(args, bias.get(), first, count); });
}

}  // namespace fastbert
