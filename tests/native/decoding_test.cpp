// The row ops of decoders, with what Python does not reach: keys and values written into a cache,
// and attention of single queries over one.
#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "cpu/ops/attention_decode.h"
#include "cpu/ops/qk_norm_rope.h"
#include "cpu/threads.h"
#include "floats.h"
#include "harness.h"

using namespace fastbert;
using test::Array;

namespace {

constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f16};

double rounding(DType dtype) {
    return dtype == DType::f32 ? 0x1p-23 : dtype == DType::f16 ? 0x1p-10 : 0x1p-7;
}

// Several sequences of one cache whose rows hold `kv_heads` heads each.
struct Cache {
    index_t heads, kv_heads, d;
    DType dtype;
    std::vector<DecodeSequence> sequences;
    index_t rows = 0;
    Array q, k, v, out;

    Cache(DType t, index_t heads, index_t kv_heads, index_t d, const std::vector<index_t>& keys)
        : heads(heads),
          kv_heads(kv_heads),
          d(d),
          dtype(t),
          q(t, {}),
          k(t, {}),
          v(t, {}),
          out(t, {}) {
        for (index_t n : keys) {
            // Room behind every sequence, as caches have it; poison would show if it were read.
            sequences.push_back({static_cast<index_t>(sequences.size()), rows, n});
            rows += n + 3;
        }
        const auto count = static_cast<index_t>(keys.size());
        q = Array(t, test::normal_values(count * heads * d, 1));
        auto spoiled = [&](int seed) {
            std::vector<float> values = test::normal_values(rows * kv_heads * d, seed);
            for (const DecodeSequence& s : sequences) {
                for (index_t i = 0; i < 3 * kv_heads * d; ++i) {
                    values[static_cast<std::size_t>((s.first_key + s.keys) * kv_heads * d + i)] =
                        NAN;
                }
            }
            return values;
        };
        k = Array(t, spoiled(2));
        v = Array(t, spoiled(3));
        out = Array::poisoned(t, count * heads * d);
    }

    AttentionDecodeArgs args() const {
        AttentionDecodeArgs a;
        a.q = q.data();
        a.k = k.data();
        a.v = v.data();
        a.out = const_cast<void*>(static_cast<const void*>(out.data()));
        a.dtype = dtype;
        a.q_row_stride = a.out_row_stride = heads * d;
        a.k_row_stride = a.v_row_stride = kv_heads * d;
        a.q_head_stride = a.out_head_stride = a.k_head_stride = a.v_head_stride = d;
        a.sequences = sequences.data();
        a.batch = static_cast<index_t>(sequences.size());
        a.num_heads = heads;
        a.num_kv_heads = kv_heads;
        a.head_dim = d;
        a.scale = 1.0f / std::sqrt(static_cast<float>(d));
        return a;
    }

    std::vector<double> expected() const {
        const auto qs = q.values(), ks = k.values(), vs = v.values();
        std::vector<double> want;
        for (const DecodeSequence& s : sequences) {
            for (index_t h = 0; h < heads; ++h) {
                const index_t shared = h / (heads / kv_heads);
                const auto at = [&](index_t j, index_t i) {
                    return static_cast<std::size_t>(((s.first_key + j) * kv_heads + shared) * d +
                                                    i);
                };
                std::vector<double> p(static_cast<std::size_t>(s.keys));
                double high = -1e300, total = 0;
                for (index_t j = 0; j < s.keys; ++j) {
                    double score = 0;
                    for (index_t i = 0; i < d; ++i) {
                        score += qs[static_cast<std::size_t>((s.query * heads + h) * d + i)] *
                                 ks[at(j, i)];
                    }
                    p[static_cast<std::size_t>(j)] = score * args().scale;
                    high = std::fmax(high, p[static_cast<std::size_t>(j)]);
                }
                for (double& e : p) total += e = std::exp(e - high);
                for (index_t i = 0; i < d; ++i) {
                    double sum = 0;
                    for (index_t j = 0; j < s.keys; ++j) {
                        sum += p[static_cast<std::size_t>(j)] * vs[at(j, i)];
                    }
                    want.push_back(sum / total);
                }
            }
        }
        return want;
    }
};

}  // namespace

TEST(attention_decode_against_float64) {
    test::for_each_isa([](Isa isa) {
        for (DType dtype : kTypes) {
            for (const auto& [heads, kv_heads, d] : std::vector<std::array<index_t, 3>>{
                     {2, 2, 64}, {8, 2, 128}, {7, 1, 40}, {6, 2, 7}, {4, 2, 112}, {3, 3, 55}}) {
                const Cache cache(dtype, heads, kv_heads, d, {1, 15, 16, 17, 255, 256, 257, 700});
                attention_decode(cache.args());
                const auto got = cache.out.values();
                const auto want = cache.expected();
                double worst = 0;
                for (std::size_t i = 0; i < want.size(); ++i) {
                    const double error = std::fabs(got[i] - want[i]);
                    worst = std::fmax(worst, error != error ? 1e30 : error);
                }
                CHECK_MSG(worst <= 2e-6 + 1.5 * rounding(dtype),
                          std::string(name_of(isa)) + " dtype " +
                              std::to_string(static_cast<int>(dtype)) + " head_dim " +
                              std::to_string(d) + ": " + std::to_string(worst));
            }
        }
    });
}

