#include "cpu/ops/driver.h"

#include <cstdint>
#include <string>

namespace fastbert {

Float32Param::Float32Param(const char* op, const char* what, const Param& param, index_t size,
                           bool required, const KernelTable& table) {
    check_float_dtype(op, what, param.dtype);
    if (param.data == nullptr) {
        if (required && size > 0) fail(op, std::string(what) + " is a null pointer.");
        return;
    }
    if (param.dtype == DType::f32) {
        data_ = static_cast<const float*>(param.data);
        return;
    }
    copy_.resize(static_cast<std::size_t>(size));
    table.vec_math.widen[static_cast<int>(param.dtype)](param.data, copy_.data(), size);
    data_ = copy_.data();
}

float* thread_scratch(index_t floats) {
    thread_local std::vector<float> buffer;
    const std::size_t wanted = static_cast<std::size_t>(floats) + 16;
    if (buffer.size() < wanted) buffer.resize(wanted);
    const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(buffer.data());
    return reinterpret_cast<float*>((address + 63) & ~std::uintptr_t{63});
}

}  // namespace fastbert
