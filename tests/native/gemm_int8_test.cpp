// int8 products: exact integers, one sequence of float operations, hence the same bits everywhere.
#include <algorithm>

#include "gemm_case.h"
#include "harness.h"

namespace fastbert::testing {
namespace {

struct Int8Problem {
    index_t rows, n, k;
    std::vector<std::uint8_t> q;
    std::vector<std::int8_t> w;
    std::vector<float> x_scale, w_scale, bias;
    std::vector<std::int32_t> zero_point;

    Int8Problem(index_t rows_, index_t n_, index_t k_, std::uint64_t seed)
        : rows(rows_), n(n_), k(k_) {
        Random random(seed);
        const auto size = [](index_t a) { return static_cast<std::size_t>(a); };
        q.resize(size(rows * k));
        w.resize(size(n * k));
        for (auto& v : q) v = static_cast<std::uint8_t>(random.bits() >> 20);
        for (auto& v : w) v = static_cast<std::int8_t>(random.bits() >> 20);
        for (index_t r = 0; r < rows; ++r) {
            x_scale.push_back(0.01f + std::fabs(random.normal()));
            zero_point.push_back(static_cast<std::int32_t>(random.bits() % 256));
        }
        for (index_t j = 0; j < n; ++j) {
            w_scale.push_back(0.001f + std::fabs(random.normal()) * 0.01f);
            bias.push_back(random.normal());
        }
    }

    std::int64_t centred_sum(index_t r, index_t j) const {
        std::int64_t sum = 0;
        const std::uint8_t* const row = q.data() + r * k;
        const std::int8_t* const column = w.data() + j * k;
        const std::int64_t zero = zero_point[static_cast<std::size_t>(r)];
        for (index_t i = 0; i < k; ++i) sum += (row[i] - zero) * column[i];
        return sum;
    }

