// What a decoder does between its fused projection and its output projection.
#pragma once

#include "cpu/decoder_memory.h"
#include "cpu/team.h"

namespace fastbert {
namespace decoder_detail {

// Where queries, keys and values of a layer are.
struct AttentionSides {
    const DecoderShape& shape;
    const Buffers& buffers;
    const CacheLayer& layer;
};

// Bytes of workspace that attend() needs.
index_t attend_workspace_bytes(const DecoderShape& shape, const Indices& indices, int threads);

// Normalises and rotates queries and keys, and writes keys and values to their places in a layer.
void norm_rope_and_store(const AttentionSides& sides, const PackedBlock& block,
                         const DecoderInput& input, const Indices& indices, const Team& team);

// Attention of all new tokens over what the layer then holds.
void attend(const AttentionSides& sides, bool causal, const Indices& indices, const Team& team);

}  // namespace decoder_detail
}  // namespace fastbert
