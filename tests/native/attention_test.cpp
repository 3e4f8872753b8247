// Attention against a float64 reference, on every instruction set this machine has.
#include "cpu/ops/attention.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/threads.h"
#include "floats.h"
#include "harness.h"

using namespace fastbert;
using test::dtype_of;
using test::from_float;
using test::same_bits;
using test::to_float;

namespace {

constexpr float kMasked = -std::numeric_limits<float>::max();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr index_t kGuard = 3;  // untouched elements after every row of out

struct Case {
    std::vector<int> len_q, len_k;
    index_t heads = 2, head_dim = 64;
    bool causal = false, key_bias = false;
    int bias = 0;  // 1: one for all, 2: per batch and head
    float spread = 1.0f;
    float scale = 0.0f;  // 0: head_dim ** -0.5
};

template <class T>
struct Problem {
    Case shape;
    std::vector<int> cu_q{0}, cu_k{0};
    std::vector<T> q, kv,
        out;  // kv: keys and values of a row side by side, as in a fused projection
    std::vector<float> key_bias, bias;
    AttentionArgs args{};

    Problem(const Case& c, unsigned seed) : shape(c) {
        int max_q = 0, max_k = 0;
        for (int n : c.len_q) cu_q.push_back(cu_q.back() + n), max_q = std::max(max_q, n);
        for (int n : c.len_k) cu_k.push_back(cu_k.back() + n), max_k = std::max(max_k, n);
        const index_t width = c.heads * c.head_dim, total_q = cu_q.back(), total_k = cu_k.back();
        std::mt19937 random(seed);
        std::normal_distribution<float> normal(0.0f, c.spread);
        // One element in front, so that nothing is aligned.
        q.resize(total_q * width + 1);
        kv.resize(total_k * 2 * width + 1);
        for (T& x : q) x = from_float<T>(normal(random));
        for (T& x : kv) x = from_float<T>(normal(random));
        out.assign(total_q * (width + kGuard) + 1,
                   from_float<T>(std::numeric_limits<float>::quiet_NaN()));
        args.q = q.data() + 1;
        args.k = kv.data() + 1;
        args.v = kv.data() + 1 + width;
        args.out = out.data() + 1;
        args.dtype = dtype_of<T>();
        args.total_q = total_q;
        args.total_k = total_k;
        args.num_heads = c.heads;
        args.head_dim = c.head_dim;
        args.q_row_stride = width;
        args.k_row_stride = args.v_row_stride = 2 * width;
        args.q_head_stride = args.k_head_stride = args.v_head_stride = c.head_dim;
        args.out_row_stride = width + kGuard;
        args.out_head_stride = c.head_dim;
        args.cu_seqlens_q = cu_q.data();
        args.cu_seqlens_k = cu_k.data();
        args.batch = static_cast<index_t>(c.len_q.size());
        args.max_seqlen_q = max_q;
        args.max_seqlen_k = max_k;
        args.scale = c.scale != 0.0f ? c.scale : 1.0f / std::sqrt(static_cast<float>(c.head_dim));
        args.causal = c.causal;
        if (c.key_bias) {
            key_bias.resize(total_k);
            for (float& x : key_bias) x = random() % 4 == 0 ? kMasked : 0.0f;
            args.key_bias = key_bias.data();
        }
        if (c.bias != 0) {
            const index_t plane = index_t{max_q} * max_k;
            bias.resize(plane * (c.bias == 2 ? args.batch * c.heads : 1));
            for (float& x : bias) x = random() % 8 == 0 ? -kInfinity : normal(random);
            args.bias = bias.data();
            args.bias_query_stride = max_k;
            args.bias_head_stride = c.bias == 2 ? plane : 0;
            args.bias_batch_stride = c.bias == 2 ? plane * c.heads : 0;
        }
    }

    float output(index_t row, index_t column) const {
        return to_float(out[1 + row * args.out_row_stride + column]);
    }