TEST(attention_decode_does_not_depend_on_others_nor_on_threads) {
    const int threads = max_threads();
    test::for_each_isa([](Isa) {
        const Cache cache(DType::bf16, 8, 2, 64, {300, 1, 513, 256, 40});
        set_max_threads(1);
        attention_decode(cache.args());
        const auto whole = cache.out.values();
        for (int t : {2, 5}) {
            set_max_threads(t);
            attention_decode(cache.args());
            CHECK(cache.out.values() == whole);
        }
        for (std::size_t b = 0; b < cache.sequences.size(); ++b) {
            Cache alone = cache;
            alone.sequences = {cache.sequences[b]};
            alone.out = Array::poisoned(DType::bf16, 5 * 8 * 64);
            attention_decode(alone.args());
            const auto got = alone.out.values();
            for (std::size_t i = b * 8 * 64; i < (b + 1) * 8 * 64; ++i) CHECK(got[i] == whole[i]);
        }
    });
    set_max_threads(threads);
}

TEST(attention_decode_refuses_what_does_not_fit) {
    Cache cache(DType::f32, 4, 2, 8, {3});
    const auto message = [&](auto&& spoil) {
        AttentionDecodeArgs args = cache.args();
        spoil(args);
        return test::message_of([&] { attention_decode(args); });
    };
    CHECK(message([](auto& a) { a.num_kv_heads = 3; }).find("multiple") != std::string::npos);
    CHECK(message([](auto& a) { a.k = nullptr; }).find("missing") != std::string::npos);
    cache.sequences[0].keys = 0;
    CHECK(message([](auto&) {}).find("a key") != std::string::npos);
}

TEST(qk_norm_rope_writes_keys_and_values_into_a_cache) {
    test::for_each_isa([](Isa) {
        constexpr index_t tokens = 3, heads = 4, kv_heads = 2, d = 24, width = heads + 2 * kv_heads;
        for (DType dtype : kTypes) {
            Array qkv(dtype, test::normal_values(tokens * width * d, 1));
            const auto stored = qkv.values();
            const Array weight(DType::f32, test::normal_values(2 * d, 2));
            std::vector<float> cos, sin;
            for (index_t i = 0; i < tokens * d / 2; ++i) {
                cos.push_back(std::cos(0.3f * static_cast<float>(i)));
                sin.push_back(std::sin(0.3f * static_cast<float>(i)));
            }
            Array keys = Array::poisoned(dtype, 9 * kv_heads * d);
            Array values = Array::poisoned(dtype, 9 * kv_heads * d);
            const index_t rows[] = {7, 0, 4};
            const index_t size = size_of(dtype);
            char* const base = static_cast<char*>(qkv.data());
            QkNormRopeArgs a;
            a.q = a.q_out = {base, width * d, d};
            a.k = {base + heads * d * size, width * d, d};
            a.v = {base + (heads + kv_heads) * d * size, width * d, d};
            a.k_out = {keys.data(), kv_heads * d, d};
            a.v_out = {values.data(), kv_heads * d, d};
            a.cache_rows = rows;
            a.q_weight = {weight.data(), DType::f32};
            a.k_weight = {static_cast<const float*>(static_cast<const void*>(weight.data())) + d,
                          DType::f32};
            a.cos = cos.data();
            a.sin = sin.data();
            a.rope_stride = d / 2;
            a.tokens = tokens;
            a.num_heads = heads;
            a.num_kv_heads = kv_heads;
            a.head_dim = d;
            a.dtype = dtype;
            a.q_eps = 1e-5f;
            a.k_eps = 1e-3f;
            qk_norm_rope(a);
            const auto q_got = qkv.values(), k_got = keys.values(), v_got = values.values();
            const auto gains = weight.values();
            const auto expected = [&](index_t t, index_t h, index_t i) {
                const bool key = h >= heads;
                const auto x = [&](index_t j) {
                    return static_cast<double>(
                        stored[static_cast<std::size_t>((t * width + h) * d + j)]);
                };
                double squares = 0;
                for (index_t j = 0; j < d; ++j) squares += x(j) * x(j);
                const double scale = 1 / std::sqrt(squares / d + (key ? 1e-3 : 1e-5));
                const auto normed = [&](index_t j) {
                    return x(j) * scale * gains[static_cast<std::size_t>((key ? d : 0) + j)];
                };
                const auto pair = static_cast<std::size_t>(t * (d / 2) + i % (d / 2));
                return i < d / 2 ? normed(i) * cos[pair] - normed(i + d / 2) * sin[pair]
                                 : normed(i) * cos[pair] + normed(i - d / 2) * sin[pair];
            };
            for (index_t t = 0; t < tokens; ++t) {
                for (index_t i = 0; i < d; ++i) {
                    const double bound = 1e-6 + rounding(dtype);
                    for (index_t h = 0; h < heads; ++h) {
                        const double want = expected(t, h, i);
                        const double got = q_got[static_cast<std::size_t>((t * width + h) * d + i)];
                        CHECK(std::fabs(got - want) <= bound * (1 + std::fabs(want)));
                    }
                    for (index_t h = 0; h < kv_heads; ++h) {
                        const auto at = static_cast<std::size_t>((rows[t] * kv_heads + h) * d + i);
                        const double want = expected(t, heads + h, i);
                        CHECK(std::fabs(k_got[at] - want) <= bound * (1 + std::fabs(want)));
                        CHECK(v_got[at] == stored[static_cast<std::size_t>(
                                               (t * width + heads + kv_heads + h) * d + i)]);
                    }
                }
            }
            CHECK(std::isnan(k_got[static_cast<std::size_t>(kv_heads * d)]));  // row 1 is nobody's
        }
    });
}
