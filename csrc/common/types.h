// The vocabulary every kernel shares: element types, activations, sizes. Plain C++17, no
// intrinsics.
#pragma once

#include <cstdint>

namespace fastbert {

using index_t = std::int64_t;

enum class DType : int { f32 = 0, bf16 = 1, f16 = 2, u8 = 3, s8 = 4, i32 = 5, i64 = 6 };

// gelu is the exact erf form; gelu_tanh is what configurations call gelu_new or gelu_pytorch_tanh.
// The last three have parameters: leaky_relu is x where x >= 0 and a x elsewhere; scaled_silu is
// x / (1 + e^(-a x)), which configurations call quick_gelu where a = 1.702; xielu is a x^2 + c x
// where x > 0 and b (expm1(min(x, d)) - x) + c x elsewhere.
enum class Activation : int {
    none = 0,
    gelu = 1,
    gelu_tanh = 2,
    relu = 3,
    silu = 4,
    tanh = 5,
    leaky_relu = 6,
    scaled_silu = 7,
    xielu = 8
};
constexpr int kActivations = 9;

// The numbers in the formula of an activation; 0 where it has fewer.
struct ActivationParams {
    float a = 0.0f, b = 0.0f, c = 0.0f, d = 0.0f;
};

// Storage-only 16-bit floats: arithmetic always happens in float32.
struct bf16_t {
    std::uint16_t bits;
};

struct f16_t {
    std::uint16_t bits;
};

static_assert(sizeof(bf16_t) == 2 && sizeof(f16_t) == 2, "16-bit floats must be two bytes");

constexpr index_t size_of(DType dtype) {
    switch (dtype) {
        case DType::f32:
        case DType::i32:
            return 4;
        case DType::bf16:
        case DType::f16:
            return 2;
        case DType::i64:
            return 8;
        case DType::u8:
        case DType::s8:
            return 1;
    }
    return 0;
}

}  // namespace fastbert
