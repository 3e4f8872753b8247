// The copy engine's description of a tensor in global memory, made on the host for one launch.
#pragma once

#include "common/types.h"

namespace fastbert::cuda {

// What the driver calls CUtensorMap; passed to kernels by value as a __grid_constant__ parameter.
struct alignas(64) TensorMap {
    std::uint64_t words[16];
};

// A tensor of 2 or 3 dimensions, innermost first, of which boxes are copied. The innermost lies
// contiguous. A box's rows land in shared memory one after the other, `box[0]` elements wide,
// swizzled over that width: 32, 64 or 128 bytes.
struct TensorShape {
    const void* data = nullptr;  // on 16 bytes
    DType dtype = DType::f32;    // bf16, f16, u8 or s8
    int rank = 2;
    index_t size[3] = {};
    index_t stride[3] = {};  // in elements, whole multiples of 16 bytes; that of 0 is not read
    int box[3] = {};         // at most 256 each
};

// Throws std::invalid_argument for a shape that the copy engine does not take, and
// std::runtime_error when the driver cannot make a map.
TensorMap tensor_map(const char* op, const TensorShape& shape);

// What of that needs no driver: throws std::invalid_argument.
void check_tensor_shape(const char* op, const TensorShape& shape);

}  // namespace fastbert::cuda
