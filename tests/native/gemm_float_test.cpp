// Float products: every tail, type, epilogue and instruction set against float64; and bit-identity.
#include <algorithm>

#include "gemm_case.h"
#include "harness.h"

namespace fastbert::testing {
namespace {

struct Shape {
    index_t rows, n, k;
};

constexpr float kParameter = 0.3f;  // of the activations that have one

struct FloatCase {
    Shape s;
    DType dtype;
    DType out_dtype;
    Activation activation = Activation::none;
    bool with_bias = true;
    bool with_residual = false;
    index_t x_gap = 3;
    bool streamed = false;
};

// The operands of a case, which are the same for every instruction set.
struct FloatProblem {
    FloatCase c;
    Matrix x, w, bias, residual;

    explicit FloatProblem(const FloatCase& given)
        : c(given),
          x(Matrix::random(c.s.rows, c.s.k, c.s.k + c.x_gap, c.dtype, 1)),
          w(Matrix::random(c.s.n, c.s.k, c.s.k + 1, c.dtype, 2)),
          bias(Matrix::random(1, c.s.n, c.s.n, c.dtype, 3)),
          residual(Matrix::random(c.s.rows, c.s.n, c.s.n + 5, c.out_dtype, 4)) {}

    Matrix run() {
        Matrix out(c.s.rows, c.s.n, c.s.n + 2, c.out_dtype);
        Packed packed = pack(w.data(), c.dtype, c.s.n, c.s.k, w.stride());
        GemmArgs g;
        g.rows = c.s.rows;
        g.n = c.s.n;
        g.k = c.s.k;
        g.x = x.data();
        g.x_dtype = c.dtype;
        g.x_stride = x.stride();
        g.packed = packed.data();
        g.streamed = c.streamed;
        if (c.with_bias) {
            g.bias = bias.data();
            g.bias_dtype = c.dtype;
        }
        g.activation = c.activation;
        g.activation_params.a = kParameter;
        if (c.with_residual) {
            g.residual = residual.data();
            g.residual_dtype = c.out_dtype;
            g.residual_stride = residual.stride();
        }
        g.out = out.data();
        g.out_dtype = c.out_dtype;
        g.out_stride = out.stride();
        linear(g, packed.bytes);
        return out;
    }
};

struct Expected {
    double value, bound;
};

// The bound: rounding errors of K products and sums, taken as independent (sqrt(K) steps of the
// terms' norm), plus the activation's own 3e-7, plus one rounding to the output type. A product
// that misses or repeats one term is off by about 1, five orders more.
std::vector<Expected> expected(const FloatProblem& p) {
    const FloatCase& c = p.c;
    const std::vector<double> x = p.x.values(), w = p.w.values();
    std::vector<Expected> all;
    for (index_t r = 0; r < c.s.rows; ++r) {
        const double* const row = x.data() + r * c.s.k;
        for (index_t j = 0; j < c.s.n; ++j) {
            const double* const column = w.data() + j * c.s.k;
            double sum = c.with_bias ? p.bias.at(0, j) : 0, squares = sum * sum;
            for (index_t k = 0; k < c.s.k; ++k) {
                const double term = row[k] * column[k];
                sum += term;
                squares += term * term;
            }
            double want = exact_activation(c.activation, sum, kParameter);
            double bound = 0x1p-23 * (2 + std::sqrt(double(c.s.k))) * std::sqrt(squares) + 3e-7;
            // The slope of the square in xIELU.
            if (c.activation == Activation::xielu) bound *= 1 + 2 * kParameter * std::fabs(sum);
            if (c.with_residual) {
                want += p.residual.at(r, j);
                bound += 0x1p-24 * std::fabs(p.residual.at(r, j));
            }
            all.push_back({want, 1.2 * bound + half_ulp(c.out_dtype) * 1.01 * std::fabs(want)});
        }
    }
    return all;
}

// One case on every instruction set.
void check(const FloatCase& c) {
    FloatProblem p(c);
    const std::vector<Expected> want = expected(p);
    test::for_each_isa([&](Isa isa) {
        const Matrix out = p.run();
        CHECK(out.gaps_untouched());
        const std::vector<double> got = out.values();
        double worst = 0;
        for (std::size_t i = 0; i < want.size(); ++i) {
            const double error = std::fabs(got[i] - want[i].value);
            worst = std::max(worst, error != error ? 1e30 : error / want[i].bound);
        }
        CHECK_MSG(worst <= 1.0, std::string(name_of(isa)) + ": " + std::to_string(worst));
    });
}

constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f16};

TEST(gemm_float_every_row_count) {
    for (DType dtype : kTypes) {
        for (index_t rows = 0; rows <= 40; ++rows) check({{rows, 70, 19}, dtype, dtype});
    }
}

TEST(gemm_float_every_column_count) {
    for (DType dtype : kTypes) {
        for (index_t n = 1; n <= 70; ++n) {
            check({{1 + n % 4, n, 21}, dtype, dtype});
            check({{15, n, 6}, dtype, dtype});
        }
        // Enough panels for several at once, and some left over.
        check({{1, 32 * 7 + 5, 40}, dtype, dtype});
        check({{2, 32 * 7 + 5, 40}, dtype, dtype});
    }
}

TEST(gemm_float_every_inner_size) {
    for (DType dtype : kTypes) {
        for (index_t k = 1; k <= 70; ++k) check({{5, 33, k}, dtype, dtype});
        for (index_t k : {255, 256, 257, 511, 512, 513, 1000}) {
            check({{16, 18, k}, dtype, dtype});
            check({{1, 43, k}, dtype, dtype});
        }
    }
}

// More rows than a tile has, and a K that is cut into chunks where a tile's rows and a panel do not
// stay in L1 together: over several groups of panels, with a tail, and over several blocks of rows.
TEST(gemm_float_with_k_in_chunks) {
    check({{45, 43, 1177}, DType::bf16, DType::bf16});
    check({{33, 43, 1280}, DType::bf16, DType::f32});
    check({{1060, 5, 1100}, DType::bf16, DType::bf16});
    // Twenty rows are one tile, whose sums are never put aside.
    FloatProblem of_many({{100, 300, 1301}, DType::bf16, DType::f32});
    FloatProblem of_few({{20, 300, 1301}, DType::bf16, DType::f32});
    test::for_each_isa([&](Isa) {
        const Matrix many = of_many.run();
        const Matrix few = of_few.run();
        index_t wrong = 0;
        for (index_t r = 0; r < 20; ++r) {
            for (index_t j = 0; j < 300; ++j) wrong += many.at(r, j) != few.at(r, j);
        }
        CHECK(wrong == 0);
    });
}

TEST(gemm_float_every_epilogue) {
    for (DType dtype : kTypes) {
        for (DType out_dtype : kTypes) {
            for (int a = 0; a < kActivations; ++a) {
                for (int flags = 0; flags < 4; ++flags) {
                    check({{17, 43, 37},
                           dtype,
                           out_dtype,
                           static_cast<Activation>(a),
                           (flags & 1) != 0,
                           (flags & 2) != 0});
                }
            }
        }
    }
}

// Rows 4 KiB apart are staged in scratch: same bits as rows read in place.
TEST(gemm_float_staged_rows) {
    for (DType dtype : {DType::f32, DType::bf16}) {
        const index_t k = dtype == DType::f32 ? 1024 : 2048;
        FloatCase c{{37, 40, k}, dtype, dtype};
        c.x_gap = 0;
        FloatProblem staged(c);
        c.x_gap = 16;
        FloatProblem in_place(c);
        test::for_each_isa([&](Isa) { CHECK(staged.run().bytes() == in_place.run().bytes()); });
    }
}

// Weights that come from memory are passed a page at a time: same bits as panel by panel.
TEST(gemm_float_streamed_weights) {
    for (DType dtype : kTypes) {
        for (index_t k : {1, 2, 63, 64, 65, 301, 1030}) {
            for (index_t rows : {1, 2, 3, 5, 14, 15, 29, 43, 56, 57}) {
                FloatCase c{{rows, 75, k}, dtype, dtype, Activation::relu, true, true};
                FloatProblem kept(c);
                c.streamed = true;
                FloatProblem streamed(c);
                test::for_each_isa([&](Isa isa) {
                    CHECK_MSG(streamed.run().bytes() == kept.run().bytes(),
                              std::string(name_of(isa)) + ": " + std::to_string(rows) +
                                  " rows, K = " + std::to_string(k));
                });
            }
        }
    }
}

TEST(gemm_float_bits_do_not_depend_on_rows_or_threads) {
    const int threads = max_threads();
    for (DType dtype : kTypes) {
        FloatCase c{{45, 200, 300}, dtype, dtype, Activation::gelu, true, true};
        FloatProblem all(c);
        std::vector<FloatProblem> parts;
        for (index_t rows : {1, 2, 3, 5, 14, 15, 29}) {
            c.s.rows = rows;  // the same first rows
            parts.emplace_back(c);
        }
        test::for_each_isa([&](Isa) {
            set_max_threads(1);
            const Matrix whole = all.run();
            for (int t : {2, 3, 7}) {
                set_max_threads(t);
                CHECK(whole.bytes() == all.run().bytes());
            }
            for (FloatProblem& part : parts) {
                const Matrix rows = part.run();
                bool same = true;
                for (index_t r = 0; r < part.c.s.rows; ++r) {
                    for (index_t j = 0; j < c.s.n; ++j) same &= rows.at(r, j) == whole.at(r, j);
                }
                CHECK(same);
            }
        });
    }
    set_max_threads(threads);
}

// Against float64 with K = 4608: one chain of 4608 additions has 4 times the error of chunks of
// 256.
TEST(gemm_f32_long_sums_are_chunked) {
    FloatCase c{{28, 32, 4608}, DType::f32, DType::f32};
    c.with_bias = false;
    FloatProblem p(c);
    const std::vector<Expected> want = expected(p);
    test::for_each_isa([&](Isa isa) {
        if (isa == Isa::scalar) return;  // no fma: another error per step
        const std::vector<double> got = p.run().values();
        double error = 0, norm = 0;
        for (std::size_t i = 0; i < want.size(); ++i) {
            error += (got[i] - want[i].value) * (got[i] - want[i].value);
            norm += want[i].value * want[i].value;
        }
        CHECK_MSG(std::sqrt(error / norm) <= 6e-7, std::to_string(std::sqrt(error / norm)));
    });
}

TEST(gemm_float_nan_and_infinity_propagate) {
    test::for_each_isa([&](Isa) {
        for (DType dtype : kTypes) {
            Matrix x = Matrix::random(3, 20, 20, dtype, 1);
            Matrix w = Matrix::random(40, 20, 20, dtype, 2);
            x.set(1, 7, NAN);
            w.set(33, 2, INFINITY);
            Packed packed = pack(w.data(), dtype, 40, 20, 20);
            Matrix out(3, 40, 40, dtype);
            GemmArgs g;
            g.rows = 3;
            g.n = 40;
            g.k = 20;
            g.x = x.data();
            g.x_dtype = dtype;
            g.x_stride = 20;
            g.packed = packed.data();
            g.out = out.data();
            g.out_dtype = dtype;
            g.out_stride = 40;
            linear(g, packed.bytes);
            for (index_t j = 0; j < 40; ++j) {
                CHECK(std::isnan(out.at(1, j)));
                CHECK(std::isfinite(out.at(0, j)) == (j != 33));
            }
        }
    });
}

}  // namespace
}  // namespace fastbert::testing
