// The prepared decoder: against the same computation in float64, which must tell a dropped
// residual, a wrong head of the keys and a wrong scale apart from rounding, and against itself in
// other batches.
#include "cpu/decoder.h"

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cpu/threads.h"
#include "floats.h"
#include "harness.h"
#include "prepared.h"

using namespace fastbert;

namespace {

constexpr index_t kHidden = 48, kHeads = 4, kKvHeads = 2, kHeadDim = 16, kIntermediate = 100;
constexpr index_t kVocabulary = 70, kWidth = kHeads * kHeadDim, kKvWidth = kKvHeads * kHeadDim;
constexpr index_t kHeadStride = kHeadDim + 3, kRowStride = kKvHeads * kHeadStride + 5;
constexpr std::size_t kLayers = 2;
constexpr float kEps = 1e-5f;
constexpr ActivationParams kXielu{0.8f, 0.3f, 0.5f, -1e-6f};

// What a decoder computes with; int8 weights go with attention in either type.
struct Kind {
    Precision precision;
    DType attention;
    double bound;  // relative error of all scores; measured ones are at most about half
};
constexpr Kind kKinds[] = {{Precision::f32, DType::f32, 8e-7},
                           {Precision::bf16, DType::bf16, 8e-3},
                           {Precision::w8a16, DType::f32, 2e-4},
                           {Precision::w8a16, DType::bf16, 4e-3}};

// What the reference may do wrong, to show that the bounds would catch it.
enum class Fault { none, dropped_residual, wrong_kv_head, wrong_scale };

using Row = std::vector<double>;
using Rows = std::vector<Row>;

// A stored product: float32 weights, and int8 ones with their scales.
struct Stored {
    index_t n, k;
    std::vector<float> weight, scale;
    std::vector<std::int8_t> quantised;

    Stored(index_t rows, index_t columns, unsigned seed) : n(rows), k(columns) {
        weight = test::normal_values(n * k, seed, 0.0f, 1.0f / std::sqrt(static_cast<float>(k)));
        for (index_t r = 0; r < n; ++r) {
            const float* const row = weight.data() + r * k;
            float high = 0.0f;
            for (index_t c = 0; c < k; ++c) high = std::fmax(high, std::fabs(row[c]));
            scale.push_back(high / 127.0f);
            for (index_t c = 0; c < k; ++c) {
                quantised.push_back(static_cast<std::int8_t>(std::lrint(row[c] / scale.back())));
            }
        }
    }
    ProjectionSource source(Precision precision) const {
        ProjectionSource s;
        s.n = n;
        s.k = s.stride = k;
        s.precision = precision;
        s.weight = weight.data();
        if (precision == Precision::w8a16) {
            s.weight = quantised.data();
            s.dtype = DType::s8;
            s.weight_scale = scale.data();
        }
        return s;
    }
    double at(index_t r, index_t c, Precision precision) const {
        const auto i = static_cast<std::size_t>(r * k + c);
        if (precision == Precision::f32) return weight[i];
        if (precision == Precision::bf16) {
            return test::to_float(test::from_float<bf16_t>(weight[i]));
        }
        return double{scale[static_cast<std::size_t>(r)]} * quantised[i];
    }
    Row apply(const Row& x, Precision precision) const {
        Row y(static_cast<std::size_t>(n), 0.0);
        for (index_t r = 0; r < n; ++r) {
            for (index_t c = 0; c < k; ++c) {
                y[static_cast<std::size_t>(r)] +=
                    at(r, c, precision) * x[static_cast<std::size_t>(c)];
            }
        }
        return y;
    }
};

struct StoredNorm {
    std::vector<float> weight;
    StoredNorm(index_t width, unsigned seed)
        : weight(test::normal_values(width, seed, 1.0f, 0.2f)) {}
    RmsNormSource source() const { return {{weight.data(), DType::f32}, kEps}; }
    // Of the elements from `first` on, in place.
    void apply(Row& x, index_t first = 0) const {
        double squares = 0.0;
        const auto width = static_cast<double>(weight.size());
        double* const at = x.data() + first;
        for (std::size_t i = 0; i < weight.size(); ++i) squares += at[i] * at[i] / width;
        for (std::size_t i = 0; i < weight.size(); ++i) {
            at[i] *= weight[i] / std::sqrt(squares + kEps);
        }
    }
};

double angle(index_t position, index_t pair) {
    return static_cast<double>(position) * std::pow(100.0, -2.0 * double(pair) / kHeadDim);
}

struct StoredBlock {
    Stored qkv, out, up, down;
    StoredNorm attention_norm, query_norm, key_norm, feedforward_norm;
    explicit StoredBlock(unsigned seed)
        : qkv(kWidth + 2 * kKvWidth, kHidden, seed),
          out(kHidden, kWidth, seed + 1),
          up(kIntermediate, kHidden, seed + 2),
          down(kHidden, kIntermediate, seed + 3),
          attention_norm(kHidden, seed + 4),
          query_norm(kHeadDim, seed + 5),
          key_norm(kHeadDim, seed + 6),
          feedforward_norm(kHidden, seed + 7) {}

