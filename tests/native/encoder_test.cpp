// The prepared encoder: against the same computation in float64, and against itself in other
// batches.
#include "cpu/encoder.h"

#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

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

// What to add to the scores of each sequence.
using AddedTo = std::function<Model::Added(int)>;

// All sequences in float64.
Model::Rows expected_rows(const Model& model, const Batch& batch, const AddedTo& added = {}) {
    Model::Rows expected;
    for (int b = 0; b + 1 < static_cast<int>(batch.cu.size()); ++b) {
        Model::Rows rows;
        for (int r = batch.cu[b]; r < batch.cu[b + 1]; ++r) {
            rows.emplace_back(batch.x.begin() + r * kHidden, batch.x.begin() + (r + 1) * kHidden);
        }
        for (auto& row : model.reference(rows, added ? added(b) : Model::Added{})) {
            expected.push_back(row);
        }
    }
    return expected;
}

// Relative errors of whole outputs; measured ones are about a third.
void check_close(const std::vector<float>& out, const Model::Rows& expected, Precision precision,
                 const std::string& what) {
    const double bounds[] = {2e-6, 1.5e-2, 4e-2};
    double error = 0.0, size = 0.0;
    for (std::size_t i = 0; i < out.size(); ++i) {
        const double want = expected[i / kHidden][i % kHidden];
        error += (out[i] - want) * (out[i] - want);
        size += want * want;
    }
    error = std::sqrt(error / size);
    CHECK_MSG(error <= bounds[static_cast<int>(precision)],
              what + " precision " + std::to_string(static_cast<int>(precision)) + ": " +
                  std::to_string(error));
}

TEST(encoder_agrees_with_float64) {
    for (bool pre_norm : {false, true}) {
        const Model model(pre_norm);
        const Batch batch({5, 0, 70, 1});
        const Model::Rows expected = expected_rows(model, batch);
        test::for_each_isa([&](Isa isa) {
            for (Precision precision : kPrecisions) {
                check_close(run(*model.encoder(precision), batch), expected, precision,
                            name_of(isa));
            }
        });
    }
}

// A bias of the scores, with NaN wherever nothing may be read.
struct Bias {
    std::vector<float> values;
    index_t origin = 0, over_batch = 0, over_heads = 0, over_queries = 0;

    // (sequences | 1, heads | 1, longest, longest), rows and planes apart.
    static Bias whole(index_t sequences, index_t heads, index_t longest) {
        Bias bias;
        bias.over_queries = longest + 3;
        const index_t plane = longest * bias.over_queries + 5;
        bias.over_heads = heads > 1 ? plane : 0;
        bias.over_batch = sequences > 1 ? heads * plane : 0;
        bias.values.assign(sequences * heads * plane, NAN);
        const auto numbers = test::normal_values(sequences * heads * longest * longest, 31);
        for (std::size_t n = 0; n < numbers.size(); ++n) {
            const auto at = static_cast<index_t>(n);
            bias.values[at / (longest * longest) * plane +
                        at / longest % longest * bias.over_queries + at % longest] = numbers[n];
        }
        return bias;
    }
    // A number for every head and distance: rows overlap, and a later query's begins earlier.
    static Bias of_distances(index_t longest) {
        Bias bias;
        const index_t width = 2 * longest - 1;
        bias.origin = longest - 1;
        bias.over_heads = width + 2;
        bias.over_queries = -1;
        bias.values.assign(kHeads * bias.over_heads, NAN);
        const auto numbers = test::normal_values(kHeads * width, 37);
        for (index_t h = 0; h < kHeads; ++h) {
            std::copy_n(numbers.begin() + h * width, width,
                        bias.values.begin() + h * bias.over_heads);
        }
        return bias;
    }

    float at(index_t b, index_t h, index_t i, index_t j) const {
        return values[origin + b * over_batch + h * over_heads + i * over_queries + j];
    }
    Model::Added of(int b) const {
        return [this, b](index_t h, index_t i, index_t j) { return double{at(b, h, i, j)}; };
    }
    // Of a batch whose first sequence is `first` of the one it was made for.
    EncoderInput added_to(EncoderInput input, index_t first = 0) const {
        input.bias = values.data() + origin + first * over_batch;
        input.bias_batch_stride = over_batch;
        input.bias_head_stride = over_heads;
        input.bias_query_stride = over_queries;
        return input;
    }
};

