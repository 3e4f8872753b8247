// Rows of 16 bits in two u8 halves: what quantize_rows16 writes, and that the int8 gemm joins both
// halves of a row exactly, with the same bits on every instruction set, in any batch and tile.
#include <algorithm>
#include <functional>

#include "gemm_case.h"
#include "harness.h"

namespace fastbert::testing {
namespace {

struct Halves {
    std::vector<std::uint8_t> q;
    std::vector<float> scale;
    index_t width;

    std::int32_t level(index_t r, index_t i) const {
        const int high = q[static_cast<std::size_t>(2 * r * width + i)];
        const int low = q[static_cast<std::size_t>((2 * r + 1) * width + i)];
        return 256 * (high - kHalfZero) + (low - kHalfZero);
    }
};

Halves halve(Matrix& x, index_t rows, index_t k, DType dtype, const InputColumns& columns = {}) {
    const index_t width = k + columns.repeats;
    Halves h{std::vector<std::uint8_t>(static_cast<std::size_t>(2 * rows * width)),
             std::vector<float>(static_cast<std::size_t>(rows), NAN), width};
    QuantizeArgs a;
    a.x = x.data();
    a.dtype = dtype;
    a.rows = rows;
    a.k = k;
    a.x_stride = x.stride();
    a.columns = columns;
    a.q = h.q.data();
    a.q_stride = width;
    a.scale = h.scale.data();
    quantize_rows16(a);
    return h;
}

// By the definition, in float64, which holds every step exactly; on every instruction set.
void check_halves(Matrix& x, index_t rows, index_t k, DType dtype) {
    const std::vector<double> values = x.values();
    std::vector<double> levels, scales;  // of a row that is not finite: zeros, and a NaN
    for (index_t r = 0; r < rows; ++r) {
        const double* const row = values.data() + r * k;
        double largest = 0;
        bool finite = true;
        for (index_t i = 0; i < k; ++i) {
            finite &= std::isfinite(row[i]);
            largest = std::max(largest, std::fabs(row[i]));
        }
        int e = -134;
        while (finite && std::ldexp(32639, e - 15) < largest) ++e;
        scales.push_back(finite ? std::ldexp(1, e - 7) : NAN);
        const double step = std::ldexp(1, 15 - e);
        for (index_t i = 0; i < k; ++i) {
            levels.push_back(finite ? std::nearbyint(row[i] * step) : 0);
        }
    }
    test::for_each_isa([&](Isa isa) {
        const Halves h = halve(x, rows, k, dtype);
        index_t wrong = 0;
        for (index_t r = 0; r < rows; ++r) {
            const auto row = static_cast<std::size_t>(r);
            CHECK(std::isnan(scales[row]) ? std::isnan(h.scale[row]) : h.scale[row] == scales[row]);
            for (index_t i = 0; i < k; ++i) {
                wrong += h.level(r, i) != levels[static_cast<std::size_t>(r * k + i)];
            }
        }
        CHECK_MSG(wrong == 0, name_of(isa));
    });
}

TEST(halves_of_every_length) {
    for (DType dtype : {DType::f32, DType::bf16, DType::f16}) {
        for (index_t k = 0; k <= 70; ++k) {
            Matrix x = Matrix::random(3, k, k + 1, dtype, static_cast<std::uint64_t>(k));
            check_halves(x, 3, k, dtype);
        }
        Matrix long_rows = Matrix::random(50, 3072, 3075, dtype, 5);
        check_halves(long_rows, 50, 3072, dtype);
    }
}

TEST(halves_of_special_rows) {
    const float inf = INFINITY, most = std::numeric_limits<float>::max();
    const std::vector<std::function<float(index_t)>> kinds = {
        [](index_t) { return 0.0f; },
        [](index_t) { return -0.0f; },
        [](index_t i) { return i == 4 ? NAN : 1.0f; },
        [](index_t i) { return i == 36 ? NAN : 0.0f; },
        [=](index_t i) { return i == 11 ? inf : 1.0f; },
        [=](index_t i) { return i == 36  ? -inf
                                : i == 0 ? NAN
                                         : 1.0f; },
        [=](index_t i) { return i % 2 ? most : -most; },
        [=](index_t i) { return i % 2 ? most : 1e-45f; },
        [](index_t i) { return float(i) * 1e-45f; },
        [](index_t i) { return i == 5 ? 1e-45f : 0.0f; },
        [](index_t i) { return float(i - 18) * 1e-37f; },
        [](index_t i) { return float(i - 18) * 1e-39f; },
        [](index_t i) { return float(i - 18) * 3e-33f; },
        // Around the largest level, where a power of two has just no room any more.
        [](index_t i) { return i == 3 ? 32639.0f : float(i) + 0.5f; },
        [](index_t i) { return i == 3 ? std::nextafter(32639.0f, 1e9f) : float(i) + 0.5f; },
        [](index_t i) { return i == 3 ? -32639.0f : -float(i) - 0.5f; },
        [](index_t i) { return i == 3 ? -32768.0f : float(i); },
        // Low halves of -128 and 127, and ties between the levels around them.
        [](index_t i) { return i == 0 ? 32000.0f : float(i - 18) * 128.0f; },
        [](index_t i) { return i == 0 ? 32000.0f : float(i - 18) * 128.0f + 127.5f; },
    };
    const index_t k = 37, rows = static_cast<index_t>(kinds.size());
    Matrix x(rows, k, k, DType::f32);
    for (index_t r = 0; r < rows; ++r) {
        for (index_t i = 0; i < k; ++i) x.set(r, i, kinds[static_cast<std::size_t>(r)](i));
    }
    check_halves(x, rows, k, DType::f32);
}

TEST(halves_with_a_factor_and_repeated_columns) {
    test::for_each_isa([&](Isa) {
        const index_t k = 33;
        std::vector<float> factor;
        for (index_t i = 0; i < k; ++i) factor.push_back(std::exp(float(i - 16) / 8));
        const std::vector<std::int32_t> repeated = {32, 0, 7, 7};
        Matrix x = Matrix::random(3, k, k + 1, DType::bf16, 3);
        Matrix product(3, k, k, DType::f32);
        for (index_t r = 0; r < 3; ++r) {
            for (index_t i = 0; i < k; ++i) {
                product.set(r, i, static_cast<float>(x.at(r, i)) * factor[std::size_t(i)]);
            }
        }
        const Halves plain = halve(product, 3, k, DType::f32);
        const Halves h = halve(x, 3, k, DType::bf16, {factor.data(), repeated.data(), 4});
        CHECK(h.scale == plain.scale);
        for (index_t r = 0; r < 3; ++r) {
            for (index_t i = 0; i < k; ++i) CHECK(h.level(r, i) == plain.level(r, i));
            for (index_t i = 0; i < 4; ++i) {
                CHECK(h.level(r, k + i) == plain.level(r, repeated[std::size_t(i)]));
            }
        }
    });
}

TEST(halves_refuse_what_does_not_fit) {
    Matrix x(1, 4, 4, DType::f32);
    const std::int32_t column = 4;
    CHECK(!test::message_of([&] { halve(x, 1, 4, DType::f32, {nullptr, &column, 1}); }).empty());
    QuantizeArgs a;
    a.x = x.data();
    a.rows = 1;
    a.k = 4;
    a.x_stride = 4;
    a.q = static_cast<std::uint8_t*>(x.data());
    a.q_stride = 4;
    CHECK(!test::message_of([&] { quantize_rows16(a); }).empty());  // no scale
    float scale = 0;
    a.scale = &scale;
    a.q_stride = 3;
    CHECK(!test::message_of([&] { quantize_rows16(a); }).empty());  // rows of q overlap
}

struct Problem {
    index_t rows, n, k;
    DType dtype;
    Matrix x, residual;
    std::vector<std::int8_t> w;
    std::vector<float> w_scale, bias;
    bool streamed = false;

