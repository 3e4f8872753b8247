#include <string>

#include "common/check.h"
#include "cuda/decoding/decoding.h"

namespace fastbert::cuda {

HeadConfig head_config(const char* op, index_t tokens, index_t heads, index_t dim, DType dtype) {
    check_size(op, "tokens", tokens);
    check_size(op, "heads", heads);
    if (dim < 2 || dim > max_rope_dim || dim % 2 != 0) {
        fail(op, "head_dim is " + std::to_string(dim) +
                     ", the cuda kernel takes even ones from 2 to " + std::to_string(max_rope_dim) +
                     "; choose another backend.");
    }
    constexpr int threads = 128;
    const index_t piece = 16 / size_of(dtype);
    HeadConfig config{};
    config.lanes = 1;
    while (config.lanes * piece * 2 < dim) config.lanes *= 2;
    config.heads_per_block = threads / config.lanes;
    const index_t blocks = (heads + config.heads_per_block - 1) / config.heads_per_block;
    if (tokens > 2147483647 || blocks > 65535) {
        fail(op, std::to_string(tokens) + " tokens of " + std::to_string(heads) +
                     " heads are more than one launch covers; split them.");
    }
    config.blocks_x = static_cast<unsigned>(tokens);
    config.blocks_y = static_cast<unsigned>(blocks);
    return config;
}

FewRowsConfig few_rows_config(const char* op, index_t rows, index_t width, DType x_dtype) {
    check_size(op, "rows", rows);
    check_size(op, "N", width);
    FewRowsConfig config{};
    config.rows = x_dtype == DType::f32 || rows <= 8 ? 8 : 32;
    config.columns = x_dtype == DType::f32 ? 8 : 16;
    const index_t blocks_x = (width + config.columns - 1) / config.columns;
    const index_t blocks_y = (rows + config.rows - 1) / config.rows;
    if (blocks_x > 2147483647 || blocks_y > 65535) {
        fail(op, std::to_string(rows) + " rows of " + std::to_string(width) +
                     " columns are more than one launch covers; split them.");
    }
    config.blocks_x = static_cast<unsigned>(blocks_x);
    config.blocks_y = static_cast<unsigned>(blocks_y);
    return config;
}

}  // namespace fastbert::cuda
