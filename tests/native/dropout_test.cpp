// Dropout by counter and the softmax with it, against Philox and float64 written out, on every
// instruction set.
#include "cpu/ops/dropout.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/threads.h"
#include "harness.h"

using namespace fastbert;
using test::Array;

namespace {

struct Words {
    std::uint32_t of[4];
};

// As in the paper; the known answers below are those of the authors' library.
Words philox(Words counter, std::uint64_t seed, int rounds) {
    std::uint32_t key = static_cast<std::uint32_t>(seed);
    std::uint32_t other = static_cast<std::uint32_t>(seed >> 32);
    for (int round = 0; round < rounds; ++round) {
        const std::uint64_t p = std::uint64_t{0xD2511F53u} * counter.of[0];
        const std::uint64_t q = std::uint64_t{0xCD9E8D57u} * counter.of[2];
        counter = {{static_cast<std::uint32_t>(q >> 32) ^ counter.of[1] ^ key,
                    static_cast<std::uint32_t>(q),
                    static_cast<std::uint32_t>(p >> 32) ^ counter.of[3] ^ other,
                    static_cast<std::uint32_t>(p)}};
        key += 0x9E3779B9u;
        other += 0xBB67AE85u;
    }
    return counter;
}

bool kept(index_t element, const Dropping& dropping) {
    const index_t counter = element / 64 * 16 + element % 16;
    const Words words = philox(
        {{static_cast<std::uint32_t>(counter), static_cast<std::uint32_t>(counter >> 32), 0, 0}},
        static_cast<std::uint64_t>(dropping.seed), 7);
    return static_cast<float>(words.of[element % 64 / 16] >> 8) >= dropping.threshold;
}

Dropping dropping(float probability) {
    return {0x123456789abcdef, probability * 0x1p24f, 1 / (1 - probability)};
}

void check_dropout(DType dtype, DType out_dtype, index_t count, bool added, Isa isa) {
    const Array x(dtype, test::normal_values(count, 1), count % 2 == 1);
    const Array residual(out_dtype, test::normal_values(count, 2), count % 2 == 1);
    Array out = Array::poisoned(out_dtype, count, count % 2 == 1);
    DropoutArgs args;
    args.x = x.data();
    args.residual = added ? residual.data() : nullptr;
    args.out = out.data();
    args.count = count;
    args.dropping = dropping(0.3f);
    args.dtype = dtype;
    args.out_dtype = out_dtype;
    dropout_add(args);
    const auto xs = x.values(), rs = residual.values(), got = out.values();
    for (index_t i = 0; i < count; ++i) {
        const auto at = static_cast<std::size_t>(i);
        const double want = (kept(i, args.dropping) ? xs[at] / 0.7 : 0.0) + (added ? rs[at] : 0.0);
        const double size = std::fabs(xs[at]) / 0.7 + std::fabs(rs[at]);
        CHECK_MSG(std::fabs(got[at] - want) <= 4 * test::unit_roundoff(out_dtype) * size + 1e-6,
                  std::string(name_of(isa)) + " element " + std::to_string(i));
    }
}

struct Softmax {
    index_t queries, keys;
    bool causal, masked;
    float probability;
    DType dtype;
};

void check_softmax(const Softmax& p, Isa isa) {
    constexpr index_t sequences = 2, heads = 2;
    const index_t rows = sequences * heads * p.queries, n = p.keys;
    Array scores(p.dtype, test::normal_values(rows * n, 3), n % 2 == 1);
    Array again(p.dtype, test::normal_values(rows * n, 3), n % 2 == 1);
    Array gradients(p.dtype, test::normal_values(rows * n, 4), n % 2 == 1);
    const auto s = scores.values(), g = gradients.values();
    std::vector<float> bias(static_cast<std::size_t>(sequences * n), 0.0f);
    for (std::size_t i = 0; i < bias.size(); i += 3) {
        bias[i] = std::numeric_limits<float>::lowest();
    }
    std::vector<float> statistics(static_cast<std::size_t>(2 * rows));
    SoftmaxArgs args;
    args.scores = scores.data();
    args.statistics = statistics.data();
    args.key_bias = p.masked ? bias.data() : nullptr;
    args.sequences = sequences;
    args.heads = heads;
    args.queries = p.queries;
    args.keys = n;
    args.dropping = dropping(p.probability);
    args.scale = 0.5f;
    args.causal = p.causal;
    args.dtype = p.dtype;
    softmax_dropout(args);
    args.scores = again.data();
    args.gradients = gradients.data();
    softmax_dropout_backward(args);

    const auto got = scores.values(), dropped = again.values(), flowed = gradients.values();
    const double bound = p.dtype == DType::f32 ? 1e-5 : 2e-2;
    for (index_t row = 0; row < rows; ++row) {
        const index_t seen = row % p.queries + n - p.queries + 1;
        const index_t visible = p.causal ? std::min(std::max(seen, index_t{0}), n) : n;
        std::vector<double> probs(static_cast<std::size_t>(n), 0.0), factors = probs;
        double high = -INFINITY, sum = 0, mean = 0;
        const auto score = [&](index_t i) {
            const index_t sequence = row / (p.queries * heads);
            const double added = p.masked ? bias[static_cast<std::size_t>(sequence * n + i)] : 0;
            return 0.5 * s[static_cast<std::size_t>(row * n + i)] + added;
        };
        for (index_t i = 0; i < visible; ++i) high = std::max(high, score(i));
        for (index_t i = 0; i < visible; ++i) sum += std::exp(score(i) - high);
        for (index_t i = 0; i < visible; ++i) {
            const auto at = static_cast<std::size_t>(i);
            const index_t element = row * ((n + 63) / 64 * 64) + i;
            probs[at] = std::exp(score(i) - high) / sum;
            factors[at] = kept(element, args.dropping) ? 1 / (1 - double{p.probability}) : 0;
            mean += probs[at] * factors[at] * g[static_cast<std::size_t>(row * n + i)];
        }
        for (index_t i = 0; i < n; ++i) {
            const auto at = static_cast<std::size_t>(row * n + i), to = static_cast<std::size_t>(i);
            const std::string where = std::string(name_of(isa)) + " keys " + std::to_string(n) +
                                      " row " + std::to_string(row) + " key " + std::to_string(i);
            CHECK_MSG(std::fabs(got[at] - probs[to] * factors[to]) <= bound, where);
            CHECK_MSG(dropped[at] == got[at], where + " again");
            const double want = 0.5 * probs[to] * (factors[to] * g[at] - mean);
            CHECK_MSG(std::fabs(flowed[at] - want) <= 2 * bound, where + " gradient");
        }
    }
}

}  // namespace

