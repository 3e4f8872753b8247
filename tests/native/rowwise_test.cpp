// layer_norm, bias_act and embed_layer_norm against float64, on every instruction set, for lengths
// around the vector widths, pointers off every alignment, and outputs poisoned with NaN.
#include <cmath>
#include <cstring>
#include <functional>
#include <stdexcept>

#include "common/check.h"
#include "cpu/ops/act.h"
#include "cpu/ops/embed.h"
#include "cpu/ops/layer_norm.h"
#include "cpu/threads.h"
#include "harness.h"

using namespace fastbert;
using test::Array;

namespace {

constexpr DType float_dtypes[] = {DType::f32, DType::bf16, DType::f16};

double activate(Activation activation, double x, const ActivationParams& p = {}) {
    switch (activation) {
        case Activation::none:
            return x;
        case Activation::gelu:
            return x / 2 * std::erfc(-x / std::sqrt(2.0));
        case Activation::gelu_tanh:
            return x / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
        case Activation::relu:
            return x > 0 ? x : 0;
        case Activation::silu:
            return x / (1 + std::exp(-x));
        case Activation::tanh:
            return std::tanh(x);
        case Activation::leaky_relu:
            return x < 0 ? p.a * x : x;
        case Activation::scaled_silu:
            return x / (1 + std::exp(-p.a * x));
        case Activation::xielu:
            return x > 0 ? p.a * x * x + p.c * x
                         : p.b * (std::expm1(std::fmin(x, p.d)) - x) + p.c * x;
    }
    return NAN;
}

std::vector<double> normalised(const std::vector<double>& s, const std::vector<double>& weight,
                               const std::vector<double>& bias, double eps) {
    const double n = static_cast<double>(s.size());
    double mean = 0, variance = 0;
    for (double v : s) mean += v / n;
    for (double v : s) variance += (v - mean) * (v - mean) / n;
    std::vector<double> y;
    for (std::size_t i = 0; i < s.size(); ++i) {
        y.push_back((s[i] - mean) / std::sqrt(variance + eps) * weight[i] + bias[i]);
    }
    return y;
}

// |got - want| <= absolute + one rounding to the storage type.
void check_close(const std::vector<double>& got, const std::vector<double>& want, DType dtype,
                 double absolute, const std::string& where) {
    CHECK(got.size() == want.size());
    for (std::size_t i = 0; i < want.size(); ++i) {
        const double bound = absolute + 2 * test::unit_roundoff(dtype) * std::fabs(want[i]);
        CHECK_MSG(std::fabs(got[i] - want[i]) <= bound, where + " [" + std::to_string(i) +
                                                            "] got " + std::to_string(got[i]) +
                                                            " want " + std::to_string(want[i]));
    }
}

struct Case {
    index_t rows, hidden;
    DType dtype;
    float mean, std;  // of the rows: LayerNorm's weak spots are mean >> std and std ~ sqrt(eps)
    double eps;
    bool full;  // residual, x_bias and sum too
    bool misaligned;
    Activation activation;
};

void check_layer_norm(const Case& c, Isa isa) {
    const index_t n = c.rows * c.hidden;
    const Array x(c.dtype, test::normal_values(n, 1, c.mean, c.std), c.misaligned);
    const index_t residual_stride = c.hidden + 3;
    const Array residual(c.dtype, test::normal_values(c.rows * residual_stride, 2, 0, c.std),
                         c.misaligned);
    const Array x_bias(DType::bf16, test::normal_values(c.hidden, 3, 0, c.std), c.misaligned);
    const Array weight(c.dtype, test::normal_values(c.hidden, 4, 1, 0.2f), c.misaligned);
    const Array bias(DType::f16, test::normal_values(c.hidden, 5), c.misaligned);
    Array out = Array::poisoned(c.dtype, n, c.misaligned);
    Array sum = Array::poisoned(c.dtype, n, c.misaligned);

    LayerNormArgs args;
    args.x = x.data();
    args.out = out.data();
    args.weight = {weight.data(), c.dtype};
    args.bias = {bias.data(), DType::f16};
    args.rows = c.rows;
    args.hidden = c.hidden;
    args.x_stride = args.out_stride = args.sum_stride = c.hidden;
    args.residual_stride = residual_stride;
    args.dtype = c.dtype;
    args.eps = static_cast<float>(c.eps);
    args.activation = c.activation;
    if (c.full) {
        args.residual = residual.data();
        args.sum = sum.data();
        args.x_bias = {x_bias.data(), DType::bf16};
    }
    layer_norm(args);

    const auto xs = x.values(), rs = residual.values(), bs = x_bias.values();
    std::vector<double> want, want_sum;
    for (index_t row = 0; row < c.rows; ++row) {
        std::vector<double> s;
        for (index_t i = 0; i < c.hidden; ++i) {
            const std::size_t at = static_cast<std::size_t>(row * c.hidden + i);
            const double v = xs[at] + (c.full ? bs[static_cast<std::size_t>(i)] : 0);
            const double r = rs[static_cast<std::size_t>(row * residual_stride + i)];
            s.push_back(activate(c.activation, v) + (c.full ? r : 0));
        }
        want_sum.insert(want_sum.end(), s.begin(), s.end());
        const auto y = normalised(s, weight.values(), bias.values(), static_cast<float>(c.eps));
        want.insert(want.end(), y.begin(), y.end());
    }
    // Each value carries float32 roundings of the summands (and of the activation): relative to the
    // row's deviation, which eps bounds from below.
    const double spread = std::sqrt(double(c.std) * c.std + c.eps);
    const double noise = 4 * 6e-8 * (std::fabs(c.mean) + 4 * c.std) +
                         (c.activation == Activation::none ? 0 : 4e-7 * (1 + std::fabs(c.mean)));
    const double in_sum = (c.full || c.activation != Activation::none) ? noise : 0;
    // Short rows can have a deviation far below their distribution's.
    const double narrow = c.hidden >= 31 ? 2 : c.hidden < 2 ? 1 : 1e3;
    const std::string where = std::string(name_of(isa)) + " " + std::to_string(c.hidden) +
                              " dtype " + std::to_string(static_cast<int>(c.dtype)) + " mean " +
                              std::to_string(c.mean);
    check_close(out.values(), want, c.dtype, 3e-6 + 3 * narrow * in_sum / spread, where);
    if (c.full) check_close(sum.values(), want_sum, c.dtype, noise, where + " sum");
}

}  // namespace