const std::vector<Bias> every_bias(index_t sequences, index_t longest) {
    return {Bias::whole(sequences, kHeads, longest), Bias::whole(1, kHeads, longest),
            Bias::whole(sequences, 1, longest), Bias::of_distances(longest)};
}

TEST(encoder_adds_a_bias_to_the_scores_of_every_block) {
    for (bool pre_norm : {false, true}) {
        const Model model(pre_norm);
        const Batch batch({5, 0, 70, 1});
        for (const Bias& bias : every_bias(4, 70)) {
            const auto expected = expected_rows(model, batch, [&](int b) { return bias.of(b); });
            test::for_each_isa([&](Isa isa) {
                for (Precision precision : kPrecisions) {
                    const auto out = run(*model.encoder(precision), bias.added_to(batch.input()));
                    check_close(out, expected, precision, name_of(isa));
                }
            });
        }
    }
}

// More keys than a block of the attention holds; other threads, and each sequence by itself.
TEST(encoder_with_a_bias_is_bit_identical_in_any_batch) {
    const Model model(false);
    const int threads = max_threads();
    const std::vector<int> lengths{3, 130, 0, 1, 64, 600};
    const Batch batch(lengths);
    const Bias both[] = {Bias::whole(static_cast<index_t>(lengths.size()), kHeads, 600),
                         Bias::of_distances(600)};
    test::for_each_isa([&](Isa) {
        for (Precision precision : kPrecisions) {
            const auto encoder = model.encoder(precision);
            for (const Bias& bias : both) {
                set_max_threads(1);
                const auto together = run(*encoder, bias.added_to(batch.input()));
                set_max_threads(3);
                const auto again = run(*encoder, bias.added_to(batch.input()));
                CHECK(same(again.data(), together.data(), together.size()));
                for (int b = 0; b < static_cast<int>(lengths.size()); ++b) {
                    const Batch alone = batch.alone(b);
                    const auto out = run(*encoder, bias.added_to(alone.input(), b));
                    CHECK(same(out.data(), together.data() + batch.cu[b] * kHidden, out.size()));
                }
            }
        }
    });
    set_max_threads(threads);
}

TEST(encoder_reads_a_bias_of_distances_as_the_whole_one) {
    const Model model(false);
    const Batch batch({9, 33});
    const Bias few = Bias::of_distances(33);
    Bias whole = Bias::whole(1, kHeads, 33);
    for (index_t h = 0; h < kHeads; ++h) {
        for (index_t i = 0; i < 33; ++i) {
            for (index_t j = 0; j < 33; ++j) {
                whole.values[h * whole.over_heads + i * whole.over_queries + j] =
                    few.at(0, h, i, j);
            }
        }
    }
    test::for_each_isa([&](Isa) {
        const auto encoder = model.encoder(Precision::bf16);
        const auto a = run(*encoder, few.added_to(batch.input()));
        const auto b = run(*encoder, whole.added_to(batch.input()));
        CHECK(same(a.data(), b.data(), a.size()));
    });
}

TEST(encoder_is_bit_identical_in_any_batch) {
    const int threads = max_threads();
    // Few rows and many: both ways of sharing the work, and the border between them.
    const std::vector<int> lengths{3, 130, 0, 1, 64, 17, 300};
    test::for_each_isa([&](Isa) {
        for (int with_factor = 0; with_factor < 4; ++with_factor) {
            const Precision precision = kPrecisions[std::min(with_factor, 2)];
            Model model(precision == Precision::bf16);
            if (with_factor == 3) model.factor = test::normal_values(kIntermediate, 8, 1.0f, 0.5f);
            const auto encoder = model.encoder(precision);
            const Batch batch(lengths);
            set_max_threads(1);
            const auto together = run(*encoder, batch);
            for (int n : {2, 3, 5}) {
                set_max_threads(n);
                const auto again = run(*encoder, batch);
                CHECK(same(again.data(), together.data(), together.size()));
                for (int b = 0; b < static_cast<int>(lengths.size()); ++b) {
                    const auto alone = run(*encoder, batch.alone(b));
                    CHECK(
                        same(alone.data(), together.data() + batch.cu[b] * kHidden, alone.size()));
                }
            }
        }
    });
    set_max_threads(threads);
}

