#include <cstdint>
#include <string>

#include "common/check.h"
#include "cuda/tensor_map.h"

namespace fastbert::cuda {

void check_tensor_shape(const char* op, const TensorShape& shape) {
    const auto refuse = [&](const std::string& what) { fail(op, "the copy engine takes " + what); };
    const index_t bytes = size_of(shape.dtype);
    if (bytes > 2) refuse("elements of one or two bytes here.");
    if (shape.rank != 2 && shape.rank != 3) refuse("tensors of 2 or 3 dimensions here.");
    if (shape.data == nullptr || reinterpret_cast<std::uintptr_t>(shape.data) % 16 != 0) {
        refuse("data on 16-byte boundaries; copy the tensor first.");
    }
    const index_t row = shape.box[0] * bytes;
    if (row != 32 && row != 64 && row != 128) {
        refuse("boxes with rows of 32, 64 or 128 bytes, not " + std::to_string(row) + ".");
    }
    for (int d = 0; d < shape.rank; ++d) {
        if (shape.size[d] < 1 || shape.size[d] > (index_t{1} << 32)) {
            refuse("sizes from 1 to 2^32, not " + std::to_string(shape.size[d]) + ".");
        }
        if (shape.box[d] < 1 || shape.box[d] > 256) {
            refuse("boxes of 1 to 256 elements a side, not " + std::to_string(shape.box[d]) + ".");
        }
        const index_t stride = shape.stride[d] * bytes;
        if (d > 0 && (stride < 1 || stride % 16 != 0 || stride >= (index_t{1} << 40))) {
            refuse("strides that are multiples of 16 bytes below 2^40, not " +
                   std::to_string(stride) + ".");
        }
    }
}

}  // namespace fastbert::cuda
