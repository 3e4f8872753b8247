// Elementwise mathematics over the vector interface: one sequence of operations, hence the same
// bits on every instruction set. Included at the end of each vec header.
//
// The polynomials are minimax fits of our own (weighted by what the result's absolute error needs);
// the bounds are measured against float64 by tests/native/vec_math_test.cpp, which fails above
// them.
#pragma once

namespace fastbert {
namespace {

// c[0] + c[1]*x + ... by Horner's rule.
template <int count>
inline F32 polynomial(F32 x, const float (&c)[count]) {
    F32 y = set1(c[count - 1]);
    for (int i = count - 2; i >= 0; --i) y = fma(y, x, set1(c[i]));
    return y;
}

// e^x within 1.1 ulp; 0 below -104, infinity above 89, NaN stays NaN.
// x = n ln2 + r, |r| <= ln2/2, and e^r = 1 + r + r^2 P(r).
inline F32 exp(F32 x) {
    constexpr float c[] = {0x1.000000p-1f, 0x1.55548ep-3f, 0x1.55545ep-5f, 0x1.123b46p-7f,
                           0x1.6db410p-10f};
    // Adding 1.5 * 2^23 leaves the rounded integer in the low mantissa bits.
    const F32 shift = set1(0x1.8p23f);
    x = max(set1(-104.0f), x);
    x = min(set1(89.0f), x);
    const F32 n = sub(fma(x, set1(0x1.715476p0f), shift), shift);
    F32 r = fnma(n, set1(0x1.62e400p-1f), x);  // ln2 in two parts; the first has trailing zeros
    r = fnma(n, set1(0x1.7f7d1cp-20f), r);
    const F32 p = fma(polynomial(r, c), mul(r, r), r);
    return scale2(add(p, set1(1.0f)), to_i32(n));
}

// The upper tail of the normal distribution, Q(t) = erfc(t / sqrt 2) / 2, for 0 <= t <= 5.5, such
// that |t| times the error is at most 9e-8. Centred at 3 because that keeps the terms small where
// t, and so the weight of their rounding errors, is large.
constexpr float normal_tail_end = 5.5f;
inline F32 normal_tail(F32 t) {
    constexpr float c[] = {0x1.61dd74p-10f,  -0x1.227282p-8f,  0x1.b3aefep-8f,   -0x1.834064p-8f,
                           0x1.b38e14p-9f,   -0x1.227f5ap-10f, 0x1.d5dce4p-14f,  0x1.626d12p-14f,
                           -0x1.745b5ap-15f, 0x1.a7e05ap-18f,  0x1.36a8ccp-19f,  -0x1.21ed1ep-20f,
                           0x1.413638p-25f,  0x1.ed6e6cp-25f,  -0x1.0920eep-27f, -0x1.4b16b2p-30f,
                           0x1.e85622p-33f};
    return polynomial(sub(t, set1(3.0f)), c);
}

// erf(x) within 1.2e-7 (two float32 steps at 1).
inline F32 erf(F32 x) {
    constexpr float c[] = {0x1.20dd74p+0f, -0x1.812730p-2f,  0x1.ce2b58p-4f, -0x1.b7e328p-6f,
                           0x1.5375c6p-8f, -0x1.a0687ep-11f, 0x1.40be48p-14f};
    const F32 t = abs(x);
    const F32 small = mul(x, polynomial(mul(x, x), c));
    const F32 scaled = min(set1(normal_tail_end), mul(t, set1(0x1.6a09e6p0f)));
    const F32 large = fnma(set1(2.0f), normal_tail(scaled), set1(1.0f));
    return select(less(t, set1(1.0f)), small, copysign(large, x));
}

// x * Phi(x), the exact erf form. From 1 on max(x, 0) - |x| Q(|x|), which has no cancellation for
// negative x: absolute error at most 1.1e-7 plus half a unit in the last place of the result; 0
// below -5.5, where the true value is smaller than that. Below 1 x (1/2 + x P(x^2)), within 2.1
// ulp: the tail's absolute error would be thousands of ulp there.
inline F32 gelu(F32 x) {
    constexpr float c[] = {0x1.988454p-2f,   -0x1.10582ap-4f, 0x1.46ccc4p-7f,
                           -0x1.36e0ecp-10f, 0x1.da3406p-14f, -0x1.f717e2p-18f};
    const F32 t = abs(x);
    const F32 end = set1(normal_tail_end);
    const F32 inside = min(end, t);
    const F32 tail = select(less(end, t), zero(), normal_tail(inside));
    const F32 large = fnma(inside, tail, max(zero(), x));
    const F32 small = mul(x, fma(x, polynomial(mul(x, x), c), set1(0.5f)));
    return select(less(t, set1(1.0f)), small, large);
}

inline F32 sigmoid(F32 x) { return div(set1(1.0f), add(set1(1.0f), exp(neg(x)))); }

// tanh(x) within 1.2e-7.
inline F32 tanh(F32 x) {
    constexpr float c[] = {-0x1.555534p-2f, 0x1.110768p-3f, -0x1.b84448p-5f, 0x1.5256cep-6f,
                           -0x1.76abf6p-8f};
    const F32 t = abs(x);
    const F32 u = mul(x, x);
    const F32 small = fma(mul(x, u), polynomial(u, c), x);
    const F32 large = sub(set1(1.0f), div(set1(2.0f), add(exp(add(t, t)), set1(1.0f))));
    return select(less(t, set1(0.625f)), small, copysign(large, x));
}

// x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2, written as x * sigmoid(2 ...).
inline F32 gelu_tanh(F32 x) {
    const F32 u = mul(mul(x, set1(1.5957691216f)), fma(mul(x, x), set1(0.044715f), set1(1.0f)));
    return div(x, add(set1(1.0f), exp(neg(u))));
}

template <Activation activation>
inline F32 apply(F32 x) {
    if constexpr (activation == Activation::gelu) return gelu(x);
    if constexpr (activation == Activation::gelu_tanh) return gelu_tanh(x);
    if constexpr (activation == Activation::relu) return max(zero(), x);
    if constexpr (activation == Activation::silu) return div(x, add(set1(1.0f), exp(neg(x))));
    if constexpr (activation == Activation::tanh) return tanh(x);
    return x;
}

}  // namespace
}  // namespace fastbert