    // The product on the instruction set in use, by direct range calls.
    Matrix run(Activation activation, DType out_dtype = DType::f32) const {
        Packed packed = pack(w.data(), DType::s8, n, k, k);
        Matrix out(rows, n, n + 3, out_dtype);
        GemmArgs g;
        g.rows = rows;
        g.n = n;
        g.k = k;
        g.x = q.data();
        g.x_dtype = DType::u8;
        g.x_stride = k;
        g.packed = packed.data();
        g.bias = bias.data();
        g.activation = activation;
        g.activation_params.a = 0.3f;
        g.out = out.data();
        g.out_dtype = out_dtype;
        g.out_stride = out.stride();
        g.x_scale = x_scale.data();
        g.x_zero_point = zero_point.data();
        g.w_scale = w_scale.data();
        CHECK(packed_check(packed.data(), packed.bytes, n, k) == DType::s8);
        gemm_check(g, DType::s8);
        const GemmKernels& gemm = active_kernels().gemm;
        std::vector<float> scratch(static_cast<std::size_t>(gemm_scratch_bytes(g, gemm) / 4 + 16));
        auto address = (reinterpret_cast<std::uintptr_t>(scratch.data()) + 63) / 64 * 64;
        // In uneven pieces: the same sums whatever the pieces.
        const index_t panels = gemm_panels(n, gemm.s8), half = panels / 2, third = rows / 3;
        void* room = reinterpret_cast<void*>(address);
        gemm.range_s8(g, 0, third, 0, panels, room);
        gemm.range_s8(g, third, rows, half, panels, room);
        gemm.range_s8(g, third, rows, 0, half, room);
        return out;
    }
};

// One problem on every instruction set.
void check_exact(const Int8Problem& p) {
    std::vector<float> want;
    for (index_t r = 0; r < p.rows; ++r) {
        for (index_t j = 0; j < p.n; ++j) {
            const auto row = static_cast<std::size_t>(r), column = static_cast<std::size_t>(j);
            const float scale = p.x_scale[row] * p.w_scale[column];
            want.push_back(
                std::fma(static_cast<float>(p.centred_sum(r, j)), scale, p.bias[column]));
        }
    }
    test::for_each_isa([&](Isa isa) {
        const Matrix out = p.run(Activation::none);
        CHECK(out.gaps_untouched());
        const std::vector<double> got = out.values();
        CHECK_MSG(std::equal(want.begin(), want.end(), got.begin(), got.end()), name_of(isa));
    });
}

TEST(int8_every_tail_is_exact) {
    for (index_t rows = 0; rows <= 40; ++rows) check_exact({rows, 35, 11, 1});
    for (index_t n = 1; n <= 70; ++n) check_exact({1 + n % 5, n, 9, 2});
    for (index_t k = 1; k <= 70; ++k) check_exact({6, 33, k, 3});
    check_exact({1, 32 * 9 + 18, 70, 4});
    check_exact({30, 43, 1024, 5});  // staged where rows are widened
    check_exact({20, 40, 4096, 6});  // staged everywhere
}

// K is cut into chunks where a tile's rows and a panel do not stay in L1 together: over two groups
// of panels, with and without a tail, and over two blocks of rows.
TEST(int8_with_k_in_chunks_is_exact) {
    check_exact({52, 300, 2100, 7});
    check_exact({50, 43, 2112, 8});
    check_exact({1600, 3, 2100, 9});
}

// Pairs of 255 * 128 exceed int16: an AVX2 kernel built on vpmaddubsw would saturate.
TEST(int8_extremes_do_not_saturate) {
    for (std::int8_t weight : {std::int8_t{-128}, std::int8_t{127}}) {
        for (std::int32_t zero : {0, 255}) {
            for (index_t k : {index_t{64}, index_t{4608}, kMaxInt8K}) {
                Int8Problem p(3, 2, k, 1);
                std::fill(p.q.begin(), p.q.end(), zero == 0 ? 255 : 0);
                std::fill(p.w.begin(), p.w.end(), weight);
                std::fill(p.zero_point.begin(), p.zero_point.end(), zero);
                check_exact(p);
            }
        }
    }
}

TEST(int8_bits_are_the_same_on_every_instruction_set) {
    const Int8Problem p(33, 91, 130, 7);
    for (int a = 0; a < kActivations; ++a) {
        for (DType out : {DType::f32, DType::bf16, DType::f16}) {
            set_active(Isa::scalar);
            const Matrix first = p.run(static_cast<Activation>(a), out);
            test::for_each_isa([&](Isa) {
                CHECK(first.bytes() == p.run(static_cast<Activation>(a), out).bytes());
            });
        }
    }
}

TEST(int8_linear_against_float64_and_across_isas_and_threads) {
    const int threads = max_threads();
    for (DType dtype : {DType::f32, DType::bf16, DType::f16}) {
        const index_t rows = 1050, n = 37, k = 45;  // more than one block of rows
        Int8Problem p(rows, n, k, 8);
        Matrix x = Matrix::random(rows, k, k + 2, dtype, 9);
        Matrix residual = Matrix::random(rows, n, n + 1, dtype, 10);
        std::vector<std::uint8_t> first;
        test::for_each_isa([&](Isa) {
            Packed packed = pack(p.w.data(), DType::s8, n, k, k);
            for (int t : {1, 2, 5}) {
                set_max_threads(t);
                Matrix out(rows, n, n + 4, dtype);
                GemmArgs g;
                g.rows = rows;
                g.n = n;
                g.k = k;
                g.x = x.data();
                g.x_dtype = dtype;
                g.x_stride = x.stride();
                g.packed = packed.data();
                g.bias = p.bias.data();
                g.residual = residual.data();
                g.residual_dtype = dtype;
                g.residual_stride = residual.stride();
                g.out = out.data();
                g.out_dtype = dtype;
                g.out_stride = out.stride();
                g.w_scale = p.w_scale.data();
                int8_linear(g, packed.bytes);
                CHECK(out.gaps_untouched());
                if (first.empty()) {
                    first = out.bytes();
                    double worst = 0;
                    for (index_t r = 0; r < rows; r += 49) {
                        double low = 0, high = 0;
                        for (index_t i = 0; i < k; ++i) {
                            low = std::min(low, x.at(r, i));
                            high = std::max(high, x.at(r, i));
                        }
                        const double step = (high - low) / 255;
                        for (index_t j = 0; j < n; ++j) {
                            double sum = 0, slack = 0;
                            for (index_t i = 0; i < k; ++i) {
                                const double w = p.w[static_cast<std::size_t>(j * k + i)] *
                                                 double(p.w_scale[static_cast<std::size_t>(j)]);
                                sum += x.at(r, i) * w;
                                slack += 0.51 * step * std::fabs(w);  // half a step each
                            }
                            const double want =
                                sum + p.bias[static_cast<std::size_t>(j)] + residual.at(r, j);
                            const double bound = slack + 2 * half_ulp(dtype) * std::fabs(want);
                            worst = std::max(worst, std::fabs(out.at(r, j) - want) / bound);
                        }
                    }
                    CHECK_MSG(worst <= 1.0, std::to_string(worst));
                }
                CHECK(first == out.bytes());
            }
        });
    }
    set_max_threads(threads);
}

}  // namespace
}  // namespace fastbert::testing