TEST(layer_norm_against_float64) {
    test::for_each_isa([](Isa isa) {
        for (DType dtype : float_dtypes) {
            for (index_t hidden : test::lengths) {
                for (bool full : {false, true}) {
                    const bool misaligned = hidden % 2 != 0;
                    check_layer_norm(
                        {3, hidden, dtype, 0.3f, 1, 1e-12, full, misaligned, Activation::none},
                        isa);
                }
            }
        }
    });
}

// Rows on which a wrong eps, a one-pass variance or a rounded mean would show.
TEST(layer_norm_where_it_is_hard) {
    test::for_each_isa([](Isa isa) {
        for (index_t hidden : {64, 384, 769, 4096}) {
            for (bool full : {false, true}) {
                check_layer_norm(
                    {2, hidden, DType::f32, 0, 1e-3f, 1e-5, full, true, Activation::none}, isa);
                check_layer_norm(
                    {2, hidden, DType::f32, 0, 1e-6f, 1e-12, full, false, Activation::none}, isa);
                check_layer_norm(
                    {2, hidden, DType::f32, 100, 1, 1e-12, full, false, Activation::none}, isa);
                check_layer_norm(
                    {2, hidden, DType::f32, -1000, 1, 1e-12, full, true, Activation::none}, isa);
            }
        }
    });
}

TEST(layer_norm_after_an_activation) {
    test::for_each_isa([](Isa isa) {
        for (DType dtype : float_dtypes) {
            for (Activation activation : {Activation::gelu, Activation::gelu_tanh, Activation::relu,
                                          Activation::silu, Activation::tanh}) {
                for (index_t hidden : {33, 128, 769}) {
                    check_layer_norm(
                        {2, hidden, dtype, 0.5f, 2, 1e-12, hidden == 769, false, activation}, isa);
                }
            }
        }
    });
}

TEST(layer_norm_rows_do_not_depend_on_one_another_or_on_threads) {
    const index_t rows = 257, hidden = 769, stride = 800;
    const auto x = test::normal_values(rows * stride, 9);
    const auto weight = test::normal_values(hidden, 10), bias = test::normal_values(hidden, 11);
    test::for_each_isa([&](Isa) {
        const auto run = [&](index_t first, index_t count) {
            std::vector<float> out(static_cast<std::size_t>(count * hidden), NAN);
            LayerNormArgs args;
            args.x = x.data() + first * stride;
            args.out = out.data();
            args.weight = {weight.data(), DType::f32};
            args.bias = {bias.data(), DType::f32};
            args.rows = count;
            args.hidden = hidden;
            args.x_stride = stride;
            args.out_stride = hidden;
            args.eps = 1e-12f;
            layer_norm(args);
            return out;
        };
        const int before = max_threads();
        set_max_threads(1);
        const auto serial = run(0, rows);
        set_max_threads(4);
        CHECK(run(0, rows) == serial);
        for (index_t row : {0, 100, 256}) {
            const auto alone = run(row, 1);
            CHECK(std::memcmp(alone.data(), serial.data() + row * hidden,
                              static_cast<std::size_t>(hidden) * 4) == 0);
        }
        set_max_threads(before);
    });
}