    DecoderBlockSource source(Precision p) const {
        return {attention_norm.source(),
                qkv.source(p),
                query_norm.source(),
                key_norm.source(),
                out.source(p),
                feedforward_norm.source(),
                up.source(p),
                down.source(p),
                kXielu};
    }
};

void rotate(Row& row, index_t first, index_t position) {
    for (index_t i = 0; i < kHeadDim / 2; ++i) {
        const double c = std::cos(angle(position, i)), s = std::sin(angle(position, i));
        double& a = row[static_cast<std::size_t>(first + i)];
        double& b = row[static_cast<std::size_t>(first + i + kHeadDim / 2)];
        const double rotated = a * c - b * s;
        b = b * c + a * s;
        a = rotated;
    }
}

// Causal attention of rows of q, k and v.
Rows attend(const Rows& qkv, double scale, Fault fault) {
    Rows out(qkv.size(), Row(kWidth, 0.0));
    for (std::size_t i = 0; i < qkv.size(); ++i) {
        for (index_t h = 0; h < kHeads; ++h) {
            const index_t kv =
                fault == Fault::wrong_kv_head ? h % kKvHeads : h / (kHeads / kKvHeads);
            const double* const q = qkv[i].data() + h * kHeadDim;
            double* const to = out[i].data() + h * kHeadDim;
            double sum = 0.0;
            for (std::size_t j = 0; j <= i; ++j) {
                const double* const k = qkv[j].data() + kWidth + kv * kHeadDim;
                double score = 0.0;
                for (index_t d = 0; d < kHeadDim; ++d) score += q[d] * k[d];
                const double p = std::exp(score * scale);
                sum += p;
                for (index_t d = 0; d < kHeadDim; ++d) to[d] += p * k[kKvWidth + d];
            }
            for (index_t d = 0; d < kHeadDim; ++d) to[d] /= sum;
        }
    }
    return out;
}

double xielu(double x) {
    if (x > 0.0) return kXielu.a * x * x + kXielu.c * x;
    return kXielu.b * (std::expm1(std::fmin(x, kXielu.d)) - x) + kXielu.c * x;
}

struct Model {
    std::vector<float> words = test::normal_values(kVocabulary * kHidden, 1);
    std::vector<StoredBlock> blocks;
    StoredNorm norm{kHidden, 2};
    Stored head{kVocabulary, kHidden, 3};
    float scale = 0.25f;

    Model() {
        for (unsigned i = 0; i < kLayers; ++i) blocks.emplace_back(100 * i + 10);
    }

    std::unique_ptr<Decoder> decoder(const Kind& kind) const {
        const ProjectionSource scores = head.source(kind.precision);
        test::DecoderParts parts;
        parts.source.shape = {kHidden,           kHeads, kKvHeads,      kHeadDim, kIntermediate,
                              Activation::xielu, scale,  kind.attention};
        parts.source.words = {words.data(), kVocabulary, kHidden};
        parts.source.norm = norm.source();
        for (const StoredBlock& b : blocks) parts.blocks.push_back(b.source(kind.precision));
        parts.head = &scores;
        return parts.decoder();
    }

    // The scores behind every token of one text.
    Rows reference(const std::vector<std::int64_t>& text, Precision p,
                   Fault fault = Fault::none) const {
        Rows x;
        for (std::int64_t id : text) {
            x.emplace_back(words.begin() + id * kHidden, words.begin() + (id + 1) * kHidden);
        }
        for (const StoredBlock& b : blocks) layer(b, x, p, fault);
        for (Row& row : x) {
            norm.apply(row);
            row = head.apply(row, p);
        }
        return x;
    }

