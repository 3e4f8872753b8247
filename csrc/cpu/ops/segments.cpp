#include "cpu/ops/segments.h"

#include <vector>

#include "cpu/ops/driver.h"

namespace fastbert {
namespace {

constexpr const char* op = "segment_sums";

void check_bounds(const SegmentArgs& args) {
    for (index_t s = 0; s <= args.segments; ++s) {
        const index_t least = s == 0 ? 0 : args.bounds[s - 1];
        if (args.bounds[s] >= least && args.bounds[s] <= args.rows) continue;
        fail(op, "bounds must ascend from 0 at least to the number of rows, " +
                     std::to_string(args.rows) + ", at most, but bounds[" + std::to_string(s) +
                     "] is " + std::to_string(args.bounds[s]) + ".");
    }
}

}  // namespace

void segment_sums(SegmentArgs args) {
    check_float_dtype(op, "x", args.dtype);
    check_size(op, "rows", args.rows);
    check_size(op, "columns", args.columns);
    check_size(op, "segments", args.segments);
    check_matrix(op, "x", args.x, args.rows, args.columns, args.x_stride);
    check_matrix(op, "out", args.out, args.segments, args.columns, args.columns);
    if (args.bounds == nullptr) fail(op, "bounds is missing.");
    // Another thread may write to the caller's bounds between the check and their use.
    const std::vector<std::int64_t> bounds(args.bounds, args.bounds + args.segments + 1);
    args.bounds = bounds.data();
    check_bounds(args);
    if (args.segments == 0 || args.columns == 0) return;
    const auto kernel = active_kernels().segments.sums[static_cast<int>(args.dtype)];
    const index_t moved = args.rows * args.columns * size_of(args.dtype) / args.segments;
    for_row_blocks(args.segments, moved,
                   [&](index_t first, index_t count) { kernel(args, first, count); });
}

}  // namespace fastbert
