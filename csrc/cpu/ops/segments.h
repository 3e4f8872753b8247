// Sums of the rows of each segment of a packed matrix: how the tokens of a text are pooled.
#pragma once

#include "common/types.h"

namespace fastbert {

struct SegmentArgs {
    const void* x = nullptr;               // (rows, columns) of dtype
    const std::int64_t* bounds = nullptr;  // (segments + 1): segment s is rows [bounds[s],
                                           // bounds[s + 1])
    const float* divisors = nullptr;       // (segments), or absent: sums are not divided
    float* out = nullptr;                  // (segments, columns), rows without gaps
    index_t rows = 0;
    index_t columns = 0;
    index_t segments = 0;
    index_t x_stride = 0;  // distance between rows, in elements
    DType dtype = DType::f32;
};

struct SegmentKernels {
    // Segments [first, first + count). Indexed by DType: f32, bf16, f16.
    void (*sums[3])(const SegmentArgs& args, index_t first, index_t count);
};

// out[s] = (row bounds[s] + ... + row bounds[s + 1] - 1) / divisors[s] in float32, added one after
// the other in this order; an empty segment sums to 0. Throws std::invalid_argument, with a
// sentence, for arguments that do not fit together.
void segment_sums(SegmentArgs args);

}  // namespace fastbert
