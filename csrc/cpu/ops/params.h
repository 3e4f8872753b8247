// Vectors of parameters (norm weights, biases) may be stored in any float type; kernels read
// float32.
#pragma once

#include "common/types.h"

namespace fastbert {

struct Param {
    const void* data = nullptr;  // null: absent
    DType dtype = DType::f32;
};

}  // namespace fastbert
