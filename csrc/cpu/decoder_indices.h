// What of a pass's input decides which memory is read or written: copied, then checked, so that a
// caller's other threads may write to their own meanwhile.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/decoder.h"
#include "cpu/decoder_weights.h"
#include "cpu/ops/attention_decode.h"

namespace fastbert {
namespace decoder_detail {

// A sequence with several new tokens: rows of the pass, and of a layer's memory.
struct LongSequence {
    index_t first, count;     // its new tokens
    index_t first_key, keys;  // the earlier tokens and those
};

struct Indices {
    std::vector<std::int64_t> ids;     // (total), or empty as in the input
    std::vector<std::int64_t> tokens;  // (rows of the output), or empty for all
    std::vector<index_t> cache_rows;   // (total): the rows of a layer's memory that they go to
    // Sequences with one new token, and those with more: computed by kernels of their own, whoever
    // else is in the batch.
    std::vector<DecodeSequence> single;
    std::vector<LongSequence> longer;

    // Throws std::invalid_argument and std::out_of_range as Decoder::run does.
    Indices(const Weights& weights, const DecoderInput& input, const DecoderOutput& output);

  private:
    void add(const DecoderInput& input, index_t sequence, index_t first, index_t count);
};

}  // namespace decoder_detail
}  // namespace fastbert
