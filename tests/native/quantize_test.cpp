// quantize_rows against its formula, written with plain float division, on every instruction set.
#include <algorithm>
#include <functional>

#include "gemm_case.h"
#include "harness.h"

namespace fastbert::testing {
namespace {

struct Quantised {
    std::vector<std::uint8_t> q;
    float scale;
    std::int32_t zero_point;
};

Quantised formula(const Matrix& x, index_t r, index_t k) {
    float low = 0, high = 0;
    bool nan = false;
    for (index_t i = 0; i < k; ++i) {
        const float v = static_cast<float>(x.at(r, i));
        nan |= v != v;
        low = std::min(low, v);
        high = std::max(high, v);
    }
    Quantised result;
    result.q.assign(static_cast<std::size_t>(k), 0);
    result.scale = (high - low) / 255.0f;
    result.zero_point = 0;
    if (result.scale == 0) result.scale = 1;
    if (nan) result.scale = NAN;
    if (!std::isfinite(result.scale)) return result;
    result.zero_point = static_cast<std::int32_t>(std::nearbyint(-low / result.scale));
    for (index_t i = 0; i < k; ++i) {
        const float v = static_cast<float>(x.at(r, i));
        const float q = std::nearbyint(v / result.scale) + static_cast<float>(result.zero_point);
        result.q[static_cast<std::size_t>(i)] =
            static_cast<std::uint8_t>(std::clamp(q, 0.0f, 255.0f));
    }
    return result;
}

// On every instruction set.
void check(Matrix& x, index_t rows, index_t k, DType dtype, const InputColumns& columns = {}) {
    Matrix product(rows, k, k, DType::f32);
    for (index_t r = 0; r < rows; ++r) {
        for (index_t i = 0; i < k; ++i) {
            const float v = static_cast<float>(x.at(r, i));
            product.set(r, i, columns.factor == nullptr ? v : v * columns.factor[i]);
        }
    }
    std::vector<Quantised> expected;
    for (index_t r = 0; r < rows; ++r) expected.push_back(formula(product, r, k));
    test::for_each_isa([&](Isa) {
        const index_t width = k + columns.repeats;
        std::vector<std::uint8_t> q(static_cast<std::size_t>(rows * width));
        std::vector<float> scale(static_cast<std::size_t>(rows), NAN);
        std::vector<std::int32_t> zero(static_cast<std::size_t>(rows), -1);
        QuantizeArgs a;
        a.x = x.data();
        a.dtype = dtype;
        a.rows = rows;
        a.k = k;
        a.x_stride = x.stride();
        a.q = q.data();
        a.q_stride = width;
        a.columns = columns;
        a.scale = scale.data();
        a.zero_point = zero.data();
        quantize_rows(a);
        for (index_t r = 0; r < rows; ++r) {
            const auto row = static_cast<std::size_t>(r);
            const Quantised& want = expected[row];
            CHECK(scale[row] == want.scale || (std::isnan(scale[row]) && std::isnan(want.scale)));
            CHECK(zero[row] == want.zero_point);
            CHECK(std::equal(want.q.begin(), want.q.end(), q.begin() + r * width));
            for (index_t i = 0; i < columns.repeats; ++i) {
                CHECK(q[static_cast<std::size_t>(r * width + k + i)] ==
                      want.q[static_cast<std::size_t>(columns.repeated[i])]);
            }
        }
    });
}

TEST(quantize_rows_every_length) {
    for (DType dtype : {DType::f32, DType::bf16, DType::f16}) {
        for (index_t k = 0; k <= 70; ++k) {
            Matrix x = Matrix::random(3, k, k + 1, dtype, static_cast<std::uint64_t>(k));
            check(x, 3, k, dtype);
        }
        Matrix long_rows = Matrix::random(50, 3072, 3075, dtype, 5);
        check(long_rows, 50, 3072, dtype);
    }
}

double rounding_error(const Matrix& x, index_t r, index_t k, float scale, const float* most) {
    double sum = 0;
    for (index_t i = 0; i < k; ++i) {
        const float v = static_cast<float>(x.at(r, i));
        const double level = std::clamp(std::nearbyint(v / scale), -most[i], most[i]);
        sum += (level * scale - v) * (level * scale - v);
    }
    return sum;
}

TEST(clip_errors_every_length_and_number_of_candidates) {
    test::for_each_isa([&](Isa) {
        for (index_t k : {0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 64, 67, 1031}) {
            for (index_t candidates : {0, 1, 3, 4, 5, 17}) {
                const index_t rows = 3;
                Matrix x = Matrix::random(rows, k, k + 1, DType::f32, 7);
                if (k > 1) x.set(1, k - 1, NAN);
                std::vector<float> most, scale, error;
                for (index_t i = 0; i < k; ++i) most.push_back(i % 3 == 0 ? 254.0f : 127.0f);
                for (index_t i = 0; i < rows * candidates; ++i) {
                    scale.push_back(0.004f + 0.001f * float(i));
                }
                error.assign(scale.size(), NAN);
                ClipArgs a;
                a.x = static_cast<const float*>(x.data());
                a.rows = rows;
                a.k = k;
                a.x_stride = x.stride();
                a.largest = most.data();
                a.scale = scale.data();
                a.candidates = candidates;
                a.error = error.data();
                clip_errors(a);
                for (std::size_t at = 0; at < error.size(); ++at) {
                    const auto r = static_cast<index_t>(at) / candidates;
                    const double want = rounding_error(x, r, k, scale[at], most.data());
                    const bool both_nan = std::isnan(want) && std::isnan(error[at]);
                    CHECK(both_nan || std::abs(error[at] - want) <= 1e-3 * want + 1e-9 * double(k));
                }
            }
        }
    });
}

TEST(quantize_rows_special_rows) {
    const float inf = INFINITY;
    const std::vector<std::function<float(index_t)>> kinds = {
        [](index_t) { return 0.0f; },
        [](index_t) { return -0.0f; },
        [](index_t) { return 3.25f; },
        [](index_t) { return -7.0f; },
        [](index_t i) { return i == 4 ? NAN : 1.0f; },
        [](index_t i) { return i == 36 ? NAN : float(i); },
        [=](index_t i) { return i == 11 ? inf : 1.0f; },
        [=](index_t i) { return i == 11   ? -inf
                                : i == 12 ? NAN
                                          : 1.0f; },
        [](index_t i) { return i % 2 ? 3e38f : -3e38f; },
        [](index_t i) { return i % 2 ? 3e38f : 1.0f; },
        [](index_t i) { return float(i) * 1e-45f; },
        [](index_t i) { return float(i - 18) * 1e-37f; },
        [](index_t i) { return float(i) * 1e-39f; },  // scales without a reciprocal
        [](index_t i) { return float(i - 18) * 3e-40f; },
        [](index_t i) { return float(i) * 1e30f; },
        [](index_t i) { return float(i % 3) * 127.5f; },  // ties
        [](index_t i) { return i == 0 ? 255.0f : float(i) + 0.5f; },
        [](index_t i) { return i == 0 ? 1e6f : float(i); },
    };
    const index_t k = 37;
    Matrix x(static_cast<index_t>(kinds.size()), k, k, DType::f32);
    for (std::size_t r = 0; r < kinds.size(); ++r) {
        for (index_t i = 0; i < k; ++i) x.set(static_cast<index_t>(r), i, kinds[r](i));
    }
    check(x, static_cast<index_t>(kinds.size()), k, DType::f32);
}

TEST(quantize_rows_with_a_factor_and_repeated_columns) {
    for (DType dtype : {DType::f32, DType::bf16, DType::f16}) {
        for (index_t k : {1, 7, 16, 33, 384, 1000}) {
            Random random(static_cast<std::uint64_t>(k));
            std::vector<float> factor;
            for (index_t i = 0; i < k; ++i) factor.push_back(std::exp(random.normal()));
            std::vector<std::int32_t> repeated;
            for (index_t i = 0; i < 19; ++i) {
                repeated.push_back(static_cast<std::int32_t>(i * 13 % k));
            }
            Matrix x = Matrix::random(3, k, k + 1, dtype, static_cast<std::uint64_t>(k));
            check(x, 3, k, dtype, {factor.data(), nullptr, 0});
            check(x, 3, k, dtype, {nullptr, repeated.data(), 19});
            check(x, 3, k, dtype, {factor.data(), repeated.data(), 19});
        }
    }
    // Products that overflow, and a NaN, are those of the row itself.
    Matrix odd(3, 5, 5, DType::f32);
    for (index_t i = 0; i < 5; ++i) {
        odd.set(0, i, i == 2 ? NAN : 1.0f);
        odd.set(1, i, i == 2 ? 1e38f : 1.0f);
        odd.set(2, i, i == 2 ? 1e-30f : 0.0f);
    }
    const float factor[] = {1.0f, 2.0f, 64.0f, 0.5f, 3.0f};
    const std::int32_t repeated[] = {2, 0};
    check(odd, 3, 5, DType::f32, {factor, repeated, 2});
}

TEST(quantize_rows_refuses_columns_that_are_not_there) {
    Matrix x(1, 4, 4, DType::f32);
    for (std::int32_t column : {-1, 4}) {
        CHECK(
            !test::message_of([&] { check(x, 1, 4, DType::f32, {nullptr, &column, 1}); }).empty());
    }
    CHECK(!test::message_of([&] { check(x, 1, 4, DType::f32, {nullptr, nullptr, 1}); }).empty());
}

// The reciprocal and its correction must give division's result: many values close to ties.
TEST(quantize_rows_divides_exactly) {
    Random random(3);
    Matrix x(64, 512, 512, DType::f32);
    for (index_t r = 0; r < 64; ++r) {
        const float scale = 0.001f + std::fabs(random.normal());
        for (index_t i = 0; i < 512; ++i) {
            const float tie = (static_cast<float>(i % 250) + 0.5f) * scale;
            const int nudge = static_cast<int>(random.bits() % 5) - 2;
            float v = tie;
            for (int n = 0; n < std::abs(nudge); ++n) v = std::nextafter(v, nudge * 1e30f);
            x.set(r, i, v);
        }
        x.set(r, 0, 255.0f * scale);
    }
    check(x, 64, 512, DType::f32);
}

}  // namespace
}  // namespace fastbert::testing
