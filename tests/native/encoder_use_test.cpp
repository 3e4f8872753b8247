// The prepared encoder in use: tables and poolers, hidden keys, several threads, refusals.
#include "encoder_case.h"

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
