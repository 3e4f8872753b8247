#include "cpu/ops/depthwise_conv.h"

#include <vector>

#include "cpu/ops/driver.h"

namespace fastbert {
namespace {

constexpr const char* op = "depthwise_conv";

void check_one_of(const char* what, index_t value, index_t first, index_t second) {
    if (value == first || value == second) return;
    fail(op, std::string(what) + " must be " + std::to_string(first) + " or " +
                 std::to_string(second) + ", it is " + std::to_string(value) + ".");
}

void check_zeros(const char* what, index_t zeros, index_t kernel) {
    if (zeros >= 0 && zeros < kernel) return;
    fail(op, std::string(what) + " must be from 0 to " + std::to_string(kernel - 1) + ", it is " +
                 std::to_string(zeros) + ".");
}

void check(const DepthwiseArgs& args) {
    check_float_dtype(op, "x", args.dtype);
    check_activation(op, args.activation);
    check_size(op, "batch", args.batch);
    check_size(op, "height", args.height);
    check_size(op, "width", args.width);
    check_size(op, "channels", args.channels);
    check_one_of("kernel", args.kernel, 3, 5);
    check_one_of("stride", args.stride, 1, 2);
    check_zeros("before", args.before, args.kernel);
    check_zeros("after", args.after, args.kernel);
    if (depthwise_extent(args, args.height) == 0 || depthwise_extent(args, args.width) == 0) {
        fail(op, "a window of " + std::to_string(args.kernel) + " does not fit into a map of " +
                     std::to_string(args.height) + " by " + std::to_string(args.width) + " with " +
                     std::to_string(args.before) + " and " + std::to_string(args.after) +
                     " zeros around it.");
    }
    check_matrix(op, "x", args.x, args.batch * args.height * args.width, args.channels,
                 args.channels);
    const index_t places = depthwise_extent(args, args.height) * depthwise_extent(args, args.width);
    check_matrix(op, "out", args.out, args.batch * places, args.channels, args.channels);
    check_matrix(op, "means", args.means, args.batch, args.channels, args.channels);
}

// The rows of an image one after the other, so that its means have the same bits in any batch.
void mean_of_rows(const DepthwiseArgs& args, index_t rows, index_t places, const float* sums,
                  const KernelTable& table) {
    std::vector<std::int64_t> bounds(static_cast<std::size_t>(args.batch + 1));
    for (index_t image = 0; image <= args.batch; ++image) bounds[image] = image * rows;
    const std::vector<float> divisors(static_cast<std::size_t>(args.batch),
                                      static_cast<float>(places));
    SegmentArgs means;
    means.x = sums;
    means.bounds = bounds.data();
    means.divisors = divisors.data();
    means.out = args.means;
    means.rows = args.batch * rows;
    means.columns = means.x_stride = args.channels;
    means.segments = args.batch;
    table.segments.sums[static_cast<int>(DType::f32)](means, 0, args.batch);
}

}  // namespace

void depthwise_conv(const DepthwiseArgs& args) {
    check(args);
    const KernelTable& table = active_kernels();
    const Float32Param weight(op, "weight", args.weight, args.kernel * args.kernel * args.channels,
                              true, table);
    const Float32Param bias(op, "bias", args.bias, args.channels, false, table);
    const index_t rows = depthwise_extent(args, args.height);
    const index_t width = depthwise_extent(args, args.width);
    if (args.batch == 0 || args.channels == 0) return;
    // What lies outside of a map is read from here; as float32, so that 16 bits have enough.
    const std::vector<float> zeros(static_cast<std::size_t>(args.channels + 16));
    float* sums = thread_scratch(args.batch * rows * args.channels);
    const auto kernel = table.depthwise_conv.rows[static_cast<int>(args.dtype)];
    const index_t moved = (1 + args.stride) * width * args.channels * size_of(args.dtype);
    for_row_blocks(args.batch * rows, moved, [&](index_t first, index_t count) {
        kernel(args, weight.get(), bias.get(), zeros.data(), sums, first, count);
    });
    mean_of_rows(args, rows, rows * width, sums, table);
}

}  // namespace fastbert
