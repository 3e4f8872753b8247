// A small encoder of two kinds of layers with its computation in float64, and batches for it.
// Included once by a test, whose constants of the shape these are.
#pragma once

#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpu/encoder.h"
#include "cpu/threads.h"
#include "harness.h"
#include "prepared.h"

using namespace fastbert;

namespace {

constexpr index_t kHidden = 48, kHeads = 3, kHeadDim = 16, kIntermediate = 100;
constexpr float kEps = 1e-5f;

// A stored product: float32 weights, or int8 ones with their scales.
struct Stored {
    index_t n, k;
    std::vector<float> weight, scale, bias;
    std::vector<std::int8_t> quantised;

    Stored(index_t rows, index_t columns, unsigned seed)
        : n(rows), k(columns), bias(test::normal_values(rows, seed + 1)) {
        weight = test::normal_values(n * k, seed, 0.0f, 1.0f / std::sqrt(static_cast<float>(k)));
        for (index_t r = 0; r < n; ++r) {
            float high = 0.0f;
            for (index_t c = 0; c < k; ++c) high = std::max(high, std::fabs(weight[r * k + c]));
            scale.push_back(high / 127.0f);
            for (index_t c = 0; c < k; ++c) {
                quantised.push_back(
                    static_cast<std::int8_t>(std::lrint(weight[r * k + c] / scale.back())));
            }
        }
    }
    ProjectionSource source(Precision precision) const {
        ProjectionSource s;
        s.n = n;
        s.k = s.stride = k;
        s.bias[0] = {bias.data(), DType::f32};
        s.precision = precision;
        if (precision == Precision::int8) {
            s.weight = quantised.data();
            s.dtype = DType::s8;
            s.weight_scale = scale.data();
        } else {
            s.weight = weight.data();
        }
        return s;
    }
    // y = x W^T + bias for one row.
    std::vector<double> apply(const std::vector<double>& x) const {
        std::vector<double> y(bias.begin(), bias.end());
        for (index_t r = 0; r < n; ++r) {
            for (index_t c = 0; c < k; ++c) y[r] += weight[r * k + c] * x[c];
        }
        return y;
    }
};

struct StoredNorm {
    std::vector<float> weight, bias;
    explicit StoredNorm(unsigned seed)
        : weight(test::normal_values(kHidden, seed, 1.0f, 0.2f)),
          bias(test::normal_values(kHidden, seed + 1, 0.0f, 0.2f)) {}
    NormSource source() const {
        return {{weight.data(), DType::f32}, {bias.data(), DType::f32}, kEps};
    }
    std::vector<double> apply(const std::vector<double>& x) const {
        double mean = 0.0, variance = 0.0;
        for (double v : x) mean += v / kHidden;
        for (double v : x) variance += (v - mean) * (v - mean) / kHidden;
        std::vector<double> y;
        for (index_t i = 0; i < kHidden; ++i) {
            y.push_back((x[i] - mean) / std::sqrt(variance + kEps) * weight[i] + bias[i]);
        }
        return y;
    }
};

struct StoredBlock {
    Stored qkv, out, up, down;
    StoredNorm attention_norm, output_norm;
    explicit StoredBlock(unsigned seed)
        : qkv(3 * kHeads * kHeadDim, kHidden, seed),
          out(kHidden, kHeads * kHeadDim, seed + 10),
          up(kIntermediate, kHidden, seed + 20),
          down(kHidden, kIntermediate, seed + 30),
          attention_norm(seed + 40),
          output_norm(seed + 50) {}
};

struct Model {
    std::vector<StoredBlock> blocks;
    std::vector<float> factor;  // of the int8 products that come down; empty for none
    EncoderShape shape;

    explicit Model(bool pre_norm) {
        for (unsigned i = 0; i < 2; ++i) blocks.emplace_back(100 * i + 7);
        shape.hidden = kHidden;
        shape.num_heads = kHeads;
        shape.head_dim = kHeadDim;
        shape.intermediate = kIntermediate;
        shape.activation = Activation::gelu;
        shape.pre_norm = pre_norm;
        shape.scale = 0.25f;
    }

    std::vector<BlockSource> sources(Precision precision) const {
        std::vector<BlockSource> all;
        for (const StoredBlock& b : blocks) {
            all.push_back({b.qkv.source(precision), b.out.source(precision),
                           b.attention_norm.source(), b.up.source(precision),
                           b.down.source(precision), b.output_norm.source()});
            if (precision == Precision::int8 && !factor.empty()) {
                all.back().down.columns.factor = factor.data();
            }
        }
        return all;
    }

    std::unique_ptr<Encoder> encoder(Precision precision) const {
        EncoderShape s = shape;
        s.attention = precision == Precision::f32 ? DType::f32 : DType::bf16;
        return test::EncoderParts{s, sources(precision)}.encoder();
    }

