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

// e^x - 1 within 2 ulp for x <= 0; -1 below -104, NaN stays NaN. As exp, but 1 is taken out of each
// of the two factors, so that nothing cancels where x is near 0: e^x - 1 = 2^n (e^r - 1) + (2^n -
// 1).
inline F32 expm1(F32 x) {
    constexpr float c[] = {0x1.000000p-1f, 0x1.55548ep-3f, 0x1.55545ep-5f, 0x1.123b46p-7f,
                           0x1.6db410p-10f};
    const F32 shift = set1(0x1.8p23f);
    x = max(set1(-104.0f), x);
    const F32 n = sub(fma(x, set1(0x1.715476p0f), shift), shift);
    F32 r = fnma(n, set1(0x1.62e400p-1f), x);
    r = fnma(n, set1(0x1.7f7d1cp-20f), r);
    const F32 p = fma(polynomial(r, c), mul(r, r), r);
    const I32 exponent = to_i32(n);
    return add(scale2(p, exponent), sub(scale2(set1(1.0f), exponent), set1(1.0f)));
}

// The upper tail of the normal distribution, Q(t) = erfc(t / sqrt 2) / 2, for 0 <= t, which is cut
// at normal_tail_end; 0 from there on, where |t| Q(t) is below 8e-8. A polynomial of degree 5 about
// the nearest of 16 points, picked from tables of coefficients: 5 steps in place of the 16 that one
// polynomial for all t takes. Within 3e-8, and 3e-7 of its value below t = 3.
constexpr float normal_tail_step = 49.0f / 128;
constexpr float normal_tail_end = 15 * normal_tail_step;
alignas(64) constexpr float normal_tail_table[6][16] = {
    {0x1.000000p-1f, 0x1.675a0ap-2f, 0x1.c68d96p-3f, 0x1.00ce92p-3f, 0x1.0172fep-4f, 0x1.c7932ap-6f,
     0x1.625198p-7f, 0x1.e2f0d6p-9f, 0x1.1fb2cep-10f, 0x1.2b0dcap-12f, 0x1.0eca9ep-14f,
     0x1.aaab18p-17f, 0x1.242944p-19f, 0x1.5b7c36p-22f, 0x1.66ae48p-25f, 0x0.0p+0f},
    {-0x1.988452p-2f, -0x1.7ba772p-2f, -0x1.30bc26p-2f, -0x1.a683f6p-3f, -0x1.f9f6a4p-4f,
     -0x1.05a694p-4f, -0x1.d374bap-6f, -0x1.68a64ep-7f, -0x1.e0a2b4p-9f, -0x1.149cc0p-10f,
     -0x1.12fc90p-12f, -0x1.d835aap-15f, -0x1.5e2bcap-17f, -0x1.c08b7ep-20f, -0x1.f039eep-23f,
     0x0.0p+0f},
    {-0x1.39bf48p-35f, 0x1.22a916p-4f, 0x1.d29d42p-4f, 0x1.e53aaep-4f, 0x1.8361a8p-4f,
     0x1.f4d304p-5f, 0x1.0c6d60p-5f, 0x1.e33824p-7f, 0x1.6ffb20p-8f, 0x1.dc7a22p-10f,
     0x1.072244p-11f, 0x1.f0fd34p-14f, 0x1.91feaap-16f, 0x1.16deeep-18f, 0x1.4c2dc0p-21f,
     0x0.0p+0f},
    {0x1.1055a8p-4f, 0x1.b0026ep-5f, 0x1.504124p-6f, -0x1.675518p-7f, -0x1.c591f4p-6f,
     -0x1.d095b0p-6f, -0x1.4d1614p-6f, -0x1.738128p-7f, -0x1.4fa1f0p-8f, -0x1.f548b6p-10f,
     -0x1.391696p-11f, -0x1.498ce8p-13f, -0x1.25c92ap-15f, -0x1.bd4160p-18f, -0x1.1f970ep-20f,
     0x0.0p+0f},
    {0x1.40f380p-30f, -0x1.11bbe0p-6f, -0x1.7497e8p-6f, -0x1.0edf98p-6f, -0x1.55845ap-8f,
     0x1.b12136p-9f, 0x1.940346p-8f, 0x1.4fec8ep-8f, 0x1.883252p-9f, 0x1.62d10cp-10f,
     0x1.02c816p-11f, 0x1.369c82p-13f, 0x1.3687d2p-15f, 0x1.04a088p-17f, 0x1.714a52p-20f,
     0x0.0p+0f},
    {-0x1.43a836p-7f, -0x1.add042p-8f, 0x1.d785bep-12f, 0x1.643532p-8f, 0x1.74efecp-8f,
     0x1.7c910cp-9f, 0x1.67a70ep-13f, -0x1.135246p-10f, -0x1.126716p-10f, -0x1.48ffcep-11f,
     -0x1.228b56p-12f, -0x1.9344cep-14f, -0x1.c55164p-16f, -0x1.a3a7d6p-18f, -0x1.435b54p-20f,
     0x0.0p+0f}};
