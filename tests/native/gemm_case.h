// One matrix product with everything a test may vary, its inputs in buffers that end where the data
// ends (so that the address sanitizer sees any read beyond), and its result in float64.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/ops/linear.h"
#include "cpu/ops/quantize.h"
#include "cpu/threads.h"

namespace fastbert::testing {

// Deterministic values, roughly normal, with an occasional outlier.
class Random {
  public:
    explicit Random(std::uint64_t seed) : state_(seed * 2654435761u + 88172645463325252u) {}
    std::uint64_t bits() {
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        state_ ^= state_ << 17;
        return state_;
    }
    float normal() {
        float sum = 0;
        for (int i = 0; i < 4; ++i) sum += static_cast<float>(bits() >> 40) * 0x1p-24f - 0.5f;
        return sum * 1.732f * (bits() % 97 == 0 ? 8.0f : 1.0f);
    }

  private:
    std::uint64_t state_;
};

inline float bf16_to_float(std::uint16_t h) {
    const std::uint32_t bits = std::uint32_t{h} << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

inline std::uint16_t float_to_bf16(float f) {
    std::uint32_t bits;
    std::memcpy(&bits, &f, 4);
    if (f != f) return 0x7fc0;
    return static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline double half_to_double(std::uint16_t h) {
    const int exponent = (h >> 10) & 31, mantissa = h & 1023;
    const double sign = h & 0x8000 ? -1 : 1;
    if (exponent == 31) return mantissa ? std::nan("") : sign * INFINITY;
    return sign *
           (exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24));
}

// To nearest even, by the plain definition.
inline std::uint16_t double_to_half(double d) {
    if (d != d) return 0x7e00;
    const std::uint16_t sign = std::signbit(d) ? 0x8000 : 0;
    d = std::fabs(d);
    if (d >= 65520) return sign | 0x7c00;
    int exponent = d > 0 ? std::ilogb(d) : -14;
    if (exponent < -14) exponent = -14;
    const double units = std::nearbyint(std::ldexp(d, 10 - exponent));
    const std::uint16_t code =
        static_cast<std::uint16_t>(units) + static_cast<std::uint16_t>((exponent + 14) << 10);
    return sign | code;
}

// A matrix of any float type whose rows lie `stride` apart and which starts one element into its
// buffer; the gaps between rows hold NaN.
class Matrix {
  public:
    Matrix() = default;
    Matrix(index_t rows, index_t columns, index_t stride, DType dtype)
        : rows_(rows), columns_(columns), stride_(stride), dtype_(dtype) {
        const index_t elements = rows == 0 ? 0 : (rows - 1) * stride + columns;
        bytes_.resize(static_cast<std::size_t>((elements + 1) * size_of(dtype)), 0xff);  // NaN
    }
    static Matrix random(index_t rows, index_t columns, index_t stride, DType dtype,
                         std::uint64_t seed) {
        Matrix m(rows, columns, stride, dtype);
        Random random(seed);
        for (index_t r = 0; r < rows; ++r) {
            for (index_t c = 0; c < columns; ++c) m.set(r, c, random.normal());
        }
        return m;
    }

    void* data() { return bytes_.data() + size_of(dtype_); }
    index_t stride() const { return stride_; }
    DType dtype() const { return dtype_; }
    double at(index_t r, index_t c) const {
        const std::uint8_t* p = bytes_.data() + (1 + r * stride_ + c) * size_of(dtype_);
        if (dtype_ == DType::f32) {
            float f;
            std::memcpy(&f, p, 4);
            return f;
        }
        std::uint16_t h;
        std::memcpy(&h, p, 2);
        return dtype_ == DType::bf16 ? bf16_to_float(h) : half_to_double(h);
    }
    void set(index_t r, index_t c, float value) {
        std::uint8_t* p = bytes_.data() + (1 + r * stride_ + c) * size_of(dtype_);
        if (dtype_ == DType::f32) {
            std::memcpy(p, &value, 4);
        } else {
            const std::uint16_t h =
                dtype_ == DType::bf16 ? float_to_bf16(value) : double_to_half(value);
            std::memcpy(p, &h, 2);
        }
    }
    // All elements, row by row. References read these: at() costs more than the sum it is for.
    std::vector<double> values() const {
        std::vector<double> all;
        all.reserve(static_cast<std::size_t>(rows_ * columns_));
        for (index_t r = 0; r < rows_; ++r) {
            for (index_t c = 0; c < columns_; ++c) all.push_back(at(r, c));
        }
        return all;
    }
    // True when nothing outside the matrix was written.
    bool gaps_untouched() const {
        const index_t size = size_of(dtype_);
        auto gap = bytes_.begin();
        const auto untouched = [](std::uint8_t byte) { return byte == 0xff; };
        for (index_t r = 0; r < rows_; ++r) {
            const auto row = bytes_.begin() + (1 + r * stride_) * size;
            if (!std::all_of(gap, row, untouched)) return false;
            gap = row + columns_ * size;
        }
        return std::all_of(gap, bytes_.end(), untouched);
    }
    const std::vector<std::uint8_t>& bytes() const { return bytes_; }

  private:
    index_t rows_ = 0, columns_ = 0, stride_ = 0;
    DType dtype_ = DType::f32;
    std::vector<std::uint8_t> bytes_;
};

// parameter: the first of those with parameters.
inline double exact_activation(Activation a, double x, double parameter = 0) {
    switch (a) {
        case Activation::gelu:
            return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
        case Activation::gelu_tanh:
            return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
        case Activation::relu:
            return x < 0 ? 0 : x;
        case Activation::silu:
            return x / (1 + std::exp(-x));
        case Activation::tanh:
            return std::tanh(x);
        case Activation::leaky_relu:
            return x < 0 ? parameter * x : x;
        case Activation::scaled_silu:
            return x / (1 + std::exp(-parameter * x));
        case Activation::xielu:  // with no other parameters than the first
            return x > 0 ? parameter * x * x : 0;
        default:
            return x;
    }
}

// The largest relative error of rounding to this type.
inline double half_ulp(DType dtype) {
    return dtype == DType::f32 ? 0x1p-24 : dtype == DType::f16 ? 0x1p-11 : 0x1p-8;
}

struct Packed {
    std::vector<std::uint8_t> storage;
    index_t bytes = 0;
    std::uint8_t* data() {
        const auto address = reinterpret_cast<std::uintptr_t>(storage.data());
        return storage.data() + (4 - address % 4) % 4;
    }
};

inline Packed pack(const void* weight, DType dtype, index_t n, index_t k, index_t stride) {
    Packed p;
    const DType packed = dtype == DType::f16 ? DType::f32 : dtype;
    p.bytes = packed_bytes(active_kernels().gemm, packed, n, k);
    p.storage.assign(static_cast<std::size_t>(p.bytes) + 4, 0xff);
    pack_weight(weight, dtype, n, k, stride, p.data(), p.bytes);
    return p;
}

}  // namespace fastbert::testing