TEST(encoder_scatters_into_a_padded_grid) {
    const Model model(false);
    const auto encoder = model.encoder(Precision::f32);
    const Batch batch({2, 3});
    const auto packed = run(*encoder, batch);
    const std::vector<std::int64_t> token_indices{1, 2, 5, 6, 8};
    const index_t stride = kHidden + 5;
    std::vector<float> grid(10 * stride, NAN);
    EncoderOutput to;
    to.out = grid.data();
    to.stride = stride;
    to.rows = 10;
    to.grid = true;
    EncoderInput in = batch.input();
    in.seqlen = 5;
    in.token_indices = token_indices.data();
    encoder->run(in, to);
    std::size_t token = 0;
    for (index_t r = 0; r < 10; ++r) {
        const bool real = token < token_indices.size() && token_indices[token] == r;
        for (index_t c = 0; c < stride; ++c) {
            const float value = grid[r * stride + c];
            if (c >= kHidden) {
                CHECK(std::isnan(value));
            } else {
                CHECK(value == (real ? packed[token * kHidden + c] : 0.0f));
            }
        }
        token += real;
    }
    const Batch empty({0, 0});
    std::fill(grid.begin(), grid.end(), NAN);
    in = empty.input();
    in.seqlen = 5;
    in.token_indices = token_indices.data();
    encoder->run(in, to);
    for (index_t r = 0; r < 10; ++r) CHECK(grid[r * stride + 7] == 0.0f);
}

// Tables of `width` columns, a projection where that is not kHidden, and a pooler.
struct Embedded {
    static constexpr index_t kWords = 9, kPositions = 8, kTypes = 2;
    index_t width;
    std::vector<float> words, positions, types, norm_weight, norm_bias;
    Stored projection, pooler;

    explicit Embedded(index_t columns)
        : width(columns),
          words(test::normal_values(kWords * columns, 1)),
          positions(test::normal_values(kPositions * columns, 2)),
          types(test::normal_values(kTypes * columns, 3)),
          norm_weight(test::normal_values(columns, 4, 1.0f, 0.2f)),
          norm_bias(test::normal_values(columns, 5, 0.0f, 0.2f)),
          projection(kHidden, columns, 6),
          pooler(20, kHidden, 7) {}

    EmbeddingSource source() const {
        EmbeddingSource s;
        s.width = width;
        s.word = {words.data(), kWords, width};
        s.position = {positions.data(), kPositions, width};
        s.type = {types.data(), kTypes, width};
        s.norm = {{norm_weight.data(), DType::f32}, {norm_bias.data(), DType::f32}, kEps};
        if (width != kHidden) s.projection = projection.source(Precision::f32);
        return s;
    }
    // What the first block is given for these indices.
    std::vector<float> rows(const std::vector<std::int64_t>& word,
                            const std::vector<std::int64_t>& position,
                            const std::vector<std::int64_t>& type) const {
        std::vector<float> all;
        for (std::size_t t = 0; t < word.size(); ++t) {
            std::vector<double> row;
            double mean = 0.0, variance = 0.0;
            for (index_t c = 0; c < width; ++c) {
                row.push_back(double{words[word[t] * width + c]} + types[type[t] * width + c] +
                              positions[position[t] * width + c]);
                mean += row.back() / static_cast<double>(width);
            }
            for (double v : row) variance += (v - mean) * (v - mean) / static_cast<double>(width);
            for (index_t c = 0; c < width; ++c) {
                row[c] =
                    (row[c] - mean) / std::sqrt(variance + kEps) * norm_weight[c] + norm_bias[c];
            }
            if (width != kHidden) row = projection.apply(row);
            all.insert(all.end(), row.begin(), row.end());
        }
        return all;
    }
};