inline F32 normal_tail(F32 t) {
    const F32 inside = min(set1(normal_tail_end), t);
    // Adding 1.5 * 2^23 leaves the rounded integer in the low mantissa bits.
    const F32 shift = set1(0x1.8p23f);
    const F32 shifted = fma(inside, set1(1.0f / normal_tail_step), shift);
    const F32 r = fnma(sub(shifted, shift), set1(normal_tail_step), inside);
    F32 y = lookup16(normal_tail_table[5], shifted);
    for (int i = 4; i >= 0; --i) y = fma(y, r, lookup16(normal_tail_table[i], shifted));
    return y;
}

// erf(x) within 1.2e-7 (two float32 steps at 1).
inline F32 erf(F32 x) {
    constexpr float c[] = {0x1.20dd74p+0f, -0x1.812730p-2f,  0x1.ce2b58p-4f, -0x1.b7e328p-6f,
                           0x1.5375c6p-8f, -0x1.a0687ep-11f, 0x1.40be48p-14f};
    const F32 t = abs(x);
    const F32 small = mul(x, polynomial(mul(x, x), c));
    const F32 large = fnma(set1(2.0f), normal_tail(mul(t, set1(0x1.6a09e6p0f))), set1(1.0f));
    return select(less(t, set1(1.0f)), small, copysign(large, x));
}

// x * Phi(x), the exact erf form, as max(x, 0) - |x| Q(|x|), which has no cancellation: absolute
// error at most 8e-8 plus half a unit in the last place of the result.
inline F32 gelu(F32 x) {
    const F32 t = abs(x);
    // Cut, so that -infinity is not multiplied with 0.
    const F32 weight = min(set1(normal_tail_end), t);
    return fnma(weight, normal_tail(t), max(zero(), x));
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

// The parameters of an activation in every lane.
struct ActivationLanes {
    F32 a, b, c, d;
    explicit ActivationLanes(const ActivationParams& p)
        : a(set1(p.a)), b(set1(p.b)), c(set1(p.c)), d(set1(p.d)) {}
};

template <Activation activation>
inline F32 apply(F32 x, const ActivationLanes& p) {
    if constexpr (activation == Activation::gelu) return gelu(x);
    if constexpr (activation == Activation::gelu_tanh) return gelu_tanh(x);
    if constexpr (activation == Activation::relu) return max(zero(), x);
    if constexpr (activation == Activation::silu) return div(x, add(set1(1.0f), exp(neg(x))));
    if constexpr (activation == Activation::tanh) return tanh(x);
    if constexpr (activation == Activation::leaky_relu) {
        return select(less(x, zero()), mul(p.a, x), x);
    }
    if constexpr (activation == Activation::scaled_silu) {
        return div(x, add(set1(1.0f), exp(neg(mul(p.a, x)))));
    }
    if constexpr (activation == Activation::xielu) {
        const F32 above = mul(p.a, mul(x, x));
        const F32 below = mul(p.b, sub(expm1(min(p.d, x)), x));
        return fma(p.c, x, select(less(zero(), x), above, below));
    }
    return x;
}

template <Activation activation>
struct ActivationTag {
    static constexpr Activation value = activation;
};

// body(ActivationTag) with the tag of a checked activation.
template <typename Body>
inline __attribute__((always_inline)) void with_activation(Activation activation, Body&& body) {
    switch (activation) {
        case Activation::none:
            return body(ActivationTag<Activation::none>{});
        case Activation::gelu:
            return body(ActivationTag<Activation::gelu>{});
        case Activation::gelu_tanh:
            return body(ActivationTag<Activation::gelu_tanh>{});
        case Activation::relu:
            return body(ActivationTag<Activation::relu>{});
        case Activation::silu:
            return body(ActivationTag<Activation::silu>{});
        case Activation::tanh:
            return body(ActivationTag<Activation::tanh>{});
        case Activation::leaky_relu:
            return body(ActivationTag<Activation::leaky_relu>{});
        case Activation::scaled_silu:
            return body(ActivationTag<Activation::scaled_silu>{});
        case Activation::xielu:
            return body(ActivationTag<Activation::xielu>{});
    }
}

}  // namespace
}  // namespace fastbert