    // As it was before anything was computed.
    void forget_output() {
        std::fill(out.begin(), out.end(), from_float<T>(std::numeric_limits<float>::quiet_NaN()));
    }

    // What the definition says in float64, and how far from it each element may be. It takes longer
    // than the kernels, so one is made for all instruction sets.
    struct Expected {
        std::vector<double> value, bound;  // (total_q, heads * head_dim)
    };

    Expected expected() const {
        const std::vector<double> queries = widened(q), rows = widened(kv);
        Expected e;
        const auto size = static_cast<std::size_t>(args.total_q * args.num_heads * args.head_dim);
        e.value.resize(size);
        e.bound.resize(size);
        for (index_t b = 0; b < args.batch; ++b) {
            for (index_t i = 0; i < cu_q[b + 1] - cu_q[b]; ++i) {
                for (index_t h = 0; h < args.num_heads; ++h) expect_row(e, queries, rows, b, i, h);
            }
        }
        return e;
    }

    // Checks every element, and that nothing else was written.
    void check(const Expected& e, const std::string& name) const {
        const index_t width = args.num_heads * args.head_dim;
        for (index_t row = 0; row < args.total_q; ++row) {
            for (index_t c = 0; c < width; ++c) {
                const auto at = static_cast<std::size_t>(row * width + c);
                const double error = std::abs(output(row, c) - e.value[at]);
                CHECK_MSG(error <= e.bound[at], name + ": error " + std::to_string(error) + " > " +
                                                    std::to_string(e.bound[at]) + " at query row " +
                                                    std::to_string(row) + ", column " +
                                                    std::to_string(c));
            }
            for (index_t g = 0; g < kGuard; ++g) CHECK(std::isnan(output(row, width + g)));
        }
    }

  private:
    static std::vector<double> widened(const std::vector<T>& values) {
        std::vector<double> wide;
        wide.reserve(values.size());
        for (T x : values) wide.push_back(to_float(x));
        return wide;
    }

