#include "cuda/tensor_map.h"

#include <cuda.h>

#include <cstring>
#include <stdexcept>
#include <string>

#include "cuda/launch.h"

namespace fastbert::cuda {

static_assert(sizeof(TensorMap) == sizeof(CUtensorMap), "the driver's own size");

namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode encode_entry(const char* op) {
    static const auto found =
        reinterpret_cast<Encode>(driver_entry("cuTensorMapEncodeTiled", 12000));
    if (found == nullptr) {
        throw std::runtime_error(
            std::string(op) +
            ": the NVIDIA driver has no cuTensorMapEncodeTiled; install one of "
            "CUDA 12.0 or later.");
    }
    return found;
}

}  // namespace

TensorMap tensor_map(const char* op, const TensorShape& shape) {
    check_tensor_shape(op, shape);
    cuuint64_t size[3], stride[3];
    cuuint32_t box[3], step[3] = {1, 1, 1};
    for (int d = 0; d < shape.rank; ++d) {
        size[d] = static_cast<cuuint64_t>(shape.size[d]);
        box[d] = static_cast<cuuint32_t>(shape.box[d]);
        if (d > 0) stride[d - 1] = static_cast<cuuint64_t>(shape.stride[d] * size_of(shape.dtype));
    }
    const CUtensorMapDataType type = shape.dtype == DType::bf16  ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                     : shape.dtype == DType::f16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                                 : CU_TENSOR_MAP_DATA_TYPE_UINT8;
    const index_t row = shape.box[0] * size_of(shape.dtype);
    const CUtensorMapSwizzle swizzle = row == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                                       : row == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                   : CU_TENSOR_MAP_SWIZZLE_32B;
    CUtensorMap map;
    const CUresult status = encode_entry(op)(
        &map, type, static_cast<cuuint32_t>(shape.rank), const_cast<void*>(shape.data), size,
        stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
        CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (status != CUDA_SUCCESS) {
        throw std::runtime_error(std::string(op) + ": the driver refused a tensor map (error " +
                                 std::to_string(static_cast<int>(status)) + ").");
    }
    TensorMap out;
    std::memcpy(&out, &map, sizeof out);
    return out;
}

}  // namespace fastbert::cuda