TEST(layer_norm_in_place_and_nan) {
    test::for_each_isa([](Isa) {
        const index_t hidden = 67;
        auto values = test::normal_values(2 * hidden, 12);
        values[static_cast<std::size_t>(hidden + 5)] = NAN;
        const std::vector<float> ones(static_cast<std::size_t>(hidden), 1.0f);
        auto in_place = values;
        std::vector<float> apart(values.size());
        LayerNormArgs args;
        args.x = values.data();
        args.out = apart.data();
        args.weight = args.bias = {ones.data(), DType::f32};
        args.rows = 2;
        args.hidden = args.x_stride = args.out_stride = hidden;
        args.eps = 1e-5f;
        layer_norm(args);
        args.x = args.out = in_place.data();
        layer_norm(args);
        CHECK(std::memcmp(apart.data(), in_place.data(), apart.size() * 4) == 0);
        for (index_t i = 0; i < hidden; ++i) {
            CHECK(!std::isnan(apart[static_cast<std::size_t>(i)]));
            CHECK(std::isnan(apart[static_cast<std::size_t>(hidden + i)]));
        }
    });
}

TEST(bias_act_against_float64) {
    test::for_each_isa([](Isa isa) {
        for (DType dtype : float_dtypes) {
            for (index_t columns : test::lengths) {
                for (int code = 0; code < kActivations; ++code) {
                    const bool misaligned = code % 2 != 0;
                    const index_t rows = 2;
                    const Array x(dtype, test::normal_values(rows * columns, 1, 0, 3), misaligned);
                    const Array bias(DType::f32, test::normal_values(columns, 2), misaligned);
                    Array out = Array::poisoned(dtype, rows * columns, misaligned);
                    ActArgs args;
                    args.x = x.data();
                    args.out = out.data();
                    if (code != 3) args.bias = {bias.data(), DType::f32};
                    args.rows = rows;
                    args.columns = args.x_stride = args.out_stride = columns;
                    args.dtype = dtype;
                    args.activation = Activation(code);
                    args.activation_params = {0.1f * static_cast<float>(code), 0.9f, 0.5f, -1e-6f};
                    bias_act(args);
                    std::vector<double> want;
                    const auto xs = x.values(), bs = bias.values();
                    for (std::size_t i = 0; i < xs.size(); ++i) {
                        const double b = code != 3 ? bs[i % static_cast<std::size_t>(columns)] : 0;
                        want.push_back(
                            activate(args.activation, xs[i] + b, args.activation_params));
                    }
                    // xIELU squares x + bias, and with it the rounding of that sum.
                    const bool squared = args.activation == Activation::xielu;
                    check_close(out.values(), want, dtype, squared ? 1e-5 : 1.2e-6,
                                std::string(name_of(isa)) + " " + name_of(args.activation));
                }
            }
        }
    });
}

namespace {

struct Embedding {
    index_t rows = 5, hidden = 67;
    DType dtype = DType::f32;
    Array word, position, type, language, weight, bias, out;
    std::vector<std::int64_t> word_ids = {0, 9, 3, 3, 7}, position_ids = {2, 3, 4, 5, 0},
                              type_ids = {0, 1, 1, 0, 1}, language_ids = {0, 2, 1, 0, 2};

    explicit Embedding(DType d)
        : dtype(d),
          word(d, test::normal_values(10 * hidden, 1)),
          position(d, test::normal_values(6 * hidden, 2)),
          type(d, test::normal_values(2 * hidden, 3)),
          language(d, test::normal_values(3 * hidden, 4)),
          weight(d, test::normal_values(hidden, 5)),
          bias(d, test::normal_values(hidden, 6)),
          out(Array::poisoned(d, rows * hidden)) {}

    EmbedArgs args() {
        EmbedArgs a;
        a.word = {word_ids.data(), word.data(), 10, hidden};
        a.position = {position_ids.data(), position.data(), 6, hidden};
        a.type = {type_ids.data(), type.data(), 2, hidden};
        a.language = {language_ids.data(), language.data(), 3, hidden};
        a.out = out.data();
        a.out_stride = hidden;
        a.weight = {weight.data(), dtype};
        a.bias = {bias.data(), dtype};
        a.rows = rows;
        a.hidden = hidden;
        a.dtype = dtype;
        a.eps = 1e-12f;
        return a;
    }

