#include "cpu/ops/dropout.h"

#include <string>

#include "cpu/ops/driver.h"

namespace fastbert {
namespace {

constexpr index_t chunk = 64;

void check_dropping(const char* op, const Dropping& dropping) {
    if (dropping.threshold >= 0.0f && dropping.threshold <= 0x1p24f) return;
    fail(op, "threshold must be 0 to 2^24, but is " + std::to_string(dropping.threshold) + ".");
}

void check_narrow(const char* op, const char* what, DType dtype) {
    check_float_dtype(op, what, dtype);
    if (dtype == DType::f16) fail(op, std::string(what) + " must be float32 or bfloat16.");
}

void check_softmax(const char* op, const SoftmaxArgs& args, bool backward) {
    check_narrow(op, "scores", args.dtype);
    check_dropping(op, args.dropping);
    check_size(op, "sequences", args.sequences);
    check_size(op, "heads", args.heads);
    check_size(op, "queries", args.queries);
    check_size(op, "keys", args.keys);
    const index_t rows = args.sequences * args.heads * args.queries;
    check_matrix(op, "scores", args.scores, rows, args.keys, args.keys);
    check_matrix(op, "statistics", args.statistics, rows, 2, 2);
    if (backward) check_matrix(op, "gradients", args.gradients, rows, args.keys, args.keys);
}

template <typename Kernel>
void over_rows(const SoftmaxArgs& args, Kernel kernel) {
    const index_t rows = args.sequences * args.heads * args.queries;
    if (rows == 0) return;
    // A row is read and written several times, and its random words cost more than that.
    const index_t row_bytes = 32 * (args.keys + 1);
    for_row_blocks(rows, row_bytes, [&](index_t first, index_t count) {
        kernel(args, first, count, thread_scratch(3 * (args.keys + chunk)));
    });
}

}  // namespace

void dropout_add(const DropoutArgs& args) {
    const char* op = "dropout_add";
    check_narrow(op, "x", args.dtype);
    check_narrow(op, "out", args.out_dtype);
    check_dropping(op, args.dropping);
    check_size(op, "count", args.count);
    check_matrix(op, "x", args.x, 1, args.count, args.count);
    check_matrix(op, "out", args.out, 1, args.count, args.count);
    const auto kernel =
        active_kernels()
            .dropout.add[static_cast<int>(args.dtype)][static_cast<int>(args.out_dtype)];
    const index_t chunks = (args.count + chunk - 1) / chunk;
    for_row_blocks(chunks, 16 * chunk, [&](index_t first, index_t count) {
        const index_t begin = first * chunk, end = (first + count) * chunk;
        kernel(args, begin, (end < args.count ? end : args.count) - begin);
    });
}

void softmax_dropout(const SoftmaxArgs& args) {
    check_softmax("softmax_dropout", args, false);
    over_rows(args, active_kernels().dropout.softmax[static_cast<int>(args.dtype)]);
}

void softmax_dropout_backward(const SoftmaxArgs& args) {
    check_softmax("softmax_dropout_backward", args, true);
    over_rows(args, active_kernels().dropout.softmax_backward[static_cast<int>(args.dtype)]);
}

}  // namespace fastbert