TEST(encoder_looks_up_and_pools) {
    // Sequences of 3 and 2 tokens in a grid of 2 x 4; a token is missing in the first one.
    const std::vector<std::int64_t> token_indices{0, 2, 3, 4, 5};
    const std::vector<std::int64_t> words{8, -7, 0, 3, 3, 1, 99, 5}, types{1, 0, 0, 1, 1, 0, 0, 1};
    const std::vector<std::int64_t> columns{7, 1, 2, 0};  // the same in every row: row stride 0
    const Batch batch({3, 2});
    test::for_each_isa([&](Isa) {
        for (index_t width : {kHidden, index_t{20}}) {
            const Model model(false);
            const Embedded tables(width);
            const EmbeddingSource embedding = tables.source();
            const ProjectionSource pooler = tables.pooler.source(Precision::f32);
            test::EncoderParts source{model.shape, model.sources(Precision::f32)};
            source.embedding = &embedding;
            source.pooler = &pooler;
            const auto encoder = source.encoder();
            EncoderInput in = batch.input();
            in.x = nullptr;
            in.seqlen = 4;
            in.token_indices = token_indices.data();
            in.word = {words.data(), 4, 1};
            in.type = {types.data(), 4, 1};
            in.position = {columns.data(), 0, 1};
            std::vector<float> grid(8 * kHidden, NAN), pooled(2 * 20, NAN);
            EncoderOutput to;
            to.out = grid.data();
            to.stride = kHidden;
            to.rows = 8;
            to.grid = true;
            to.pooled = pooled.data();
            to.pooled_stride = 20;

            Batch plain = batch;
            plain.x = tables.rows({8, 0, 3, 3, 1}, {7, 2, 0, 7, 1}, {1, 0, 1, 1, 0});
            const auto expected = run(*model.encoder(Precision::f32), plain);
            for (int threads : {1, 2}) {
                std::fill(grid.begin(), grid.end(), NAN);
                std::fill(pooled.begin(), pooled.end(), NAN);
                encoder->run(in, to, threads);
                for (std::size_t t = 0; t < token_indices.size(); ++t) {
                    for (index_t c = 0; c < kHidden; ++c) {
                        const float value = grid[token_indices[t] * kHidden + c];
                        CHECK(std::fabs(value - expected[t * kHidden + c]) < 2e-5f);
                    }
                }
                for (index_t r : {1, 6, 7}) CHECK(grid[r * kHidden + 3] == 0.0f);
                for (int b : {0, 1}) {
                    const auto first = expected.begin() + batch.cu[b] * kHidden;
                    const auto want = tables.pooler.apply({first, first + kHidden});
                    for (int c = 0; c < 20; ++c) {
                        CHECK(std::fabs(pooled[b * 20 + c] - std::tanh(want[c])) < 2e-5);
                    }
                }
            }

            // Indices outside a table, at a token: nothing is computed. At removed token_indices
            // they may be anything, as above.
            std::fill(grid.begin(), grid.end(), NAN);
            for (std::int64_t wrong : {Embedded::kWords, index_t{-1}, index_t{1} << 40}) {
                auto bad = words;
                bad[5] = wrong;
                in.word.data = bad.data();
                CHECK(!test::message_of([&] { encoder->run(in, to); }).empty());
            }
            in.word.data = words.data();
            in.language = {types.data(), 4, 1};
            CHECK(!test::message_of([&] { encoder->run(in, to); }).empty());
            in.language = {};
            // A sequence without a token to pool.
            for (int split : {0, 5}) {
                const std::vector<int> empty{0, split, 5};
                in.cu_seqlens = empty.data();
                in.max_seqlen = 5;
                CHECK(!test::message_of([&] { encoder->run(in, to); }).empty());
            }
            for (float v : grid) CHECK(std::isnan(v));
        }
    });
}