    void expect_row(Expected& e, const std::vector<double>& queries,
                    const std::vector<double>& rows, index_t b, index_t i, index_t h) const {
        const double rounding = sizeof(T) == 4              ? 0x1p-23
                                : args.dtype == DType::bf16 ? 0x1p-8
                                                            : 0x1p-11;
        const index_t d = args.head_dim, width = args.num_heads * d;
        const index_t keys = cu_k[b + 1] - cu_k[b], total = cu_q[b + 1] - cu_q[b];
        const double* const query = queries.data() + 1 + (cu_q[b] + i) * width + h * d;
        const double* const first_key = rows.data() + 1 + cu_k[b] * 2 * width + h * d;
        std::vector<double> p(keys, -kInfinity);
        double high = -kInfinity, size = 0.0;  // size: of the terms that make up a score
        for (index_t j = 0; j < keys; ++j) {
            if (args.causal && j > i + keys - total) continue;
            const double* const key = first_key + j * 2 * width;
            double score = 0.0, absolute = 0.0;
            for (index_t c = 0; c < d; ++c) {
                score += query[c] * key[c];
                absolute += std::abs(query[c] * key[c]);
            }
            score *= args.scale;
            if (args.key_bias != nullptr) score += args.key_bias[cu_k[b] + j];
            if (args.bias != nullptr) {
                score += args.bias[b * args.bias_batch_stride + h * args.bias_head_stride +
                                   i * args.bias_query_stride + j];
            }
            // As float32 holds it: beside finfo.min, nothing else remains.
            p[j] = std::abs(score) > 1e30 ? static_cast<double>(static_cast<float>(score)) : score;
            high = std::max(high, p[j]);
            size = std::max(size, absolute * std::abs(args.scale));
        }
        double sum = 0.0;
        for (double& x : p) sum += x = high == -kInfinity ? 0.0 : std::exp(x - high);
        double* const value = e.value.data() + (cu_q[b] + i) * width + h * d;
        double* const bound = e.bound.data() + (cu_q[b] + i) * width + h * d;
        for (index_t j = 0; j < keys; ++j) {
            if (p[j] == 0.0) continue;
            const double* const v = first_key + j * 2 * width + width;
            for (index_t c = 0; c < d; ++c) {
                value[c] += p[j] / sum * v[c];
                bound[c] += p[j] / sum * std::abs(v[c]);
            }
        }
        // Probabilities and the result are rounded once each; scores carry float32 errors.
        for (index_t c = 0; c < d; ++c) {
            bound[c] = (2.0 * rounding + 0x1p-22 * (4.0 + size)) * bound[c] + 1e-30;
        }
    }
};

std::vector<Case> cases() {
    std::vector<Case> all;
    const std::vector<int> ragged{0, 1, 15, 16, 17, 0, 63, 64, 65, 131};
    for (index_t d : {1, 2, 3, 7, 16, 17, 31, 32, 33, 64, 65, 80, 96, 128, 130}) {
        Case c{{1, 0, 5, 37}, {1, 0, 5, 37}};
        c.head_dim = d;
        all.push_back(c);
        c.causal = true;
        all.push_back(c);
    }
    all.push_back({ragged, ragged});
    for (bool causal : {false, true}) {
        Case c{{3, 40, 0, 1, 70}, {40, 3, 5, 0, 130}};
        c.causal = causal;
        all.push_back(c);
        c.key_bias = true;
        c.bias = 1;
        all.push_back(c);
        c.bias = 2;
        all.push_back(c);
    }
    // More than one block of keys; sharp and flat scores.
    for (float spread : {0.01f, 1.0f, 4.0f}) {
        Case c{{29, 2}, {1100, 519}};
        c.heads = 1;
        c.spread = spread;
        all.push_back(c);
        c.head_dim = 300;
        c.causal = true;
        all.push_back(c);
    }
    // Scales that turn the order of the scores around, or make them so large that each query weighs
    // a single key.
    for (float scale : {-0.2f, 1e-6f, 30.0f, 1e9f, -1e9f}) {
        Case c{{9, 33}, {20, 600}};
        c.scale = scale;
        all.push_back(c);
        c.causal = true;
        all.push_back(c);
    }
    // Masks and biases of the later blocks are those of their own keys.
    for (int bias : {0, 1, 2}) {
        Case c{{9, 40}, {600, 1100}};
        c.causal = bias == 1;
        c.key_bias = true;
        c.bias = bias;
        all.push_back(c);
    }
    Case self{{700}, {700}};
    self.causal = true;
    self.heads = 1;
    all.push_back(self);
    return all;
}

// In a workspace that is full of NaN: what a task did not write there must reach no result.
template <class T>
void attend_among_nans(const Problem<T>& problem) {
    const int threads = max_threads();
    const auto bytes = static_cast<std::size_t>(attention_workspace_bytes(problem.args, threads));
    const std::unique_ptr<void, void (*)(void*)> workspace(
        std::aligned_alloc(64, (bytes + 63) / 64 * 64), std::free);
    std::memset(workspace.get(), 0xff, bytes);
    attention_varlen(problem.args, workspace.get(), threads);
}

template <class T>
void against_reference() {
    unsigned seed = 1;
    for (const Case& c : cases()) {
        Problem<T> problem(c, seed++);
        const auto expected = problem.expected();
        test::for_each_isa([&](Isa isa) {
            problem.forget_output();
            attend_among_nans(problem);
            problem.check(expected,
                          std::string(name_of(isa)) + " case " + std::to_string(seed - 2));
        });
    }
}

// The same rows alone, in a batch and with any number of threads: the same bits.
template <class T>
void bit_identity(index_t head_dim) {
    Case c{{130, 1, 77, 0, 16, 300}, {130, 1, 77, 0, 16, 300}};
    c.heads = 3;
    c.head_dim = head_dim;
    Problem<T> p(c, 7);
    const auto run = [&](const AttentionArgs& args) {
        p.forget_output();
        attention_varlen(args);
        return p.out;
    };
    test::for_each_isa([&](Isa) {
        set_max_threads(1);
        const std::vector<T> together = run(p.args);
        for (int threads : {2, 3, 7}) {
            set_max_threads(threads);
            CHECK(same_bits(together, run(p.args)));
        }
        set_max_threads(2);
        for (std::size_t b = 0; b < c.len_q.size(); ++b) {
            const std::vector<int> cu{0, c.len_q[b]};
            const index_t first = p.cu_q[b], width = c.heads * c.head_dim;
            // Zero biases, such as another sequence of the batch may ask for, change nothing
            // either.
            const std::vector<float> zeros(c.len_q[b] + 1, 0.0f);
            AttentionArgs alone = p.args;
            alone.key_bias = zeros.data();
            alone.q = p.q.data() + 1 + first * width;
            alone.k = p.kv.data() + 1 + first * 2 * width;
            alone.v = p.kv.data() + 1 + first * 2 * width + width;
            alone.out = p.out.data() + 1 + first * alone.out_row_stride;
            alone.cu_seqlens_q = alone.cu_seqlens_k = cu.data();
            alone.batch = 1;
            alone.total_q = alone.total_k = c.len_q[b];
            const auto rows_of_it = [&](const std::vector<T>& out) {
                const auto from = out.begin() + 1 + first * alone.out_row_stride;
                return std::vector<T>(from, from + c.len_q[b] * alone.out_row_stride);
            };
            CHECK(same_bits(rows_of_it(together), rows_of_it(run(alone))));
        }
    });
}

// Every element of sequence b is the mean of its values, and zero where `hidden`.
template <class T>
void check_uniform(const Problem<T>& p, index_t b, bool hidden) {
    for (index_t c = 0; c < 64; ++c) {
        double mean = 0.0;
        for (int j = p.cu_k[b]; j < p.cu_k[b + 1]; ++j) {
            mean += static_cast<double>(to_float(p.kv[1 + j * 128 + 64 + c]));
        }
        mean /= p.cu_k[b + 1] - p.cu_k[b];
        for (int i = p.cu_q[b]; i < p.cu_q[b + 1]; ++i) {
            const double error = std::abs(p.output(i, c) - (hidden ? 0.0 : mean));
            CHECK_MSG(error <= (hidden ? 0.0 : 0x1p-7), std::to_string(error));
        }
    }
}

template <class T>
void special_values() {
    // More keys than one block holds in the second sequence.
    Case c{{4, 20}, {4, 1100}};
    c.heads = 1;
    // A sequence whose keys are all masked has a uniform softmax; all -inf gives zeros.
    for (index_t b : {0, 1}) {
        for (const float value : {kMasked, -kInfinity}) {
            for (const bool per_query : {false, true}) {
                Problem<T> p(c, 3);
                std::vector<float> key_bias(1104, 0.0f), bias(20 * 1100, value);
                std::fill(key_bias.begin() + p.cu_k[b], key_bias.begin() + p.cu_k[b + 1], value);
                if (per_query) {
                    p.args.bias = bias.data();
                    p.args.bias_query_stride = 1100;
                } else {
                    p.args.key_bias = key_bias.data();
                }
                attention_varlen(p.args);
                check_uniform(p, b, value == -kInfinity);
                const int other = b == 0 ? 4 : 0;
                CHECK(std::isfinite(p.output(other, 5)));
                if (!per_query) CHECK(p.output(other, 5) != 0.0f);
            }
        }
    }
    // The first block of keys masked, or hidden altogether, the last one not: only that one counts.
    for (const float value : {kMasked, -kInfinity}) {
        Problem<T> late(c, 3);
        late.key_bias.assign(1104, 0.0f);
        std::fill(late.key_bias.begin() + 4, late.key_bias.begin() + 1000, value);
        late.args.key_bias = late.key_bias.data();
        attention_varlen(late.args);
        late.check(late.expected(), "first block masked");
    }

    // NaN shows in its own query, or as a key in its own sequence, and nowhere else.
    const T nothing = from_float<T>(std::numeric_limits<float>::quiet_NaN());
    for (const int key : {7, 600, 1103}) {
        Problem<T> nan(c, 3);
        nan.q[1 + 2 * 64 + 9] = nothing;
        nan.kv[1 + key * 128 + 9] = nothing;
        attention_varlen(nan.args);
        for (int i = 0; i < 24; ++i) CHECK(std::isnan(nan.output(i, 0)) == (i == 2 || i >= 4));
    }
}

// Where bf16 has products of its own its exponential is a short polynomial: 7.5e-5 of the value,
// a thirtieth of what rounding a probability to bf16 may cost.
void exponential_error(Isa isa) {
    std::vector<float> x, y;
    for (float at = 0.0f; at > -87.0f; at -= 0.00037f) x.push_back(at);
    x.insert(x.end(), {-kInfinity, -1e30f, kMasked, -200.0f});
    y.resize(x.size());
    kernels(isa).attention.bf16_exponential(x.data(), y.data(), static_cast<index_t>(x.size()));
    double worst = 0.0;
    for (std::size_t i = 0; i + 4 < x.size(); ++i) {
        worst = std::max(worst, std::abs(y[i] / std::exp(static_cast<double>(x[i])) - 1.0));
    }
    CHECK_MSG(worst <= 8.5e-5, std::to_string(worst));
    for (std::size_t i = x.size() - 4; i < x.size(); ++i) CHECK(y[i] == 0.0f);
    const float nan = std::numeric_limits<float>::quiet_NaN();
    kernels(isa).attention.bf16_exponential(&nan, y.data(), 1);
    CHECK(std::isnan(y[0]));
}

void refusals() {
    const auto refused = [](auto change) {
        Problem<float> p(Case{{4, 20}, {4, 20}}, 3);
        change(p);
        CHECK(!test::message_of([&] { attention_varlen(p.args); }).empty());
        for (float x : p.out) CHECK(std::isnan(x));
    };
    refused([](Problem<float>& p) { p.cu_q[0] = 1; });
    refused([](Problem<float>& p) { p.cu_q[1] = 25; });
    refused([](Problem<float>& p) { p.cu_k[2] = 23; });
    refused([](Problem<float>& p) { p.cu_k[2] = 25; });
    refused([](Problem<float>& p) { p.args.max_seqlen_q = 19; });
    refused([](Problem<float>& p) { p.args.max_seqlen_k = 19; });
    refused([](Problem<float>& p) { p.args.head_dim = 0; });
    refused([](Problem<float>& p) { p.args.num_heads = 0; });
    refused([](Problem<float>& p) { p.args.dtype = DType::s8; });
    refused([](Problem<float>& p) { p.args.cu_seqlens_q = nullptr; });
    refused([](Problem<float>& p) { p.args.out_row_stride = 1; });
    refused([](Problem<float>& p) { p.args.v = nullptr; });
}

}  // namespace

TEST(attention_agrees_with_float64) {
    against_reference<float>();
    against_reference<bf16_t>();
    against_reference<f16_t>();
}

TEST(attention_is_bit_identical_in_any_batch) {
    const int threads = max_threads();
    // A scale that is a power of two, and one that is not.
    for (const index_t head_dim : {64, 24}) {
        bit_identity<float>(head_dim);
        bit_identity<bf16_t>(head_dim);
    }
    set_max_threads(threads);
}

TEST(attention_special_values) {
    test::for_each_isa([](Isa) {
        special_values<float>();
        special_values<bf16_t>();
        special_values<f16_t>();
    });
}

TEST(attention_exponential_of_bfloat16) {
    test::for_each_isa([](Isa isa) { exponential_error(isa); });
}

TEST(attention_refusals) { refusals(); }