    Problem(index_t rows_, index_t n_, index_t k_, DType dtype_, std::uint64_t seed)
        : rows(rows_),
          n(n_),
          k(k_),
          dtype(dtype_),
          x(Matrix::random(rows_, k_, k_ + 3, dtype_, seed)),
          residual(Matrix::random(rows_, n_, n_ + 1, dtype_, seed + 1)),
          w(static_cast<std::size_t>(n_ * k_)) {
        Random random(seed + 2);
        for (auto& v : w) v = static_cast<std::int8_t>(random.bits() >> 20);
        for (index_t j = 0; j < n; ++j) {
            w_scale.push_back(0.001f + std::fabs(random.normal()) * 0.01f);
            bias.push_back(random.normal());
        }
    }

    Matrix run(Activation activation, DType out_dtype, index_t first, index_t count) {
        Packed packed = pack(w.data(), DType::s8, n, k, k);
        Matrix out(count, n, n + 4, out_dtype);
        GemmArgs g;
        g.rows = count;
        g.n = n;
        g.k = k;
        g.x = static_cast<std::uint8_t*>(x.data()) + first * x.stride() * size_of(dtype);
        g.x_dtype = dtype;
        g.x_stride = x.stride();
        g.packed = packed.data();
        g.streamed = streamed;
        g.bias = bias.data();
        g.activation = activation;
        g.activation_params.a = 0.3f;
        g.residual = static_cast<std::uint8_t*>(residual.data()) +
                     first * residual.stride() * size_of(dtype);
        g.residual_dtype = dtype;
        g.residual_stride = residual.stride();
        g.out = out.data();
        g.out_dtype = out_dtype;
        g.out_stride = out.stride();
        g.w_scale = w_scale.data();
        linear_w8a16(g, packed.bytes);
        CHECK(out.gaps_untouched());
        return out;
    }