  private:
    void layer(const StoredBlock& b, Rows& x, Precision p, Fault fault) const {
        Rows qkv;
        for (std::size_t t = 0; t < x.size(); ++t) {
            Row h = x[t];
            b.attention_norm.apply(h);
            Row row = b.qkv.apply(h, p);
            if (fault == Fault::wrong_scale && &b == &blocks[1]) row[kWidth + kKvWidth] *= 1.5;
            for (index_t i = 0; i < kHeads + kKvHeads; ++i) {
                (i < kHeads ? b.query_norm : b.key_norm).apply(row, i * kHeadDim);
                rotate(row, i * kHeadDim, static_cast<index_t>(t));
            }
            qkv.push_back(row);
        }
        const Rows context = attend(qkv, scale, fault);
        for (std::size_t t = 0; t < x.size(); ++t) {
            const bool dropped = fault == Fault::dropped_residual && &b == &blocks[1];
            add(x[t], b.out.apply(context[t], p), dropped);
            Row h = x[t];
            b.feedforward_norm.apply(h);
            h = b.up.apply(h, p);
            for (double& v : h) v = xielu(v);
            add(x[t], b.down.apply(h, p), false);
        }
    }
    static void add(Row& x, const Row& y, bool dropped) {
        for (std::size_t i = 0; i < x.size(); ++i) x[i] = (dropped ? 0.0 : x[i]) + y[i];
    }
};

using Texts = std::vector<std::vector<std::int64_t>>;

Texts texts_of(const std::vector<int>& lengths) {
    Texts texts;
    std::int64_t next = 1;
    for (int n : lengths) {
        texts.emplace_back();
        for (int i = 0; i < n; ++i) texts.back().push_back(next = (next * 31 + 7) % kVocabulary);
    }
    return texts;
}

// A cache of all layers, and passes over it. It is full of NaN where nothing was written.
struct Session {
    Decoder& decoder;
    DType dtype;
    index_t room;  // rows of each sequence
    std::vector<std::int64_t> places, held;
    std::vector<test::Array> memory;
    std::vector<CacheLayer> layers;

    Session(Decoder& made, DType attention, std::size_t batch, index_t rows)
        : decoder(made), dtype(attention), room(rows), held(batch, 0) {
        for (std::size_t b = 0; b < batch; ++b) {
            places.push_back(static_cast<std::int64_t>(b) * room);
        }
        const index_t size = static_cast<index_t>(batch) * room * kRowStride;
        for (std::size_t i = 0; i < 2 * kLayers; ++i) {
            memory.push_back(test::Array::poisoned(dtype, size));
        }
        for (std::size_t i = 0; i < kLayers; ++i) {
            layers.push_back({memory[2 * i].data(), memory[2 * i + 1].data()});
        }
    }

    // Scores behind every new token, (total, kVocabulary).
    std::vector<float> run(const Texts& texts) {
        std::vector<std::int64_t> ids;
        std::vector<std::int32_t> cu{0};
        std::vector<float> cosines, sines;
        for (std::size_t b = 0; b < texts.size(); ++b) {
            for (std::size_t t = 0; t < texts[b].size(); ++t) {
                const index_t position = held[b] + static_cast<index_t>(t);
                for (index_t i = 0; i < kHeadDim / 2; ++i) {
                    cosines.push_back(static_cast<float>(std::cos(angle(position, i))));
                    sines.push_back(static_cast<float>(std::sin(angle(position, i))));
                }
            }
            ids.insert(ids.end(), texts[b].begin(), texts[b].end());
            cu.push_back(static_cast<std::int32_t>(ids.size()));
        }
        std::vector<float> scores(ids.size() * kVocabulary, NAN);
        DecoderInput in;
        in.ids = ids.data();
        in.total = static_cast<index_t>(ids.size());
        in.cu_seqlens = cu.data();
        in.batch = static_cast<index_t>(texts.size());
        in.cos = cosines.data();
        in.sin = sines.data();
        in.cache = {layers.data(), static_cast<index_t>(texts.size()) * room,
                    kRowStride,    kHeadStride,
                    places.data(), held.data()};
        DecoderOutput out;
        out.rows = in.total;
        out.scores = scores.data();
        out.scores_stride = kVocabulary;
        decoder.run(in, out);
        for (std::size_t b = 0; b < texts.size(); ++b) {
            held[b] += static_cast<std::int64_t>(texts[b].size());
        }
        return scores;
    }
};

// Scores of each text, read up to its last token and then continued by that.
std::vector<std::vector<float>> read_and_continue(Decoder& decoder, DType dtype,
                                                  const Texts& texts) {
    Texts begun = texts, last;
    std::size_t longest = 0;
    for (auto& text : begun) {
        longest = std::max(longest, text.size());
        last.push_back({text.back()});
        text.pop_back();
    }
    Session session(decoder, dtype, texts.size(), static_cast<index_t>(longest) + 2);
    const std::vector<float> first = session.run(begun), second = session.run(last);
    std::vector<std::vector<float>> all;
    auto from = first.begin();
    for (std::size_t b = 0; b < texts.size(); ++b) {
        const auto to = from + static_cast<std::ptrdiff_t>(begun[b].size() * kVocabulary);
        all.emplace_back(from, to);
        from = to;
        const auto row = second.begin() + static_cast<std::ptrdiff_t>(b * kVocabulary);
        all.back().insert(all.back().end(), row, row + kVocabulary);
    }
    return all;
}

double error_of(const std::vector<std::vector<float>>& got, const std::vector<Rows>& want) {
    double error = 0.0, size = 0.0;
    for (std::size_t b = 0; b < got.size(); ++b) {
        for (std::size_t i = 0; i < got[b].size(); ++i) {
            const double w = want[b][i / kVocabulary][i % kVocabulary];
            error += (got[b][i] - w) * (got[b][i] - w);
            size += w * w;
        }
    }
    return std::sqrt(error / size);
}

}  // namespace

