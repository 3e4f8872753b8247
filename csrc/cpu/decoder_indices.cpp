#include "cpu/decoder_indices.h"

#include <string>

#include "common/check.h"
#include "cpu/ops/embed.h"

namespace fastbert {
namespace decoder_detail {
namespace {

constexpr const char* kName = "decoder";

}  // namespace

Indices::Indices(const Weights& weights, const DecoderInput& input, const DecoderOutput& output) {
    const std::vector<std::int32_t> cu_seqlens(input.cu_seqlens,
                                               input.cu_seqlens + input.batch + 1);
    bool rises = cu_seqlens.front() == 0 && cu_seqlens.back() == input.total;
    for (index_t b = 0; b < input.batch; ++b) {
        rises = rises && cu_seqlens[b] <= cu_seqlens[b + 1];
    }
    if (!rises) {
        fail(kName, "cu_seqlens must begin with 0, never fall and end with the " +
                        std::to_string(input.total) + " tokens.");
    }
    cache_rows.reserve(static_cast<std::size_t>(input.total));
    for (index_t b = 0; b < input.batch; ++b) {
        add(input, b, cu_seqlens[b], cu_seqlens[b + 1] - cu_seqlens[b]);
    }
    if (input.ids != nullptr) {
        ids.assign(input.ids, input.ids + input.total);
        check_ids("word", ids.data(), input.total, weights.words.entries);
    }
    if (output.tokens == nullptr) return;
    tokens.assign(output.tokens, output.tokens + output.rows);
    check_ids("wanted token", tokens.data(), output.rows, input.total);
}

void Indices::add(const DecoderInput& input, index_t sequence, index_t first, index_t count) {
    const CachePlaces& cache = input.cache;
    const bool cached = cache.layers != nullptr;
    const index_t rows = cached ? cache.rows : input.total;
    const index_t place = cached ? cache.places[sequence] : first;
    const index_t held = cached ? cache.held[sequence] : 0;
    if (place < 0 || held < 0 || place > rows || held > rows - place ||
        count > rows - place - held) {
        fail(kName, "sequence " + std::to_string(sequence) + ", of " + std::to_string(held) +
                        " earlier tokens and " + std::to_string(count) + " new ones from row " +
                        std::to_string(place) + " on, does not fit into the " +
                        std::to_string(rows) + " rows of the cache.");
    }
    for (index_t t = 0; t < count; ++t) cache_rows.push_back(place + held + t);
    if (count == 1) single.push_back({first, place, held + 1});
    if (count > 1) longer.push_back({first, count, place, held + count});
}

}  // namespace decoder_detail
}  // namespace fastbert
