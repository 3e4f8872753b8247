#include <algorithm>
#include <cstdint>
#include <string>

#include "common/check.h"
#include "cuda/launch.h"

namespace fastbert::cuda {

namespace {

constexpr index_t max_blocks = 2147483647;
constexpr index_t max_blocks_y = 65535;

index_t ceil_div(index_t a, index_t b) { return (a + b - 1) / b; }

}  // namespace

RowConfig row_config(const char* op, index_t rows, index_t width) {
    check_size(op, "rows", rows);
    if (width < 1 || width > max_row_width) {
        fail(op, "rows have " + std::to_string(width) + " elements; the CUDA kernel holds 1 to " +
                     std::to_string(max_row_width) + " in registers.");
    }
    RowConfig config{};
    // A power of two, so that a row's warps reduce in a fixed tree.
    config.warps_per_row = 1;
    while (config.warps_per_row * elements_per_warp < width) config.warps_per_row *= 2;
    config.rows_per_block = config.warps_per_row == 1 ? 4 : 1;
    const index_t blocks = ceil_div(rows, config.rows_per_block);
    if (blocks > max_blocks) {
        fail(op, std::to_string(rows) + " rows are more than one launch covers; split them.");
    }
    config.blocks = static_cast<unsigned>(blocks);
    return config;
}

ElementConfig element_config(const char* op, index_t rows, index_t width, DType dtype) {
    check_size(op, "rows", rows);
    check_size(op, "width", width);
    ElementConfig config{};
    config.threads = 128;
    const index_t columns = config.threads * (16 / size_of(dtype));
    const index_t blocks = std::max<index_t>(1, ceil_div(width, columns));
    if (blocks > max_blocks) fail(op, "rows are wider than one launch covers; split them.");
    config.blocks_x = static_cast<unsigned>(blocks);
    config.blocks_y = static_cast<unsigned>(std::min(std::max<index_t>(rows, 1), max_blocks_y));
    return config;
}

bool rows_aligned(const void* data, index_t stride, index_t width, DType dtype) {
    const index_t bytes = size_of(dtype);
    return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && stride * bytes % 16 == 0 &&
           width * bytes % 16 == 0;
}

}  // namespace fastbert::cuda
