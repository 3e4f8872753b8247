#include "cpu/encoder.h"

#include <algorithm>
#include <string>
#include <utility>

#include "common/check.h"
#include "cpu/encoder_memory.h"
#include "cpu/encoder_pass.h"
#include "cpu/encoder_weights.h"
#include "cpu/isa.h"
#include "cpu/ops/attention.h"
#include "cpu/ops/embed.h"
#include "cpu/team.h"

namespace fastbert {
namespace {

using encoder_detail::Buffers;
using encoder_detail::Embedding;
using encoder_detail::run_pass;
using encoder_detail::Weights;

const char* const kName = "encoder";

// A size that, with any other such and a few bytes an element, stays far below 2^63.
void check_extent(const char* what, index_t size) {
    check_size(kName, what, size);
    if (size > 0x7fffffff) fail(kName, std::string(what) + " must stay below 2^31.");
}

void check_grid(const char* what, const IndexGrid& grid, const TableSource& table) {
    if (grid.data == nullptr) return;
    if (table.data == nullptr) {
        fail(kName, std::string(what) + " ids were given, but there is no " + what + " table.");
    }
    if (grid.row_stride < 0 || grid.column_stride < 0) {
        fail(kName, std::string("the strides of the ") + what + " ids must not be negative.");
    }
}

void check_input(const Weights& weights, const EncoderInput& input) {
    check_extent("total", input.total);
    check_extent("batch", input.batch);
    check_extent("seqlen", input.seqlen);
    check_size(kName, "max_seqlen", input.max_seqlen);
    if (input.cu_seqlens == nullptr) fail(kName, "cu_seqlens is missing.");
    if (input.x != nullptr || weights.embedding == nullptr) {
        check_float_dtype(kName, "x", input.dtype);
        check_matrix(kName, "x", input.x, input.total, weights.shape.hidden, input.x_stride);
        return;
    }
    const EmbeddingSource& tables = weights.embedding->source;
    if ((input.word.data == nullptr) == (input.embeds == nullptr) && input.total > 0) {
        fail(kName, "exactly one of word ids and given embeddings is needed.");
    }
    if (input.embeds != nullptr) {
        check_matrix(kName, "embeds", input.embeds, input.batch * input.seqlen, tables.width,
                     input.embeds_stride);
    }
    check_grid("word", input.word, tables.word);
    check_grid("position", input.position, tables.position);
    check_grid("type", input.type, tables.type);
    check_grid("language", input.language, tables.language);
}

void check_output(const Weights& weights, const EncoderInput& input, const EncoderOutput& output) {
    check_float_dtype(kName, "out", output.dtype);
    check_size(kName, "rows", output.rows);
    check_matrix(kName, "out", output.out, output.rows, weights.shape.hidden, output.stride);
    const bool looks_up = input.x == nullptr && weights.embedding != nullptr;
    if (input.token_indices == nullptr && (output.grid || looks_up) &&
        input.total != input.batch * input.seqlen) {
        fail(kName, "without token_indices, every place of the grid of " +
                        std::to_string(input.batch) + " x " + std::to_string(input.seqlen) +
                        " holds a token, but there are " + std::to_string(input.total) +
                        " tokens.");
    }
    const index_t wanted = output.grid ? input.batch * input.seqlen : input.total;
    if (output.rows != wanted) {
        fail(kName, "out must have " + std::to_string(wanted) + " rows, one for each " +
                        (output.grid ? "place of the grid" : "token") + ", but it has " +
                        std::to_string(output.rows) + ".");
    }
    if (output.pooled == nullptr) return;
    if (weights.pooler == nullptr) fail(kName, "there is no pooler.");
    check_matrix(kName, "pooled", output.pooled, input.batch, weights.pooler->n,
                 output.pooled_stride);
}

// Copies of cu_seqlens, token_indices and table indices; the latter two are checked, as is the
// first by check_attention().
void copy_indices(const Weights& weights, const EncoderInput& input, bool pooled,
                  const Buffers& buffers) {
    std::copy_n(input.cu_seqlens, input.batch + 1, buffers.cu_seqlens);
    for (index_t b = 0; pooled && b < input.batch; ++b) {
        if (buffers.cu_seqlens[b + 1] > buffers.cu_seqlens[b]) continue;
        fail(kName, "sequence " + std::to_string(b) + " has no token to pool.");
    }
    if (input.token_indices != nullptr) {
        std::copy_n(input.token_indices, input.total, buffers.token_indices);
        const index_t end = input.batch * input.seqlen;
        std::int64_t last = -1;
        for (index_t i = 0; i < input.total; ++i) {
            const std::int64_t at = buffers.token_indices[i];
            if (at <= last || at >= end) {
                fail(kName, "token_indices must rise and stay below the " + std::to_string(end) +
                                " of the grid, but entry " + std::to_string(i) + " is " +
                                std::to_string(at) + ".");
            }
            last = at;
        }
    }
    if (input.x != nullptr || weights.embedding == nullptr) return;
    const auto place_of = [&](index_t i) {
        return input.token_indices == nullptr ? i : buffers.token_indices[i];
    };
    const auto copy = [&](const char* what, const IndexGrid& grid, const TableSource& table,
                          std::int64_t* into) {
        if (grid.data == nullptr) return;
        for (index_t i = 0; i < input.total; ++i) {
            const index_t place = place_of(i);
            into[i] = grid.data[place / input.seqlen * grid.row_stride +
                                place % input.seqlen * grid.column_stride];
        }
        check_ids(what, into, input.total, table.entries);
    };
    const EmbeddingSource& tables = weights.embedding->source;
    copy("word", input.word, tables.word, buffers.word);
    copy("position", input.position, tables.position, buffers.position);
    copy("type", input.type, tables.type, buffers.type);
    copy("language", input.language, tables.language, buffers.language);
    if (input.embeds == nullptr) return;
    for (index_t i = 0; i < input.total; ++i) buffers.word[i] = place_of(i);
}

}  // namespace

Encoder::Encoder(std::unique_ptr<const Weights> weights) : weights_(std::move(weights)) {}

Encoder::~Encoder() = default;

EncoderPacker::EncoderPacker(const EncoderShape& shape, const std::vector<ProjectionSize>& sizes)
    : weights_(kName, std::make_unique<Weights>(shape, sizes)) {}

EncoderPacker::~EncoderPacker() = default;

void EncoderPacker::set_embedding(const EmbeddingSource& source) {
    weights_.with([&](Weights& weights) { weights.set_embedding(source); });
}

void EncoderPacker::add_block(const BlockSource& source) {
    weights_.with([&](Weights& weights) { weights.add_block(source); });
}

void EncoderPacker::set_pooler(const ProjectionSource& source) {
    weights_.with([&](Weights& weights) { weights.set_pooler(source); });
}

std::unique_ptr<Encoder> EncoderPacker::finish() {
    auto made = weights_.taken();
    made->packed.check_full();
    return std::make_unique<Encoder>(std::move(made));
}

void Encoder::run(const EncoderInput& input, const EncoderOutput& output, int threads,
                  EncoderProfile* profile) {
    threads = threads_of_pass(kName, weights_->isa, threads);
    check_input(*weights_, input);
    check_output(*weights_, input, output);
    const bool pooled = output.pooled != nullptr;
    Arenas::Loan arena(arenas_);
    // Laid out twice: once to learn the size, once in place.
    const index_t bytes = Buffers(*weights_, input, pooled, threads, nullptr).bytes;
    const Buffers buffers(*weights_, input, pooled, threads, arena.reserve(bytes));
    copy_indices(*weights_, input, pooled, buffers);
    check_attention(buffers.attention);
    run_pass(*weights_, input, output, buffers, threads, profile);
}

Isa Encoder::isa() const { return weights_->isa; }

index_t Encoder::packed_bytes() const {
    index_t bytes = 0;
    for (const PackedProjection* p : weights_->projections()) bytes += p->packed_size;
    return bytes;
}

index_t Encoder::arena_bytes() const { return arenas_.bytes(); }

std::vector<std::string> step_names() {
    return {"load", "qkv",  "attention",   "out",   "attention_norm",
            "up",   "down", "output_norm", "store", "pool"};
}

}  // namespace fastbert