// More rows than a thread takes at once, of ids that lie apart in both directions.
TEST(encoder_looks_up_many_rows) {
    constexpr index_t kLength = 150, kGap = 3;
    const Model model(false);
    const Embedded tables(kHidden);
    const EmbeddingSource embedding = tables.source();
    test::EncoderParts source{model.shape, model.sources(Precision::f32)};
    source.embedding = &embedding;
    std::vector<std::int64_t> words, types, positions;
    for (index_t i = 0; i < 2 * kLength; ++i) {
        words.push_back(i * 5 % Embedded::kWords);
        types.push_back(i / 7 % Embedded::kTypes);
        positions.push_back(i / 3 % Embedded::kPositions);
    }
    const auto spread = [](const std::vector<std::int64_t>& ids) {
        std::vector<std::int64_t> wide(ids.size() * kGap, -1);
        for (std::size_t i = 0; i < ids.size(); ++i) wide[i * kGap] = ids[i];
        return wide;
    };
    const auto wide_words = spread(words), wide_types = spread(types);
    const auto wide_positions = spread(positions);
    Batch batch({kLength, kLength});
    batch.x = tables.rows(words, positions, types);
    test::for_each_isa([&](Isa) {
        const auto expected = run(*model.encoder(Precision::f32), batch);
        const auto encoder = source.encoder();
        EncoderInput in = batch.input();
        in.x = nullptr;
        in.word = {wide_words.data(), kLength * kGap, kGap};
        in.type = {wide_types.data(), kLength * kGap, kGap};
        in.position = {wide_positions.data(), kLength * kGap, kGap};
        std::vector<float> out(batch.x.size(), NAN);
        EncoderOutput to;
        to.out = out.data();
        to.stride = kHidden;
        to.rows = in.total;
        for (int threads : {1, 3}) {
            std::fill(out.begin(), out.end(), NAN);
            encoder->run(in, to, threads);
            for (std::size_t i = 0; i < out.size(); ++i) {
                CHECK(std::fabs(out[i] - expected[i]) < 2e-5f);
            }
        }
    });
}

// Tokens that are hidden as keys leave the others as they are without them.
TEST(encoder_hides_keys) {
    const Model model(false);
    const Batch batch({6, 4});
    std::vector<float> key_bias(10, 0.0f);
    for (int hidden : {4, 5, 9}) key_bias[hidden] = std::numeric_limits<float>::lowest();
    test::for_each_isa([&](Isa) {
        const auto encoder = model.encoder(Precision::f32);
        EncoderInput in = batch.input();
        in.key_bias = key_bias.data();
        std::vector<float> out(batch.x.size(), NAN);
        EncoderOutput to;
        to.out = out.data();
        to.stride = kHidden;
        to.rows = 10;
        encoder->run(in, to);
        for (int b : {0, 1}) {
            Batch alone = batch.alone(b);
            const int seen = b == 0 ? 4 : 3;
            Batch rest({seen});
            rest.x.assign(alone.x.begin(), alone.x.begin() + seen * kHidden);
            const auto expected = run(*encoder, rest);
            for (std::size_t i = 0; i < expected.size(); ++i) {
                CHECK(std::fabs(out[batch.cu[b] * kHidden + i] - expected[i]) < 1e-5f);
            }
        }
    });
}

TEST(encoder_serves_several_threads_at_once) {
    const Model model(false);
    const auto first = model.encoder(Precision::bf16), second = model.encoder(Precision::int8);
    const Batch batch({40, 9, 60});
    const auto a = run(*first, batch), b = run(*second, batch);
    std::vector<std::thread> callers;
    std::vector<int> wrong(4, 0);
    for (int t = 0; t < 4; ++t) {
        callers.emplace_back([&, t] {
            for (int i = 0; i < 5; ++i) {
                const auto out = run(t % 2 == 0 ? *first : *second, batch);
                const auto& want = t % 2 == 0 ? a : b;
                if (!same(out.data(), want.data(), out.size())) ++wrong[t];
            }
        });
    }
    for (auto& caller : callers) caller.join();
    for (int count : wrong) CHECK(count == 0);
}

TEST(encoder_keeps_its_memory) {
    const Model model(false);
    const auto encoder = model.encoder(Precision::bf16);
    run(*encoder, Batch({200, 30}));
    const index_t bytes = encoder->arena_bytes();
    run(*encoder, Batch({10, 30}));
    run(*encoder, Batch({200, 30}));
    CHECK(encoder->arena_bytes() == bytes);
}