TEST(philox_has_its_known_answers) {
    const Words seven = philox({{0, 0, 0, 0}}, 0, 7), ten = philox({{0, 0, 0, 0}}, 0, 10);
    CHECK(seven.of[0] == 0x5f6fb709 && seven.of[1] == 0x0d893f64);
    CHECK(seven.of[2] == 0x4f121f81 && seven.of[3] == 0x4f730a48);
    CHECK(ten.of[0] == 0x6627e8d5 && ten.of[1] == 0xe169c58d);
    CHECK(ten.of[2] == 0xbc57ac4c && ten.of[3] == 0x9b00dbd8);
}

TEST(dropout_drops_what_the_counter_says) {
    test::for_each_isa([](Isa isa) {
        for (index_t count : test::lengths) {
            for (DType dtype : {DType::f32, DType::bf16}) {
                check_dropout(dtype, dtype, count, count % 3 == 0, isa);
                check_dropout(dtype, DType::f32, count, true, isa);
                check_dropout(dtype, DType::bf16, count, false, isa);
            }
        }
    });
}

TEST(dropout_does_not_depend_on_threads) {
    const int before = max_threads();
    for (int threads : {1, 2, 5}) {
        set_max_threads(threads);
        check_dropout(DType::f32, DType::f32, 20001, true, active());
        check_softmax({150, 150, false, false, 0.2f, DType::f32}, active());
    }
    set_max_threads(before);
}

TEST(softmax_dropout_and_its_gradients) {
    test::for_each_isa([](Isa isa) {
        for (DType dtype : {DType::f32, DType::bf16}) {
            for (index_t keys : {1, 2, 7, 16, 17, 63, 64, 65, 130}) {
                check_softmax({3, keys, false, false, 0.0f, dtype}, isa);
                check_softmax({5, keys, true, true, 0.25f, dtype}, isa);
                check_softmax({2, keys, false, true, 0.5f, dtype}, isa);
            }
        }
    });
}

TEST(dropout_refuses_what_does_not_fit) {
    std::vector<float> x(4), statistics(4);
    const auto message = [&](float threshold, DType dtype, index_t queries) {
        return test::message_of([&] {
            SoftmaxArgs args;
            args.scores = x.data();
            args.statistics = statistics.data();
            args.sequences = args.heads = 1;
            args.queries = queries;
            args.keys = 2;
            args.dropping.threshold = threshold;
            args.dtype = dtype;
            softmax_dropout(args);
        });
    };
    CHECK(message(0, DType::f32, 2).empty());
    CHECK(message(-1, DType::f32, 2).find("threshold must be 0 to 2^24") != std::string::npos);
    CHECK(message(0x1p25f, DType::f32, 2).find("threshold") != std::string::npos);
    CHECK(message(0, DType::f16, 2).find("float32 or bfloat16") != std::string::npos);
    CHECK(message(0, DType::f32, -1).find("queries") != std::string::npos);
}
