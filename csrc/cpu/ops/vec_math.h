// The elementwise functions of vec/math.h and the storage conversions, as arrays: what tests
// measure against float64 on every instruction set, and how drivers widen parameters to float32.
#pragma once

#include "common/types.h"

namespace fastbert {

struct VecMathKernels {
    void (*exp)(const float* x, float* y, index_t n);
    void (*erf)(const float* x, float* y, index_t n);
    // Those without parameters, indexed by Activation.
    void (*activation[6])(const float* x, float* y, index_t n);
    void (*widen[3])(const void* x, float* y, index_t n);  // indexed by DType: f32, bf16, f16
    void (*narrow[3])(const float* x, void* y, index_t n);
    float (*sum)(const float* x, index_t n);
    int lanes;
};

}  // namespace fastbert
