// Asymmetric 8-bit quantisation of each row by its own range:
//   lo = min(0, min x), hi = max(0, max x), scale = (hi - lo) / 255 (1 where that is 0),
//   zero_point = round(-lo / scale), q = clamp(round(x / scale) + zero_point, 0, 255),
// rounding to nearest even, all in float32, so that x ~ scale * (q - zero_point). A row that holds
// a NaN gets scale NaN, one that holds an infinity scale infinity; both get zeros for q and
// zero_point. InputColumns change what is quantised, and how many columns q has.
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

struct QuantizeKernels {
    // Rows [first, first + count). Indexed by DType: f32, bf16, f16.
    void (*rows[3])(const QuantizeArgs& args, index_t first, index_t count);
};

// Threaded. Throws std::invalid_argument, with a sentence, for arguments that do not fit together.
void quantize_rows(const QuantizeArgs& args);

}  // namespace fastbert
