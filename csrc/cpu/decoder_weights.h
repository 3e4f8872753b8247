// The weights of a decoder, packed for the instruction set in use, and checked once.
#pragma once

#include <memory>
#include <vector>

#include "cpu/decoder.h"
#include "cpu/isa.h"

namespace fastbert {
namespace decoder_detail {

struct RmsNorm {
    std::vector<float> weight;
    float eps = 0.0f;

    RmsNorm() = default;
    RmsNorm(const char* what, const RmsNormSource& source, index_t width);
};

struct PackedBlock {
    RmsNorm attention_norm, query_norm, key_norm, feedforward_norm;
    PackedProjection qkv, out, up, down;
    ActivationParams activation_params;
};

struct Weights {
    DecoderShape shape;
    std::vector<PackedBlock> blocks;
    TableSource words;  // read in place
    DType words_dtype;
    RmsNorm norm;
    std::unique_ptr<const PackedProjection> head;  // or null
    Isa isa;
    PackedMemory packed;

    explicit Weights(const DecoderSource& source);

    // Each checks and packs what it is given. Where it throws, the weights are of no further use.
    void add_block(const DecoderBlockSource& source);
    void set_head(const ProjectionSource& source);

    std::vector<const PackedProjection*> projections() const;
};

}  // namespace decoder_detail
}  // namespace fastbert
