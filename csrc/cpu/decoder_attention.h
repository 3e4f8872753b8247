// What a decoder does between its fused projection and its output projection.
#pragma once

#include "cpu/decoder_memory.h"
#include "cpu/team.h"

namespace fastbert {
namespace decoder_detail {

// Bytes of workspace that attend() needs; `buffers` is laid out up to it.
index_t attention_workspace_bytes(const Weights& weights, const DecoderInput& input,
                                  const Buffers& buffers, int threads);

// Normalises and rotates queries and keys, and writes keys and values to their places in a layer.
void norm_rope_and_store(const Weights& weights, const PackedBlock& block, const DecoderInput& input,
                         const Buffers& buffers, const CacheLayer& layer, const Team& team);

// Attention of all new tokens over what the layer then holds.
void attend(const Weights& weights, const DecoderInput& input, const Buffers& buffers,
            const CacheLayer& layer, const Team& team);

// TEMPORARY
void rms_rows(const RmsNorm& norm, const float* rows, float* out, index_t stride, index_t count,
              index_t width);

}  // namespace decoder_detail
}  // namespace fastbert
