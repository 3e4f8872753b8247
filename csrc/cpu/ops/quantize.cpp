#include "cpu/ops/quantize.h"

#include "cpu/ops/driver.h"

namespace fastbert {

void check_input_columns(const char* op, const InputColumns& columns, index_t k) {
    check_size(op, "the number of repeated columns", columns.repeats);
    if (columns.repeats > 0 && columns.repeated == nullptr) {
        fail(op, "repeated is a null pointer.");
    }
    for (index_t i = 0; i < columns.repeats; ++i) {
        if (columns.repeated[i] < 0 || columns.repeated[i] >= k) {
            fail(op, "repeated[" + std::to_string(i) + "] is " +
                         std::to_string(columns.repeated[i]) + ", but x has " + std::to_string(k) +
                         " columns.");
        }
    }
}

namespace {

using RowsFn = void (*)(const QuantizeArgs&, index_t, index_t);

// planes: rows of q for each row of x.
void run(const char* op, const QuantizeArgs& args, index_t planes, const RowsFn (&kernels)[3]) {
    check_float_dtype(op, "x", args.dtype);
    check_size(op, "rows", args.rows);
    check_size(op, "k", args.k);
    check_matrix(op, "x", args.x, args.rows, args.k, args.x_stride);
    check_input_columns(op, args.columns, args.k);
    const index_t width = args.k + args.columns.repeats;
    check_matrix(op, "q", args.q, planes * args.rows, width, args.q_stride);
    if (args.rows == 0) return;
    if (args.scale == nullptr) fail(op, "scale is a null pointer.");
    if (planes == 1 && args.zero_point == nullptr) fail(op, "zero_point is a null pointer.");
    const auto kernel = kernels[static_cast<int>(args.dtype)];
    for_row_blocks(args.rows, args.k * (size_of(args.dtype) + planes),
                   [&](index_t first, index_t count) { kernel(args, first, count); });
}

}  // namespace

void quantize_rows(const QuantizeArgs& args) {
    run("quantize_rows", args, 1, active_kernels().quantize.rows);
}

void quantize_rows16(const QuantizeArgs& args) {
    run("quantize_rows16", args, 2, active_kernels().quantize.rows16);
}

void clip_errors(const ClipArgs& args) {
    const char* const op = "clip_errors";
    check_size(op, "rows", args.rows);
    check_size(op, "k", args.k);
    check_size(op, "candidates", args.candidates);
    check_matrix(op, "x", args.x, args.rows, args.k, args.x_stride);
    check_matrix(op, "scale", args.scale, args.rows, args.candidates, args.candidates);
    check_matrix(op, "error", args.error, args.rows, args.candidates, args.candidates);
    if (args.k > 0 && args.largest == nullptr) fail(op, "largest is a null pointer.");
    const auto kernel = active_kernels().quantize.clip_errors;
    for_row_blocks(args.rows, args.k * args.candidates,
                   [&](index_t first, index_t count) { kernel(args, first, count); });
}

}  // namespace fastbert