TEST(decoder_agrees_with_float64_and_tells_faults) {
    const Model model;
    const Texts texts = texts_of({6, 1, 23, 2});
    for (const Kind& kind : kKinds) {
        std::vector<std::vector<Rows>> wanted;  // by fault
        for (Fault fault :
             {Fault::none, Fault::dropped_residual, Fault::wrong_kv_head, Fault::wrong_scale}) {
            wanted.emplace_back();
            for (const auto& text : texts) {
                wanted.back().push_back(model.reference(text, kind.precision, fault));
            }
        }
        test::for_each_isa([&](Isa isa) {
            const auto decoder = model.decoder(kind);
            const auto got = read_and_continue(*decoder, kind.attention, texts);
            const std::string where = std::string(name_of(isa)) + " precision " +
                                      std::to_string(static_cast<int>(kind.precision)) + ": ";
            const double error = error_of(got, wanted[0]);
            CHECK_MSG(error <= kind.bound, where + std::to_string(error));
            for (std::size_t f = 1; f < wanted.size(); ++f) {
                const double wrong = error_of(got, wanted[f]);
                CHECK_MSG(wrong > 2 * kind.bound,
                          where + "fault " + std::to_string(f) + " " + std::to_string(wrong));
            }
        });
    }
}

TEST(decoder_is_bit_identical_in_any_batch) {
    const int threads = max_threads();
    const Model model;
    // More rows together than go through a layer at once.
    const Texts texts = texts_of({3, 97, 1, 30, 5});
    test::for_each_isa([&](Isa) {
        for (const Kind& kind : kKinds) {
            const auto decoder = model.decoder(kind);
            set_max_threads(1);
            const auto together = read_and_continue(*decoder, kind.attention, texts);
            for (int n : {1, 3}) {
                set_max_threads(n);
                CHECK(read_and_continue(*decoder, kind.attention, texts) == together);
                for (std::size_t b = 0; b < texts.size(); ++b) {
                    const auto alone = read_and_continue(*decoder, kind.attention, {texts[b]});
                    CHECK(alone[0] == together[b]);
                }
            }
        }
    });
    set_max_threads(threads);
}

TEST(decoder_refuses_what_does_not_fit) {
    const Model model;
    const auto decoder = model.decoder(kKinds[2]);
    CHECK(!test::message_of([&] {
               Session(*decoder, DType::f32, 1, 4).run({{1, 2, kVocabulary}});  // no such token
           }).empty());
    CHECK(!test::message_of([&] {
               Session(*decoder, DType::f32, 1, 2).run({{1, 2, 3}});  // more than the cache holds
           }).empty());
    const auto message = [&](const ProjectionSource& source, DType attention) {
        test::DecoderParts parts;
        parts.source.shape = {kHidden,           kHeads,      kKvHeads, kHeadDim, kIntermediate,
                              Activation::xielu, model.scale, attention};
        parts.source.words = {model.words.data(), kVocabulary, kHidden};
        parts.source.norm = model.norm.source();
        parts.blocks.push_back(model.blocks[0].source(Precision::w8a16));
        parts.blocks[0].out = source;
        return test::message_of([&] { parts.decoder(); });
    };
    const Stored& out = model.blocks[0].out;
    CHECK(message(out.source(Precision::w8a16), DType::bf16).empty());
    ProjectionSource unscaled = out.source(Precision::w8a16);
    unscaled.weight_scale = nullptr;
    CHECK(!message(unscaled, DType::f32).empty());
    const Stored& narrow = model.blocks[0].up;
    CHECK(!message(narrow.source(Precision::w8a16), DType::f32).empty());
    CHECK(!message(out.source(Precision::f32), DType::bf16).empty());
}
