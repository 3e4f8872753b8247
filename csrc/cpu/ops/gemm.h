// out = activation(x @ W^T * scales + bias) + residual over weights packed once, for float32,
// bfloat16 and u8 x s8.
//
// Weights are packed into panels of `columns` output columns (32 on AVX-512, 16 elsewhere). A panel
// holds, word after word along K, one 4-byte word of every column: 1 float32, 2 bfloat16, 4 int8
// (2 int8 in 2 bytes where the set has no VNNI). Columns and K are padded with zeros.
//
// The order in which an output element is summed depends on K alone: not on how many rows there
// are, where the row stands, how rows or panels are split into tasks, or how many threads run them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/types.h"
#include "cpu/ops/quantize.h"

namespace fastbert {

// The first 64 bytes of packed weights.
struct PackedHeader {
    char magic[8];            // "fbpack1"
    std::int32_t dtype;       // DType of the packed weights: f32, bf16 or s8
    std::int32_t columns;     // per panel
    std::int32_t group;       // elements of K in a word
    std::int32_t lane_bytes;  // bytes of a word of one column
    std::int64_t n;
    std::int64_t k;
    std::int64_t bytes;  // of the whole block, header included
    char unused[16];
};
static_assert(sizeof(PackedHeader) == 64, "the panels must stay 64-byte aligned");

// Which x goes with which packed weights: f32 packed takes x f32 or f16 (widened); bf16 packed
// takes bf16; s8 packed takes u8 rows from quantize_rows. residual and out are f32, bf16 or f16
// each, independently; bias likewise. Strides count elements; inner dimensions are contiguous;
// pointers need no more than their elements' alignment. out may be residual itself (same type and
// stride), nothing else may overlap.
struct GemmArgs {
    index_t rows = 0;
    index_t n = 0;
    index_t k = 0;

    const void* x = nullptr;  // (rows, k)
    DType x_dtype = DType::f32;
    index_t x_stride = 0;

    const std::uint8_t* packed = nullptr;  // header, [s8: int32 column sums,] panels

    const void* bias = nullptr;  // (n) or null
    DType bias_dtype = DType::f32;
    index_t bias_begin = 0;  // the column that its first element belongs to

    Activation activation = Activation::none;
    ActivationParams activation_params;

    const void* residual = nullptr;  // (rows, n) or null, added after the activation
    DType residual_dtype = DType::f32;
    index_t residual_stride = 0;

    void* out = nullptr;  // (rows, n)
    DType out_dtype = DType::f32;
    index_t out_stride = 0;

    // The weights come from memory: they are part of more than caches keep from call to call.
    bool streamed = false;

    // u8 x s8 only: x ~ x_scale[row] * (q - x_zero_point[row]), W ~ w_scale[column] * qweight.
    const float* x_scale = nullptr;
    const std::int32_t* x_zero_point = nullptr;
    const float* w_scale = nullptr;

    // u8 x s8 only: x is (2 * rows, k) from quantize_rows16, and x_zero_point is not read. rows,
    // x_scale, residual, out and the rows of a range count what was quantised.
    bool x_halves = false;
};

// u8 x s8 sums are int32: |sum| <= k * 255 * 128 < 2^31.
constexpr index_t kMaxInt8K = 65793;

struct GemmKernels {
    // What pack() writes, per type of packed weights.
    struct PanelLayout {
        int columns;
        int group;
        int lane_bytes;
    };
    PanelLayout f32, bf16, s8;

    // Packs panels [panel_begin, panel_end) of a weight (n, k) with row stride w_stride. The header
    // `out` (start of the block) must have been prepared by packed_prepare() (packed.h).
    using PackFn = void (*)(const void* w, DType w_dtype, index_t w_stride, index_t panel_begin,
                            index_t panel_end, std::uint8_t* out);
    PackFn pack;

    // Rows [row_begin, row_end) times panels [panel_begin, panel_end), on the calling thread, with
    // no checks and no allocation. `packed` must have been made for this instruction set
    // (packed_check). scratch: gemm_scratch_bytes() bytes, aligned to 64, private to the call; x is
    // staged there once per call, so a call should take many panels.
    using RangeFn = void (*)(const GemmArgs&, index_t row_begin, index_t row_end,
                             index_t panel_begin, index_t panel_end, void* scratch);
    RangeFn range_f32, range_bf16, range_s8;

    // Whether range calls stage rows of u8 and of bf16 widened (GemmStaging).
    bool widens_u8, widens_bf16;

    // Sums that range calls on u8 and bf16 keep in scratch, behind the staged rows: for so many
    // rows of x at most, and bytes for each of them. 0: none.
    index_t kept_rows, kept_bytes;
};

// Rows of x for each row of the result.
inline index_t gemm_planes(const GemmArgs& args) { return args.x_halves ? 2 : 1; }

// How range calls read x: in place (rows == 0), or copied, `rows` rows at a time, to scratch rows
// stride_bytes apart. They are copied when they must be widened to twice their size (f16 to f32;
// `staged`: u8 to s16 on sets without VNNI, bf16 to f32 on sets without BF16) or when their stride
// puts them all into the same sets of the L1 cache.
struct GemmStaging {
    index_t rows;
    index_t stride_bytes;
};
GemmStaging gemm_staging(const GemmArgs& args, bool staged);

// Whether rows of this type are staged widened.
inline bool gemm_widens(const GemmArgs& args, const GemmKernels& kernels) {
    return (args.x_dtype == DType::u8 && kernels.widens_u8) ||
           (args.x_dtype == DType::bf16 && kernels.widens_bf16);
}

// Bytes of scratch a range call with these arguments needs; 0 for most.
index_t gemm_scratch_bytes(const GemmArgs& args, const GemmKernels& kernels);

// A row stride >= k, in elements of x, whose rows are multiples of 64 bytes apart and do not
// collide in the L1 cache.
index_t gemm_friendly_stride(index_t k, DType x_dtype);

// Number of panels of packed weights with n columns.
index_t gemm_panels(index_t n, const GemmKernels::PanelLayout& layout);

// The layout of packed weights of this type (f32, bf16, s8); std::invalid_argument for others.
const GemmKernels::PanelLayout& gemm_layout(const GemmKernels& kernels, DType packed_dtype);

// Size of packed weights, header included.
index_t packed_bytes(const GemmKernels& kernels, DType packed_dtype, index_t n, index_t k);

// Packs weight (n, k), rows w_stride elements apart: f32 or f16 gives f32, bf16 gives bf16, s8
// gives s8. `bytes` is the room at `out` and must be packed_bytes(). Errors: std::invalid_argument.
void pack_weight(const void* weight, DType w_dtype, index_t n, index_t k, index_t w_stride,
                 std::uint8_t* out, index_t bytes);

// The type of the packed weights. Throws std::invalid_argument unless they
// are `bytes` bytes of weights (n, k) packed for the instruction set in use.
DType packed_check(const std::uint8_t* packed, index_t bytes, index_t n, index_t k);

// Checks everything but the packed weights themselves (packed_check) and the memory behind the
// pointers; std::invalid_argument says what is wrong.
void gemm_check(const GemmArgs& args, DType packed_dtype);

}  // namespace fastbert
