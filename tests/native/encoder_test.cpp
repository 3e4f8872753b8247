// The prepared encoder: against the same computation in float64, and against itself in other
// batches.
#include "encoder_case.h"

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