TEST(encoder_refuses_what_does_not_fit) {
    const Model model(false);
    const auto encoder = model.encoder(Precision::f32);
    const Batch batch({2, 3});
    std::vector<float> out(5 * kHidden, NAN);
    const auto refused = [&](auto change) {
        EncoderInput in = batch.input();
        EncoderOutput to;
        to.out = out.data();
        to.stride = kHidden;
        to.rows = 5;
        change(in, to);
        CHECK(!test::message_of([&] { encoder->run(in, to); }).empty());
        for (float v : out) CHECK(std::isnan(v));
    };
    const std::vector<std::int64_t> falling{0, 2, 1, 3, 3}, beyond{0, 1, 2, 3, 4};
    refused([](EncoderInput& in, EncoderOutput&) { in.total = 4; });
    refused([](EncoderInput& in, EncoderOutput&) { in.max_seqlen = 2; });
    refused([](EncoderInput& in, EncoderOutput&) { in.x = nullptr; });
    refused([](EncoderInput& in, EncoderOutput&) { in.x_stride = 3; });
    refused([](EncoderInput& in, EncoderOutput&) { in.dtype = DType::s8; });
    refused([](EncoderInput& in, EncoderOutput&) { in.cu_seqlens = nullptr; });
    refused([](EncoderInput&, EncoderOutput& to) { to.rows = 4; });
    refused([](EncoderInput&, EncoderOutput& to) { to.out = nullptr; });
    refused([](EncoderInput& in, EncoderOutput& to) { to.grid = true, in.seqlen = 2; });
    refused([](EncoderInput& in, EncoderOutput&) { in.total = index_t{1} << 40; });
    refused([](EncoderInput&, EncoderOutput& to) { to.pooled = &to; });
    for (const auto* token_indices : {&falling, &beyond}) {
        refused([&](EncoderInput& in, EncoderOutput& to) {
            in.seqlen = 2;
            in.token_indices = token_indices->data();
            to.grid = true;
            to.rows = 4;
        });
    }

    const auto not_made = [&](auto change) {
        EncoderShape shape = model.shape;
        std::vector<BlockSource> sources = model.sources(Precision::f32);
        change(shape, sources[1]);
        CHECK(!test::message_of([&] { test::EncoderParts{shape, sources}.encoder(); }).empty());
    };
    not_made([](EncoderShape& s, BlockSource&) { s.hidden = 47; });
    not_made([](EncoderShape& s, BlockSource&) { s.attention = DType::bf16; });
    not_made([](EncoderShape& s, BlockSource&) { s.attention = DType::s8; });
    not_made([](EncoderShape& s, BlockSource&) { s.activation = Activation(9); });
    not_made([](EncoderShape&, BlockSource& b) { b.up.k = 47; });
    not_made([](EncoderShape&, BlockSource& b) { b.up.weight = nullptr; });
    not_made([](EncoderShape&, BlockSource& b) { b.up.precision = Precision(7); });
    not_made([](EncoderShape&, BlockSource& b) { b.up.precision = Precision::int8; });
    not_made([](EncoderShape&, BlockSource& b) { b.up.columns.repeats = 1; });
    const float factor[1] = {1.0f};  // not read: only int8 products have one
    not_made([&](EncoderShape&, BlockSource& b) { b.up.columns.factor = factor; });
    not_made([](EncoderShape&, BlockSource& b) { b.output_norm.eps = NAN; });
    not_made([](EncoderShape&, BlockSource& b) { b.output_norm.weight.data = nullptr; });
}

TEST(encoder_is_bound_to_its_instruction_set) {
    const auto isas = usable_isas();
    if (isas.size() < 2) return;
    const Model model(false);
    set_active(isas[0]);
    const auto encoder = model.encoder(Precision::f32);
    set_active(isas[1]);
    CHECK(!test::message_of([&] { run(*encoder, Batch({2})); }).empty());
    set_active(detected());
}