    using Rows = std::vector<std::vector<double>>;
    // What is added to the score of a head, query and key; empty for nothing.
    using Added = std::function<double(index_t, index_t, index_t)>;

    static Rows attention(const Rows& qkv, float scale, const Added& added) {
        Rows out(qkv.size(), std::vector<double>(kHeads * kHeadDim, 0.0));
        const index_t width = kHeads * kHeadDim;
        for (std::size_t i = 0; i < qkv.size(); ++i) {
            for (index_t h = 0; h < kHeads; ++h) {
                std::vector<double> p;
                double sum = 0.0;
                for (std::size_t j = 0; j < qkv.size(); ++j) {
                    double score = 0.0;
                    for (index_t d = 0; d < kHeadDim; ++d) {
                        score += qkv[i][h * kHeadDim + d] * qkv[j][width + h * kHeadDim + d];
                    }
                    const auto query = static_cast<index_t>(i), key = static_cast<index_t>(j);
                    p.push_back(std::exp(score * scale + (added ? added(h, query, key) : 0.0)));
                    sum += p.back();
                }
                for (std::size_t j = 0; j < qkv.size(); ++j) {
                    for (index_t d = 0; d < kHeadDim; ++d) {
                        out[i][h * kHeadDim + d] +=
                            p[j] / sum * qkv[j][2 * width + h * kHeadDim + d];
                    }
                }
            }
        }
        return out;
    }

    // One sequence in float64.
    Rows reference(Rows x, const Added& added = {}) const {
        const auto each = [](const Rows& rows, auto&& f) {
            Rows y;
            for (const auto& row : rows) y.push_back(f(row));
            return y;
        };
        const auto plus = [](Rows a, const Rows& b) {
            for (std::size_t r = 0; r < a.size(); ++r) {
                for (std::size_t c = 0; c < a[r].size(); ++c) a[r][c] += b[r][c];
            }
            return a;
        };
        const auto gelu = [](std::vector<double> row) {
            for (double& v : row) v *= 0.5 * std::erfc(-v / std::sqrt(2.0));
            return row;
        };
        for (const StoredBlock& b : blocks) {
            const auto attend = [&](const Rows& rows) {
                const Rows qkv = each(rows, [&](const auto& r) { return b.qkv.apply(r); });
                return each(attention(qkv, shape.scale, added),
                            [&](const auto& r) { return b.out.apply(r); });
            };
            const auto feed = [&](const Rows& rows) {
                return each(rows, [&](const auto& r) { return b.down.apply(gelu(b.up.apply(r))); });
            };
            const auto norm_a = [&](const auto& r) { return b.attention_norm.apply(r); };
            const auto norm_o = [&](const auto& r) { return b.output_norm.apply(r); };
            if (shape.pre_norm) {
                x = plus(x, attend(each(x, norm_a)));
                x = plus(x, feed(each(x, norm_o)));
            } else {
                x = each(plus(x, attend(x)), norm_a);
                x = each(plus(x, feed(x)), norm_o);
            }
        }
        return x;
    }
};

struct Batch {
    std::vector<int> cu{0};
    int longest = 0;
    std::vector<float> x;

    explicit Batch(const std::vector<int>& lengths, unsigned seed = 5) {
        for (int n : lengths) cu.push_back(cu.back() + n), longest = std::max(longest, n);
        x = test::normal_values(cu.back() * kHidden, seed);
    }
    EncoderInput input() const {
        EncoderInput in;
        in.x = x.data();
        in.x_stride = kHidden;
        in.total = cu.back();
        in.cu_seqlens = cu.data();
        in.batch = static_cast<index_t>(cu.size()) - 1;
        in.max_seqlen = in.seqlen = longest;
        return in;
    }
    // The sequence b of this batch alone.
    Batch alone(int b) const {
        Batch one({cu[b + 1] - cu[b]});
        one.x.assign(x.begin() + cu[b] * kHidden, x.begin() + cu[b + 1] * kHidden);
        return one;
    }
};

std::vector<float> run(Encoder& encoder, const EncoderInput& input) {
    std::vector<float> out(input.total * kHidden, NAN);
    EncoderOutput to;
    to.out = out.data();
    to.stride = kHidden;
    to.rows = input.total;
    encoder.run(input, to);
    return out;
}

std::vector<float> run(Encoder& encoder, const Batch& batch) { return run(encoder, batch.input()); }

bool same(const float* a, const float* b, std::size_t n) {
    return n == 0 || std::memcmp(a, b, n * sizeof(float)) == 0;
}

constexpr Precision kPrecisions[] = {Precision::f32, Precision::bf16, Precision::int8};

}  // namespace
