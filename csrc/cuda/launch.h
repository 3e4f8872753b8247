// Host side of the CUDA kernels: description -> configuration -> launch. No torch, no device code;
// everything here but Launch is plain arithmetic that runs and is tested without a GPU.
#pragma once

#include <string>

#include "common/types.h"

namespace fastbert::cuda {

// A lane keeps 32 elements of its row in registers, so a warp holds up to 1024 of them.
constexpr int elements_per_warp = 1024;
constexpr index_t max_row_width = 16384;

// How the kernels that keep whole rows in registers cover (rows, width).
struct RowConfig {
    int warps_per_row;   // 1 up to width 1024: statistics then need shuffles only
    int rows_per_block;  // 4 where a row is one warp, else 1
    unsigned blocks;

    int threads() const { return 32 * warps_per_row * rows_per_block; }
};

// Throws std::invalid_argument for a width outside 1..max_row_width or too many rows.
RowConfig row_config(const char* op, index_t rows, index_t width);

// How elementwise kernels cover (rows, width): one thread per 16 bytes.
struct ElementConfig {
    int threads;
    unsigned blocks_x;  // along the row
    unsigned blocks_y;  // rows, strided where there are more than 65 535
};

ElementConfig element_config(const char* op, index_t rows, index_t width, DType dtype);

// True when every row starts on 16 bytes and holds a whole number of 16-byte pieces.
bool rows_aligned(const void* data, index_t stride, index_t width, DType dtype);

// Why no kernel can run, or empty: the driver's and the runtime's own words with the remedy.
std::string unavailable();

// What a choice between forms of a kernel depends on.
struct DeviceTraits {
    int major;  // of the compute capability
    int multiprocessors;
};

// Throws std::runtime_error when the device can not be asked.
DeviceTraits device_traits(const char* op, int device);

// A function of the driver as it has been since a CUDA version (12000 for 12.0), or null. Through
// the runtime, so that the library loads on machines that have no driver.
void* driver_entry(const char* name, unsigned since);

// Makes a device current for one launch and afterwards restores the one that was, where this
// process uses that one.
class Launch {
  public:
    // Throws std::runtime_error with a sentence when the device can not be used.
    Launch(const char* op, int device);
    ~Launch();
    Launch(const Launch&) = delete;
    Launch& operator=(const Launch&) = delete;

    // Throws std::runtime_error when the launch before it was refused.
    void check() const;

  private:
    const char* op_;
    int device_, previous_;
};

}  // namespace fastbert::cuda
