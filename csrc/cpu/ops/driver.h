// What the drivers of the row-wise ops share: parameters widened to float32, scratch memory, and
// rows split over threads. Baseline code only; kernels never include it.
#pragma once

#include <vector>

#include "common/check.h"
#include "cpu/kernels.h"
#include "cpu/ops/params.h"
#include "cpu/threads.h"

namespace fastbert {

// A parameter vector as float32: the stored one itself, or a widened copy.
class Float32Param {
  public:
    Float32Param() = default;
    // `required`: null data is an error unless size is 0.
    Float32Param(const char* op, const char* what, const Param& param, index_t size, bool required,
                 const KernelTable& table);
    // Moved, its values stay where they are.
    Float32Param(Float32Param&&) = default;
    Float32Param& operator=(Float32Param&&) = default;
    const float* get() const { return data_; }  // null where there is none

  private:
    std::vector<float> copy_;
    const float* data_ = nullptr;
};

// At least `floats` floats, 64-byte aligned, that belong to the calling thread until its next call.
float* thread_scratch(index_t floats);

// body(first, count) over blocks of rows, on as many threads as the work is worth; `row_bytes` is
// the memory a row moves. Blocks only say who computes a row, never how.
template <typename Body>
void for_row_blocks(index_t rows, index_t row_bytes, Body&& body) {
    // 32 KiB a block keeps a thread busy for microseconds, well above the cost of handing it out;
    // below two blocks, waking a thread would take longer than the work.
    constexpr index_t block_bytes = 32 * 1024;
    const index_t block =
        row_bytes >= block_bytes ? 1 : block_bytes / (row_bytes > 0 ? row_bytes : 1);
    const index_t blocks = (rows + block - 1) / block;
    parallel_for(blocks, max_threads(), [&](index_t task, int) {
        const index_t first = task * block;
        body(first, first + block <= rows ? block : rows - first);
    });
}

}  // namespace fastbert
