// Asymmetric 8-bit quantisation of each row by its own range:
//   lo = min(0, min x), hi = max(0, max x), scale = (hi - lo) / 255 (1 where that is 0),
//   zero_point = round(-lo / scale), q = clamp(round(x / scale) + zero_point, 0, 255),
// rounding to nearest even, all in float32, so that x ~ scale * (q - zero_point). A row that holds
// a NaN gets scale NaN, one that holds an infinity scale infinity; both get zeros for q and
// zero_point. InputColumns change what is quantised, and how many columns q has.
//
// quantize_rows16 keeps 16 bits, where 8 would lose what a heavy-tailed row holds:
//   step = 2^(e - 15), e the least integer above -135 with max |x| <= 32639 step,
//   u = round(x / step) + 32896, high = u >> 8, low = u & 255,
// so that x ~ step * (256 * (high - 128) + (low - 128)): two u8 rows with zero point 128, which the
// int8 gemm multiplies as they are (GemmArgs::x_halves). Since steps are powers of two, a bfloat16
// x is exact down to 1/127 of the largest. A row that holds a NaN or an infinity gets scale NaN.
//
// clip_errors says what symmetric levels would cost: for each row r and candidate c, with a scale
// s,
//   the sum over i of (s * clamp(round(x_i / s), -largest_i, largest_i) - x_i)^2,
// by which the scales of weights are chosen.
#pragma once

#include <cstdint>

#include "common/types.h"

namespace fastbert {

// x stands for x * factor throughout, and the columns in `repeated` are written once more, behind
// the k others: a weight too large for 8 bits is then the sum of several.
struct InputColumns {
    const float* factor = nullptr;           // (k) or null
    const std::int32_t* repeated = nullptr;  // (repeats), each in [0, k)
    index_t repeats = 0;
};
// std::invalid_argument unless every repeated column exists.
void check_input_columns(const char* op, const InputColumns& columns, index_t k);

struct QuantizeArgs {
    const void* x = nullptr;  // (rows, k) of dtype
    DType dtype = DType::f32;
    index_t rows = 0;
    index_t k = 0;
    index_t x_stride = 0;  // distances between rows, in elements
    InputColumns columns;
    std::uint8_t* q = nullptr;  // (rows, k + columns.repeats)
    index_t q_stride = 0;
    float* scale = nullptr;              // (rows)
    std::int32_t* zero_point = nullptr;  // (rows)
};

struct ClipArgs {
    const float* x = nullptr;  // (rows, k)
    index_t rows = 0;
    index_t k = 0;
    index_t x_stride = 0;            // elements between rows
    const float* largest = nullptr;  // (k), the greatest level of each column
    const float* scale = nullptr;    // (rows, candidates)
    index_t candidates = 0;
    float* error = nullptr;  // (rows, candidates)
};

struct QuantizeKernels {
    // Rows [first, first + count). Indexed by DType: f32, bf16, f16.
    void (*rows[3])(const QuantizeArgs& args, index_t first, index_t count);
    // The same for quantize_rows16.
    void (*rows16[3])(const QuantizeArgs& args, index_t first, index_t count);
    void (*clip_errors)(const ClipArgs& args, index_t first, index_t count);
};

// What both halves of a 0 are stored as by quantize_rows16.
constexpr std::int32_t kHalfZero = 128;

// Threaded. Throws std::invalid_argument, with a sentence, for arguments that do not fit together.
void quantize_rows(const QuantizeArgs& args);

// The same into 16 bits: q is (2 * rows, k + columns.repeats), where row 2r holds the high halves
// of row r and row 2r + 1 the low ones; scale is (rows), 256 steps each; zero_point is not written.
void quantize_rows16(const QuantizeArgs& args);

// The costs of all candidates. Threaded; throws likewise. A NaN in a row makes its costs NaN.
void clip_errors(const ClipArgs& args);

}  // namespace fastbert