    // The one sequence of float operations, over exact integers.
    float exact(const Halves& h, index_t r, index_t j) const {
        std::int64_t high = 0, low = 0;
        const std::int8_t* const weights = w.data() + j * k;
        const std::uint8_t *const highs = h.q.data() + 2 * r * k, *const lows = highs + k;
        for (index_t i = 0; i < k; ++i) {
            const std::int64_t weight = weights[i];
            high += (highs[i] - kHalfZero) * weight;
            low += (lows[i] - kHalfZero) * weight;
        }
        const auto column = static_cast<std::size_t>(j);
        const float sum = std::fma(static_cast<float>(low), 1.0f / 256, static_cast<float>(high));
        const float y = sum * w_scale[column] * h.scale[static_cast<std::size_t>(r)];
        return y + bias[column] + static_cast<float>(residual.at(r, j));
    }
};

// One problem on every instruction set. All halve alike (check_halves), so the levels are scalar's.
void check_exact(Problem&& p) {
    set_active(Isa::scalar);
    const Halves h = halve(p.x, p.rows, p.k, p.dtype);
    std::vector<float> want;
    for (index_t r = 0; r < p.rows; ++r) {
        for (index_t j = 0; j < p.n; ++j) want.push_back(p.exact(h, r, j));
    }
    test::for_each_isa([&](Isa isa) {
        for (bool streamed : {false, true}) {
            p.streamed = streamed;
            const Matrix out = p.run(Activation::none, DType::f32, 0, p.rows);
            const std::vector<double> got = out.values();
            CHECK_MSG(std::equal(want.begin(), want.end(), got.begin(), got.end()),
                      std::string(name_of(isa)) + ": " + std::to_string(p.rows) + " rows, " +
                          std::to_string(p.n) + " columns" + (streamed ? ", streamed" : ""));
        }
    });
}

TEST(halves_of_every_tile_are_joined_exactly) {
    for (index_t rows = 0; rows <= 40; ++rows) check_exact({rows, 35, 11, DType::f32, 1});
    for (index_t n = 1; n <= 140; ++n) check_exact({1 + n % 5, n, 9, DType::bf16, 2});
    for (index_t k = 1; k <= 70; ++k) check_exact({6, 33, k, DType::f16, 3});
    check_exact({1, 32 * 9 + 18, 70, DType::f32, 4});
    check_exact({30, 43, 1024, DType::f32, 5});
    check_exact({20, 40, 4096, DType::f32, 6});
    check_exact({251, 40, 61, DType::f32, 7});
    check_exact({3, 5, kMaxInt8K, DType::f32, 8});
    check_exact({17, 300, 2100, DType::f32, 9});  // K in chunks, over two groups of panels
}

// The largest levels times the largest weights, over the longest rows.
TEST(halves_extremes_do_not_overflow) {
    for (std::int8_t weight : {std::int8_t{-128}, std::int8_t{127}}) {
        for (float value : {32639.0f, -32639.0f, -32640.0f, 127.0f, -128.0f}) {
            Problem p(2, 2, kMaxInt8K, DType::f32, 9);
            std::fill(p.w.begin(), p.w.end(), weight);
            for (index_t i = 0; i < p.k; ++i) {
                p.x.set(0, i, value);
                p.x.set(1, i, i == 0 ? 32000.0f : value);
            }
            check_exact(std::move(p));
        }
    }
}

TEST(halves_bits_are_the_same_everywhere) {
    const int threads = max_threads();
    for (DType dtype : {DType::f32, DType::bf16, DType::f16}) {
        Problem p(37, 91, 130, dtype, 11);
        for (int a = 0; a < kActivations; ++a) {
            const auto activation = static_cast<Activation>(a);
            set_active(Isa::scalar);
            const Matrix first = p.run(activation, dtype, 0, p.rows);
            test::for_each_isa([&](Isa) {
                for (int t : {1, 2, 5}) {
                    set_max_threads(t);
                    CHECK(first.bytes() == p.run(activation, dtype, 0, p.rows).bytes());
                }
                for (index_t count : {1, 2, 3, 7, 8, 13, 14, 15, 17}) {
                    const Matrix part = p.run(activation, dtype, 5, count);
                    bool same = true;
                    for (index_t r = 0; r < count; ++r) {
                        for (index_t j = 0; j < p.n; ++j)
                            same &= part.at(r, j) == first.at(5 + r, j);
                    }
                    CHECK(same);
                }
            });
        }
    }
    set_max_threads(threads);
}

TEST(halves_of_more_rows_than_a_block) { check_exact({1050, 37, 45, DType::bf16, 12}); }

TEST(halves_rows_that_are_not_finite_come_out_as_nan) {
    test::for_each_isa([&](Isa) {
        for (float bad : {NAN, INFINITY, -INFINITY}) {
            Problem p(5, 40, 77, DType::f32, 13);
            p.x.set(2, 76, bad);
            for (int a = 0; a < kActivations; ++a) {
                const Matrix out = p.run(static_cast<Activation>(a), DType::f32, 0, 5);
                for (index_t j = 0; j < p.n; ++j) {
                    CHECK(std::isnan(out.at(2, j)));
                    CHECK(std::isfinite(out.at(1, j)) && std::isfinite(out.at(3, j)));
                }
            }
        }
    });
}

// Subnormal and huge rows keep their relative precision: the scale never leaves the floats.
TEST(halves_of_any_magnitude_keep_their_precision) {
    test::for_each_isa([&](Isa) {
        for (int shift : {-124, -100, 100}) {
            Problem p(3, 7, 50, DType::f32, 14);
            for (index_t r = 0; r < 3; ++r) {  // in 8 bits, which subnormal floats hold as well
                for (index_t i = 0; i < p.k; ++i) {
                    const float value = static_cast<float>(p.x.at(r, i));
                    p.x.set(r, i, bf16_to_float(float_to_bf16(value)));
                }
            }
            Problem q = p;
            std::fill(p.bias.begin(), p.bias.end(), 0.0f);
            std::fill(q.bias.begin(), q.bias.end(), 0.0f);
            for (index_t r = 0; r < 3; ++r) {
                for (index_t i = 0; i < p.k; ++i) {
                    q.x.set(r, i, std::ldexp(static_cast<float>(p.x.at(r, i)), shift));
                }
                for (index_t j = 0; j < p.n; ++j) {
                    p.residual.set(r, j, 0);
                    q.residual.set(r, j, 0);
                }
            }
            const Matrix plain = p.run(Activation::none, DType::f32, 0, 3);
            const Matrix moved = q.run(Activation::none, DType::f32, 0, 3);
            for (index_t r = 0; r < 3; ++r) {
                for (index_t j = 0; j < p.n; ++j) {
                    CHECK(moved.at(r, j) == std::ldexp(static_cast<float>(plain.at(r, j)), shift));
                }
            }
        }
    });
}

TEST(halves_gemm_refuses_what_does_not_fit) {
    Problem p(2, 3, 8, DType::f32, 15);
    const std::vector<float> floats(24, 1.0f);
    Packed wide = pack(floats.data(), DType::f32, 3, 8, 8);
    Packed packed = pack(p.w.data(), DType::s8, 3, 8, 8);
    Matrix out(2, 3, 3, DType::f32);
    GemmArgs g;
    g.rows = 2;
    g.n = 3;
    g.k = 8;
    g.x = p.x.data();
    g.x_stride = p.x.stride();
    g.packed = packed.data();
    g.out = out.data();
    g.out_stride = 3;
    g.w_scale = p.w_scale.data();
    const auto refused = [&](const GemmArgs& args, index_t size) {
        return !test::message_of([&] { linear_w8a16(args, size); }).empty();
    };
    CHECK(!refused(g, packed.bytes));
    CHECK(refused(g, packed.bytes - 1));
    GemmArgs bad = g;
    bad.packed = wide.data();
    CHECK(refused(bad, wide.bytes));
    bad = g;
    bad.x_dtype = DType::u8;
    CHECK(refused(bad, packed.bytes));
    bad = g;
    bad.w_scale = nullptr;
    CHECK(refused(bad, packed.bytes));
    bad = g;
    bad.x_scale = p.w_scale.data();
    CHECK(refused(bad, packed.bytes));
    bad = g;
    bad.x_halves = true;
    bad.x_dtype = DType::f32;
    CHECK(!test::message_of([&] { gemm_check(bad, DType::f32); }).empty());
}

}  // namespace
}  // namespace fastbert::testing
