// Stands in for csrc/cuda/tensor_map.cpp, whose maps only the driver can read.
#include "cuda/tensor_map.h"

#include "emulated_machine.h"

namespace fastbert::cuda {

TensorMap tensor_map(const char* op, const TensorShape& shape) {
    check_tensor_shape(op, shape);
    emulation::EmulatedMap map{};
    map.data = reinterpret_cast<std::uint64_t>(shape.data);
    map.element_bytes = static_cast<std::int32_t>(size_of(shape.dtype));
    map.rank = shape.rank;
    for (int d = 0; d < shape.rank; ++d) {
        map.size[d] = shape.size[d];
        map.stride_bytes[d] = shape.stride[d] * size_of(shape.dtype);
        map.box[d] = shape.box[d];
    }
    map.magic = emulation::map_magic;
    TensorMap out{};
    std::memcpy(&out, &map, sizeof map);
    return out;
}

}  // namespace fastbert::cuda