    std::vector<double> expected(const EmbedArgs& a) {
        std::vector<double> want;
        for (index_t row = 0; row < rows; ++row) {
            std::vector<double> s(static_cast<std::size_t>(hidden), 0);
            const auto gather = [&](const Lookup& lookup, const Array& table) {
                if (lookup.table == nullptr) return;
                const auto values = table.values();
                for (index_t i = 0; i < hidden; ++i) {
                    s[static_cast<std::size_t>(i)] +=
                        values[static_cast<std::size_t>(lookup.ids[row] * hidden + i)];
                }
            };
            gather(a.word, word);
            gather(a.position, position);
            gather(a.type, type);
            gather(a.language, language);
            const auto y = normalised(s, weight.values(), bias.values(), 1e-12);
            want.insert(want.end(), y.begin(), y.end());
        }
        return want;
    }
};

}  // namespace

TEST(embed_layer_norm_against_float64) {
    test::for_each_isa([](Isa isa) {
        for (DType dtype : float_dtypes) {
            Embedding e(dtype);
            for (int present = 0; present < 8; ++present) {
                EmbedArgs args = e.args();
                if (!(present & 1)) args.position = {};
                if (!(present & 2)) args.type = {};
                if (!(present & 4)) args.language = {};
                embed_layer_norm(args);
                check_close(e.out.values(), e.expected(args), dtype, 3e-6, name_of(isa));
            }
            // Given embeddings in place of word ids: the gathered rows give the same bits.
            EmbedArgs args = e.args();
            embed_layer_norm(args);
            const auto looked_up = e.out.values();
            std::vector<float> rows;
            const auto table = e.word.values();
            for (std::int64_t id : e.word_ids) {
                for (index_t i = 0; i < e.hidden; ++i) {
                    rows.push_back(
                        static_cast<float>(table[static_cast<std::size_t>(id * e.hidden + i)]));
                }
            }
            const Array embeds(dtype, rows);
            args.word = {};
            args.embeds = embeds.data();
            args.embeds_stride = e.hidden;
            embed_layer_norm(args);
            CHECK(e.out.values() == looked_up);
        }
    });
}

TEST(embed_layer_norm_refuses_ids_outside_their_table) {
    for (std::int64_t bad : {std::int64_t{10}, std::int64_t{-1}, INT64_MAX, INT64_MIN}) {
        Embedding e(DType::f32);
        e.word_ids[3] = bad;
        bool out_of_range = false;
        std::string message;
        try {
            embed_layer_norm(e.args());
        } catch (const std::out_of_range& error) {
            out_of_range = true;
            message = error.what();
        }
        CHECK(out_of_range);
        CHECK_MSG(message.find("word id " + std::to_string(bad) + " at position 3") !=
                          std::string::npos &&
                      message.find("10 entries") != std::string::npos,
                  message);
        for (double v : e.out.values()) CHECK(std::isnan(v));  // nothing half done
    }
    Embedding e(DType::f32);
    e.type_ids[0] = 2;
    CHECK(test::message_of([&] { embed_layer_norm(e.args()); }).find("type id 2 at position 0") !=
          std::string::npos);
}

TEST(rowwise_ops_refuse_what_does_not_fit) {
    std::vector<float> values(64, 1.0f);
    const auto layer_norm_error = [&](const std::function<void(LayerNormArgs&)>& spoil) {
        LayerNormArgs args;
        args.x = args.out = values.data();
        args.weight = args.bias = {values.data(), DType::f32};
        args.rows = 4;
        args.hidden = args.x_stride = args.out_stride = 16;
        args.eps = 1e-5f;
        spoil(args);
        return test::message_of([&] { layer_norm(args); });
    };
    const auto mentions = [&](const std::string& message, const char* word) {
        CHECK_MSG(message.find(word) != std::string::npos, message + " should mention " + word);
    };
    CHECK(layer_norm_error([](LayerNormArgs&) {}).empty());
    mentions(layer_norm_error([](LayerNormArgs& a) { a.x = nullptr; }), "x is a null pointer");
    mentions(layer_norm_error([](LayerNormArgs& a) { a.weight.data = nullptr; }), "weight");
    mentions(layer_norm_error([](LayerNormArgs& a) { a.rows = -1; }), "rows is -1");
    mentions(layer_norm_error([](LayerNormArgs& a) { a.out_stride = 15; }), "stride of 15");
    mentions(layer_norm_error([](LayerNormArgs& a) { a.eps = NAN; }), "eps");
    mentions(layer_norm_error([](LayerNormArgs& a) { a.dtype = DType::i64; }), "int64");
    mentions(layer_norm_error([](LayerNormArgs& a) { a.dtype = DType(99); }), "99");
    mentions(layer_norm_error([](LayerNormArgs& a) { a.activation = Activation(9); }), "code 9");

    LayerNormArgs empty;  // zero rows of zero length: nothing to do, and no pointers needed
    CHECK(test::message_of([&] { layer_norm(empty); }).empty());
    ActArgs no_rows;
    CHECK(test::message_of([&] { bias_act(no_rows); }).empty());
    EmbedArgs no_tokens;
    CHECK(test::message_of([&] { embed_layer_norm(no_tokens); }).empty());
}
