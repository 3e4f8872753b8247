// The activations, for all elements that a thread holds at once: which one it is is asked once for
// them, so that the elements' own instructions overlap instead of each waiting behind a branch.
#pragma once

#include "common/types.h"
#include "cuda/ptx.cuh"

namespace fastbert::cuda {

// x * Phi(x) for results that are rounded to 16 bits anyway: Phi(-a) = 2^p(a) with p a polynomial
// of degree 8 fitted to log2 Phi on [0, 9] (Chebyshev basis, reweighted to equal ripples). In
// float32 its error is at most 1.3e-5 of the value for x >= -9, and 1.1e-6 absolute everywhere; it
// takes one polynomial and one exponential where erff takes two polynomials and one exponential.
__device__ inline float gelu16(float x) {
    // Phi(-9) = 1e-19: what lies beyond does not show in 16 bits.
    const float a = fminf(fabsf(x), 9.0f);
    float p = 7.4632609e-8f;
    p = fmaf(p, a, -3.6557790e-6f);
    p = fmaf(p, a, 7.9437683e-5f);
    p = fmaf(p, a, -1.0200500e-3f);
    p = fmaf(p, a, 8.7508783e-3f);
    p = fmaf(p, a, -5.4304697e-2f);
    p = fmaf(p, a, -4.5824146e-1f);
    p = fmaf(p, a, -1.1512951f);
    p = fmaf(p, a, -0.99999660f);
    const float tail = ptx::exp2_approximate(p);
    return x * (x > 0.0f ? 1.0f - tail : tail);
}

// x * sigmoid(w). In 16 bits without the exact division's branch for results that are subnormal.
template <DType D>
__device__ float times_sigmoid(float x, float w) {
    const float below = 1.0f + expf(-w);
    if constexpr (D == DType::f32) {
        return x / below;
    } else {
        return __fdividef(x, below);
    }
}

// gelu is the erf form, for float32 exact. activate(0) is 0 for all of them.
template <DType D, int COUNT>
__device__ void activate(float (&value)[COUNT], Activation activation,
                         const ActivationParams& params) {
    // Compared with a value that the compiler cannot follow: of a chain it knows, it makes a jump
    // through a table.
    const auto is = [&](Activation asked) {
        return ptx::opaque(static_cast<int>(activation)) == static_cast<int>(asked);
    };
    const auto each = [&](auto f) {
#pragma unroll
        for (float& x : value) x = f(x);
    };
    if (is(Activation::none)) return;
    if (is(Activation::gelu)) {
        if constexpr (D == DType::f32) {
            each([](float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); });
        } else {
            each(gelu16);
        }
    } else if (is(Activation::gelu_tanh)) {
        // 0.5 * (1 + tanh(u)) = sigmoid(2u), which does not cancel for u << 0.
        each([](float x) {
            const float u = 0.79788456080286536f * fmaf(0.044715f * x * x, x, x);
            return times_sigmoid<D>(x, 2.0f * u);
        });
    } else if (is(Activation::relu)) {
        each([](float x) { return x < 0.0f ? 0.0f : x; });
    } else if (is(Activation::silu)) {
        each([](float x) { return times_sigmoid<D>(x, x); });
    } else if (is(Activation::tanh)) {
        each([](float x) { return tanhf(x); });
    } else if (is(Activation::leaky_relu)) {
        each([&](float x) { return x < 0.0f ? params.a * x : x; });
    } else if (is(Activation::scaled_silu)) {
        each([&](float x) { return times_sigmoid<D>(x, params.a * x); });
    }
    // xielu is refused by check_activation.
}

}  // namespace fastbert::cuda
