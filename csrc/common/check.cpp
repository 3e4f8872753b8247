#include "common/check.h"

#include <cmath>

namespace fastbert {

const char* name_of(DType dtype) {
    switch (dtype) {
        case DType::f32:
            return "float32";
        case DType::bf16:
            return "bfloat16";
        case DType::f16:
            return "float16";
        case DType::u8:
            return "uint8";
        case DType::s8:
            return "int8";
        case DType::i32:
            return "int32";
        case DType::i64:
            return "int64";
    }
    return "unknown";
}

const char* name_of(Activation activation) {
    switch (activation) {
        case Activation::none:
            return "none";
        case Activation::gelu:
            return "gelu";
        case Activation::gelu_tanh:
            return "gelu_tanh";
        case Activation::relu:
            return "relu";
        case Activation::silu:
            return "silu";
        case Activation::tanh:
            return "tanh";
        case Activation::leaky_relu:
            return "leaky_relu";
        case Activation::scaled_silu:
            return "scaled_silu";
        case Activation::xielu:
            return "xielu";
    }
    return "unknown";
}

void fail(const char* op, const std::string& sentence) {
    throw std::invalid_argument(std::string(op) + ": " + sentence);
}

void check_float_dtype(const char* op, const char* what, DType dtype) {
    if (dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16) return;
    fail(op, std::string(what) + " has dtype " + name_of(dtype) + " (code " +
                 std::to_string(static_cast<int>(dtype)) +
                 "); it must be float32, bfloat16 or float16.");
}

void check_activation(const char* op, Activation activation, Activation last) {
    const int code = static_cast<int>(activation);
    if (code >= 0 && code <= static_cast<int>(last)) return;
    fail(op, "activation code " + std::to_string(code) +
                 " is unknown; the codes are 0 none, 1 gelu, 2 gelu_tanh, 3 relu, 4 silu, 5 tanh, "
                 "6 leaky_relu, 7 scaled_silu and, on the CPU, 8 xielu.");
}

void check_size(const char* op, const char* what, index_t size) {
    if (size >= 0) return;
    fail(op, std::string(what) + " is " + std::to_string(size) + "; it must not be negative.");
}

void check_matrix(const char* op, const char* what, const void* data, index_t rows, index_t columns,
                  index_t stride) {
    if (rows == 0 || columns == 0) return;
    if (data == nullptr) fail(op, std::string(what) + " is a null pointer.");
    if (rows > 1 && stride < columns) {
        fail(op, std::string(what) + " has a row stride of " + std::to_string(stride) +
                     " elements for rows of " + std::to_string(columns) +
                     "; rows must not overlap (and the last dimension must be contiguous).");
    }
}

void check_eps(const char* op, float eps) {
    if (std::isfinite(eps) && eps >= 0) return;
    fail(op, "eps is " + std::to_string(eps) + "; it must be finite and not negative.");
}

}  // namespace fastbert
