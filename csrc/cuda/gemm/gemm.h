// Matrix products with their epilogues: description, tile choice and tile order. Plain host code
// (the order is device code too), tested without a GPU.
//
// Bit-identity. Every output element is one accumulator that takes k in ascending steps of one
// instruction depth (32 bytes of K), with no split over K. The instruction family depends on
// (architecture, dtype, K, alignment of the weight) alone, never on the number of rows; the tiles
// that a family offers differ only in how many such accumulators a block owns and in which block
// owns them. So a row's result does not depend on the other rows or on how many there are.
#pragma once

#include "common/types.h"
#include "cuda/launch.h"
#include "cuda/ops.h"

#ifdef __CUDACC__
#define FASTBERT_HOST_DEVICE __host__ __device__
#else
#define FASTBERT_HOST_DEVICE
#endif

namespace fastbert::cuda {

// What happens between the accumulators and memory, per element (row, column):
//   value = accumulator                                                      of 16- and 32-bit
//   value = (accumulator - zero_point[row] * sums[column]) * scale[row] * scale[column]  of 8-bit
//   value = activation(value + bias[column]) + residual[row, column]
// rounded once to dtype, or requantised: clamp(round(value / out_scale[row]) + out_zero_point[row],
// 0, 255) as bytes. Everything but the integer difference, which is exact, is float32.
struct Epilogue {
    const void* bias = nullptr;      // (width), or null
    const void* residual = nullptr;  // (rows, width), or null
    void* out = nullptr;             // (rows, width)
    // Of 8-bit operands; sums are those of each weight row over K.
    const float* row_scale = nullptr;
    const std::int32_t* row_zero_point = nullptr;
    const float* column_scale = nullptr;
    const std::int32_t* column_sums = nullptr;
    // Of a requantised output, else null.
    const float* out_scale = nullptr;
    const std::int32_t* out_zero_point = nullptr;
    index_t rows = 0;
    index_t width = 0;
    index_t residual_stride = 0;  // distances between rows, in elements
    index_t out_stride = 0;
    DType dtype = DType::f32;  // of bias, residual and (unless requantised) out
    Activation activation = Activation::none;
    ActivationParams activation_params;
    bool wide = false;  // bias, residual and out can be reached 16 bytes at a time
};

// Which instructions multiply.
enum class Family : int {
    automatic = 0,  // the architecture's own
    fma = 1,        // float32, exact products
    mma = 80,       // mma.sync over cp.async stages: sm_80 and everything later
    wgmma = 90,     // wgmma over bulk tensor copies: sm_90a alone
};

// out = epilogue(x @ weight.T). dtype f32, bf16 or f16: both operands; u8: x is u8, weight s8.
struct Gemm {
    const void* x = nullptr;       // (rows, depth)
    const void* weight = nullptr;  // (width, depth)
    index_t rows = 0;
    index_t width = 0;
    index_t depth = 0;
    index_t x_stride = 0;  // distances between rows, in elements
    index_t weight_stride = 0;
    DType dtype = DType::f32;
    Family family = Family::automatic;
    int choice = -1;  // of the family's tiles; -1: the cheapest
    Epilogue epilogue;
};
void gemm(const char* op, const Gemm& args, const Target& target);

// sums[n] = sum over k of weight[n, k], exact.
struct WeightSums {
    const std::int8_t* weight = nullptr;  // (width, depth)
    std::int32_t* sums = nullptr;         // (width)
    index_t width = 0;
    index_t depth = 0;
    index_t weight_stride = 0;
};
void weight_sums(const WeightSums& args, const Target& target);

// K in bytes fits int.
constexpr index_t max_depth = index_t{1} << 28;

// The largest K whose sums of u8 * s8 products, at most 255 * 128 each, int32 holds.
constexpr index_t max_integer_depth = 2147483647 / (255 * 128);

// The largest K of 8-bit operands for which wgmma keeps 128 rows of the weight in shared memory.
constexpr index_t max_resident_depth = 1024;

// A block's share of the output.
struct GemmTile {
    int rows;
    int columns;
};

// How a product covers its output.
struct GemmConfig {
    Family family;
    int choice;  // index of the tile among those of its family
    GemmTile tile;
    int tiles_m;
    int tiles_n;
};

// Throws std::invalid_argument where the family cannot take the description.
GemmConfig gemm_config(const char* op, const Gemm& args, const DeviceTraits& device);

// The order in which tiles are taken: column by column within groups of 8 row blocks, so that
// blocks that run at the same time share both operands in the L2 cache.
struct TileOrder {
    int tiles_m;
    int tiles_n;

    struct Place {
        int m;
        int n;
    };
    FASTBERT_HOST_DEVICE Place at(int index) const {
        constexpr int group = 8;
        const int per_group = group * tiles_n;
        const int first = index / per_group * group;
        const int height = tiles_m - first < group ? tiles_m - first : group;
        const int inside = index % per_group;
        return {first + inside % height, inside / height};
    }
};

}  // namespace fastbert::cuda
