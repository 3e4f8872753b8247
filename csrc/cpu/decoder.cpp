#include "cpu/decoder.h"

#include <string>
#include <utility>

#include "common/check.h"
#include "cpu/decoder_indices.h"
#include "cpu/decoder_memory.h"
#include "cpu/decoder_pass.h"
#include "cpu/decoder_weights.h"
#include "cpu/team.h"

namespace fastbert {
namespace {

using decoder_detail::Buffers;
using decoder_detail::Indices;
using decoder_detail::Weights;

const char* const kName = "decoder";

// A size that, with any other such and a few bytes an element, stays far below 2^63.
void check_extent(const char* what, index_t size) {
    check_size(kName, what, size);
    if (size > 0x7fffffff) fail(kName, std::string(what) + " must stay below 2^31.");
}

void check_cache(const DecoderShape& shape, std::size_t blocks, const CachePlaces& cache) {
    if (cache.layers == nullptr) return;
    check_extent("rows of the cache", cache.rows);
    if (cache.places == nullptr || cache.held == nullptr) {
        fail(kName, "a cache needs the places of its sequences and how much each holds.");
    }
    if (cache.head_stride < shape.head_dim ||
        cache.row_stride < (shape.num_kv_heads - 1) * cache.head_stride + shape.head_dim) {
        fail(kName, "the strides of the cache let heads or rows overlap.");
    }
    for (std::size_t i = 0; i < blocks; ++i) {
        if (cache.layers[i].keys == nullptr || cache.layers[i].values == nullptr) {
            fail(kName, "the cache has no keys or no values for layer " + std::to_string(i) + ".");
        }
    }
}

void check_input(const Weights& weights, const DecoderInput& input) {
    check_extent("total", input.total);
    check_extent("batch", input.batch);
    if (input.cu_seqlens == nullptr) fail(kName, "cu_seqlens is missing.");
    if ((input.ids == nullptr) == (input.x == nullptr) && input.total > 0) {
        fail(kName, "exactly one of ids and given embeddings is needed.");
    }
    if (input.x != nullptr) {
        check_float_dtype(kName, "x", input.dtype);
        check_matrix(kName, "x", input.x, input.total, weights.shape.hidden, input.x_stride);
    }
    const index_t pairs = weights.shape.head_dim / 2;
    check_matrix(kName, "cos", input.cos, input.total, pairs, pairs);
    check_matrix(kName, "sin", input.sin, input.total, pairs, pairs);
    check_cache(weights.shape, weights.blocks.size(), input.cache);
}

void check_output(const Weights& weights, const DecoderInput& input, const DecoderOutput& output) {
    check_float_dtype(kName, "the results", output.dtype);
    check_extent("rows", output.rows);
    if (output.tokens == nullptr && output.rows != input.total) {
        fail(kName, "without a choice of tokens the results have " + std::to_string(input.total) +
                        " rows, not " + std::to_string(output.rows) + ".");
    }
    if (output.hidden != nullptr) {
        check_matrix(kName, "hidden", output.hidden, output.rows, weights.shape.hidden,
                     output.hidden_stride);
    }
    if (output.scores == nullptr) return;
    if (weights.head == nullptr) fail(kName, "there is no head that scores.");
    check_matrix(kName, "scores", output.scores, output.rows, weights.head->n,
                 output.scores_stride);
}

}  // namespace

Decoder::Decoder(std::unique_ptr<const Weights> weights) : weights_(std::move(weights)) {}

Decoder::~Decoder() = default;

DecoderPacker::DecoderPacker(const DecoderSource& source)
    : weights_(kName, std::make_unique<Weights>(source)) {}

DecoderPacker::~DecoderPacker() = default;

void DecoderPacker::add_block(const DecoderBlockSource& source) {
    weights_.with([&](Weights& weights) { weights.add_block(source); });
}

void DecoderPacker::set_head(const ProjectionSource& source) {
    weights_.with([&](Weights& weights) { weights.set_head(source); });
}

std::unique_ptr<Decoder> DecoderPacker::finish() {
    auto made = weights_.taken();
    made->packed.check_full();
    return std::make_unique<Decoder>(std::move(made));
}

void Decoder::run(const DecoderInput& input, const DecoderOutput& output, int threads) {
    threads = threads_of_pass(kName, weights_->isa, threads);
    check_input(*weights_, input);
    check_output(*weights_, input, output);
    const Indices indices(*weights_, input, output);
    Arenas::Loan arena(arenas_);
    // Laid out twice: once to learn the size, once in place.
    const index_t bytes = Buffers(*weights_, input, output, indices, threads, nullptr).bytes;
    const Buffers buffers(*weights_, input, output, indices, threads, arena.reserve(bytes));
    run_pass(*weights_, input, output, indices, buffers, threads);
}

Isa Decoder::isa() const { return weights_->isa; }

index_t Decoder::packed_bytes() const {
    index_t bytes = 0;
    for (const PackedProjection* p : weights_->projections()) bytes += p->packed_size;
    return bytes;
}

index_t Decoder::arena_bytes() const { return arenas_.bytes(); }

}  // namespace fastbert
